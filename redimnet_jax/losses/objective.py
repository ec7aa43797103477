"""What training minimises: a loss by its name, its weights, and the schedule of its margin."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from redimnet_jax.losses.classification import AAMSoftmax, AMSoftmax, Array, Parameters, SphereFace2, SubcenterAAM
from redimnet_jax.losses.distillation import Distillation
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


@dataclasses.dataclass(frozen=True)
class Objective:
    """How `Heads.loss` is called: weights of the prefixes, margin by step, weight of the consistency.

    `distillation` is what is added where there is a teacher.
    """

    weights: tuple[float, ...]
    margin: Callable[..., Any]
    consistency: float = 0.0
    distillation: Distillation = Distillation()
