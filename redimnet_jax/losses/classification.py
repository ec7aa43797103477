"""Losses over speaker classes: every class has a prototype, and an embedding should be nearest to its own.

A loss is a frozen dataclass of its hyper-parameters with one interface, which `pair_losses` shares:

    loss.parameters(classes, dim, key)                     what it trains besides the network: arrays by name
    loss(embeddings, labels, parameters, margin=None)      the mean over the batch, a float32 scalar
    loss.accuracy(embeddings, labels, parameters)          the share of the batch that is decided right, float32
    loss.margin, loss.needs_pairs                          the full margin; whether it compares crops of one speaker

`embeddings` are (batch, dim) of any length and any float dtype, `labels` (batch,) integers. Arithmetic is in float32
with exact products. `margin` stands in for the loss's own, so that it can be let in step by step. Labels that cannot
be right raise UserError where their values are known; in a compiled program they make the loss NaN.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from redimnet_jax import sharding
from redimnet_jax.errors import UserError
from redimnet_jax.numerics import cosines, unit

Array = jax.Array
Parameters = dict[str, Array]


def require(condition: bool, loss: object, option: str, wanted: str) -> None:
    """Raises UserError for a hyper-parameter of `loss` that cannot be."""
    if not condition:
        raise UserError(
            f"The option {option} of {type(loss).__name__} is {getattr(loss, option)!r} but must be {wanted}; "
            "correct it."
        )


def check_labels(labels: Array, classes: int) -> None:
    """Raises UserError for labels outside 0 to `classes` - 1, where their values are known."""
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
    """What the losses over classes share: cosines with prototypes, of which `of_cosines` is the loss."""

    margin: float = 0.2
    scale: float = 30.0
    needs_pairs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.scale > 0, self, "scale", "positive")

    def parameters(self, classes: int, dim: int, key: Array) -> Parameters:
        """Random prototypes (classes, dim)."""
        return {"prototypes": jax.nn.initializers.glorot_uniform()(key, (classes, dim))}

    def cosine(self, embeddings: Array, parameters: Parameters) -> Array:
        """Cosine (batch, classes) of every embedding and every class."""
        return cosines(embeddings, parameters["prototypes"])

    def __call__(
        self, embeddings: Array, labels: Array, parameters: Parameters, margin: float | Array | None = None
    ) -> Array:
        check_labels(labels, len(parameters["prototypes"]))
        margin = self.margin if margin is None else margin
        return self.of_cosines(self.cosine(embeddings, parameters), labels, parameters, margin)

    def accuracy(self, embeddings: Array, labels: Array, parameters: Parameters) -> Array:
        """The share of embeddings whose nearest prototype, without margin, is of their class."""
        nearest = jnp.argmax(self.cosine(embeddings, parameters), axis=1)
        return jnp.mean(nearest == labels, dtype=jnp.float32)

    def of_cosines(self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array) -> Array:
        """The loss from `cosine` (batch, classes); `parameters` may lack the prototypes."""
        raise NotImplementedError

    def lowest(self, classes: int, margin: float) -> float:
        """The loss where every embedding lies on its prototype and the prototypes are a regular simplex.

        All cosines between prototypes are then -1 / (classes - 1), the least that their mean can be, which
        classes - 1 dimensions have room for; with fewer dimensions the loss stays above it. For softmax losses no
        loss is lower (for margin 0: Wang et al., "NormFace", arXiv 1704.06369, proposition 2).
        """
        return float(jax.jit(self.of_cosines)(_simplex(classes), np.zeros(1, np.int32), {}, margin))


@dataclasses.dataclass(frozen=True)
class AAMSoftmax(Classification):
    """Additive angular margin softmax (ArcFace, arXiv 1801.07698, equation 3).

    The margin (radians) is added to the angle of the target class. Beyond pi - margin, where the cosine would turn
    around, the target logit goes on falling as cos - margin * sin(margin); with `easy_margin` targets more than 90
    degrees away get no margin at all.
    """

    easy_margin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.margin < 1.5, self, "margin", "an angle (radians) from 0 to 1.5")

    def of_cosines(self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array) -> Array:
        target = _target(cosine, labels)
        shifted = farther(target, margin, margin * jnp.sin(margin))
        if self.easy_margin:
            shifted = jnp.where(target > 0.0, farther(target, margin, 0.0), target)
        return _cross_entropy(self.scale, cosine, shifted, labels)


@dataclasses.dataclass(frozen=True)
class AMSoftmax(Classification):
    """Additive margin softmax (CosFace, arXiv 1801.09414, equation 4): the target logit is cos - margin."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.margin < 2, self, "margin", "a difference of cosines from 0 to 2")

    def of_cosines(self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array) -> Array:
        return _cross_entropy(self.scale, cosine, _target(cosine, labels) - margin, labels)


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
        """Random prototypes (classes, centers, dim)."""
        flat = super().parameters(classes * self.centers, dim, key)["prototypes"]
        return {"prototypes": flat.reshape(classes, self.centers, dim)}

    def cosine(self, embeddings: Array, parameters: Parameters) -> Array:
        # Classes stay an axis by itself, by which prototypes may be dealt to devices.
        units = unit(embeddings), unit(parameters["prototypes"])
        return jnp.einsum("bd,knd->bkn", *units, precision=jax.lax.Precision.HIGHEST).max(axis=2)

    def of_cosines(self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array) -> Array:
        count = min(self.top_k, cosine.shape[1] - 1)
        if count:
            others = jnp.where(_is_target(cosine, labels), -jnp.inf, jax.lax.stop_gradient(cosine))
            nearest = sharding.top_classes(others, count)
            hard = jnp.zeros(cosine.shape, bool).at[jnp.arange(len(cosine))[:, None], nearest].set(True)
            penalty = self.penalty * (margin / self.margin if self.margin else 1.0)
            cosine = jnp.where(hard, nearer(cosine, penalty), cosine)
        return super().of_cosines(cosine, labels, parameters, margin)


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

    margin: float | None = None
    scale: float = 32.0
    margin_type: str = "C"
    balance: float = 0.7
    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.margin_type in ("A", "C"), self, "margin_type", "'A' or 'C'")
        if self.margin is None:
            object.__setattr__(self, "margin", 0.15 if self.margin_type == "A" else 0.2)
        require(0 <= self.margin < 1.5, self, "margin", "from 0 to 1.5")
        require(0 < self.balance < 1, self, "balance", "between 0 and 1")
        require(self.power >= 1, self, "power", "at least 1")

    def parameters(self, classes: int, dim: int, key: Array) -> Parameters:
        """Random prototypes (classes, dim) and a bias () of 0."""
        return super().parameters(classes, dim, key) | {"bias": jnp.zeros(())}

    def of_cosines(self, cosine: Array, labels: Array, parameters: Parameters, margin: float | Array) -> Array:
        # A label that is out of range has no target: NaN, and no silent sum over the others.
        target, bias = _target(cosine, labels), parameters["bias"]
        if self.margin_type == "A":
            drop = 1.0 - jnp.cos(margin)
            own, others = self._adjusted(farther(target, margin, drop)), self._adjusted(nearer(cosine, margin))
        else:
            own, others = self._adjusted(target) - margin, self._adjusted(cosine) + margin
        wrong = jnp.where(_is_target(cosine, labels), 0.0, jax.nn.softplus(self.scale * others + bias))
        rows = self.balance * jax.nn.softplus(-self.scale * own - bias)[:, 0]
        return jnp.mean(rows + (1.0 - self.balance) * wrong.sum(axis=1))

    def _adjusted(self, cosine: Array) -> Array:
        """g of the class, continued below -1 as an odd function, so that it rises everywhere."""
        half = (cosine + 1.0) / 2.0
        return 2.0 * jnp.sign(half) * jnp.abs(half) ** self.power - 1.0

    def lowest(self, classes: int, margin: float) -> float:
        """As of the others, with the bias that is best there (the loss is convex in it)."""
        loss = jax.jit(jax.vmap(lambda bias: self.of_cosines(cosine, label, {"bias": bias}, margin)))
        cosine, label = jnp.asarray(_simplex(classes)), jnp.zeros(1, jnp.int32)
        center, width = 0.0, 3.0 * self.scale
        for _ in range(4):
            biases = np.linspace(center - width, center + width, 101, dtype=np.float32)
            values = np.asarray(loss(biases))
            center, width = float(biases[values.argmin()]), width / 50
        return float(values.min())


