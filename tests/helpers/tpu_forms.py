"""The forms that the library keeps for TPUs, chosen on a CPU."""

import contextlib

import jax
from jax import lax

from redimnet_jax.nn import tpu_chip


@contextlib.contextmanager
def chosen(monkeypatch, chip: str = ""):
    """Gives the list of the names of the forms that were traced for `chip`, a `jax.Device.device_kind`."""
    names = []

    def dependent(*operands, default, **forms):
        form = forms.get("tpu", default)
        names.append(getattr(form, "__name__", type(form).__name__))
        return form(*operands)

    with monkeypatch.context() as patch, tpu_chip.compiled_for(chip):
        patch.setattr(lax, "platform_dependent", dependent)
        # What was traced before holds the other forms.
        jax.clear_caches()
        yield names
    jax.clear_caches()
