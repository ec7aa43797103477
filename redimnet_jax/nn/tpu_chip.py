"""What a program for a TPU needs to know of its chip, besides the platform."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """`has_erf`: an instruction for erf, which is a polynomial elsewhere; `columns`: of a unit of its products."""

    has_erf: bool
    columns: int


EARLIER = Chip(has_erf=False, columns=128)
# By how `jax.Device.device_kind` begins. libtpu 0.0.42.1 writes the instruction for these and not for v3 to v5.
LATER = {"TPU v6": Chip(has_erf=True, columns=256), "TPU7": Chip(has_erf=True, columns=256)}

_compiled_for: contextvars.ContextVar[str] = contextvars.ContextVar("compiled_for", default="")


@contextlib.contextmanager
def compiled_for(device_kind: str) -> Iterator[None]:
    """Trace programs in this context for the chip of that `jax.Device.device_kind`, whatever this machine has."""
    token = _compiled_for.set(device_kind)
    try:
        yield
    finally:
        _compiled_for.reset(token)


def chip() -> Chip:
    """Return the chip for which programs are traced: that of `compiled_for`, or this machine's, or an earlier one."""
    kind = _compiled_for.get() or (jax.devices()[0].device_kind if jax.default_backend() == "tpu" else "")
    return next((chip for name, chip in LATER.items() if kind.startswith(name)), EARLIER)
