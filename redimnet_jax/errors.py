"""The one exception that a user is meant to read."""

from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: one sentence saying what, where, and what to do."""


def some_of(names: Iterable[str], most: int = 3) -> str:
    """Returns the first `most` of `names` for a sentence: "a, b, c and 12 more"."""
    names = list(names)
    listed = ", ".join(map(str, names[:most]))
    return f"{listed} and {len(names) - most:,} more" if len(names) > most else listed
