"""Rules between the settings of a training run: what cannot be, and what would have no effect."""

import itertools
from collections.abc import Iterator
from typing import Any

from redimnet_jax import settings as typed
from redimnet_jax.data import augment
from redimnet_jax.errors import UserError
from redimnet_jax.losses.doubt import trimmed
from redimnet_jax.losses.objective import LOSSES, losses_of_prefixes
from redimnet_jax.setting_values import refused, shown
from redimnet_jax.training.settings import Settings

# (holds, key, what it must be): the setting at the key is refused where the rule does not hold.
Rule = tuple[bool, str, str]
# (has an effect, key or the start of keys, when it has none): where it has none only the default is accepted.
Effect = tuple[bool, str, str]


def check(settings: Settings, devices: int) -> None:
    """Raise UserError for settings that no run on that many `devices` can have, and for those without effect."""
    rules = (_network_rules, _data_rules, _loss_rules, _prefix_rules, _doubt_rules, _pair_rules, _stage_rules)
    for holds, key, requirement in itertools.chain(
        *(each(settings) for each in rules), _device_rules(settings, devices)
    ):
        if not holds:
            raise refused(key, _value(settings, key), requirement)
    leaves = {leaf.key: leaf.default for leaf in typed.leaves(Settings)}
    for effective, start, when in itertools.chain(_training_effects(settings), _data_effects(settings)):
        for key, default in leaves.items() if not effective else ():
            value = typed.at(settings, key)
            if (key == start or (start.endswith(".") and key.startswith(start))) and value != default:
                raise UserError(
                    f"config.{key} is {shown(value)} but has no effect {when}; set it to its default, "
                    f"{shown(default)}."
                )


def _value(settings: Settings, key: str) -> Any:
    """Return the value at `key`, which in the second stage may be that of the first."""
    value = typed.at(settings, key)
    return typed.at(settings, key.removeprefix("stage2.")) if value is None else value


def _network_rules(settings: Settings) -> Iterator[Rule]:
    dims, parts, teacher = settings.projection.mrl_dims, settings.parts, settings.distillation.teacher
    increasing = all(a < b for a, b in itertools.pairwise((0, *dims)))
    yield bool(dims) and increasing, "projection.mrl_dims", "increasing positive integers"
    yield (
        {"projection", "heads"} <= set(parts),
        "parts",
        "a list with 'projection' and 'heads', which start untrained",
    )
    dim = settings.validation.dim
    yield dim is None or dim in dims, "validation.dim", f"one of projection.mrl_dims {dims}"
    if settings.model.checkpoint is None:
        named = settings.model.variant is not None
        given = named or bool(settings.model.config)
        yield given, "model.checkpoint", "a checkpoint, unless model.variant or model.config gives a network"
        yield not (named and settings.model.config), "model.config", "{} with model.variant, which has its own"
        yield settings.heads.init == "random", "heads.init", "'random' when nothing pretrained is given"
        yield "backbone" in parts, "parts", "a list with 'backbone' too when nothing pretrained is given"
        yield settings.projection.init != "keep", "projection.init", "'random' when nothing pretrained is given"
    if settings.heads.init == "run":
        yield settings.heads.run is not None, "heads.run", "the workdir of a run when heads.init is 'run'"
        kept = settings.projection.init == "keep"
        yield kept, "projection.init", "'keep' when heads.init is 'run', since prototypes fit one projection alone"
    if teacher is not None:
        weighted = settings.distillation.scores or settings.distillation.embeddings
        yield bool(weighted), "distillation.scores", "above 0 when distillation.embeddings is 0"
        yield settings.cache.crops == 0, "cache.crops", "0 with distillation.teacher, which hears every crop itself"


