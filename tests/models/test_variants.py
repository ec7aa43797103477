"""The published variants have the numbers of parameters that their authors state."""

import math

import jax
import pytest
from flax import nnx

from redimnet_jax.models import config as model_config
from redimnet_jax.models.network import without_values
from redimnet_jax.models.variants import VARIANTS

# Of the authors' configurations of July 2026.
PARAMETERS = {
    "redimnet2-b0": 1_127_316,
    "redimnet2-b1": 2_177_616,
    "redimnet2-b2": 3_697_920,
    "redimnet2-b3": 4_205_768,
    "redimnet2-b4": 6_692_000,
    "redimnet2-b5": 9_007_656,
    "redimnet2-b6": 12_459_296,
    "redimnet2-b3-mix": 4_508_488,
    "redimnet2-b6-mix": 12_459_296,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    config = model_config.parse(*VARIANTS[name])
    network = without_values(config)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
    # The weights of the one map that the first stage has to aggregate are constant here, since their softmax is 1.
    assert count + network.backbone.stages[0].aggregate.w.size == PARAMETERS[name]
