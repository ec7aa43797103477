"""What the backward pass does again: less is kept, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from redimnet_jax.models import config as model_config
from redimnet_jax.models.network import SpeakerNetwork

NETWORKS = {
    "redimnet": tiny.CONFIG | {"block_2d_type": "convnext_like", "stages_setup": [[2, 2, 1, [[3, 3]], None]]},
    "redimnet2": {"F": 16, "C": 4, "out_channels": 8, "stages_setup": [[[2, 1], 2, 1, [[3, 3]], None]]},
}


@pytest.mark.slow
@pytest.mark.parametrize("arch", NETWORKS)
def test_less_is_kept_and_nothing_else_changes(arch):
    network = SpeakerNetwork(model_config.parse(arch, NETWORKS[arch]), rngs=nnx.Rngs(0))
    audio = 0.1 * jax.random.normal(jax.random.key(1), (2, 4800))

    def results(remat: bool):
        network.backbone.remat = remat
        graph, parameters, rest = nnx.split(network, nnx.Param, ...)

        def loss(parameters):
            copy = nnx.merge(graph, parameters, rest, copy=True)
            embedding = copy(audio, train=True, key=jax.random.key(0))
            return jnp.sum(jnp.square(embedding)), nnx.state(copy, nnx.BatchStat)

        kept = jax.eval_shape(lambda parameters: jax.vjp(loss, parameters, has_aux=True)[1], parameters)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
        found = jax.tree.leaves(jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters))
        return size, np.concatenate([np.ravel(x) for x in found])

    (all_kept, expected), (kept, found) = results(False), results(True)
    assert kept < 0.9 * all_kept
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
