"""GELU of bfloat16 maps against the exact one in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redimnet_jax.nn import activation, tpu_chip
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


def test_the_form_of_tpus_is_close():
    """Here its distribution is called directly; 1e4 and beyond must not overflow to NaN."""
    x = jnp.concatenate([X, jnp.array([-1e30, -1e4, 1e4, 1e30])])
    ours = x * activation._normal_cdf_by_tanh(x)
    np.testing.assert_allclose(ours[:-4], exact_gelu(X), rtol=0, atol=3.5e-5)
    np.testing.assert_array_equal(ours[-4:], x[-4:] * jnp.array([0, 0, 1, 1]))


@pytest.mark.parametrize(("chip", "difference"), [("", 3.5e-5), ("TPU v5 lite", 3.5e-5), ("TPU v6 lite", 1e-6)])
def test_the_scaled_forms_of_tpus_are_close(chip, difference):
    x = jnp.concatenate([X, jnp.array([-1e30, -1e4, 1e4, 1e30])])
    with tpu_chip.compiled_for(chip):
        inner, function, outer = activation.scaled_gelu()
    ours = outer * function(inner * x)
    np.testing.assert_allclose(ours[:-4], exact_gelu(X), rtol=0, atol=difference)
    np.testing.assert_allclose(ours[-4:], x[-4:] * jnp.array([0, 0, 1, 1]), rtol=1e-6, atol=0)
