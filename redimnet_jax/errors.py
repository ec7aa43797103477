"""The one exception that a user is meant to read, and the parts its sentence is made of."""

import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

_LONGEST = 100  # characters of a value in a message
_ARGUMENT = re.compile(r"`([a-z][a-z0-9_]*)`")
_CUT = "\u2026"  # where a value is cut: an ellipsis, which nobody takes for the end of the sentence


class UserError(Exception):
    """A mistake the user can mend: one sentence saying what, where, and what to do."""


class ArgumentError(UserError):
    """A UserError about arguments, whose names stand in backticks in `template`, as in "`top_k` is 0 but ...".

    The message has the names without backticks. A caller whose users know the arguments by other names, such as
    flags or settings, reports `renamed` in its place.
    """

    def __init__(self, template: str):
        super().__init__(_ARGUMENT.sub(r"\1", template))
        self.template = template

    def renamed(self, names: Mapping[str, str]) -> UserError:
        """Return the error with every argument that is a key of `names` under its name there."""
        return UserError(_ARGUMENT.sub(lambda match: names.get(match[1], match[1]), self.template))


def some_of(names: Iterable[Any], most: int = 5) -> str:
    """Join `names` with commas, each cut to 100 characters; after the first `most` says how many more there are."""
    names = list(names)
    shown = [_shortened(str(name)) for name in names[:most]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


class _Repr(reprlib.Repr):
    """A bounded `repr`: neither deep nor shared nor long values take long or much room."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _LONGEST
        self.fillvalue = _CUT

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write thousands of digits, and they say nothing.
        return repr(x) if x.bit_length() <= 128 else f"a number of {x.bit_length()} bits"


def shown(value: Any) -> str:
    """Return the `repr` of any `value`, cut to 100 characters, in time that does not depend on the value's size."""
    return _shortened(_Repr().repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}{_CUT}"
