"""Refusal of addresses where the path of a local file or folder is expected."""

import re
from collections.abc import Mapping
from typing import Any

from redimnet_jax.errors import UserError

# One slash suffices, since `pathlib` makes "gs:/bucket" of "gs://bucket". One letter would be a drive.
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def check(value: Any, name: str) -> None:
    """Raise UserError when `value`, which the user gave as `name`, is an address such as "gs://bucket/run"."""
    match = ADDRESS.match(str(value))
    if match:
        raise UserError(
            f"{name} is {str(value)!r} but {match[1]}:// addresses are not supported; give the path of a local or "
            "mounted file or folder."
        )


def check_all(values: Mapping[str, Any], prefix: str) -> None:
    """Run `check` on every string and path among `values`, whose names are the keys behind `prefix`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            check_all(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            check_all({str(index): item for index, item in enumerate(value)}, f"{prefix}{name}.")
        elif value is not None:
            check(value, prefix + name)
