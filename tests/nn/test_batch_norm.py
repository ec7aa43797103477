"""The derivative of batch normalisation against that through mean and variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redimnet_jax.nn.normalization import BatchNorm, batch_statistics, normalized_by_batch

EPS = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_derivative(masked):
    x, dy = (jax.random.normal(jax.random.key(i), (3, 7, 4, 5)) + 3 for i in range(2))
    scale, bias = (jax.random.normal(jax.random.key(i), (5,)) for i in (2, 3))
    mask = jnp.arange(7)[None] < jnp.array([7, 4, 2])[:, None] if masked else None

    def plain(x, scale, bias):
        mean, var, _ = batch_statistics(x, mask)
        return (x - mean) * (scale * jax.lax.rsqrt(var + EPS)) + bias

    expected, backward = jax.vjp(plain, x, scale, bias)
    value, ours = jax.vjp(lambda *inputs: normalized_by_batch(inputs[0], mask, *inputs[1:], EPS)[0], x, scale, bias)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    for a, b in zip(ours(dy), backward(dy), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * float(jnp.abs(b).max()))


def test_gain_of_a_batch_keeps_the_same_statistics():
    x = jax.random.normal(jax.random.key(0), (3, 7, 5)) + 3
    one, other = BatchNorm(5), BatchNorm(5)
    y = one(x, train=True)
    mean, var, count = batch_statistics(x, None)
    np.testing.assert_allclose(y, (x - mean) * other.gain_of_batch(mean, var, count), atol=1e-6)
    for name in ("mean", "var"):
        np.testing.assert_array_equal(getattr(one, name)[...], getattr(other, name)[...])
