"""The settings of a training run: each with its type, default, range, unit and a sentence, section by section."""

import dataclasses
from dataclasses import dataclass

from redimnet_jax.data import augment
from redimnet_jax.losses.margin_schedule import RAMPS
from redimnet_jax.losses.objective import LOSSES
from redimnet_jax.models import config as model_config
from redimnet_jax.models.matryoshka import INITS, ORDERS
from redimnet_jax.setting_values import Setting
from redimnet_jax.settings import all_optional, options_of, section, setting
from redimnet_jax.training.stages import BATCH_STATS

HEAD_INITS = ("means", "random")
DTYPES = ("float32", "bfloat16")
DECIBELS = {"at_least": -100, "at_most": 100, "unit": "dB", "ordered": True}

_P = Setting("Sets the probability that the step changes a crop; 0 turns the step off.", at_least=0, at_most=1)
_SCALE = Setting("Multiplies the cosines.", above=0)
_EASY = Setting("Applies the margin only where the angle to the own prototype is below 90 degrees.")
_ANGLE = {"unit": "rad", "at_least": 0, "below": 1.5}


@dataclass(frozen=True)
class Model:
    """The network that training starts from."""

    checkpoint: str | None = setting(
        None, help="Names a native checkpoint, a workdir or a `.pt` file; None builds a network from `model.config`."
    )
    arch: str = setting(
        "redimnet", choices=model_config.ARCHITECTURES, help="Chooses the architecture that `model.config` describes."
    )
    config: dict = setting({}, help="Gives the `model_config` of a network that starts from random weights.")


def _step(name: str, **about: Setting) -> type:
    """The section of an augmentation step; all are off by default, and folders have no name."""
    cls = augment.STEPS[name]
    changed = {"p": (float, 0.0)} | ({"folder": (str, "")} if "folder" in about else {})
    if "talkers" in about:
        changed["talkers"] = (tuple[int, int], cls.talkers)
    return options_of(cls, {"p": _P, **about}, **changed)


def _decibels(text: str) -> Setting:
    return Setting(text, **DECIBELS)


Reverberation = _step("reverberation", folder=Setting("Names the folder of the impulse responses."))
NoiseFolder = _step(
    "noise_folder",
    folder=Setting("Names the folder of the noise files."),
    noise=_decibels("Gives the range of the signal-to-noise ratio for noise."),
    music=_decibels("Gives the range of the signal-to-noise ratio for music."),
    speech=_decibels("Gives the range of the signal-to-noise ratio for babble."),
    talkers=Setting("Gives the range of the number of talkers in babble.", at_least=1, at_most=1000, ordered=True),
)
GaussianNoise = _step("gaussian_noise", snr=_decibels("Gives the range of the signal-to-noise ratio."))
Channel = _step(
    "channel",
    equaliser=_decibels("Gives the range of the gains of the frequency response."),
    tilt=Setting("Gives the range of the spectral tilt.", **DECIBELS | {"unit": "dB per octave"}),
    low=Setting("Gives the range of the lower edge of the pass band.", above=0, unit="Hz", ordered=True),
    high=Setting("Gives the range of the upper edge of the pass band.", above=0, unit="Hz", ordered=True),
)
Gain = _step("gain", decibels=_decibels("Gives the range of the change in level."))


@dataclass(frozen=True)
class Speed:
    """Speed perturbation; a factor is drawn evenly for every crop."""

    factors: tuple[float, ...] = setting(
        (), at_least=0.5, at_most=2, help="Lists the speeds, such as 1.0, 0.9 and 1.1; an empty list turns it off."
    )
    new_speakers: bool = setting(True, help="Makes a speaker at another speed another class.")


@dataclass(frozen=True)
class Augment:
    """Random changes to training crops, applied in this order after the speed."""

    reverberation: Reverberation = section(Reverberation)
    noise_folder: NoiseFolder = section(NoiseFolder)
    gaussian_noise: GaussianNoise = section(GaussianNoise)
    channel: Channel = section(Channel)
    gain: Gain = section(Gain)
    speed: Speed = section(Speed)


