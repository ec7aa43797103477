"""What training minimises: a loss by its name, its weights, and the schedule of its margin."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from redimnet_jax.losses import prefixes
from redimnet_jax.losses.classification import AAMSoftmax, AMSoftmax, Array, Parameters, SphereFace2, SubcenterAAM
from redimnet_jax.losses.distillation import Distillation
from redimnet_jax.losses.doubt import Doubt
from redimnet_jax.losses.pairs import GE2E, AngularPrototypical, SupervisedContrastive, Triplet


class Loss(Protocol):
    """The interface of the losses over classes (`classification.py`) and over pairs (`pairs.py`).

    `embeddings` are (batch, dim) of any length and float dtype, `labels` (batch,) integers.
    """

    @property
    def margin(self) -> float:
        """The full margin; 0 for losses without one."""
        ...

    @property
    def needs_pairs(self) -> bool:
        """True for losses that compare crops of one speaker, of which a batch needs at least two."""
        ...

    def parameters(self, classes: int, dim: int, key: Array) -> Parameters:
        """Return the initial values of what is trained besides the network, arrays by name."""
        ...

    def __call__(
        self, embeddings: Array, labels: Array, parameters: Parameters, margin: float | Array | None = None
    ) -> Array:
        """Return the mean loss of the batch, a float32 scalar; `margin` replaces the margin of the loss."""
        ...

    def with_accuracy(
        self, embeddings: Array, labels: Array, parameters: Parameters, margin: float | Array | None = None
    ) -> tuple[Array, Array]:
        """Return the loss, and the share of the batch that is decided correctly: float32 scalars."""
        ...

    def lowest(self, classes: int, margin: float, *, speakers: int, crops: int) -> float:
        """Return a lower bound of the loss for `classes`, or for batches of `speakers` with `crops` each."""
        ...


# Each is a class whose instances are a `Loss`.
LOSSES: dict[str, type[Any]] = {
    "aam_softmax": AAMSoftmax,
    "am_softmax": AMSoftmax,
    "subcenter_aam": SubcenterAAM,
    "sphereface2": SphereFace2,
    "triplet": Triplet,
    "supervised_contrastive": SupervisedContrastive,
    "ge2e": GE2E,
    "angular_prototypical": AngularPrototypical,
}


# A margin of all prefixes, or one for each.
Margin = float | Array | tuple[float | Array, ...]


def by_prefix(margin: Margin, count: int) -> tuple[float | Array, ...]:
    """Return the margin of each of `count` prefixes."""
    return margin if isinstance(margin, tuple) else (margin,) * count


def losses_of_prefixes(loss: Any, count: int, margins: Sequence[float] | None = None) -> tuple[Any, ...]:
    """Return the loss of each of `count` prefixes: `loss`, with its margin replaced where `margins` are given."""
    if margins is None:
        return (loss,) * count
    return tuple(dataclasses.replace(loss, margin=margin) for margin in margins)


# Folded into the seed beside the numbers of steps, which are smaller, and the order of cached crops.
PREFIXES = 2**31 + 1


@dataclasses.dataclass(frozen=True)
class Objective:
    """How `Heads.loss` is called: weights of the prefixes, margin by step, weight of the consistency.

    The margin of a step is one of all prefixes or a tuple with one for each. `distillation` is what is added where
    there is a teacher. `gradient_factors` are those of `Heads.loss`. With `sampled` above 0 a step trains that many
    random prefixes. `durations` weight the prefixes by the length of the crops, which is `crop_seconds` where a batch
    of cached features does not tell it. Examples are in `doubt` from step `doubt_from` on.
    """

    weights: tuple[float, ...]
    margin: Callable[..., Any]
    consistency: float = 0.0
    distillation: Distillation = Distillation()
    gradient_factors: tuple[float, ...] | None = None
    sampled: int = 0
    durations: prefixes.Durations | None = None
    crop_seconds: float = 0.0
    doubt: Doubt | None = None
    doubt_from: int = 0

    def options(self, step: Array, seed: int, crop_seconds: float | None = None) -> dict[str, Any]:
        """Return the options of `Heads.loss` in the step after `step` steps, on crops of `crop_seconds`.

        Random numbers depend on `seed` and the step alone.
        """
        weights: Any = self.weights
        if self.durations is not None:
            weights = self.durations.weights(weights, crop_seconds or self.crop_seconds)
        if self.sampled:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), PREFIXES), step)
            weights = prefixes.sample(weights, self.sampled, key)
        doubt = self.doubt and dataclasses.replace(self.doubt, active=step >= self.doubt_from)
        return {
            "weights": weights,
            "margin": self.margin(step),
            "consistency": self.consistency,
            "gradient_factors": self.gradient_factors,
            "doubt": doubt,
        }
