"""Losses over speaker classes: every class has a prototype, to which its embeddings should be nearest.

A loss is a frozen dataclass of its hyper-parameters that implements `objective.Loss`. Arithmetic is in float32 with
exact products. The argument `margin` replaces the margin of the loss, so that it can grow during training. Labels out
of range raise UserError; in a compiled program, where their values are not known, they make the loss NaN.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from redimnet_jax import sharding
from redimnet_jax.errors import UserError
from redimnet_jax.numerics import cosines, unit

Array = jax.Array
Parameters = dict[str, Array]

# The cosine with a class of zeros that only pads a device's classes: no sum, softmax or maximum sees it.
NO_CLASS = -1e4


def require(condition: bool, loss: object, option: str, wanted: str) -> None:
    """Raise UserError, which says that `option` of `loss` must be `wanted`, unless `condition` holds."""
    if not condition:
        raise UserError(
            f"The option {option} of {type(loss).__name__} is {getattr(loss, option)!r} but must be {wanted}; "
            "correct it."
        )


def check_labels(labels: Array, classes: int) -> None:
    """Raise UserError for labels outside 0 to `classes` - 1; do nothing while a program is traced."""
    if isinstance(labels, jax.core.Tracer):
        return
    wrong = (np.asarray(labels) < 0) | (np.asarray(labels) >= classes)
    if wrong.any():
        raise UserError(
            f"The labels hold {int(np.asarray(labels)[wrong][0])} but must be from 0 to {classes - 1}, the loss's "
            "classes; number the speakers anew."
        )


@dataclasses.dataclass(frozen=True)
class Classification:
    """Base of the losses over classes, which are functions of the cosines with the prototypes."""

    margin: float = 0.2
    scale: float = 30.0
    needs_pairs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.scale > 0, self, "scale", "positive")

    def parameters(self, classes: int, dim: int, key: Array) -> Parameters:
        """Return random prototypes (classes, dim)."""
        return {"prototypes": jax.nn.initializers.glorot_uniform()(key, (classes, dim))}

    def cosine(self, embeddings: Array, parameters: Parameters) -> Array:
        """Return the cosine of every embedding with every class, (batch, classes)."""
        return cosines(embeddings, parameters["prototypes"])

    def __call__(
        self, embeddings: Array, labels: Array, parameters: Parameters, margin: float | Array | None = None
    ) -> Array:
        return self.with_accuracy(embeddings, labels, parameters, margin)[0]

    def with_accuracy(
        self, embeddings: Array, labels: Array, parameters: Parameters, margin: float | Array | None = None
    ) -> tuple[Array, Array]:
        """Return the loss, and the share of embeddings whose nearest prototype, without margin, is of their class.

        Of several nearest prototypes the first counts, as with argmax.
        """
        losses, accuracy = self.of_rows(embeddings, labels, parameters, margin)
        return jnp.mean(losses), accuracy

    def of_rows(
        self, embeddings: Array, labels: Array, parameters: Parameters, margin: float | Array | None = None
    ) -> tuple[Array, Array]:
        """Return the loss of every embedding, (batch,), and the accuracy of `with_accuracy`."""
        check_labels(labels, len(parameters["prototypes"]))
        margin = self.margin if margin is None else margin
        # Once for both: of cosines that are sharded by class XLA computes equal ones twice.
        cosine = self.cosine(embeddings, parameters)
        accuracy = jnp.mean(is_nearest(jax.lax.stop_gradient(cosine), labels), dtype=jnp.float32)
        return self.loss_of_rows(*self.terms(cosine, labels, parameters, margin), parameters), accuracy

    def of_cosines(self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array) -> Array:
        """Return the loss for `cosine` (batch, classes); `parameters` may lack the prototypes."""
        return jnp.mean(self.loss_of_rows(*self.terms(cosine, labels, parameters, margin), parameters))

    def terms(
        self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array
    ) -> tuple[Array, Array]:
        """Return what the loss needs to know of each row of `cosine`, (term of all classes, term of the target).

        Both are (batch,). The latter is NaN where the label is none of the classes.
        """
        raise NotImplementedError

    def loss_of_rows(self, of_classes: Array, of_target: Array, parameters: Parameters) -> Array:
        """Return the loss of each row, (batch,), from its `terms`."""
        raise NotImplementedError

    def terms_of_shards(self, of_classes: Array, of_target: Array) -> tuple[Array, Array]:
        """Return the `terms` of all classes from those of shards of them, each (shards, batch)."""
        raise NotImplementedError

    def lowest(self, classes: int, margin: float, *, speakers: int, crops: int) -> float:
        """Return the loss where every embedding equals its prototype and the prototypes are a regular simplex.

        All cosines between prototypes are then -1 / (classes - 1), the lowest possible mean. This takes classes - 1
        dimensions; with fewer the loss stays above it. No softmax loss is lower (for margin 0: Wang et al.,
        "NormFace", arXiv 1704.06369, proposition 2).
        """
        return float(jax.jit(self.of_cosines)(_simplex(classes), np.zeros(1, np.int32), {}, margin))


@dataclasses.dataclass(frozen=True)
class Softmax(Classification):
    """Base of the losses that are a softmax cross-entropy of scaled cosines, with another cosine for the target.

    The terms are the logarithm of the softmax's denominator and the logit of the target.
    """

    def loss_of_rows(self, of_classes: Array, of_target: Array, parameters: Parameters) -> Array:
        return of_classes - of_target

    def terms_of_shards(self, of_classes: Array, of_target: Array) -> tuple[Array, Array]:
        return jax.nn.logsumexp(of_classes, axis=0), jnp.nanmax(of_target, axis=0)

    def logits_terms(self, cosine: Array, target: Array, labels: Array) -> tuple[Array, Array]:
        """Return the terms for `cosine`, with `target` (batch, 1) for the cosines of the labels."""
        logits = self.scale * jnp.where(_is_target(cosine, labels), target, cosine)
        return jax.nn.logsumexp(logits, axis=1), self.scale * target[:, 0]


@dataclasses.dataclass(frozen=True)
class AAMSoftmax(Softmax):
    """Additive angular margin softmax (ArcFace, arXiv 1801.07698, equation 3).

    The margin (radians) is added to the angle of the target class. Beyond pi - margin, where the cosine would turn
    around, the target logit goes on falling as cos - margin * sin(margin); with `easy_margin` targets more than 90
    degrees away get no margin at all.
    """

    easy_margin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.margin < 1.5, self, "margin", "an angle (radians) from 0 to 1.5")

    def terms(
        self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array
    ) -> tuple[Array, Array]:
        target = _target(cosine, labels)
        shifted = farther(target, margin, margin * jnp.sin(margin))
        if self.easy_margin:
            shifted = jnp.where(target > 0.0, farther(target, margin, 0.0), target)
        return self.logits_terms(cosine, shifted, labels)


@dataclasses.dataclass(frozen=True)
class AMSoftmax(Softmax):
    """Additive margin softmax (CosFace, arXiv 1801.09414, equation 4): the target logit is cos - margin."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.margin < 2, self, "margin", "a difference of cosines from 0 to 2")

    def terms(
        self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array
    ) -> tuple[Array, Array]:
        return self.logits_terms(cosine, _target(cosine, labels) - margin, labels)