@dataclass(frozen=True)
class Data:
    """The training corpus and the crops that are drawn from it."""

    train: str = setting(
        "", help="Names the corpus: a folder tree, a list file (`path speaker`), or tfds:NAME[/CONFIG][:SPLIT]."
    )
    data_dir: str | None = setting(None, help="Names the folder of the TFDS datasets.")
    crop_seconds: float = setting(
        3.0, at_least=0.01, at_most=3600, unit="s", help="Sets the length of a training crop."
    )
    crops_per_utterance: int = setting(1, at_least=1, help="Sets how many crops of an utterance an epoch has.")
    crops_per_speaker: int = setting(
        1, at_least=1, help="Sets how many crops of a speaker a batch has; losses over pairs need 2 or more."
    )
    one_utterance: bool = setting(
        False, help="Allows the crops of a speaker in a batch to be of one utterance if there is no second."
    )
    min_seconds: float = setting(
        0.5, at_least=0, unit="s", help="Leaves out and counts utterances shorter than this."
    )
    max_bad: float = setting(
        0.01, at_least=0, at_most=1, help="Stops the run when a larger fraction of the files cannot be used."
    )
    workers: int = setting(
        0, at_least=0, at_most=1024, help="Sets the number of decoding processes; 0 decodes in threads."
    )
    augment: Augment = section(Augment)


@dataclass(frozen=True)
class Cache:
    """A cache of the pooled features of training crops, for a backbone that is frozen at first."""

    crops: int = setting(
        0, at_least=0, help="Sets how many crops of an utterance are cached; 0 makes new crops in every epoch."
    )
    folder: str | None = setting(
        None, help="Names a folder that runs may share; None is a folder within the workdir."
    )
    batch_size: int = setting(
        256, at_least=1, help="Sets how many crops all devices together compute features of at once."
    )
    memory_share: float = setting(
        0.6,
        at_least=0,
        at_most=1,
        help="Sets the fraction of device memory for features; the rest is read from files.",
    )


@dataclass(frozen=True)
class Projection:
    """The Matryoshka projection and its start."""

    mrl_dims: tuple[int, ...] = setting(
        (64, 128, 192, 256), at_least=1, help="Lists the prefix lengths that are trained, in increasing order."
    )
    init: str = setting(
        "lossless",
        choices=INITS,
        help="Starts from the rotated pretrained projection (lossless), from it as it is (keep), or from random.",
    )
    order: str = setting(
        "class", choices=ORDERS, help="Orders the directions of the lossless start by the energy of means or of all."
    )
    crops: int = setting(
        20_000, at_least=1, help="Sets how many training crops the rotation and the means are computed from."
    )