def _data_rules(settings: Settings) -> Iterator[Rule]:
    data, validation, known = settings.data, settings.validation, settings.classification
    on = [name for name in augment.STEPS if getattr(data.augment, name).p]
    for name in on:
        given = not augment.needs_folder(name) or getattr(data.augment, name).folder
        yield bool(given), f"data.augment.{name}.folder", "a folder of audio files when p is above 0"
    draw = data.augment.draw
    named = {name.strip() for kind in draw.one_of for name in kind.split("+")}
    yield named <= set(on), "data.augment.draw.one_of", f"of steps whose p is above 0 ({', '.join(on) or 'none is'})"
    fit = draw.weights is None or (len(draw.weights) == len(draw.one_of) and sum(draw.weights) > 0)
    yield fit, "data.augment.draw.weights", f"{len(draw.one_of)} weights, one for each kind, with a sum above 0"
    factors = data.augment.speed.factors
    yield len(set(factors)) == len(factors), "data.augment.speed.factors", "a list of different numbers"
    sexes = not validation.same_sex or bool(validation.metadata)
    yield sexes, "validation.metadata", "a table of the speakers' sex with validation.same_sex"
    yield not (known.share and known.source), "classification.share", "0 when classification.source is given"
    divides = data.crops_per_utterance % data.crops_per_read == 0
    yield divides, "data.crops_per_read", f"a divisor of data.crops_per_utterance, {data.crops_per_utterance}"
    apart = data.crops_per_read == 1 or data.crops_per_speaker == 1
    yield apart, "data.crops_per_read", "1 when data.crops_per_speaker is above 1"
    lengths = data.crop_lengths
    yield len(set(lengths)) == len(lengths), "data.crop_seconds", "a list of different lengths"
    if settings.cache.crops:
        yield len(lengths) == 1, "data.crop_seconds", "one length with cache.crops, whose crops are cached once"
        enough = settings.cache.crops >= data.crops_per_utterance
        yield enough, "cache.crops", f"0 or at least data.crops_per_utterance, {data.crops_per_utterance}"
        yield data.crops_per_speaker == 1, "data.crops_per_speaker", "1 with cache.crops"


def _loss_rules(settings: Settings) -> Iterator[Rule]:
    loss, dims = settings.loss, settings.projection.mrl_dims
    weights = loss.weights
    fit = weights is None or (len(weights) == len(dims) and sum(weights) > 0)
    yield fit, "loss.weights", f"{len(dims)} weights, one for each dimension, with a sum above 0"
    start, end = loss.margin_ramp
    if loss.margin_schedule == "constant":
        yield start == end == 0, "loss.margin_ramp", "(0, 0) when loss.margin_schedule is 'constant'"
    else:
        yield start < end, "loss.margin_ramp", "two epochs, the first before the second"
        margin = settings.chosen_loss.margin > 0 if loss.margins is None else any(loss.margins)
        yield margin, "loss.margin_schedule", f"'constant', since {loss.name} has no margin here"
    yield not loss.consistency or len(dims) > 1, "loss.consistency", "0 when there is one dimension"


def _prefix_rules(settings: Settings) -> Iterator[Rule]:
    loss, count = settings.loss, len(settings.projection.mrl_dims)
    weights = loss.weights or (1.0,) * count
    if loss.margins is not None:
        has_margin = hasattr(getattr(loss, loss.name), "margin")
        yield has_margin, "loss.margins", f"None, since {loss.name} has no margin"
        yield len(loss.margins) == count, "loss.margins", f"{count} margins, one for each dimension"
        yield _are_margins(settings), "loss.margins", f"margins that loss.{loss.name}.margin can have"
    if loss.scale_gradients:
        yield count > 1, "loss.scale_gradients", "False when there is one dimension"
        # The gradient of elements that no prefix trains has no scale.
        yield weights[-1] > 0, "loss.weights", "above 0 at the last dimension with loss.scale_gradients"
    trained = sum(weight > 0 for weight in weights)
    fewer = f"0 or less than {trained}, the number of dimensions that have a weight"
    yield loss.sampled_prefixes < trained, "loss.sampled_prefixes", fewer
    if loss.durations is not None:
        yield count > 1, "loss.durations", "None when there is one dimension"
        yield len(loss.durations) == count, "loss.durations", f"{count} durations, one for each dimension"
        rising = all(a <= b for a, b in itertools.pairwise(loss.durations))
        yield rising, "loss.durations", "durations that do not decrease"


def _are_margins(settings: Settings) -> bool:
    """Return whether the chosen loss can be made with each of `loss.margins`."""
    try:
        losses_of_prefixes(settings.chosen_loss, len(settings.projection.mrl_dims), settings.loss.margins)
    except UserError:
        return False
    return True


