"""Models with random weights, for comparisons of two implementations."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax.models import config as model_config
from redimnet_jax.models.network import without_values
from redimnet_jax.models.speaker_model import Source, SpeakerModel


def random_model(arch: str, entries: dict) -> SpeakerModel:
    """Return a model of random weights and random running statistics, the same in every call."""
    config = model_config.parse(arch, entries)
    shapes = without_values(config)
    front_end = type(shapes.frontend)(config.F, config.hop_length, config.spec_params)
    rng = np.random.default_rng(0)
    for path, variable in nnx.iter_graph(shapes):
        if not isinstance(variable, nnx.Variable):
            continue
        name, shape = path[-1], variable.shape
        if path[0] == "frontend" and "spec_norm" not in path:
            value = getattr(front_end, name)[...]
        elif name == "var":
            value = rng.uniform(0.5, 1.5, shape)
        elif name == "scale":
            value = rng.normal(1, 0.2, shape)
        elif len(shape) > 1 and name != "w":
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        else:
            value = rng.normal(0, 0.2, shape)
        variable.set_value(jnp.asarray(value, jnp.float32))
    return SpeakerModel(shapes, entries, Source("random", "", "redimnet_jax"))
