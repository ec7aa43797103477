"""Distillation: a student learns from a frozen teacher, by the scores of pairs and by the embeddings themselves."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from redimnet_jax.numerics import cosines, unit

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The weights of `score_distance` and `embedding_distance` beside the loss of the heads."""

    scores: float = 1.0
    embeddings: float = 0.0

    def loss(self, student: Array, teacher: Array, dims: Sequence[int]) -> Array:
        """Return the weighted sum of the distances, a float32 scalar; the functions below give the shapes."""
        total = jnp.zeros((), jnp.float32)
        if self.scores:
            total += self.scores * score_distance(student, teacher, dims)
        if self.embeddings:
            total += self.embeddings * embedding_distance(student, teacher)
        return total


def score_distance(student: Array, teacher: Array, dims: Sequence[int]) -> Array:
    """Return the distance of the student's scores from the teacher's, a float32 scalar.

    It is the mean over the prefixes `dims` of `student` (batch, width), and over all pairs of different rows, of
    (cosine of the prefixes - cosine of `teacher` (batch, any width))^2: relational distillation (Park et al.,
    "Relational Knowledge Distillation", arXiv 1904.05068) with cosines as the relation. No gradient reaches the
    teacher.
    """
    target = jax.lax.stop_gradient(cosines(teacher, teacher))
    rows = len(student)
    # The cosine of a row with itself is always 1 and says nothing.
    others = ~jnp.eye(rows, dtype=bool)
    total = jnp.zeros((), target.dtype)
    for dim in dims:
        prefix = student[:, :dim]
        total += jnp.sum(jnp.where(others, jnp.square(cosines(prefix, prefix) - target), 0.0))
    return total / len(dims) / (rows * (rows - 1))


def embedding_distance(student: Array, teacher: Array) -> Array:
    """Return the mean of 1 - cosine of `teacher` (batch, dim) and the prefix dim of `student` (batch, width)."""
    target = jax.lax.stop_gradient(unit(teacher))
    return jnp.mean(1.0 - jnp.sum(unit(student[:, : teacher.shape[1]]) * target, axis=1))