def _doubt_rules(settings: Settings) -> Iterator[Rule]:
    doubtful, name = settings.loss.doubtful, settings.loss.name
    over_classes = not LOSSES[name].needs_pairs
    yield not doubtful.trim or over_classes, "loss.doubtful.trim", f"0 with {name}, whose losses are of pairs"
    for prefix, optimizer in settings.optimizers.items():
        piece = settings.batch_size // optimizer.accumulate
        least = f"0 or at least one of the {piece} examples of a batch (by {prefix}optimizer.accumulate, of a piece)"
        yield not doubtful.trim or trimmed(doubtful.trim, piece) > 0, "loss.doubtful.trim", least
    if doubtful.minor_weight != 1:
        several = name == "subcenter_aam" and settings.loss.subcenter_aam.centers > 1
        key = "loss.doubtful.minor_weight"
        yield several, key, "1 unless loss.name is 'subcenter_aam' with two centers or more"
        means = settings.model.checkpoint is not None and settings.heads.init == "means"
        yield means, key, "1 unless the first sub-center starts at the mean (heads.init, with model.checkpoint)"
    if doubtful.trim or doubtful.minor_weight != 1:
        begins = doubtful.from_epoch < settings.epochs
        yield begins, "loss.doubtful.from_epoch", f"below the {settings.epochs} epoch(s) of the run"


def _pair_rules(settings: Settings) -> Iterator[Rule]:
    if not LOSSES[settings.loss.name].needs_pairs:
        return
    name, crops = settings.loss.name, settings.data.crops_per_speaker
    yield crops > 1, "data.crops_per_speaker", f"2 or more with {name}"
    yield settings.batch_size // crops > 1, "batch_size", f"enough for two speakers with {name}"
    yield not settings.heads.shared, "heads.shared", f"False with {name}, which has no prototypes"
    for prefix, optimizer in settings.optimizers.items():
        yield optimizer.accumulate == 1, f"{prefix}optimizer.accumulate", f"1 with {name}"
    whole = f"with {name}, which compares the crops of a batch"
    yield not settings.classification.share, "classification.share", f"0 {whole}"
    yield not settings.classification.source, "classification.source", f"None {whole}"


def _stage_rules(settings: Settings) -> Iterator[Rule]:
    second = settings.stage2.epoch
    yield second is None or second < settings.epochs, "stage2.epoch", "from 1 to less than epochs"
    lengths = {"": second or settings.epochs, "stage2.": settings.epochs - (second or 0)}
    for prefix, optimizer in settings.optimizers.items():
        yield bool(typed.at(settings, f"{prefix}parts")), f"{prefix}parts", "at least one part or pattern"
        peak, length = optimizer.learning_rate, lengths[prefix]
        falls = optimizer.final_learning_rate <= peak
        yield falls, f"{prefix}optimizer.final_learning_rate", f"at most the peak learning rate, {peak:g}"
        decays = optimizer.schedule != "exponential" or optimizer.final_learning_rate > 0
        yield decays, f"{prefix}optimizer.final_learning_rate", "above 0 with an exponential schedule"
        reached = optimizer.warmup_epochs < length
        yield reached, f"{prefix}optimizer.warmup_epochs", f"below the {length} epoch(s) of the stage"


def _device_rules(settings: Settings, devices: int) -> Iterator[Rule]:
    for prefix, optimizer in settings.optimizers.items():
        pieces = devices * optimizer.accumulate
        requirement = f"a multiple of {pieces}, the {devices} device(s) times {prefix}optimizer.accumulate"
        yield settings.batch_size % pieces == 0, "batch_size", requirement
    if settings.cache.crops:
        whole = settings.cache.crops_at_once(devices) % devices == 0
        yield whole, "cache.batch_size", f"a multiple of the {devices} device(s)"


