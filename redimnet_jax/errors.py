"""The one exception that a user is meant to read, and the parts its sentence is made of."""

_LONGEST = 100  # characters of a value in a message
_CUT = "\u2026"  # where a value is cut: an ellipsis, which nobody takes for the end of the sentence


class UserError(Exception):
    """A mistake the user can mend: one sentence saying what, where, and what to do."""
