"""Kernels on eight devices: each does its share of the batch, and nothing of it goes between them."""

import re

import cpu_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from redimnet_jax.nn.cuda.sharding import by_batch

BATCH = 16


def arrays(*shapes) -> list[np.ndarray]:
    return [np.random.default_rng(i).standard_normal(shape, np.float32) for i, shape in enumerate(shapes)]


def convolved(x, mask, taps, shift):
    inside = x if mask is None else x * mask[:, :, None, None]
    return jnp.einsum("btfc,tfc->btc", inside, taps) + shift, inside.sum((1, 2, 3))


# What takes which arrays, the first so many of which have the batch first.
CASES = {
    "maps and weights": (convolved, arrays((BATCH, 5, 3, 4), (BATCH, 5), (5, 3, 4), (4,)), 2),
    "no mask": (convolved, [*arrays((BATCH, 5, 3, 4)), None, *arrays((5, 3, 4), (4,))], 2),
    "a number": (lambda x, n: [x * n], [*arrays((BATCH, 5)), np.float32(3)], 1),
}


def each_device_does_its_share(function, operands, batched: int, devices: tuple[int, ...]) -> None:
    seen = []

    def watched(*operands):
        seen.append([x.shape[0] if i < batched else x.shape for i, x in enumerate(operands) if x is not None])
        return function(*operands)

    mesh = Mesh(np.array(jax.devices()).reshape(devices), ("batch", "other")[: len(devices)])
    by_first, whole = NamedSharding(mesh, P("batch")), NamedSharding(mesh, P())
    placed = [
        None if operand is None else jax.device_put(operand, by_first if i < batched else whole)
        for i, operand in enumerate(operands)
    ]
    compiled = jax.jit(lambda *x: by_batch(watched, *x, batched=batched)).lower(*placed).compile()
    share = BATCH // devices[0]
    assert seen[-1] == [share if i < batched else x.shape for i, x in enumerate(operands) if x is not None]
    assert not re.search(r"all-|collective-|reduce-scatter", compiled.as_text())
    for ours, theirs in zip(compiled(*placed), function(*operands), strict=True):
        assert ours.sharding.shard_shape(ours.shape)[0] == share
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def partial_sums_are_summed() -> None:
    """As of the kernels of gradients: those of every utterance, then their sum."""
    x, dy = arrays((BATCH, 5, 3), (BATCH, 5, 3))
    by_first = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), P("batch"))

    def gradient(x, dy):
        return by_batch(lambda x, dy: jnp.einsum("bti,bto->bio", x, dy), x, dy, batched=2).sum(0)

    ours = jax.jit(gradient)(*jax.device_put((x, dy), by_first))
    np.testing.assert_allclose(ours, np.einsum("bti,bto->io", x, dy), rtol=1e-5, atol=1e-5)


def on_eight_devices() -> None:
    assert jax.device_count() == 8
    for case in CASES.values():
        each_device_does_its_share(*case, (8,))
        each_device_does_its_share(*case, (4, 2))
    partial_sums_are_summed()


@pytest.mark.slow
def test_on_eight_devices():
    cpu_devices.call(__file__, "on_eight_devices", 8)


def test_on_one_device():
    for function, operands, batched in CASES.values():
        for ours, theirs in zip(by_batch(function, *operands, batched=batched), function(*operands), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
