"""Averages of weights: the moving one by its formula, and the mean of kept models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from redimnet_jax.checkpoints import native
from redimnet_jax.training import averaging


def test_the_moving_average_follows_its_formula():
    rng = np.random.default_rng(0)
    averages = {"a": jnp.zeros(3), "b": jnp.ones((2, 2))}
    wanted = {name: np.asarray(value, np.float64) for name, value in averages.items()}
    for step in range(30):
        values = {name: jnp.asarray(rng.normal(size=value.shape), jnp.float32) for name, value in averages.items()}
        averages = jax.jit(averaging.moved, static_argnums=2)(averages, values, 0.6, jnp.asarray(step))
        decay = min(0.6, (1 + step) / (10 + step))
        wanted = {name: decay * wanted[name] + (1 - decay) * np.asarray(values[name]) for name in wanted}
        for name in wanted:
            np.testing.assert_allclose(averages[name], wanted[name], rtol=1e-5, atol=1e-6)


def test_no_averages_stay_none():
    assert averaging.moved({}, {"a": jnp.ones(3)}, 0.9, jnp.asarray(0)) == {}


def test_the_mean_keeps_what_is_equal_to_the_bit():
    rng = np.random.default_rng(0)
    same = rng.normal(size=1000).astype(np.float32)
    models = [{"same": same, "other": rng.normal(size=10).astype(np.float32)} for _ in range(3)]
    found = averaging.mean(models)
    assert found["same"].tobytes() == same.tobytes() and found["other"].dtype == np.float32
    np.testing.assert_allclose(found["other"], np.mean([m["other"] for m in models], axis=0), rtol=1e-6)


@pytest.mark.slow
def test_the_newest_models_are_kept_and_averaged(tmp_path):
    model = tiny.model()
    kernels = {}
    for step in (4, 8, 12, 12):
        kernels[step] = jnp.full_like(model.network.linear.kernel[...], step)
        model.network.linear.kernel.set_value(kernels[step])
        averaging.keep_snapshot(model, tmp_path, step, count=2, after=-1)
    assert averaging.snapshots(tmp_path, 0) == [8, 12]
    assert float(averaging.mean_of_snapshots(tmp_path, [8, 12])["linear.kernel"].mean()) == 10.0
    # A run that goes on from an earlier checkpoint leaves nothing of what came after it, nor of a former stage.
    averaging.keep_snapshot(model, tmp_path, 10, count=2, after=8)
    assert averaging.snapshots(tmp_path, 0) == [10]
    found = averaging.mean_of_snapshots(tmp_path, [10])
    assert all(np.array_equal(found[name], value) for name, value in native.flat(model.network).items())
    with pytest.raises(KeyError):
        averaging.mean([found, {}])
