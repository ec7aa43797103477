"""One training step of a network, with what the golden cases hold of it."""

import compiling
import jax
from flax import nnx

from redimnet_jax.losses.classification import AAMSoftmax


def training_step(network, prototypes, audio, labels, margin, scale):
    """(loss, embeddings, gradients by path, prototypes' gradient, batch statistics by path)."""
    graph, parameters, rest = nnx.split(network, nnx.Param, ...)

    @compiling.jit
    def step(parameters, prototypes):
        def loss(parameters, prototypes):
            model = nnx.merge(graph, parameters, rest, copy=True)
            embeddings = model(audio, train=True)
            statistics = nnx.state(model, nnx.BatchStat)
            value = AAMSoftmax(margin, scale)(embeddings, labels, {"prototypes": prototypes})
            return value, (embeddings, statistics)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(parameters, prototypes)

    (value, (embeddings, statistics)), (gradients, prototypes_gradient) = step(parameters, prototypes)
    by_path = {path: leaf[...] for tree in (gradients, statistics) for path, leaf in nnx.to_flat_state(tree)}
    return value, embeddings, prototypes_gradient, by_path
