"""The smallest network and runs that the tests of training share."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax.models import config as model_config
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel

CONFIG = {
    "F": 16,
    "C": 4,
    "hop_length": 320,
    "stages_setup": [[2, 1, 1, [[3, 3]], None]],
    "block_1d_type": "conv",
    "block_2d_type": "convnext_like_relu",
    "group_divisor": None,
    "pooling_func": "ASTP",
    "out_channels": 12,
    "embed_dim": 8,
}
DIMS = (4, 8, 12)


def model(**changes) -> SpeakerModel:
    """A pretrained model: random weights, and batch statistics that are none of a new network's."""
    config = CONFIG | changes
    network = SpeakerNetwork(model_config.parse("redimnet", config), dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, leaf in nnx.to_flat_state(nnx.state(network, nnx.BatchStat)):
        leaf.set_value(jnp.asarray(rng.uniform(0.5, 2.0, leaf.get_value().shape), jnp.float32))
    for norm in filter(None, (network.bn, network.bn2)):
        norm.scale.set_value(jnp.asarray(rng.uniform(0.5, 2.0, norm.scale.shape), jnp.float32))
        norm.bias.set_value(jnp.asarray(rng.normal(size=norm.bias.shape), jnp.float32))
    return SpeakerModel(network, config, Source("tiny", "", "redimnet"))


def batch(rows: int, samples: int = 4800, classes: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """{"waveform": (rows, samples), "label": (rows,)} of noise."""
    rng = np.random.default_rng(seed)
    waveform = 0.1 * rng.standard_normal((rows, samples)).astype(np.float32)
    return {"waveform": waveform, "label": rng.integers(0, classes, rows).astype(np.int32)}
