"""Typed settings: nested frozen dataclasses whose fields carry their range, unit and a sentence of help.

A section is a frozen dataclass. Each of its fields is another section or a leaf that `setting` declares:

    @dataclass(frozen=True)
    class Optimizer:
        \"\"\"AdamW and its schedule.\"\"\"

        learning_rate: float = setting(1e-3, above=0, help="Sets the peak learning rate of the schedule.")

A leaf is a bool, int, float, str or dict, a tuple of one of these, or any of them `| None`. Numbers must be finite.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import yaml
from ml_collections import ConfigDict, config_dict

from redimnet_jax.errors import UserError

NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", dict: "a mapping"}
TYPES = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of a leaf besides its type and default; of a tuple the range is that of every element."""

    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    ordered: bool = False  # The elements must not decrease.

    def range(self) -> str:
        """The bounds in words ("at least 0 and below 1"), or "" without any."""
        names = ("at_least", "above", "at_most", "below")
        bounds = [(name.replace("_", " "), getattr(self, name)) for name in names]
        return " and ".join(f"{name} {bound:g}" for name, bound in bounds if bound is not None)

    def holds(self, value: float) -> bool:
        """Returns whether the number lies within the bounds."""
        return not (
            (self.at_least is not None and value < self.at_least)
            or (self.above is not None and value <= self.above)
            or (self.at_most is not None and value > self.at_most)
            or (self.below is not None and value >= self.below)
        )


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A setting with its dotted key."""

    key: str
    kind: Any
    default: Any
    about: Setting


class Config(ConfigDict):
    """A ConfigDict that prints as plain YAML: in the declared order, and with tuples as lists."""

    def __str__(self) -> str:
        return self.to_yaml(default_flow_style=None)

    def to_yaml(self, **kwargs: Any) -> str:
        """Returns YAML without Python's tags; `kwargs` are those of `yaml.safe_dump`."""
        return yaml.safe_dump(json.loads(self.to_json_best_effort()), **{"sort_keys": False} | kwargs)


def setting(default: Any, **about: Any) -> Any:
    """Declares a leaf with its default and the fields of `Setting`."""
    made = {"default_factory": dict} if default == {} else {"default": default}
    return dataclasses.field(metadata={"setting": Setting(**about)}, **made)


def section(cls: type) -> Any:
    """Declares a subsection with the defaults of `cls`."""
    return dataclasses.field(default_factory=cls)


def options_of(cls: type, about: Mapping[str, Setting], **changed: tuple[Any, Any]) -> type:
    """Makes the section of the options of the dataclass `cls`, with its defaults and what is said `about` each.

    `changed` gives the (type, default) of fields where they differ from those of `cls`.
    """
    hints, made = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if field.init:
            kind, default = changed.get(field.name, (hints[field.name], field.default))
            made.append((field.name, kind, setting(default, **vars(about[field.name]))))
    return dataclasses.make_dataclass(cls.__name__, made, frozen=True, namespace={"__doc__": cls.__doc__})


def all_optional(cls: type, doc: str) -> type:
    """Makes the section `cls` anew with None as the default of all of its leaves."""
    made = []
    for name, kind, field in _fields(cls):
        if dataclasses.is_dataclass(kind):
            made.append((name, kind, section(kind)))
        else:
            made.append((name, kind | None, setting(None, **vars(field.metadata["setting"]))))
    return dataclasses.make_dataclass(cls.__name__, made, frozen=True, namespace={"__doc__": doc})


def leaves(cls: type, prefix: str = "") -> Iterator[Leaf]:
    """Yields every leaf of the section `cls` and of its subsections, in the declared order."""
    for name, kind, field in _fields(cls):
        if dataclasses.is_dataclass(kind):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            default = {} if field.default is dataclasses.MISSING else field.default
            yield Leaf(prefix + name, kind, default, field.metadata["setting"])


def at(settings: Any, key: str) -> Any:
    """Returns the value at a dotted key."""
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def refused(key: str, value: Any, wanted: str) -> UserError:
    """Returns the error for a value that is not what is `wanted`."""
    return UserError(f"config.{key} is {shown(value)} but must be {wanted}; correct it.")


