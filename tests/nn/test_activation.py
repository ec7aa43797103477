"""GELU of bfloat16 maps against the exact one in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redimnet_jax.nn.activation import gelu

X = jnp.linspace(-12, 12, 4801)


def exact_gelu(x):
    return jax.nn.gelu(x, approximate=False)


@pytest.mark.slow
def test_values_and_derivatives():
    rounded = X.astype(jnp.bfloat16)
    value, backward = jax.vjp(gelu, rounded)
    expected, expected_backward = jax.vjp(exact_gelu, rounded.astype(jnp.float32))
    assert value.dtype == jnp.bfloat16
    np.testing.assert_allclose(value.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)
    (ours,), (theirs,) = backward(jnp.ones_like(rounded)), expected_backward(jnp.ones_like(X))
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=2**-8, atol=1e-6)


def test_float32_is_the_library_s():
    value, backward = jax.vjp(gelu, X)
    expected, expected_backward = jax.vjp(exact_gelu, X)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(backward(jnp.cos(X))[0], expected_backward(jnp.cos(X))[0], rtol=0, atol=5e-7)
