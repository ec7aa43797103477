"""The forms that the library keeps for CUDA GPUs, here: chosen on a CPU, their kernels interpreted."""

import contextlib

import jax
from jax import lax
from jax.experimental import pallas as pl


@contextlib.contextmanager
def chosen(monkeypatch):
    """Gives the list of the names of kernels that programs traced within it consist of."""
    names, pallas_call = [], pl.pallas_call

    def interpreted(body, *, compiler_params, **arguments):
        names.append(body.func.__name__)
        return pallas_call(body, interpret=True, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pl, "pallas_call", interpreted)
        patch.setattr(lax, "platform_dependent", lambda *x, default, **forms: forms.get("cuda", default)(*x))
        # What was traced before holds the other forms, and the kernels as a GPU takes them.
        jax.clear_caches()
        yield names
    jax.clear_caches()
