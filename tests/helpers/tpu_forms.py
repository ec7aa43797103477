"""The forms that the library keeps for TPUs, chosen on a CPU."""

import contextlib

import jax
from jax import lax


@contextlib.contextmanager
def chosen(monkeypatch):
    """Gives the list of the names of the forms that were traced."""
    names = []

    def dependent(*operands, default, **forms):
        form = forms.get("tpu", default)
        names.append(getattr(form, "__name__", type(form).__name__))
        return form(*operands)

    with monkeypatch.context() as patch:
        patch.setattr(lax, "platform_dependent", dependent)
        # What was traced before holds the other forms.
        jax.clear_caches()
        yield names
    jax.clear_caches()
