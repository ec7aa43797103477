"""Typed settings: nested frozen dataclasses whose fields carry their range, unit and a sentence of help.

A section is a frozen dataclass. Each of its fields is another section or a leaf that `setting` declares:

    @dataclass(frozen=True)
    class Optimizer:
        \"\"\"AdamW and its schedule.\"\"\"

        learning_rate: float = setting(1e-3, above=0, help="Sets the peak learning rate of the schedule.")

A leaf is a bool, int, float, str or dict, a tuple of one of these, or any of them `| None`; a number may be `float |
tuple[float, ...]`, one or a list. Numbers must be finite.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from ml_collections import ConfigDict, config_dict

from redimnet_jax.errors import UserError
from redimnet_jax.setting_values import Setting, checked, refused, several, without_none


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A setting with its dotted key."""

    key: str
    kind: Any
    default: Any
    about: Setting


class Config(ConfigDict):
    """A ConfigDict that prints as plain YAML: in the declared order, and with tuples as lists."""

    if typing.TYPE_CHECKING:  # Its settings are not known before it is made.

        def __getattr__(self, attribute: str) -> Any: ...

        def __setattr__(self, attribute: str, value: Any) -> None: ...

    def __str__(self) -> str:
        return self.to_yaml(default_flow_style=None)

    __repr__ = __str__

    def to_yaml(self, **kwargs: Any) -> str:
        """Return YAML without Python's tags; `kwargs` are those of `yaml.safe_dump`."""
        options: dict[str, Any] = {"sort_keys": False} | kwargs
        return yaml.safe_dump(json.loads(self.to_json_best_effort()), **options)


def setting(default: Any, **about: Any) -> Any:
    """Declare a leaf with its default and the fields of `Setting`."""
    start: dict[str, Any] = {"default_factory": dict} if default == {} else {"default": default}
    return dataclasses.field(metadata={"setting": Setting(**about)}, **start)


def section(cls: Any) -> Any:
    """Declare a subsection with the defaults of `cls`."""
    return dataclasses.field(default_factory=cls)


def options_of(cls: type, about: Mapping[str, Setting], **changed: tuple[Any, Any]) -> type:
    """Make the section of the options of the dataclass `cls`, with its defaults and what is said `about` each.

    `changed` gives the (type, default) of fields where they differ from those of `cls`.
    """
    hints, made = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if field.init:
            kind, default = changed.get(field.name, (hints[field.name], field.default))
            made.append((field.name, kind, setting(default, **vars(about[field.name]))))
    return dataclasses.make_dataclass(cls.__name__, made, frozen=True, namespace={"__doc__": cls.__doc__})


def all_optional(cls: type, doc: str) -> type:
    """Make the section `cls` anew with None as the default of all of its leaves."""
    made = []
    for name, kind, field in _fields(cls):
        if dataclasses.is_dataclass(kind):
            made.append((name, kind, section(kind)))
        else:
            made.append((name, kind | None, setting(None, **vars(field.metadata["setting"]))))
    return dataclasses.make_dataclass(cls.__name__, made, frozen=True, namespace={"__doc__": doc})


def leaves(cls: Any, prefix: str = "") -> Iterator[Leaf]:
    """Yield every leaf of the section `cls` and of its subsections, in the declared order."""
    for name, kind, field in _fields(cls):
        if dataclasses.is_dataclass(kind):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            default = {} if field.default is dataclasses.MISSING else field.default
            yield Leaf(prefix + name, kind, default, field.metadata["setting"])


def sections(cls: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, first line of the docstring) of the section `cls`, whose key is "", and its subsections."""
    yield prefix, (cls.__doc__ or "").partition("\n")[0]
    for name, kind, _ in _fields(cls):
        if dataclasses.is_dataclass(kind):
            yield from sections(kind, f"{prefix}.{name}" if prefix else name)


def at(settings: Any, key: str) -> Any:
    """Return the value at a dotted key."""
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def to_config_dict(settings: Any) -> Config:
    """Return the locked ConfigDict of the settings; optional values are placeholders that know their type."""

    def plain(part: Any) -> dict[str, Any]:
        entries = {}
        for name, kind, _ in _fields(type(part)):
            value = getattr(part, name)
            if dataclasses.is_dataclass(kind):
                value = plain(value)
            elif (inner := without_none(kind)) is not kind or several(kind):
                reference = config_dict.placeholder(object if several(kind) else typing.get_origin(inner) or inner)
                reference.set(value)
                value = reference
            entries[name] = value
        return entries

    config = Config(plain(settings))
    config.lock()
    return config


def from_config_dict(
    cls: Any, config: Mapping[str, Any] | ConfigDict, prefix: str = "", root: type | None = None
) -> Any:
    """Return the section `cls` with the values of `config`; those that it lacks have their defaults.

    Raise UserError for an unknown key, which names the nearest ones, and for a value of a wrong type or range.
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


def nearest(key: str, cls: Any, count: int = 3) -> str:
    """Return which settings of `cls` are like a dotted key, or like its last part: "the nearest are a, b"."""

    def likeness(known: str) -> float:
        pairs = (key, known), (key.rpartition(".")[2], known.rpartition(".")[2])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    ranked = sorted((leaf.key for leaf in leaves(cls)), key=lambda known: (-likeness(known), len(known)))
    near = [known for known in ranked[:count] if likeness(known) >= 1.2] or ranked[:1]
    return f"the nearest {'are' if len(near) > 1 else 'is'} {', '.join(near)}"


def _fields(cls: type) -> Iterator[tuple[str, Any, dataclasses.Field]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        # Sections that are made at run time are no types for a checker, so their fields are declared as Any.
        made = hints[field.name] is Any
        yield field.name, field.default_factory if made else hints[field.name], field
