"""Every setting of a training run with its default; the files in `configs/` change some of them.

The tree is complete and locked: a key that is not here is an error.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from redimnet_jax import augment, pretrained, stages
from redimnet_jax.errors import UserError
from redimnet_jax.matryoshka import INITS, ORDERS
from redimnet_jax.objective import LOSSES, loss_from_config
from redimnet_jax.optimizer import RAMPS
from redimnet_jax.parts import PARTS

HEAD_INITS = ("means", "random")
DTYPES = ("float32", "bfloat16")
COUNTS = (
    "epochs",
    "batch_size",
    "data.crops_per_utterance",
    "data.crops_per_speaker",
    "optimizer.accumulate",
    "checkpoint.keep",
    "checkpoint.every_steps",
    "log_every_steps",
    "validation.every_epochs",
    "validation.crops",
    "classification.max_recordings",
)
# What an interrupted run may be resumed with another value of: nothing here changes what is trained
# (of data elsewhere, the speakers and the digest are compared).
FREE_TO_CHANGE = (
    "data.train",
    "data.data_dir",
    "data.max_bad",
    "data.workers",
    "cache.folder",
    "cache.batch_size",
    "cache.memory_share",
    "checkpoint.",
    "log_every_steps",
    "validation.batch_seconds",
)


def default() -> ConfigDict:
    """The projection-only recipe, without data."""
    optional = config_dict.placeholder
    config = ConfigDict(
        {
            "seed": 0,
            "epochs": 10,
            "batch_size": 256,  # over all devices and hosts
            "dtype": "bfloat16",  # of the backbone's arithmetic; everything else is float32
            "remat": False,  # True: less memory where the backbone trains; its blocks are done twice
            "parts": ("projection", "heads"),  # that train, or patterns ("backbone.stages.5"); all else is frozen
            "batch_stats": "trained",  # of what trains; or "frozen": no batch norm uses or moves them
            "model": {
                "checkpoint": optional(str),  # a native checkpoint, a workdir or a .pt; None builds from `config`
                "arch": "redimnet",
                "config": {},  # the model_config of a network that starts from nothing
            },
            "data": {
                "train": "",  # a tree, a list file (`path speaker`), or tfds:NAME[/CONFIG][:SPLIT]
                "data_dir": optional(str),  # where TFDS datasets lie
                "crop_seconds": 3.0,
                "crops_per_utterance": 1,  # in an epoch
                "crops_per_speaker": 1,  # in a batch; more make batches of speakers, for losses that compare crops
                "one_utterance": False,  # whether these may be of one utterance where a speaker has no second
                "min_seconds": 0.5,  # shorter utterances are left out, and counted
                "max_bad": 0.01,  # stop when a larger share of the files cannot be used
                "workers": 0,  # processes that decode; 0 decodes in threads of this one
                "augment": _augmentation(),
            },
            "cache": {  # of the pooled features of training crops, while the backbone is frozen
                "crops": 0,  # of every utterance, which the epochs take in turn; 0 makes new crops in every epoch
                "folder": optional(str),  # which runs may share; None is in the workdir
                "batch_size": 256,  # crops whose features are computed at once, over all devices and hosts
                "memory_share": 0.6,  # of a device's memory for features; what does not fit is read from the files
            },
            "projection": {
                "mrl_dims": (64, 128, 192, 256),
                "init": "lossless",  # or "keep" the pretrained projection as it is, or "random"
                "order": "class",
                "crops": 20_000,  # training crops that the rotation of the lossless start is learned from
            },
            "heads": {
                "init": "means",  # of the classes' embeddings, where there is something pretrained; or "random"
                "shared": False,  # one matrix of prototypes, sliced, in place of one a dimension
            },
            "loss": {
                "name": "aam_softmax",
                "weights": optional(tuple),  # of the dimensions; None is equal
                "margin_schedule": "constant",  # or "linear" or "exponential", between the epochs of `margin_ramp`
                "margin_ramp": (0.0, 0.0),  # epochs between which the margin grows from 0
                "consistency": 0.0,  # weight of the scores of shorter prefixes following those of the widest
                **_losses(),  # the options of every loss, by its name
            },
            "distillation": {  # from a frozen teacher, added to the loss
                "teacher": optional(str),  # a native checkpoint, a workdir or a .pt; None is no teacher
                "scores": 1.0,  # weight of the cosines of a batch following the teacher's
                "embeddings": 0.0,  # weight of the first elements following the teacher's embedding
            },
            "optimizer": {
                "learning_rate": 1e-3,
                "learning_rates": {part: optional(float) for part in PARTS},  # None is `learning_rate`
                "layer_decay": 1.0,  # the rate is multiplied by this for every later stage of the backbone
                "final_learning_rate": 1e-6,
                "warmup_epochs": 0.5,
                "weight_decay": 1e-4,
                "clip_norm": 5.0,
                "accumulate": 1,  # pieces a batch is worked off in
            },
            "stage2": {  # another stage, which starts when one of the first two says so
                "epoch": optional(int),  # after this one
                "patience": optional(int),  # after so many validations without a better EER
                "parts": ("backbone", "projection", "heads"),
                "batch_stats": "trained",
                "optimizer": {  # None is as in the first stage; of `learning_rates`, this stage's `learning_rate`
                    "learning_rate": optional(float),
                    "learning_rates": {part: optional(float) for part in PARTS},
                    "layer_decay": optional(float),
                    "final_learning_rate": optional(float),
                    "warmup_epochs": optional(float),
                    "weight_decay": optional(float),
                    "clip_norm": optional(float),
                    "accumulate": optional(int),
                },
            },
            "averaging": {
                "ema": 0.0,  # decay of the moving average of what trains, which is then what is validated; 0 is none
                "last": 0,  # epochs at the end whose models' mean is evaluated and written too; 0 is none
            },
            "validation": {
                "trials": optional(str),  # a list in VoxCeleb's format
                "audio_root": optional(str),  # what its paths are relative to
                "tree": optional(str),  # in place of `trials`: unseen speakers to make trials of
                "holdout": 0.02,  # with neither: the share of training speakers kept out for validation
                "generated_trials": 10_000,
                "metadata": optional(str),  # of the speakers' sex
                "same_sex": False,  # generated non-target trials only between speakers of one sex
                "every_epochs": 1,
                "crop_seconds": optional(float),  # None embeds whole utterances
                "crops": 1,
                "max_seconds": 60.0,  # longer utterances are cut
                "batch_seconds": 240.0,  # audio in a batch, on each device
                "dim": optional(int),  # whose EER picks the best model; None is the largest
                "bootstrap": 200,
                "patience": optional(int),  # validations without a better EER that end the last stage; None is any
                "min_improvement": 0.0,  # of the EER (a fraction) that counts as better
                "significant": False,  # only what the 95% interval of the difference says is better counts
                "allow_shared_speakers": False,  # trials of training speakers
            },
            "classification": {  # its loss and accuracy beside EER, on other recordings of the training speakers
                "share": 0.0,  # of every speaker's recordings that is kept out of training for it; 0 is none
                "gap_seconds": 1.0,  # between what trains and what does not of a speaker with one recording
                "source": optional(str),  # in place of a share: a tree, a list file or tfds:... of such recordings
                "max_recordings": 2000,  # that are judged; of more, a random sample
            },
            "checkpoint": {"keep": 2, "every_steps": 1000},
            "log_every_steps": 20,
        }
    )
    return config.lock()


def use_demo(config: ConfigDict) -> None:
    """Makes `config` a matter of minutes on a CPU: the small backbone and voices that the package makes itself."""
    config.model.checkpoint = str(pretrained.SMALL)
    config.data.train = "synthetic:60x3x4"
    config.data.crop_seconds = 2.0
    config.validation.tree = "synthetic:20x3x4@60"
    config.validation.generated_trials = 1000
    config.dtype = "float32"
    config.batch_size = 40
    config.projection.crops = 1500


def check(config: ConfigDict, devices: int, processes: int) -> None:
    """Raises UserError for a value that no run can have; `devices` and `processes` are what it runs on."""

    def require(condition: bool, key: str, wanted: str) -> None:
        if not condition:
            raise UserError(f"config.{key} is {_at(config, key)!r} but must be {wanted}; correct it.")

    dims, parts = tuple(config.projection.mrl_dims), tuple(config.parts)
    increasing = all(a < b for a, b in zip((0, *dims), dims, strict=False))
    require(bool(dims) and increasing, "projection.mrl_dims", "increasing positive integers")
    require({"projection", "heads"} <= set(parts), "parts", "with 'projection' and 'heads', which start untrained")
    require(config.projection.init in INITS, "projection.init", f"one of {', '.join(INITS)}")
    require(config.projection.order in ORDERS, "projection.order", f"one of {', '.join(ORDERS)}")
    require(config.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}")
    require(config.heads.init in HEAD_INITS, "heads.init", f"one of {', '.join(HEAD_INITS)}")
    _check_loss(config, require)
    for key in COUNTS:
        require(_at(config, key) >= 1, key, "at least 1")
    _check_stages(config, require, devices)
    require(0 <= config.averaging.ema < 1, "averaging.ema", "from 0 to less than 1")
    require(config.averaging.last >= 0, "averaging.last", "0 or a number of epochs")
    _check_cache(config, require, devices)
    if config.distillation.teacher is not None:
        weights = config.distillation.scores, config.distillation.embeddings
        require(min(weights) >= 0 and any(weights), "distillation.scores", "0 or more, and not 0 with embeddings 0")
        require(config.cache.crops == 0, "cache.crops", "0 with distillation.teacher, which hears every crop itself")
    dim = config.validation.dim
    require(dim is None or dim in dims, "validation.dim", f"one of projection.mrl_dims {dims}")
    known = config.classification
    require(0 <= known.share < 1, "classification.share", "from 0 to below 1")
    require(known.gap_seconds >= 0, "classification.gap_seconds", "at least 0")
    require(not (known.share and known.source), "classification.share", "0 when classification.source is given")
    if config.model.checkpoint is None:
        require(bool(config.model.config), "model.checkpoint", "a checkpoint, unless model.config builds a network")
        require(config.heads.init == "random", "heads.init", "'random' when nothing pretrained is given")
        require("backbone" in parts, "parts", "with 'backbone' too when nothing pretrained is given")
    for name, step in config.data.augment.items():
        folder = step.get("folder")
        if folder and not step.p:
            raise UserError(
                f"config.data.augment.{name}.folder is given but its probability p is 0; set p, or leave it out."
            )


def _check_cache(config: ConfigDict, require: Callable[[bool, str, str], None], devices: int) -> None:
    wanted, each = config.cache, config.data.crops_per_utterance
    enough = wanted.crops == 0 or wanted.crops >= each
    require(enough, "cache.crops", f"0 or at least data.crops_per_utterance, {each}")
    if wanted.crops:
        require(config.data.crops_per_speaker == 1, "data.crops_per_speaker", "1 with cache.crops")
        require(0 <= wanted.memory_share <= 1, "cache.memory_share", "from 0 to 1")
        whole = wanted.batch_size > 0 and wanted.batch_size % devices == 0
        require(whole, "cache.batch_size", f"a multiple of the {devices} device(s)")


def _check_loss(config: ConfigDict, require: Callable[[bool, str, str], None]) -> None:
    wanted, dims = config.loss, tuple(config.projection.mrl_dims)
    require(wanted.name in LOSSES, "loss.name", f"one of {', '.join(LOSSES)}")
    loss = loss_from_config(config)
    weights = wanted.weights
    positive = weights is None or (len(weights) == len(dims) and min(weights) >= 0 and sum(weights) > 0)
    require(positive, "loss.weights", f"{len(dims)} weights, one a dimension, none negative")
    require(wanted.margin_schedule in RAMPS, "loss.margin_schedule", f"one of {', '.join(RAMPS)}")
    start, end = wanted.margin_ramp
    if wanted.margin_schedule == "constant":
        require(start == end == 0, "loss.margin_ramp", "(0, 0) when loss.margin_schedule is 'constant'")
    else:
        require(0 <= start < end, "loss.margin_ramp", "two epochs, the first before the second")
        require(loss.margin > 0, "loss.margin_schedule", f"'constant', since {wanted.name} has no margin here")
    require(wanted.consistency >= 0, "loss.consistency", "0 or more")
    require(not wanted.consistency or len(dims) > 1, "loss.consistency", "0 when there is one dimension")
    if loss.needs_pairs:
        require(config.data.crops_per_speaker > 1, "data.crops_per_speaker", f"2 or more with {wanted.name}")
        speakers = config.batch_size // config.data.crops_per_speaker
        require(speakers > 1, "batch_size", f"of two speakers at least with {wanted.name}")
        require(not config.heads.shared, "heads.shared", f"False with {wanted.name}, which has no prototypes")
        for stage, prefix in zip(stages.stages(config), ("", "stage2."), strict=False):
            require(stage.optimizer.accumulate == 1, f"{prefix}optimizer.accumulate", f"1 with {wanted.name}")
        whole = "which compares the crops of a batch"
        require(not config.classification.share, "classification.share", f"0 with {wanted.name}, {whole}")
        require(not config.classification.source, "classification.source", f"None with {wanted.name}, {whole}")


def _check_stages(config: ConfigDict, require: Callable[[bool, str, str], None], devices: int) -> None:
    second = config.stage2
    require(second.epoch is None or 1 <= second.epoch < config.epochs, "stage2.epoch", "from 1 to less than epochs")
    require(second.patience is None or second.patience >= 1, "stage2.patience", "at least 1")
    if second.epoch is None and second.patience is None and second != default().stage2:
        changed = [key for key, (a, b) in _flat(second.to_dict(), default().stage2.to_dict()).items() if a != b]
        raise UserError(
            f"config.stage2.{min(changed)} is set but nothing starts a second stage; set stage2.epoch or "
            "stage2.patience."
        )
    for stage, prefix in zip(stages.stages(config), ("", "stage2."), strict=False):
        require(bool(stage.filters), f"{prefix}parts", "a part or a pattern at least")
        known = stage.batch_stats in stages.BATCH_STATS
        require(known, f"{prefix}batch_stats", f"one of {', '.join(stages.BATCH_STATS)}")
        settings = stage.optimizer
        require(settings.learning_rate > 0, f"{prefix}optimizer.learning_rate", "positive")
        for part, rate in settings.learning_rates.items():
            require(rate is None or rate > 0, f"{prefix}optimizer.learning_rates.{part}", "positive")
        require(0 < settings.layer_decay <= 1, f"{prefix}optimizer.layer_decay", "above 0 and at most 1")
        pieces = devices * settings.accumulate
        require(
            settings.accumulate >= 1 and config.batch_size % pieces == 0,
            "batch_size",
            f"a multiple of {pieces}, the {devices} device(s) times {prefix}optimizer.accumulate",
        )


def check_resume(config: ConfigDict, saved: Mapping[str, Any], workdir: Path) -> None:
    """Raises UserError naming every setting that differs from the `saved` ones of `workdir` and matters."""
    now = json.loads(config.to_json_best_effort())
    changed = [
        f"{key} (was {old!r}, is {new!r})"
        for key, (old, new) in sorted(_flat(saved, now).items())
        if old != new and not key.startswith(FREE_TO_CHANGE)
    ]
    if changed:
        raise UserError(
            f"The run in {workdir} was started with another config: {', '.join(changed)}; restore these, or give "
            "another --workdir."
        )


def _flat(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Pairs of the leaves of two trees of mappings, by dotted key."""
    if not (isinstance(a, Mapping) or isinstance(b, Mapping)):
        return {prefix: (a, b)}
    pairs = {}
    a, b = (x if isinstance(x, Mapping) else {} for x in (a, b))
    for key in a.keys() | b.keys():
        pairs |= _flat(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    return pairs


def _at(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key."""
    return functools.reduce(lambda tree, part: tree[part], key.split("."), config)


def _losses() -> dict[str, Any]:
    """The options of every loss."""
    options = {}
    for name, loss in LOSSES.items():
        fields = {field.name: field.default for field in dataclasses.fields(loss)}
        options[name] = {key: config_dict.placeholder(float) if x is None else x for key, x in fields.items()}
    return options


def _augmentation() -> dict[str, Any]:
    """Every option of every augmentation step; those of probability 0 are off."""
    steps = {}
    for name, step in augment.STEPS.items():
        options = [field for field in dataclasses.fields(step) if field.init]
        steps[name] = {f.name: "" if f.default is dataclasses.MISSING else f.default for f in options} | {"p": 0.0}
    return steps | {"speed": {"factors": (), "new_speakers": True}}
