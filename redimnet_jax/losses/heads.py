"""The Matryoshka heads: a loss with parameters of its own for every prefix of the embedding."""

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax import sharding
from redimnet_jax.errors import UserError
from redimnet_jax.losses import sharded_heads
from redimnet_jax.losses.classification import AAMSoftmax, Classification, SubcenterAAM, check_labels
from redimnet_jax.losses.distillation import score_distance
from redimnet_jax.losses.doubt import Doubt
from redimnet_jax.losses.objective import Loss, Margin, by_prefix, losses_of_prefixes
from redimnet_jax.losses.prefixes import scale_gradient
from redimnet_jax.numerics import unit

Array = jax.Array


class Heads(nnx.Module):
    """The parameters of `criterion` over `classes` for every prefix width in `dims`.

    Each prefix has parameters of its own; with `shared`, all use those of the widest and slice its prototypes. They
    are trained with the projection and are part of every training checkpoint. `margins`, one for each prefix, replace
    the margin of `criterion`.
    """

    def __init__(
        self,
        classes: int,
        dims: Sequence[int],
        criterion: Loss | None = None,
        *,
        shared: bool = False,
        margins: Sequence[float] | None = None,
        rngs: nnx.Rngs,
    ):
        self.classes, self.dims, self.shared = classes, tuple(dims), shared
        self.criterion = criterion or AAMSoftmax()
        self.criteria = losses_of_prefixes(self.criterion, len(self.dims), margins)
        self.parameters = nnx.List(
            nnx.Dict(
                {name: nnx.Param(x) for name, x in self.criterion.parameters(classes, dim, rngs.params()).items()}
            )
            for dim in (self.dims[-1:] if shared else self.dims)
        )

    @property
    def have_prototypes(self) -> bool:
        """True for losses over classes."""
        return all("prototypes" in parameters for parameters in self.parameters)

    def start_at_means(self, embeddings: np.ndarray, labels: np.ndarray) -> int:
        """Move every class's prototypes to the mean of its unit prefixes; return the number of classes moved.

        `embeddings` (crops, dims[-1]) with `labels` (crops,). A class without a crop keeps its random prototypes; of
        several sub-centers only the first is moved; the others stay random, for crops far from the mean.
        """
        present, index = np.unique(labels, return_inverse=True)
        for parameters in self.parameters:
            prototypes = parameters["prototypes"]
            width = prototypes.shape[-1]
            sums = np.zeros((len(present), width))
            np.add.at(sums, index, np.asarray(unit(jnp.asarray(embeddings[:, :width]))))
            means = jnp.asarray(sums / np.bincount(index)[:, None], jnp.float32)
            of_class = prototypes[...].reshape(self.classes, -1, width)
            prototypes.set_value(of_class.at[present, 0].set(means).reshape(prototypes.shape))
        return len(present)

    def start_at_rows(self, other: "Heads", rows: np.ndarray) -> None:
        """Take over the parameters of `other`: of its prototypes those of the classes `rows`, int (classes,).

        Parameters that `other` lacks, such as a bias, stay as they are. Raises UserError when `other` has no head of
        one of the widths, or prototypes of other shapes.
        """
        for dim, parameters in zip(self.dims[-1:] if self.shared else self.dims, self.parameters, strict=True):
            if dim not in other.dims:
                raise UserError(f"there is none of {dim} dimensions, only of {', '.join(map(str, other.dims))}.")
            theirs = other.of(other.dims.index(dim))
            for name in parameters.keys() & theirs.keys():
                taken = theirs[name][rows] if name == "prototypes" else theirs[name]
                own = parameters[name][...]
                if taken.shape != own.shape:
                    raise UserError(f"their {name} have the shape {taken.shape} and here {own.shape}.")
                parameters[name].set_value(jnp.asarray(taken, own.dtype))

    def of(self, index: int) -> dict[str, Array]:
        """Return the parameters of the loss for dims[index]."""
        if not self.shared:
            return {name: value[...] for name, value in self.parameters[index].items()}
        arrays = {name: value[...] for name, value in self.parameters[0].items()}
        return arrays | {"prototypes": arrays["prototypes"][..., : self.dims[index]]}

    def loss(
        self,
        embedding: Array,
        labels: Array,
        *,
        weights: Sequence[float] | Array,
        margin: Margin | None = None,
        consistency: float = 0.0,
        gradient_factors: Sequence[float] | None = None,
        doubt: Doubt | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Return the loss of `embedding` (batch, dims[-1]) and integer `labels` (batch,), and figures of each prefix.

        The loss is the weighted mean over the prefixes of their losses (arXiv 2205.13147, equation 1, divided by the
        sum of the weights, so that it is comparable with the loss of one plain head), plus `consistency` times
        `inconsistency`. Prefixes are cut before they are normalised. `margin` is one of all prefixes or a tuple with
        one for each; None is the criterion's own. `gradient_factors`, one for the elements that each prefix adds,
        multiply the gradient of the prefixes' losses by the embedding (see `prefixes.gradient_factors`). With `doubt`
        a loss over classes is a weighted mean over the batch; an example is judged by the weighted mean of its losses
        over the prefixes, and by the sub-centers of the widest. The figures, `loss` and `accuracy`, are (len(dims),)
        float32. Raises UserError for labels out of range unless the program is traced.
        """
        check_labels(labels, self.classes)
        share = jnp.asarray(weights, jnp.float32)
        seen = embedding
        if gradient_factors is not None:
            added = np.diff((0, *self.dims))
            seen = scale_gradient(embedding, jnp.asarray(np.repeat(gradient_factors, added), jnp.float32))
        if doubt is not None:
            of_rows, accuracies = self.losses_of_rows(seen, labels, margin)
            counts = self.weights_of_examples(of_rows, embedding, labels, share, doubt)
            # All examples of a small batch may be in doubt.
            total_count = jnp.where(jnp.any(counts > 0), jnp.sum(counts), 1.0)
            losses = jnp.sum(of_rows * counts, axis=1) / total_count
        elif self.sharded:
            of_rows, accuracies = self.losses_of_rows(seen, labels, margin)
            losses = jnp.mean(of_rows, axis=1)
        else:
            losses, accuracies = self._each("with_accuracy", seen, labels, margin)
        total = jnp.sum(losses * share) / jnp.sum(share)
        if consistency:
            total += consistency * inconsistency(embedding, self.dims)
        return total, {"loss": losses, "accuracy": accuracies}

    @property
    def sharded(self) -> bool:
        """True where the prototypes are sharded by class over the devices of the mesh of the caller."""
        return self.have_prototypes and sharding.class_shards(self.classes) > 1

    def losses_of_rows(self, embedding: Array, labels: Array, margin: Margin | None = None) -> tuple[Array, Array]:
        """Return the losses (len(dims), batch) of a loss over classes, and the accuracies (len(dims),), float32."""
        if not self.sharded:
            return self._each("of_rows", embedding, labels, margin)
        criteria = cast(Sequence[Classification], self.criteria)
        parameters = [self.of(index) for index in range(len(self.dims))]
        return sharded_heads.losses(criteria, embedding, labels, parameters, self._margins(margin))

    def _each(self, method: str, embedding: Array, labels: Array, margin: Margin | None) -> tuple[Array, Array]:
        """Return the two results of a `method` of the loss of each prefix, stacked."""
        margins = self._margins(margin)
        pairs = [
            getattr(self.criteria[index], method)(embedding[:, :dim], labels, self.of(index), margins[index])
            for index, dim in enumerate(self.dims)
        ]
        losses, accuracies = map(jnp.stack, zip(*pairs, strict=True))
        return losses, accuracies

    def _margins(self, margin: Margin | None) -> Sequence[float | Array]:
        if margin is None:
            return [criterion.margin for criterion in self.criteria]
        return by_prefix(margin, len(self.dims))

    def weights_of_examples(
        self, of_rows: Array, embedding: Array, labels: Array, share: Array, doubt: Doubt
    ) -> Array:
        """Return what the examples weigh, float32 (batch,), by their `losses_of_rows` and `doubt`.

        `share` (len(dims),) are the weights of the prefixes.
        """
        minor = None
        if doubt.minor_weight != 1.0:
            widest = self.of(len(self.dims) - 1)
            minor = cast(SubcenterAAM, self.criteria[-1]).minor(embedding, labels, widest)
        # As a sum, which is exact on every device.
        return doubt.weights(jnp.sum(share[:, None] * of_rows, axis=0), minor)


def inconsistency(embedding: Array, dims: Sequence[int]) -> Array:
    """Return the distance of the scores of shorter prefixes from those of the widest, a float32 scalar.

    The mean over the shorter `dims`, and over all pairs of different rows of `embedding` (batch, dims[-1]), of
    (cosine of the prefixes - cosine of the whole)^2. No gradient reaches the cosines of the whole.
    """
    return score_distance(embedding, embedding, dims[:-1])
