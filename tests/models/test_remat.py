"""How blocks are executed: what is kept for the backward pass, and how long the program is, change nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from redimnet_jax.models import config as model_config
from redimnet_jax.models.blocks import Execution
from redimnet_jax.models.network import SpeakerNetwork

NETWORKS = {
    "redimnet": tiny.CONFIG | {"block_2d_type": "convnext_like", "stages_setup": [[2, 2, 1, [[3, 3]], None]]},
    "redimnet2": {"F": 16, "C": 4, "out_channels": 8, "stages_setup": [[[2, 1], 2, 1, [[3, 3]], None]]},
}
# The gradient of "redimnet" in float32 is 1e-4 from that in float64, in which all forms are equal to the bit.
ROUNDING = 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("arch", NETWORKS)
def test_less_is_kept_and_nothing_else_changes(arch):
    network = SpeakerNetwork(model_config.parse(arch, NETWORKS[arch]), rngs=nnx.Rngs(0))
    audio = 0.1 * jax.random.normal(jax.random.key(1), (2, 4800))

    def results(execution: Execution):
        network.backbone.execution = execution
        graph, parameters, rest = nnx.split(network, nnx.Param, ...)

        def loss(parameters):
            copy = nnx.merge(graph, parameters, rest, copy=True)
            embedding = copy(audio, train=True, key=jax.random.key(0))
            return jnp.sum(jnp.square(embedding)), nnx.state(copy, nnx.BatchStat)

        kept = jax.eval_shape(lambda parameters: jax.vjp(loss, parameters, has_aux=True)[1], parameters)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
        found = jax.tree.leaves(jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters))
        return size, np.concatenate([np.ravel(x) for x in found])

    all_kept, expected = results(Execution())
    kept, found = results(Execution(remat=True))
    assert kept < 0.9 * all_kept
    assert np.linalg.norm(found - expected) < ROUNDING * np.linalg.norm(expected)
    for execution in (Execution(scan=True), Execution(remat=True, scan=True)):
        kept_in_loop, found = results(execution)
        assert (kept_in_loop < 0.9 * all_kept) == execution.remat
        assert np.linalg.norm(found - expected) < ROUNDING * np.linalg.norm(expected)


def test_equal_blocks_are_one_in_a_loop():
    network = SpeakerNetwork(model_config.parse("redimnet", NETWORKS["redimnet"]), rngs=nnx.Rngs(0))
    audio = jnp.zeros((2, 4800))

    def loops(scan: bool) -> int:
        network.backbone.execution = Execution(scan=scan)
        graph, state = nnx.split(network)
        return str(jax.make_jaxpr(lambda state: nnx.merge(graph, state, copy=True)(audio))(state)).count(" scan[")

    assert loops(scan=True) == loops(scan=False) + 1