@dataclasses.dataclass(frozen=True)
class SubcenterAAM(AAMSoftmax):
    """AAM-Softmax with sub-centers and the inter-top-k penalty.

    A class has `centers` prototypes and the cosine of the nearest (Deng et al., "Sub-center ArcFace", ECCV 2020).
    The `top_k` nearest other classes of each embedding have their angle reduced by `penalty` (Zhao et al., arXiv
    2110.05042, equation 8), which grows with the margin when that is let in step by step; `top_k` 0 is without.
    An angle below the penalty, which the subtraction would turn, goes on with cos + 1 - cos(penalty).
    """

    scale: float = 32.0
    centers: int = 3
    top_k: int = 5
    penalty: float = 0.06

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.centers >= 1, self, "centers", "at least 1")
        require(self.top_k >= 0, self, "top_k", "at least 0")
        require(0 <= self.penalty < 1.5, self, "penalty", "an angle (radians) from 0 to 1.5")

    def parameters(self, classes: int, dim: int, key: Array) -> Parameters:
        """Return random prototypes (classes, centers, dim)."""
        flat = super().parameters(classes * self.centers, dim, key)["prototypes"]
        return {"prototypes": flat.reshape(classes, self.centers, dim)}

    def cosine(self, embeddings: Array, parameters: Parameters) -> Array:
        # Classes remain an axis of their own, along which prototypes may be sharded.
        units = unit(embeddings), unit(parameters["prototypes"])
        return jnp.einsum("bd,knd->bkn", *units, precision=jax.lax.Precision.HIGHEST).max(axis=2)

    def minor(self, embeddings: Array, labels: Array, parameters: Parameters) -> Array:
        """Return whether each embedding is nearest to another sub-center of its class than to the first, (batch,)."""
        units = unit(embeddings), unit(parameters["prototypes"][labels])
        return jnp.einsum("bd,bnd->bn", *units, precision=jax.lax.Precision.HIGHEST).argmax(axis=1) > 0

    def terms(
        self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array
    ) -> tuple[Array, Array]:
        count = min(self.top_k, sharding.devices_with_rows() * cosine.shape[1] - 1)
        if count:
            others = jnp.where(_is_target(cosine, labels), -jnp.inf, jax.lax.stop_gradient(cosine))
            nearest = sharding.top_classes(others, count)
            hard = jnp.zeros(cosine.shape, bool).at[jnp.arange(len(cosine))[:, None], nearest].set(True)
            penalty = self.penalty * (margin / self.margin if self.margin else 1.0)
            cosine = jnp.where(hard, nearer(cosine, penalty), cosine)
        return super().terms(cosine, labels, parameters, margin)


