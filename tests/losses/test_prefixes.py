"""Weights of prefixes by duration and at random, and gradients scaled by element."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redimnet_jax.losses import prefixes
from redimnet_jax.losses.prefixes import Durations


def test_a_prefix_counts_most_for_crops_of_its_duration():
    durations = Durations((1.0, 2.0, 4.0), sharpness=2.0)
    # The ratios of the durations, squared, times the weights.
    for seconds, ratios in ((1.0, (1, 1 / 2, 1 / 4)), (2.0, (1 / 2, 1, 1 / 2)), (8.0, (1 / 8, 1 / 4, 1 / 2))):
        expected = np.array([3.0, 1.0, 2.0]) * np.square(ratios)
        np.testing.assert_allclose(durations.weights((3.0, 1.0, 2.0), seconds), expected / expected.sum(), rtol=1e-5)
    assert float(durations.weights((0.0, 1.0, 1.0), 1.0)[0]) == 0
    # With the sharpest weights the nearest duration is left, and nothing is NaN.
    sharp = Durations((1.0, 2.0, 4.0), sharpness=1000.0)
    np.testing.assert_allclose(sharp.weights((1.0, 1.0, 1.0), 2.5), (0, 1, 0), atol=1e-6)


def test_sampling_takes_so_many_of_the_weights_above_zero():
    weights = (1.0, 0.0, 3.0, 2.0)
    drawn = np.stack([prefixes.sample(weights, 2, jax.random.key(seed)) for seed in range(60)])
    assert ((drawn > 0).sum(axis=1) == 2).all() and (drawn[:, 1] == 0).all()
    assert all(
        set(np.unique(column)) == {0.0, weight} for column, weight in zip(drawn.T, weights, strict=True) if weight
    )
    assert len(np.unique(drawn, axis=0)) == 3


def test_gradient_factors_undo_the_number_of_prefixes():
    dims = (2, 4, 8)
    factors = prefixes.gradient_factors(dims, (1.0, 1.0, 1.0))
    assert factors == pytest.approx([(1 / 3) / (5.6666667 / 8), (1 / 2) / (5.6666667 / 8), 1 / (5.6666667 / 8)])
    assert np.repeat(factors, (2, 2, 4)).mean() == pytest.approx(1.0)
    weighted = prefixes.gradient_factors(dims, (3.0, 1.0, 1.0))
    assert weighted[2] / weighted[0] == pytest.approx(5.0)


def test_a_scaled_gradient_leaves_the_value():
    x, factors = jnp.array([[1.0, -2.0, 3.0]]), jnp.array([0.5, 1.0, 4.0])
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(jnp.square(prefixes.scale_gradient(x, factors))))(x)
    assert float(value) == 14.0
    np.testing.assert_array_equal(gradient, 2 * x * factors)
