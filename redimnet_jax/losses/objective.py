"""What training minimises: a loss by its name, its weights, and the schedule of its margin."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from redimnet_jax.losses.classification import AAMSoftmax, AMSoftmax, Array, Parameters, SphereFace2, SubcenterAAM
from redimnet_jax.losses.distillation import Distillation
from redimnet_jax.losses.pairs import GE2E, AngularPrototypical, SupervisedContrastive, Triplet


class Loss(Protocol):
    """The interface of `losses` and `pair_losses`, which see."""

    margin: float
    needs_pairs: bool

    def parameters(self, classes: int, dim: int, key: Array) -> Parameters: ...

    def __call__(
        self, embeddings: Array, labels: Array, parameters: Parameters, margin: float | Array | None = None
    ) -> Array: ...

    def accuracy(self, embeddings: Array, labels: Array, parameters: Parameters) -> Array: ...


LOSSES: dict[str, type] = {
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
    margin: Callable[[Array], Array]
    consistency: float = 0.0
    distillation: Distillation = Distillation()
