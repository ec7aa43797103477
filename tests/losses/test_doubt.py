"""Weights of examples whose label is in doubt."""

import jax.numpy as jnp
import numpy as np
import pytest

from redimnet_jax.losses.doubt import Doubt, trimmed

LOSSES = jnp.array([3.0, 9.0, 1.0, 5.0, 7.0])


def test_the_largest_losses_are_left_out():
    np.testing.assert_array_equal(Doubt(trim=0.4).weights(LOSSES), [1, 0, 1, 1, 0])
    np.testing.assert_array_equal(Doubt(trim=0.1).weights(LOSSES), np.ones(5))
    np.testing.assert_array_equal(Doubt(trim=0.99).weights(LOSSES), [0, 0, 1, 0, 0])
    # Of equal losses all count.
    np.testing.assert_array_equal(Doubt(trim=0.4).weights(jnp.array([1.0, 2.0, 2.0, 2.0, 3.0])), [1, 1, 1, 1, 0])
    assert [trimmed(share, 100) for share in (0.0, 0.29, 0.3, 0.999)] == [0, 29, 30, 99]


def test_minor_examples_weigh_less():
    minor = jnp.array([True, True, False, False, False])
    np.testing.assert_allclose(Doubt(minor_weight=0.25).weights(LOSSES, minor), [0.25, 0.25, 1, 1, 1])
    np.testing.assert_allclose(Doubt(trim=0.2, minor_weight=0.5).weights(LOSSES, minor), [0.5, 0, 1, 1, 1])


@pytest.mark.parametrize("active", [False, jnp.array(False)])
def test_nothing_is_in_doubt_before_the_time(active):
    doubt = Doubt(trim=0.4, minor_weight=0.0, active=active)
    np.testing.assert_array_equal(doubt.weights(LOSSES, jnp.ones(5, bool)), np.ones(5))
