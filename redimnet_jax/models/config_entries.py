"""Checks of single `model_config` entries, and their bounds.

A check takes (entry name, value) and returns the value that the configuration keeps. It raises a UserError that
names the entry, its value and the requirement.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from redimnet_jax.errors import UserError, shown, some_of

Check = Callable[[str, Any], Any]

# The bounds lie far beyond every published network, and near enough that no arithmetic on entries takes long or
# overflows.
MAX_INTEGER = 1_000_000
MAX_FFT = 65_536
MAX_KERNEL_SIZE = 1_000
MAX_KERNELS = 16
MAX_STAGES = 64
MAX_BLOCKS = 1_000
MIN_EPS = 1e-30  # Its inverse is a finite float32.


def wrong(name: str, value: Any, requirement: str) -> UserError:
    """Return the error for an entry `name` whose `value` does not meet `requirement`."""
    return UserError(f"model_config entry {name!r} is {shown(value)} but must be {requirement}; correct it.")


def refuse_unknown(names: Iterable[Any], known: Collection[str], where: str) -> None:
    """Raise UserError, which starts with `where`, when one of `names` is not in `known`."""
    unknown = sorted(set(names) - set(known), key=str)
    if unknown:
        raise UserError(
            f"{where}: {some_of(map(shown, unknown))}; remove or correct them (known: {', '.join(sorted(known))})."
        )


def entry(default: Any, check: Check | None = None) -> Any:
    """Return a dataclass field that is an entry of `model_config`.

    `check` is None where the value depends on other entries, so that `parse` checks it by itself.
    """
    return dataclasses.field(default=default, metadata={"check": check})


def entry_names(config: type) -> set[str]:
    """Return the names of the fields of dataclass `config` that `entry` declared."""
    return {field.name for field in dataclasses.fields(config) if "check" in field.metadata}


def check_fields(config: type, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked values of those `entries` whose field in dataclass `config` has a check of its own."""
    return {
        field.name: field.metadata["check"](field.name, entries[field.name])
        for field in dataclasses.fields(config)
        if field.metadata.get("check") is not None and field.name in entries
    }


def is_integer(value: Any) -> bool:
    """Return True for an int that is no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_list(value: Any) -> bool:
    """Return True for a sequence other than text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def is_integers(value: Any) -> bool:
    """Return True for a sequence of integers."""
    return is_list(value) and all(map(is_integer, value))


def is_sizes(value: Any) -> bool:
    """Return True for a pair of integers between 1 and MAX_KERNEL_SIZE."""
    return is_integers(value) and len(value) == 2 and min(value) >= 1 and max(value) <= MAX_KERNEL_SIZE


def integer(minimum: int = 1, maximum: int = MAX_INTEGER) -> Check:
    """Return the check for an integer from `minimum` to `maximum`."""

    def check(name: str, value: Any) -> int:
        if not is_integer(value) or value < minimum:
            raise wrong(name, value, f"an integer of at least {minimum}")
        if value > maximum:
            raise wrong(name, value, f"an integer of at least {minimum} and at most {maximum:,}")
        return value

    return check


def optional(check: Check, default: Any = None) -> Check:
    """Return `check` for a value that may be None, which `default` replaces."""
    return lambda name, value: default if value is None else check(name, value)


def boolean(name: str, value: Any) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


def number(name: str, value: Any) -> float:
    """Check for a finite number of moderate size; an int stays an int."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_INTEGER:
        raise wrong(name, value, f"a number of at most {MAX_INTEGER:,}")
    return value


def positive(name: str, value: Any) -> float:
    """Check for a number above zero."""
    if number(name, value) <= 0:
        raise wrong(name, value, "positive")
    return value


def rate(name: str, value: Any) -> float:
    """Check for a dropout rate."""
    if not 0.0 <= number(name, value) < 1.0:
        raise wrong(name, value, "a rate of at least 0 and below 1")
    return float(value)


def eps(name: str, value: Any) -> float:
    """Check for a small positive number whose inverse is finite."""
    if not MIN_EPS <= number(name, value) < 1:
        raise wrong(name, value, f"at least {MIN_EPS:g} and below 1")
    return value


def choice(choices: Collection[str]) -> Check:
    """Return the check for one of `choices`."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise wrong(name, value, f"one of {', '.join(choices)}")
        return value

    return check


def integer_range(name: str, value: Any) -> tuple[int, int]:
    """Check for two integers (low, high), where high is exclusive."""
    if not is_integers(value) or len(value) != 2 or not 0 <= value[0] < value[1] <= MAX_INTEGER:
        raise wrong(name, value, f"two integers, 0 <= low < high <= {MAX_INTEGER:,}")
    return value[0], value[1]
