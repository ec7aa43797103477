"""The Matryoshka heads: an AAM-Softmax over the training speakers for every prefix of the embedding."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax.losses import aam_softmax, cosines, unit

Array = jax.Array


class Heads(nnx.Module):
    """Prototypes (classes, dim) for every prefix width in `dims`: each its own, or with `shared` one matrix, sliced.

    They are trained with the projection and are part of every training checkpoint.
    """

    def __init__(self, classes: int, dims: Sequence[int], *, shared: bool = False, rngs: nnx.Rngs):
        self.classes, self.dims, self.shared = classes, tuple(dims), shared
        widths = self.dims[-1:] if shared else self.dims
        draw = jax.nn.initializers.glorot_uniform()
        self.prototypes = nnx.List([nnx.Param(draw(rngs.params(), (classes, width))) for width in widths])

    def start_at_means(self, embeddings: np.ndarray, labels: np.ndarray) -> int:
        """Puts every class's prototypes at the mean of its unit prefixes; returns how many classes that reached.

        `embeddings` (crops, dims[-1]) with `labels` (crops,). A class without a crop keeps its random prototypes.
        """
        present, index = np.unique(labels, return_inverse=True)
        for prototypes in self.prototypes:
            width = prototypes.shape[1]
            sums = np.zeros((len(present), width))
            np.add.at(sums, index, np.asarray(unit(jnp.asarray(embeddings[:, :width]))))
            means = jnp.asarray(sums / np.bincount(index)[:, None], jnp.float32)
            prototypes.set_value(prototypes[...].at[present].set(means))
        return len(present)

    def of(self, index: int) -> Array:
        """The prototypes (classes, dims[index])."""
        return self.prototypes[0][:, : self.dims[index]] if self.shared else self.prototypes[index][...]

    def loss(
        self,
        embedding: Array,
        labels: Array,
        *,
        weights: Sequence[float],
        margin: float | Array,
        scale: float,
        easy_margin: bool = False,
    ) -> tuple[Array, dict[str, Array]]:
        """(loss, figures of each prefix) of `embedding` (batch, dims[-1]) and integer `labels` (batch,).

        The loss is the weighted mean over the prefixes of their AAM-Softmax losses (arXiv 2205.13147, equation 1,
        divided by the sum of the weights, so that it is comparable with the loss of one plain head). Prefixes are
        cut first and normalised after. The figures, `loss` and `accuracy`, are (len(dims),) float32; accuracy is that
        of the nearest prototype, without margin.
        """
        losses, hits = [], []
        for index, dim in enumerate(self.dims):
            prefix, prototypes = embedding[:, :dim], self.of(index)
            losses.append(
                aam_softmax(prefix, prototypes, labels, margin=margin, scale=scale, easy_margin=easy_margin)
            )
            hits.append(jnp.mean(jnp.argmax(cosines(prefix, prototypes), axis=1) == labels))
        losses, share = jnp.stack(losses), jnp.asarray(weights, jnp.float32)
        figures = {"loss": losses, "accuracy": jnp.stack(hits).astype(jnp.float32)}
        return jnp.sum(losses * share) / jnp.sum(share), figures
