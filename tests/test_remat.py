"""What the backward pass does again: less is kept, and nothing else changes."""

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from redimnet_jax import model_config
from redimnet_jax.network import SpeakerNetwork


@pytest.mark.parametrize("name", ["v1_base", "v2_base"])
def test_less_is_kept_and_nothing_else_changes(name):
    case = checkpoints.case(name)
    network = SpeakerNetwork(model_config.parse(case.arch, case.model_config), rngs=nnx.Rngs(0))
    audio = 0.1 * jax.random.normal(jax.random.key(1), (2, 8000))

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
