"""The form of attention for TPUs against the plain one, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpu_forms

from redimnet_jax.nn.attention import attention


def value_and_gradients(q, k, v, mask):
    def functional(q, k, v):
        y = attention(q, k, v, mask, 2)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)), y

    gradients, y = jax.grad(functional, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return y, *gradients


@pytest.mark.parametrize("masked", [False, True])
def test_divided_last_it_is_the_same(masked, monkeypatch):
    """Also where logits are far apart, and their exponentials would overflow."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((3, 7, 10)), jnp.float32) for _ in range(3))
    q = q * jnp.array([0.0, 1.0, 1e3])[:, None, None]
    mask = jnp.arange(7) < jnp.array([7, 4, 1])[:, None] if masked else None
    plain = value_and_gradients(q, k, v, mask)
    with tpu_forms.chosen(monkeypatch):
        ours = value_and_gradients(q, k, v, mask)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()))
