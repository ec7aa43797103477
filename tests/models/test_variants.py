"""The published variants have the numbers of parameters that their files have."""

import jax
import pytest
from flax import nnx

from redimnet_jax.models import config as model_config
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.variants import VARIANTS

PARAMETERS = {
    "redimnet2-b0": 1_127_316,
    "redimnet2-b1": 2_177_616,
    "redimnet2-b2": 3_697_920,
    "redimnet2-b3": 4_205_768,
    "redimnet2-b4": 6_692_000,
    "redimnet2-b5": 9_007_656,
    "redimnet2-b6": 12_459_296,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_redimnet2(name):
    config = model_config.parse(*VARIANTS[name])
    network = nnx.eval_shape(lambda: SpeakerNetwork(config, rngs=nnx.Rngs(0)))
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(network, nnx.Param)))
    # The files count the weights of the first aggregation, which is of one map: a constant here.
    assert parameters + config.channels == PARAMETERS[name]