def shown(value: Any) -> str:
    """Returns the `repr` of a value, cut where it is long."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}..."


def to_config_dict(settings: Any) -> Config:
    """Returns the locked ConfigDict of the settings; optional values are placeholders that know their type."""

    def plain(part: Any) -> dict[str, Any]:
        entries = {}
        for name, kind, _ in _fields(type(part)):
            value = getattr(part, name)
            if dataclasses.is_dataclass(kind):
                value = plain(value)
            elif _inner(kind) is not kind:
                inner = _inner(kind)
                reference = config_dict.placeholder(typing.get_origin(inner) or inner)
                reference.set(value)
                value = reference
            entries[name] = value
        return entries

    return Config(plain(settings)).lock()


def from_config_dict(cls: type, config: Mapping[str, Any], prefix: str = "", root: type | None = None) -> Any:
    """Returns the section `cls` with the values of `config`; those that it lacks have their defaults.

    Raises UserError for an unknown key, which names the nearest ones, and for a value of a wrong type or range.
    """
    root = root or cls
    if not hasattr(config, "items"):
        raise refused(prefix.removesuffix("."), config, "a section of settings")
    entries, known = dict(config.items()), {name: (kind, field) for name, kind, field in _fields(cls)}
    for name in entries:
        if name not in known:
            raise UserError(f"The config has no setting {prefix}{name}; {nearest(f'{prefix}{name}', root)}.")
    values = {}
    for name, (kind, field) in known.items():
        if name in entries and dataclasses.is_dataclass(kind):
            values[name] = from_config_dict(kind, entries[name], f"{prefix}{name}.", root)
        elif name in entries:
            values[name] = checked(f"{prefix}{name}", kind, field.metadata["setting"], entries[name])
    return cls(**values)


def checked(key: str, kind: Any, about: Setting, value: Any) -> Any:
    """Returns `value` as its type `kind`; UserError when it is of another type or out of range."""
    try:
        return _converted(kind, about, value)
    except (TypeError, ValueError, OverflowError):
        raise refused(key, value, wanted(kind, about)) from None


def nearest(key: str, cls: type, count: int = 3) -> str:
    """Says which settings of `cls` are like a dotted key, or like its last part: "the nearest are a, b"."""

    def likeness(known: str) -> float:
        pairs = (key, known), (key.rpartition(".")[2], known.rpartition(".")[2])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    ranked = sorted((leaf.key for leaf in leaves(cls)), key=lambda known: (-likeness(known), len(known)))
    near = [known for known in ranked[:count] if likeness(known) >= 1.2] or ranked[:1]
    return f"the nearest {'are' if len(near) > 1 else 'is'} {', '.join(near)}"


def wanted(kind: Any, about: Setting) -> str:
    """Describes in words what a leaf must be."""
    inner = _inner(kind)
    if typing.get_origin(inner) is tuple:
        element, *more = typing.get_args(inner)
        number = "a list" if more == [...] else f"a list of {1 + len(more)}"
        text = f"{number}, each {_one(element, about)}"
        text += ", the lower first" if about.ordered else ""
    else:
        text = _one(inner, about)
    return text if inner is kind else f"{text}, or None"


def type_name(kind: Any) -> str:
    """Returns the type of a leaf as the reference shows it: "float or None", "list of int"."""
    inner = _inner(kind)
    if typing.get_origin(inner) is tuple:
        element, *more = typing.get_args(inner)
        name = f"list of {TYPES[element]}" if more == [...] else f"{1 + len(more)} × {TYPES[element]}"
    else:
        name = TYPES[inner]
    return name if inner is kind else f"{name} or None"


def _one(kind: type, about: Setting) -> str:
    if about.choices:
        return f"one of {', '.join(about.choices)}"
    return f"{NAMES[kind]} {about.range()}".strip()


def _fields(cls: type) -> Iterator[tuple[str, Any, dataclasses.Field]]:
    hints = typing.get_type_hints(cls)
    return ((field.name, hints[field.name], field) for field in dataclasses.fields(cls))


def _inner(kind: Any) -> Any:
    """The type without `| None`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
    return kind


def _converted(kind: Any, about: Setting, value: Any) -> Any:
    inner = _inner(kind)
    if value is None and inner is not kind:
        return None
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
    return value.to_dict() if isinstance(value, ConfigDict) else _instance(dict, Mapping)(value, about)


_CONVERT: dict[Any, Callable[[Any, Setting], Any]] = {
    bool: _instance(bool, bool),
    int: _number(int, Integral),
    float: _number(float, Real),
    str: _instance(str, str),
    dict: _mapping,
}
