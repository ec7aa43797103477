"""The losses of all prefixes where the prototypes are sharded by class.

Every device compares the whole batch with its own classes. For each row and prefix it finds two terms of the loss,
its largest cosine and the class of that. The devices exchange these four numbers, of all prefixes at once. A step has
three exchanges for its heads, however many prefixes there are: embeddings with labels, these numbers, and the
gradient of the embeddings, which each device sums over the prefixes first.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from redimnet_jax import sharding
from redimnet_jax.losses.classification import NO_CLASS, Classification, Parameters
from redimnet_jax.numerics import exact

Array = jax.Array


def losses(
    criteria: Sequence[Classification],
    embedding: Array,
    labels: Array,
    parameters: Sequence[Parameters],
    margins: Sequence[float | Array],
) -> tuple[Array, Array]:
    """Return (losses (prefixes, batch), accuracies (prefixes,)), float32, under a mesh that shards the prototypes.

    `embedding` (batch, dim) and `labels` (batch,) are sharded by rows; `criteria`, `parameters` and `margins` are
    those of each prefix. The results are those of `Classification.of_rows` for each.
    """
    prototypes = [own["prototypes"] for own in parameters]
    others = [{name: x for name, x in own.items() if name != "prototypes"} for own in parameters]
    classes = len(prototypes[0])

    def on_device(rows: Array, prototypes: list[Array], whole: Any) -> tuple[Array, Array]:
        others, margins = whole
        # Exact: float32 has all integers below 2**24.
        embedding, labels = rows[:, :-1], rows[:, -1].astype(jnp.int32)
        labels = jnp.where(labels < classes, labels, -1)
        width = len(prototypes[0])
        first = sharding.first_class(width)
        # Added, since a class without prototypes has the cosine 0: the derivative of a selection would be a pass over
        # all cosines.
        absent = jnp.where(jnp.arange(width) < classes - first, 0.0, NO_CLASS)
        own = []
        for criterion, matrix, rest, margin in zip(criteria, prototypes, others, margins, strict=True):
            cosine = criterion.cosine(embedding[:, : matrix.shape[-1]], {"prototypes": matrix}) + absent
            terms = criterion.terms(cosine, labels - first, rest, margin)
            fixed = jax.lax.stop_gradient(cosine)
            own.append([*terms, fixed.max(axis=1), (first + fixed.argmax(axis=1)).astype(jnp.float32)])
        # (devices, prefixes, 4, batch)
        found = sharding.gather_results(jnp.stack([jnp.stack(numbers) for numbers in own]))
        of_rows = []
        for criterion, terms, rest in zip(criteria, jnp.moveaxis(found[:, :, :2], 0, 2), others, strict=True):
            of_rows.append(criterion.loss_of_rows(*criterion.terms_of_shards(*terms), rest))
        # The first of the largest, as with argmax.
        largest, class_of_largest = jnp.moveaxis(found[:, :, 2:], 2, 0)
        nearest = jnp.take_along_axis(class_of_largest, largest.argmax(axis=0)[None], axis=0)[0]
        accuracies = jnp.mean(nearest == rows[:, -1], axis=1, dtype=jnp.float32)
        return jnp.stack(of_rows), accuracies

    rows = jnp.concatenate([exact(embedding), labels[:, None].astype(jnp.float32)], axis=1)
    return sharding.map_classes(on_device, rows, prototypes, (others, list(margins)))