@dataclasses.dataclass(frozen=True)
class SphereFace2(Classification):
    """A binary classification for every class (arXiv 2108.01513; for speakers Han et al., ICASSP 2023).

    `balance` * log(1 + exp(-p)) for the target, plus (1 - `balance`) * the sum of log(1 + exp(n)) over the others:

        margin_type "C":    p = scale * (g(cos) - margin) + bias,      n = scale * (g(cos) + margin) + bias
        margin_type "A":    p = scale * g(cos(angle + margin)) + bias, n = scale * g(cos(angle - margin)) + bias

    with g(z) = 2 * ((z + 1) / 2)**power - 1 and one trained bias, 0 at the start. No margin is that of the public
    recipe: 0.2 for C and 0.15 for A (0.3 and 0.25 in large-margin fine-tuning). Angles that the margin would turn
    beyond 0 or pi go on with cos plus or minus 1 - cos(margin).
    """

    # None stands for the margin of the public recipe, which replaces it when the loss is made.
    margin: float | None = None  # type: ignore[override]
    scale: float = 32.0
    margin_type: str = "C"
    balance: float = 0.7
    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.margin_type in ("A", "C"), self, "margin_type", "'A' or 'C'")
        margin = self.margin
        if margin is None:
            margin = 0.15 if self.margin_type == "A" else 0.2
            object.__setattr__(self, "margin", margin)
        require(0 <= margin < 1.5, self, "margin", "from 0 to 1.5")
        require(0 < self.balance < 1, self, "balance", "between 0 and 1")
        require(self.power >= 1, self, "power", "at least 1")

    def parameters(self, classes: int, dim: int, key: Array) -> Parameters:
        """Return random prototypes (classes, dim) and a bias () of 0."""
        return super().parameters(classes, dim, key) | {"bias": jnp.zeros(())}

    def terms(
        self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array
    ) -> tuple[Array, Array]:
        # A label out of range gives a NaN target, and so a NaN loss instead of a sum over the other classes.
        target, bias = _target(cosine, labels), parameters["bias"]
        if self.margin_type == "A":
            drop = 1.0 - jnp.cos(margin)
            own, others = self._adjusted(farther(target, margin, drop)), self._adjusted(nearer(cosine, margin))
        else:
            own, others = self._adjusted(target) - margin, self._adjusted(cosine) + margin
        wrong = jnp.where(_is_target(cosine, labels), 0.0, jax.nn.softplus(self.scale * others + bias))
        return wrong.sum(axis=1), own[:, 0]

    def loss_of_rows(self, of_classes: Array, of_target: Array, parameters: Parameters) -> Array:
        right = jax.nn.softplus(-self.scale * of_target - parameters["bias"])
        return self.balance * right + (1.0 - self.balance) * of_classes

    def terms_of_shards(self, of_classes: Array, of_target: Array) -> tuple[Array, Array]:
        return of_classes.sum(axis=0), jnp.nanmax(of_target, axis=0)

    def _adjusted(self, cosine: Array) -> Array:
        """Return g(cosine) as in the class docstring, continued below -1 so that it increases everywhere."""
        half = (cosine + 1.0) / 2.0
        return 2.0 * jnp.sign(half) * jnp.abs(half) ** self.power - 1.0

    def lowest(self, classes: int, margin: float, *, speakers: int, crops: int) -> float:
        """Return the loss as in `Classification.lowest`, with the best bias; the loss is convex in the bias."""
        loss = jax.jit(jax.vmap(lambda bias: self.of_cosines(cosine, label, {"bias": bias}, margin)))
        cosine, label = jnp.asarray(_simplex(classes)), jnp.zeros(1, jnp.int32)
        # Two grids, the second between the neighbours of the best bias of the first.
        coarse = np.linspace(-3.0 * self.scale, 3.0 * self.scale, 1001, dtype=np.float32)
        best = float(coarse[np.asarray(loss(coarse)).argmin()])
        step = 6.0 * self.scale / 1000
        return float(loss(np.linspace(best - step, best + step, 1001, dtype=np.float32)).min())


