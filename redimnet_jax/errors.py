"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake the user can mend: one sentence saying what, where, and what to do."""
