"""The settings of a training run about its losses."""

from dataclasses import dataclass
from typing import Any

from redimnet_jax.losses.margin_schedule import RAMPS
from redimnet_jax.losses.objective import LOSSES
from redimnet_jax.setting_values import Setting
from redimnet_jax.settings import options_of, section, setting

HEAD_INITS = ("means", "random", "run")

_SCALE = Setting("Multiplies the cosines.", above=0)
_EASY = Setting("Applies the margin only where the angle to the own prototype is below 90 degrees.")
_ANGLE: dict[str, Any] = {"unit": "rad", "at_least": 0, "below": 1.5}


@dataclass(frozen=True)
class Heads:
    """The classification heads, one for every dimension."""

    init: str = setting(
        "means",
        choices=HEAD_INITS,
        help="Starts prototypes at the means of their classes, at random, or at those of `heads.run`.",
    )
    run: str | None = setting(
        None, help="Names the workdir of the run whose prototypes are taken over, by the names of the speakers."
    )
    shared: bool = setting(False, help="Slices one matrix of prototypes for all dimensions.")


def _loss(name: str, **about: Setting) -> type:
    # The margin of sphereface2 may be None, which is the published one of its type.
    return options_of(LOSSES[name], about)


AAMSoftmax = _loss(
    "aam_softmax", margin=Setting("Sets the angular margin.", **_ANGLE), scale=_SCALE, easy_margin=_EASY
)
AMSoftmax = _loss("am_softmax", margin=Setting("Sets the margin of the cosine.", at_least=0, below=2), scale=_SCALE)
SubcenterAAM = _loss(
    "subcenter_aam",
    margin=Setting("Sets the angular margin.", **_ANGLE),
    scale=_SCALE,
    easy_margin=_EASY,
    centers=Setting("Sets the number of prototypes of a class.", at_least=1),
    top_k=Setting("Sets how many of the nearest other classes are penalised.", at_least=0),
    penalty=Setting("Reduces the angle to the nearest other classes.", **_ANGLE),
)
SphereFace2 = _loss(
    "sphereface2",
    margin=Setting("Sets the margin; None is 0.2 for type C and 0.15 for type A.", at_least=0, below=1.5),
    scale=_SCALE,
    margin_type=Setting("Adds the margin to the cosine (C) or to the angle (A).", choices=("A", "C")),
    balance=Setting("Sets the weight of the own class; the others have the rest.", above=0, below=1),
    power=Setting("Sets the exponent t that spreads the cosines.", at_least=1),
)
Triplet = _loss(
    "triplet",
    margin=Setting("Sets the margin between squared distances.", at_least=0, below=4),
    mining=Setting("Chooses which triplets of a batch count.", choices=("semi-hard", "hard", "all")),
)
SupervisedContrastive = _loss("supervised_contrastive", temperature=Setting("Divides the cosines.", above=0))
GE2E = _loss(
    "ge2e",
    form=Setting("Chooses the form of the loss.", choices=("softmax", "contrast")),
    scale=Setting("Starts the trained factor of the cosines.", above=0),
    bias=Setting("Starts the trained bias of the contrast form.", at_least=-1000, at_most=1000),
)
AngularPrototypical = _loss(
    "angular_prototypical", scale=Setting("Starts the trained factor of the cosines.", above=0)
)


@dataclass(frozen=True)
class Doubtful:
    """What examples weigh whose label is in doubt."""

    trim: float = setting(
        0.0, at_least=0, below=1, help="Leaves out this share of a batch, the examples with the largest losses."
    )
    minor_weight: float = setting(
        1.0,
        at_least=0,
        at_most=1,
        help="Weights examples nearest to another sub-center of their class than the first, with subcenter_aam.",
    )
    from_epoch: float = setting(
        1.0, at_least=0, unit="epochs", help="Sets after how many epochs examples can be doubtful."
    )


@dataclass(frozen=True)
class Loss:
    """The loss; the options of each loss are under its name."""

    name: str = setting("aam_softmax", choices=tuple(LOSSES), help="Chooses the loss.")
    weights: tuple[float, ...] | None = setting(
        None, at_least=0, help="Weights the losses of the dimensions; None weights them equally."
    )
    margins: tuple[float, ...] | None = setting(
        None, at_least=0, help="Gives each dimension a margin of its own; None gives all that of the loss."
    )
    scale_gradients: bool = setting(
        False, help="Scales the gradient of an element by the inverse of the weights of the prefixes that contain it."
    )
    sampled_prefixes: int = setting(
        0, at_least=0, help="Trains that many random prefixes in each step; 0 trains all in every step."
    )
    durations: tuple[float, ...] | None = setting(
        None,
        above=0,
        at_most=3600,
        unit="s",
        help="Binds each dimension to a length of crops, near which it counts most; None does not.",
    )
    duration_sharpness: float = setting(
        1.0, above=0, at_most=1000, help="Sets how fast a dimension counts less for crops of other lengths."
    )
    margin_schedule: str = setting(
        "constant", choices=RAMPS, help="Keeps the margin constant, or lets it grow between the epochs of the ramp."
    )
    margin_ramp: tuple[float, float] = setting(
        (0.0, 0.0), at_least=0, unit="epochs", help="Gives the epochs between which the margin grows from 0."
    )
    consistency: float = setting(
        0.0, at_least=0, help="Weights the term that makes scores of shorter prefixes follow those of the widest."
    )
    doubtful: Doubtful = section(Doubtful)
    aam_softmax: Any = section(AAMSoftmax)
    am_softmax: Any = section(AMSoftmax)
    subcenter_aam: Any = section(SubcenterAAM)
    sphereface2: Any = section(SphereFace2)
    triplet: Any = section(Triplet)
    supervised_contrastive: Any = section(SupervisedContrastive)
    ge2e: Any = section(GE2E)
    angular_prototypical: Any = section(AngularPrototypical)


@dataclass(frozen=True)
class Distillation:
    """Terms of a frozen teacher, which are added to the loss."""

    teacher: str | None = setting(
        None, help="Names a native checkpoint, a workdir or a `.pt` file; None trains without a teacher."
    )
    scores: float = setting(1.0, at_least=0, help="Weights how the cosines of a batch follow the teacher's.")
    embeddings: float = setting(
        0.0, at_least=0, help="Weights how the first elements follow the teacher's embedding."
    )