def _training_effects(settings: Settings) -> Iterator[Effect]:
    loss, pretrained = settings.loss, settings.model.checkpoint is not None
    pairs = LOSSES[loss.name].needs_pairs
    lossless = pretrained and settings.projection.init == "lossless"
    means = pretrained and settings.heads.init == "means" and not pairs
    yield not pretrained, "model.variant", "with model.checkpoint, which has its own network"
    yield settings.model.variant is None, "model.arch", "with model.variant, which has its own"
    yield not pretrained, "model.arch", "with model.checkpoint, which has its own"
    yield not pretrained, "model.config", "with model.checkpoint, which has its own"
    yield lossless, "projection.order", "without a lossless start from model.checkpoint (projection.init)"
    learns = "unless projection.init is 'lossless' or heads.init 'means', with model.checkpoint"
    yield lossless or means, "projection.crops", learns
    yield settings.heads.init == "run", "heads.run", "unless heads.init is 'run'"
    # Without a checkpoint it must be 'random' whatever the loss.
    yield not (pairs and pretrained), "heads.init", f"with loss.name {loss.name!r}, which has no prototypes"
    for name in LOSSES:
        yield name == loss.name, f"loss.{name}.", f"while loss.name is {loss.name!r}"
    yield loss.margins is None, f"loss.{loss.name}.margin", "with loss.margins"
    yield loss.durations is not None, "loss.duration_sharpness", "without loss.durations"
    doubts = loss.doubtful.trim > 0 or loss.doubtful.minor_weight != 1
    yield (
        doubts,
        "loss.doubtful.from_epoch",
        "unless loss.doubtful.trim or loss.doubtful.minor_weight leaves some out",
    )
    yield loss.ge2e.form == "contrast", "loss.ge2e.bias", "unless loss.ge2e.form is 'contrast'"
    yield loss.subcenter_aam.top_k > 0, "loss.subcenter_aam.penalty", "while loss.subcenter_aam.top_k is 0"
    yield settings.distillation.teacher is not None, "distillation.", "without distillation.teacher"
    yield "stage2." in settings.optimizers, "stage2.", "unless stage2.epoch or stage2.patience starts a second stage"
    frozen = {}
    for prefix in settings.optimizers:
        frozen[prefix] = set(typed.at(settings, f"{prefix}parts")) <= {"projection", "heads"}
        depth = f"since {prefix}parts trains nothing of the backbone"
        yield not frozen[prefix], f"{prefix}optimizer.layer_decay", depth
    for prefix, optimizer in settings.optimizers.items():
        without = f"while {prefix}optimizer.name is {optimizer.name!r}"
        yield optimizer.name == "sgd", f"{prefix}optimizer.momentum", without
        still = without if optimizer.name != "sgd" else f"while {prefix}optimizer.momentum is 0"
        moving = optimizer.name == "sgd" and optimizer.momentum > 0
        yield moving, f"{prefix}optimizer.nesterov", still
    yield not all(frozen.values()), "remat", "while the backbone is frozen (parts)"


def _data_effects(settings: Settings) -> Iterator[Effect]:
    data, validation, known = settings.data, settings.validation, settings.classification
    sources = data.train, validation.tree, known.source
    tfds = any(source and source.startswith("tfds:") for source in sources)
    yield tfds, "data.data_dir", "without a tfds: source"
    yield data.speech_only, "data.min_speech", "without data.speech_only"
    yield data.crops_per_speaker > 1, "data.one_utterance", "while data.crops_per_speaker is 1"
    for name in augment.STEPS:
        on = getattr(data.augment, name).p > 0
        yield on, f"data.augment.{name}.", f"while data.augment.{name}.p is 0"
    some = any(getattr(data.augment, name).p for name in augment.STEPS)
    yield some, "data.augment.draw.p", "while no step has a p above 0"
    yield bool(data.augment.draw.one_of), "data.augment.draw.weights", "without data.augment.draw.one_of"
    yield bool(data.augment.speed.factors), "data.augment.speed.new_speakers", "without data.augment.speed.factors"
    yield settings.cache.crops > 0, "cache.", "while cache.crops is 0"
    listed, tree = bool(validation.trials), bool(validation.tree)
    for key in ("audio_root", "utt2spk", "speaker_pattern"):
        yield listed, f"validation.{key}", "without validation.trials"
    yield not tree, "validation.audio_root", "with validation.tree, in which the recordings of the trials are"
    yield not tree, "validation.speaker_pattern", "with validation.tree, which has the speakers"
    yield not (listed or tree), "validation.holdout", "with validation.trials or validation.tree"
    yield listed or tree, "validation.allow_shared_speakers", "without validation.trials or validation.tree"
    for key in ("generated_trials", "same_sex"):
        yield not listed, f"validation.{key}", "with validation.trials, which are not generated"
    yield validation.same_sex, "validation.metadata", "without validation.same_sex"
    whole = validation.crop_seconds is None
    yield not whole, "validation.crops", "without validation.crop_seconds"
    yield whole, "validation.max_seconds", "with validation.crop_seconds"
    yield known.share > 0, "classification.gap_seconds", "without classification.share"
    classified = known.share > 0 or bool(known.source)
    yield classified, "classification.max_recordings", "without classification.share or classification.source"