@dataclass(frozen=True)
class Heads:
    """The classification heads, one for every dimension."""

    init: str = setting(
        "means", choices=HEAD_INITS, help="Starts prototypes at the means of their classes or at random."
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
class Loss:
    """The loss; the options of each loss are under its name."""

    name: str = setting("aam_softmax", choices=tuple(LOSSES), help="Chooses the loss.")
    weights: tuple[float, ...] | None = setting(
        None, at_least=0, help="Weights the losses of the dimensions; None weights them equally."
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
    aam_softmax: AAMSoftmax = section(AAMSoftmax)
    am_softmax: AMSoftmax = section(AMSoftmax)
    subcenter_aam: SubcenterAAM = section(SubcenterAAM)
    sphereface2: SphereFace2 = section(SphereFace2)
    triplet: Triplet = section(Triplet)
    supervised_contrastive: SupervisedContrastive = section(SupervisedContrastive)
    ge2e: GE2E = section(GE2E)
    angular_prototypical: AngularPrototypical = section(AngularPrototypical)


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


@dataclass(frozen=True)
class LearningRates:
    """Learning rates of single parts; None is `learning_rate`."""

    backbone: float | None = setting(None, above=0, help="Replaces the peak learning rate for the backbone.")
    projection: float | None = setting(None, above=0, help="Replaces the peak learning rate for the projection.")
    heads: float | None = setting(None, above=0, help="Replaces the peak learning rate for the heads.")


@dataclass(frozen=True)
class Optimizer:
    """AdamW and its schedule: a linear warm-up and half a cosine."""

    learning_rate: float = setting(1e-3, above=0, help="Sets the peak learning rate of the schedule.")
    learning_rates: LearningRates = section(LearningRates)
    layer_decay: float = setting(
        1.0, above=0, at_most=1, help="Multiplies the rate once for every later stage of the backbone."
    )
    final_learning_rate: float = setting(1e-6, at_least=0, help="Sets the learning rate at the end of the schedule.")
    warmup_epochs: float = setting(0.5, at_least=0, unit="epochs", help="Sets the length of the warm-up.")
    weight_decay: float = setting(
        1e-4, at_least=0, help="Sets the decoupled decay of matrices; vectors do not decay."
    )
    clip_norm: float = setting(5.0, above=0, help="Clips the global norm of the gradient.")
    accumulate: int = setting(1, at_least=1, help="Sets into how many pieces a batch is divided to save memory.")


SecondOptimizer = all_optional(Optimizer, "The optimizer of the second stage; None is as in the first stage.")


@dataclass(frozen=True)
class SecondStage:
    """A second stage, which `stage2.epoch` or `stage2.patience` starts."""

    epoch: int | None = setting(None, at_least=1, help="Starts the second stage after this epoch.")
    patience: int | None = setting(
        None, at_least=1, help="Starts the second stage after this many validations without a better EER."
    )
    parts: tuple[str, ...] = setting(
        ("backbone", "projection", "heads"), help="Lists the parts or patterns of paths that train."
    )
    batch_stats: str = setting(
        "trained", choices=BATCH_STATS, help="Updates the batch statistics of what trains, or freezes them all."
    )
    optimizer: SecondOptimizer = section(SecondOptimizer)


@dataclass(frozen=True)
class Averaging:
    """Averages of weights."""

    ema: float = setting(
        0.0, at_least=0, below=1, help="Sets the decay of the moving average that is validated; 0 turns it off."
    )
    last: int = setting(0, at_least=0, help="Averages the models of this many last epochs; 0 turns it off.")


@dataclass(frozen=True)
class Validation:
    """Verification trials of speakers who are not trained on."""

    trials: str | None = setting(None, help="Names a trial list in VoxCeleb's format.")
    audio_root: str | None = setting(
        None,
        help="Names the folder that the paths of `validation.trials` are in, or several, separated by commas.",
    )
    utt2spk: str | None = setting(
        None, help="Names a file of lines `utterance speaker` that says who speaks in `validation.trials`."
    )
    speaker_pattern: str | None = setting(
        None, help="Gives a regular expression whose one group is the speaker in a path of `validation.trials`."
    )
    tree: str | None = setting(
        None,
        help="Names the corpus of unseen speakers: trials are generated from it, or `validation.trials` are in it.",
    )
    holdout: float = setting(
        0.02,
        above=0,
        below=1,
        help="Keeps out this fraction of the training speakers if there are neither trials nor a tree.",
    )
    generated_trials: int = setting(10_000, at_least=2, help="Sets how many trials are generated without a list.")
    metadata: str | None = setting(None, help="Names the table of the speakers' sex, such as vox1_meta.csv.")
    same_sex: bool = setting(False, help="Generates non-target trials only between speakers of one sex.")
    every_epochs: int = setting(1, at_least=1, unit="epochs", help="Sets the distance between validations.")
    crop_seconds: float | None = setting(
        None,
        at_least=0.01,
        at_most=3600,
        unit="s",
        help="Sets the length of the crops; None embeds whole utterances.",
    )
    crops: int = setting(1, at_least=1, help="Sets how many crops of an utterance are scored.")
    max_seconds: float = setting(60.0, above=0, unit="s", help="Cuts whole utterances that are longer.")
    batch_seconds: float = setting(240.0, above=0, unit="s", help="Sets how much audio a device embeds at once.")
    dim: int | None = setting(
        None, at_least=1, help="Chooses the dimension whose EER picks the best model; None is the largest."
    )
    bootstrap: int = setting(
        200, at_least=1, help="Sets the number of bootstrap resamples for the intervals during training."
    )
    patience: int | None = setting(
        None, at_least=1, help="Ends the last stage after this many validations without a better EER."
    )
    min_improvement: float = setting(
        0.0, at_least=0, at_most=1, help="Sets by how much a better EER must be lower, as a fraction."
    )
    significant: bool = setting(
        False, help="Counts an EER as better only if the 95% interval of the difference excludes 0."
    )
    allow_shared_speakers: bool = setting(False, help="Allows trials of training speakers.")


@dataclass(frozen=True)
class Classification:
    """Loss and accuracy on held-out recordings of the training speakers, beside the EER."""

    share: float = setting(
        0.0, at_least=0, below=1, help="Keeps out this fraction of every speaker's recordings; 0 turns it off."
    )
    gap_seconds: float = setting(
        1.0, at_least=0, unit="s", help="Leaves a gap between both sides of a speaker with one recording."
    )
    source: str | None = setting(
        None, help="Names a corpus of such recordings (tree, list file or tfds:NAME) instead of a share."
    )
    max_recordings: int = setting(2000, at_least=1, help="Limits the recordings to a random sample of this size.")


@dataclass(frozen=True)
class Checkpoint:
    """Training checkpoints."""

    keep: int = setting(2, at_least=1, help="Sets how many of the newest checkpoints are kept.")
    every_steps: int = setting(1000, at_least=1, unit="steps", help="Sets the distance between checkpoints.")


@dataclass(frozen=True)
class Settings:
    """The run as a whole."""

    seed: int = setting(0, at_least=0, below=2**31 - 1, help="Seeds all random numbers of the run.")
    epochs: int = setting(10, at_least=1, help="Sets the number of epochs of all stages together.")
    batch_size: int = setting(
        256, at_least=1, unit="crops", help="Sets the size of a batch over all devices and hosts."
    )
    dtype: str = setting(
        "bfloat16", choices=DTYPES, help="Chooses the arithmetic of the backbone; everything else is float32."
    )
    remat: bool = setting(
        False, help="Computes the blocks of a backbone that trains twice, which takes less memory and more time."
    )
    parts: tuple[str, ...] = setting(
        ("projection", "heads"), help="Lists the parts or patterns of paths that train; everything else is frozen."
    )
    batch_stats: str = setting(
        "trained", choices=BATCH_STATS, help="Updates the batch statistics of what trains, or freezes them all."
    )
    model: Model = section(Model)
    data: Data = section(Data)
    cache: Cache = section(Cache)
    projection: Projection = section(Projection)
    heads: Heads = section(Heads)
    loss: Loss = section(Loss)
    distillation: Distillation = section(Distillation)
    optimizer: Optimizer = section(Optimizer)
    stage2: SecondStage = section(SecondStage)
    averaging: Averaging = section(Averaging)
    validation: Validation = section(Validation)
    classification: Classification = section(Classification)
    checkpoint: Checkpoint = section(Checkpoint)
    log_every_steps: int = setting(20, at_least=1, unit="steps", help="Sets the distance between lines of the log.")

    @property
    def chosen_loss(self):
        """The loss that `loss.name` chooses, with its options."""
        options = getattr(self.loss, self.loss.name)
        return LOSSES[self.loss.name](
            **{field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        )

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizer of each stage by the start of its keys; what the second leaves open is as in the first."""
        found = {"": self.optimizer}
        if self.stage2.epoch is not None or self.stage2.patience is not None:
            entries = {
                field.name: getattr(self.stage2.optimizer, field.name) for field in dataclasses.fields(Optimizer)
            }
            given = {name: value for name, value in entries.items() if value is not None}
            found["stage2."] = dataclasses.replace(self.optimizer, **given)
        return found
