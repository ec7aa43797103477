"""What every device computes of its own rows: values and gradients of one device, and one exchange of gradients."""

import re

import cpu_devices
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.nn.layers import dropout
from redimnet_jax.nn.normalization import batch_statistics, normalized_by_batch

DEVICES, ROWS, FRAMES, FEATURES = 4, 8, 5, 3


def network(rows, whole):
    """Both forms of a batch normalization, and random numbers."""
    x, mask = rows
    scale, bias, frozen, key = whole
    y, (mean, var, _) = normalized_by_batch(x, mask, scale, bias, 1e-5)
    y = dropout(y, 0.3, train=True, key=key) * frozen
    of_y, var_of_y, count = batch_statistics(y, mask)
    return (y - of_y) * jax.lax.rsqrt(var_of_y + 1e-5), (mean, var, count)


def results(devices: int):
    """(value, statistics and gradients) of the network on `devices`, and the text of its program."""
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, (ROWS, FRAMES, FEATURES)).astype(np.float32)
    mask = np.arange(FRAMES) < rng.integers(1, FRAMES + 1, (ROWS, 1))
    target = rng.standard_normal(x.shape, np.float32)
    scale, bias, frozen = rng.standard_normal((3, FEATURES), np.float32)

    def loss(scale, bias, x, mask):
        y, statistics = sharding.map_rows(network, (x, mask), (scale, bias, frozen, jax.random.key(1)))
        return jnp.square(y - target).mean(), statistics

    mesh = Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))
    whole, by_rows = sharding.replicated(mesh), sharding.by_rows(mesh)
    program = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), in_shardings=(whole, whole, by_rows, by_rows)
    )
    with jax.set_mesh(mesh):
        compiled = program.lower(scale, bias, x, mask).compile()
        return jax.device_get(compiled(scale, bias, x, mask)), compiled.as_text()


def many_devices_agree_with_one() -> None:
    one, alone = results(1)
    many, text = results(DEVICES)
    assert not re.search(r"all-reduce|all-gather", alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), one, many)
    # Scale and bias go together, and the frozen array has no gradient.
    assert f"f32[{2 * FEATURES}]" in " ".join(re.findall(r".* all-reduce\(.*", text))
    assert not re.search(rf"f32\[{3 * FEATURES}\].* all-reduce\(", text)


def test_on_four_devices():
    cpu_devices.call(__file__, "many_devices_agree_with_one", DEVICES)