def farther(cosine: Array, angle: float | Array, drop: float | Array) -> Array:
    """Return cos(a + `angle`), where `cosine` is cos(a); `cosine` - `drop` where a + `angle` exceeds pi."""
    # Strictly inside (-1, 1): the derivative of the sine is infinite at the ends.
    inside = jnp.clip(cosine, -1.0 + 1e-7, 1.0 - 1e-7)
    shifted = inside * jnp.cos(angle) - jnp.sqrt(1.0 - jnp.square(inside)) * jnp.sin(angle)
    return jnp.where(cosine <= -jnp.cos(angle), cosine - drop, shifted)


def nearer(cosine: Array, angle: float | Array) -> Array:
    """Return cos(a - `angle`), where `cosine` is cos(a); `cosine` + 1 - cos(`angle`) where `angle` exceeds a."""
    result = -farther(-cosine, angle, 1.0 - jnp.cos(angle))
    return result if sharding.devices_with_rows() == 1 else jnp.where(cosine > NO_CLASS, result, cosine)


def _is_target(cosine: Array, labels: Array) -> Array:
    return jax.nn.one_hot(labels, cosine.shape[1], dtype=bool)


def is_nearest(cosine: Array, labels: Array) -> Array:
    """Return whether the first of the largest cosines of each row is that with the class of its label, (batch,) bool.

    False where a cosine of the row is NaN and where the label is out of range. For an argmax of cosines that are
    sharded by class, devices gather their maxima; here they pass on one bit a row.
    """
    target = _target(cosine, labels)
    beyond = jnp.arange(cosine.shape[1]) >= labels[:, None]
    return jnp.all((cosine < target) | ((cosine == target) & beyond), axis=1)


def _target(cosine: Array, labels: Array) -> Array:
    """Return the cosine with the class of each label, (batch, 1); NaN for a label out of range."""
    known = (labels >= 0) & (labels < cosine.shape[1])
    target = jnp.take_along_axis(cosine, labels[:, None], axis=1, mode="clip")
    return jnp.where(known[:, None], target, jnp.nan)


def _simplex(classes: int) -> np.ndarray:
    """Return the cosines of the first vertex of a regular simplex with all vertices, (1, classes)."""
    if classes < 2:
        raise UserError(f"A loss over {classes} class(es) is always 0; give at least two speakers.")
    cosine = np.full((1, classes), -1.0 / (classes - 1), np.float32)
    cosine[0, 0] = 1.0
    return cosine
