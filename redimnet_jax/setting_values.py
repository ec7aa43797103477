"""The values of typed settings: their types and ranges, in words and as checks."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from ml_collections import ConfigDict

from redimnet_jax.errors import UserError

NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a mapping whose numbers are finite",
}
TYPES = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The help, unit and range of a leaf; the range of a tuple applies to every element."""

    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    ordered: bool = False  # The elements must not decrease.

    def range(self) -> str:
        """Return the bounds in words ("at least 0 and below 1"), or "" without any."""
        names = ("at_least", "above", "at_most", "below")
        bounds = [(name.replace("_", " "), getattr(self, name)) for name in names]
        return " and ".join(f"{name} {bound:.10g}" for name, bound in bounds if bound is not None)

    def holds(self, value: float) -> bool:
        """Return whether the number lies within the bounds."""
        return not (
            (self.at_least is not None and value < self.at_least)
            or (self.above is not None and value <= self.above)
            or (self.at_most is not None and value > self.at_most)
            or (self.below is not None and value >= self.below)
        )


def refused(key: str, value: Any, wanted: str) -> UserError:
    """Return the error for a value that is not what is `wanted`."""
    return UserError(f"config.{key} is {shown(value)} but must be {wanted}; correct it.")


def shown(value: Any) -> str:
    """Return the `repr` of a value, cut where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:  # Python does not print integers of thousands of digits.
        return "an enormous number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def checked(key: str, kind: Any, about: Setting, value: Any) -> Any:
    """Return `value` as its type `kind`; raise UserError when it is of another type or out of range."""
    try:
        return _converted(kind, about, value)
    except (TypeError, ValueError, OverflowError):
        raise refused(key, value, wanted(kind, about)) from None


def wanted(kind: Any, about: Setting) -> str:
    """Describe in words what a leaf must be."""
    inner = without_none(kind)
    if several(inner):
        text = f"{_one(single(inner), about)}, or a list of one or more"
    elif typing.get_origin(inner) is tuple:
        element, *more = typing.get_args(inner)
        number = "a list" if more == [...] else f"a list of {1 + len(more)}"
        text = f"{number}, each {_one(element, about)}"
        text += ", the lower first" if about.ordered else ""
    else:
        text = _one(inner, about)
    return text if inner is kind else f"{text}, or None"


def type_name(kind: Any) -> str:
    """Return the type of a leaf as the reference shows it: "float or None", "list of int"."""
    inner = without_none(kind)
    if several(inner):
        name = f"{TYPES[single(inner)]} or list of {TYPES[single(inner)]}"
    elif typing.get_origin(inner) is tuple:
        element, *more = typing.get_args(inner)
        name = f"list of {TYPES[element]}" if more == [...] else f"{1 + len(more)} × {TYPES[element]}"
    else:
        name = TYPES[inner]
    return name if inner is kind else f"{name} or None"


def _one(kind: type, about: Setting) -> str:
    if about.choices:
        return f"one of {', '.join(about.choices)}"
    return f"{NAMES[kind]} {about.range()}".strip()


def without_none(kind: Any) -> Any:
    """Return the type without `| None`."""
    members = _members(kind)
    if types.NoneType in members:
        (kind,) = (each for each in members if each is not types.NoneType)
    return kind


def several(kind: Any) -> bool:
    """Return whether the type is that of one value or a list, such as `float | tuple[float, ...]`."""
    return len(_members(kind)) > 1 and types.NoneType not in _members(kind)


def single(kind: Any) -> Any:
    """Return the type of one value, where a leaf may be one or a list."""
    (kind,) = (each for each in _members(kind) if typing.get_origin(each) is not tuple)
    return kind


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type alone."""
    union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if union else (kind,)


def _converted(kind: Any, about: Setting, value: Any) -> Any:
    inner = without_none(kind)
    if value is None and inner is not kind:
        return None
    if several(inner):
        if not isinstance(value, tuple | list):
            return _converted(single(inner), about, value)
        if not value:
            raise ValueError
        values = tuple(_converted(single(inner), about, each) for each in value)
        return values[0] if len(values) == 1 else values
    if typing.get_origin(inner) is not tuple:
        return _CONVERT[inner](value, about)
    if not isinstance(value, tuple | list):
        raise TypeError
    element, *more = typing.get_args(inner)
    values = tuple(_converted(element, about, each) for each in value)
    if (more != [...] and len(values) != 1 + len(more)) or (about.ordered and list(values) != sorted(values)):
        raise ValueError
    return values


def _number(kind: type, abstract: type) -> Callable[[Any, Setting], Any]:
    def convert(value: Any, about: Setting) -> Any:
        if isinstance(value, bool) or not isinstance(value, abstract):
            raise TypeError
        # Integers beyond 32 bits overflow in jax and in numpy's seeds.
        if not math.isfinite(value) or not about.holds(value) or (kind is int and abs(value) >= 2**31):
            raise ValueError
        return kind(value)

    return convert


def _instance(kind: type, abstract: type) -> Callable[[Any, Setting], Any]:
    def convert(value: Any, about: Setting) -> Any:
        if not isinstance(value, abstract):
            raise TypeError
        if about.choices and value not in about.choices:
            raise ValueError
        return kind(value)

    return convert


def _mapping(value: Any, about: Setting) -> dict[str, Any]:
    entries = value.to_dict() if isinstance(value, ConfigDict) else _instance(dict, Mapping)(value, about)
    json.dumps(entries, allow_nan=False, default=str)  # ValueError for NaN and infinities at any depth.
    return entries


_CONVERT: dict[Any, Callable[[Any, Setting], Any]] = {
    bool: _instance(bool, bool),
    int: _number(int, Integral),
    float: _number(float, Real),
    str: _instance(str, str),
    dict: _mapping,
}
