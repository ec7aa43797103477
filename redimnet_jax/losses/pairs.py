"""Losses that compare the crops of a batch with one another, and need at least two crops of every speaker.

They implement `objective.Loss`. The labels say which crops belong together, so their order and number are free.
Comparisons extend over the whole batch, also where it is sharded. A batch of one speaker, or with a single crop of a
speaker, raises UserError; in a compiled program, where labels are not known, crops that cannot be compared are left
out of the mean, and a batch without any comparison gives NaN.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from redimnet_jax.errors import UserError
from redimnet_jax.losses.classification import Array, Parameters, require
from redimnet_jax.numerics import cosines, exact, unit


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """Base of the losses over pairs."""

    margin: float = dataclasses.field(default=0.0, init=False)
    needs_pairs: ClassVar[bool] = True

    def parameters(self, classes: int, dim: int, key: Array) -> Parameters:
        """Return no parameters; some losses override this."""
        return {}

    def __call__(
        self, embeddings: Array, labels: Array, parameters: Parameters, margin: float | Array | None = None
    ) -> Array:
        check_pairs(labels)
        same = labels[:, None] == labels[None, :]
        return self.of_batch(exact(embeddings), same, parameters, self.margin if margin is None else margin)

    def with_accuracy(
        self, embeddings: Array, labels: Array, parameters: Parameters, margin: float | Array | None = None
    ) -> tuple[Array, Array]:
        """Return the loss, and the share of crops whose nearest other crop of the batch is from the same speaker."""
        cosine = jnp.where(_itself(len(labels)), -jnp.inf, cosines(embeddings, embeddings))
        accuracy = jnp.mean(labels[jnp.argmax(cosine, axis=1)] == labels, dtype=jnp.float32)
        return self(embeddings, labels, parameters, margin), accuracy

    def of_batch(self, embeddings: Array, same: Array, parameters: Parameters, margin: float | Array) -> Array:
        """Return the loss for `embeddings` (batch, dim); `same` (batch, batch) is True for crops of one speaker."""
        raise NotImplementedError

    def lowest(self, classes: int, margin: float, *, speakers: int, crops: int) -> float:
        """Return the loss of a batch where all crops of a speaker coincide and the speakers are a regular simplex.

        This takes speakers - 1 dimensions.
        """
        labels = np.repeat(np.arange(speakers), crops)
        corners = np.eye(speakers, dtype=np.float32)[labels] - np.float32(1.0 / speakers)
        return float(jax.jit(self)(corners, labels, {}, margin))


@dataclasses.dataclass(frozen=True)
class Triplet(PairLoss):
    """max(0, margin + d(anchor, positive) - d(anchor, negative)), d the squared distance of unit embeddings.

    By `mining`, FaceNet (arXiv 1503.03832) and Hermans et al. (arXiv 1703.07737):

        "semi-hard"   every pair, with the nearest negative that is farther than the positive; where there is none,
                      with the farthest
        "hard"        every anchor, with its farthest positive and its nearest negative
        "all"         every triplet; the mean is over those above zero
    """

    margin: float = 0.2
    mining: str = "semi-hard"

    def __post_init__(self) -> None:
        require(0 <= self.margin < 4, self, "margin", "a squared distance from 0 to 4")
        require(self.mining in ("semi-hard", "hard", "all"), self, "mining", "'semi-hard', 'hard' or 'all'")

    def of_batch(self, embeddings: Array, same: Array, parameters: Parameters, margin: float | Array) -> Array:
        distance = 2.0 - 2.0 * cosines(embeddings, embeddings)
        positive, negative = same & ~_itself(len(same)), ~same
        if self.mining == "hard":
            valid = positive.any(axis=1) & negative.any(axis=1)
            nearest = _reduced(jnp.min, distance, negative, jnp.inf)
            return _mean(jax.nn.relu(margin + _reduced(jnp.max, distance, positive, -jnp.inf) - nearest), valid)
        valid = positive & negative.any(axis=1, keepdims=True)
        # Axes are anchor, positive, negative.
        pair, other = distance[:, :, None], distance[:, None, :]
        if self.mining == "all":
            hinge = jnp.where(valid[:, :, None] & negative[:, None, :], jax.nn.relu(margin + pair - other), 0.0)
            some = jnp.where(valid.any(), 0.0, jnp.nan)
            return some + hinge.sum() / jnp.maximum((hinge > 0).sum(), 1)
        semi_hard = negative[:, None, :] & (other > pair)
        nearest = jnp.where(semi_hard, other, jnp.inf).min(axis=2)
        farthest = _reduced(jnp.max, distance, negative, -jnp.inf)[:, None]
        chosen = jnp.where(semi_hard.any(axis=2), nearest, farthest)
        return _mean(jax.nn.relu(margin + distance - chosen), valid)


@dataclasses.dataclass(frozen=True)
class SupervisedContrastive(PairLoss):
    """Supervised contrastive loss (Khosla et al., arXiv 2004.11362, equation 2).

    For every crop the mean over the others of its speaker of the cross-entropy of picking that one among all others,
    by cosines divided by `temperature`.
    """

    temperature: float = 0.07

    def __post_init__(self) -> None:
        require(self.temperature > 0, self, "temperature", "positive")

    def of_batch(self, embeddings: Array, same: Array, parameters: Parameters, margin: float | Array) -> Array:
        itself = _itself(len(same))
        logits = cosines(embeddings, embeddings) / self.temperature
        total = jax.nn.logsumexp(jnp.where(itself, -jnp.inf, logits), axis=1, keepdims=True)
        positive = same & ~itself
        count = positive.sum(axis=1)
        rows = jnp.where(positive, total - logits, 0.0).sum(axis=1) / jnp.maximum(count, 1)
        return _mean(rows, count > 0)


@dataclasses.dataclass(frozen=True)
class GE2E(PairLoss):
    """Generalised end-to-end loss (Wan et al., arXiv 1710.10467, equations 5 to 8).

    A crop is compared with the mean of its speaker's other unit embeddings and with the means of all of the other
    speakers' ones. The similarity is scale * cosine (+ bias), the scale trained from `scale`. `form` "softmax" is a
    cross-entropy over the speakers; "contrast" is 1 - sigmoid(own) + the largest sigmoid of another speaker, with a
    trained bias from `bias` (in a softmax it would cancel).
    """

    form: str = "softmax"
    scale: float = 10.0
    bias: float = -5.0

    def __post_init__(self) -> None:
        require(self.form in ("softmax", "contrast"), self, "form", "'softmax' or 'contrast'")
        require(self.scale > 0, self, "scale", "positive")

    def parameters(self, classes: int, dim: int, key: Array) -> Parameters:
        """Return the scale (), and for "contrast" the bias ()."""
        scale = {"scale": jnp.asarray(self.scale)}
        return scale | {"bias": jnp.asarray(self.bias)} if self.form == "contrast" else scale

    def of_batch(self, embeddings: Array, same: Array, parameters: Parameters, margin: float | Array) -> Array:
        units, scale = unit(embeddings), _positive(parameters["scale"])
        means, others = _centroids(units, same)
        own = scale * jnp.sum(unit(units) * unit(others), axis=1)
        # One column for every other speaker: that of the first crop.
        rival = ~same & _first(same)[None, :]
        logits = scale * cosines(units, means)
        if self.form == "contrast":
            nearest = _reduced(jnp.max, jax.nn.sigmoid(logits + parameters["bias"]), rival, -jnp.inf)
            rows = 1.0 - jax.nn.sigmoid(own + parameters["bias"]) + nearest
        else:
            columns = jnp.concatenate([own[:, None], jnp.where(rival, logits, -jnp.inf)], axis=1)
            rows = jax.nn.logsumexp(columns, axis=1) - own
        return _mean(rows, (same.sum(axis=1) > 1) & rival.any(axis=1))

    def lowest(self, classes: int, margin: float, *, speakers: int, crops: int) -> float:
        """Return 0, which the loss approaches as the trained scale grows."""
        return 0.0


@dataclasses.dataclass(frozen=True)
class AngularPrototypical(PairLoss):
    """Angular prototypical loss (Chung et al., "In defence of metric learning", arXiv 2003.11982, equations 7 to 9).

    The first crop of a speaker in the batch is the query, the mean of its other embeddings the prototype; the loss
    is the cross-entropy of the speaker's own prototype among all, by scale * cosine, the scale trained from `scale`.
    The bias of the paper is left out, since it cancels in the softmax.
    """

    scale: float = 10.0

    def __post_init__(self) -> None:
        require(self.scale > 0, self, "scale", "positive")

    def parameters(self, classes: int, dim: int, key: Array) -> Parameters:
        """Return the scale ()."""
        return {"scale": jnp.asarray(self.scale)}

    def of_batch(self, embeddings: Array, same: Array, parameters: Parameters, margin: float | Array) -> Array:
        _, others = _centroids(embeddings, same)
        query = _first(same) & (same.sum(axis=1) > 1)
        logits = _positive(parameters["scale"]) * cosines(embeddings, others)
        total = jax.nn.logsumexp(jnp.where(query[None, :], logits, -jnp.inf), axis=1)
        # Rows that are no queries may have no finite total; they leave no gradient.
        total = jnp.where(query, total, 0.0)
        return _mean(total - jnp.diagonal(logits), query)

    def lowest(self, classes: int, margin: float, *, speakers: int, crops: int) -> float:
        """Return 0, which the loss approaches as the trained scale grows."""
        return 0.0


def check_pairs(labels: Array) -> None:
    """Raise UserError for a batch whose crops cannot be compared; do nothing while a program is traced."""
    if isinstance(labels, jax.core.Tracer):
        return
    speakers, counts = np.unique(np.asarray(labels), return_counts=True)
    if len(speakers) < 2:
        raise UserError(
            f"The batch holds {len(speakers)} speaker(s) and a loss over pairs needs at least two; take a larger "
            "batch."
        )
    if counts.min() < 2:
        raise UserError(
            f"{int((counts < 2).sum())} of the {len(speakers)} speakers in the batch have one crop and a loss over "
            f"pairs needs two of each (the first is label {int(speakers[counts < 2][0])}); draw the batch with "
            "data.crops_per_speaker."
        )


def _itself(size: int) -> Array:
    return jnp.eye(size, dtype=bool)


def _first(same: Array) -> Array:
    """Return True for the first crop of each speaker, (batch,)."""
    return ~jnp.tril(same, -1).any(axis=1)


def _centroids(x: Array, same: Array) -> tuple[Array, Array]:
    """Return, for every row, the mean of its speaker's rows, and their mean without that row: each (batch, dim)."""
    count = same.sum(axis=1, keepdims=True)
    sums = jnp.matmul(same.astype(x.dtype), x, precision=jax.lax.Precision.HIGHEST)
    return sums / count, (sums - x) / jnp.maximum(count - 1, 1)


def _positive(scale: Array) -> Array:
    return jnp.maximum(scale, 1e-6)


def _reduced(reduce: Callable[..., Array], x: Array, where: Array, initial: float) -> Array:
    """Reduce the last axis of `x` where `where` is True; rows without any give 0 and no gradient."""
    reduced = reduce(jnp.where(where, x, initial), axis=-1)
    return jnp.where(where.any(axis=-1), reduced, 0.0)


def _mean(values: Array, valid: Array) -> Array:
    """Return the mean of the `valid` values; NaN when there is none."""
    return jnp.where(valid, values, 0.0).sum() / valid.sum()