def farther(cosine: Array, angle: float | Array, drop: float | Array) -> Array:
    """cos(angle of `cosine` + `angle`); where that passes pi, `cosine` - `drop`."""
    # Strictly inside (-1, 1): the derivative of the sine is infinite at the ends.
    inside = jnp.clip(cosine, -1.0 + 1e-7, 1.0 - 1e-7)
    shifted = inside * jnp.cos(angle) - jnp.sqrt(1.0 - jnp.square(inside)) * jnp.sin(angle)
    return jnp.where(cosine <= -jnp.cos(angle), cosine - drop, shifted)


def nearer(cosine: Array, angle: float | Array) -> Array:
    """cos(angle of `cosine` - `angle`); where that passes 0, `cosine` + 1 - cos(`angle`), which meets it."""
    return -farther(-cosine, angle, 1.0 - jnp.cos(angle))


def _is_target(cosine: Array, labels: Array) -> Array:
    return jax.nn.one_hot(labels, cosine.shape[1], dtype=bool)


def _target(cosine: Array, labels: Array) -> Array:
    """(batch, 1), NaN for a label out of range."""
    known = (labels >= 0) & (labels < cosine.shape[1])
    target = jnp.take_along_axis(cosine, labels[:, None], axis=1, mode="clip")
    return jnp.where(known[:, None], target, jnp.nan)


def _cross_entropy(scale: float, cosine: Array, target: Array, labels: Array) -> Array:
    """Mean softmax cross-entropy of scaled cosines (batch, classes), those of the labels replaced by (batch, 1)."""
    logits = scale * jnp.where(_is_target(cosine, labels), target, cosine)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - scale * target[:, 0])


def _simplex(classes: int) -> np.ndarray:
    """Cosines (1, classes) of the first vertex of a regular simplex with all."""
    if classes < 2:
        raise UserError(f"A loss over {classes} class(es) is always 0; give at least two speakers.")
    cosine = np.full((1, classes), -1.0 / (classes - 1), np.float32)
    cosine[0, 0] = 1.0
    return cosine
