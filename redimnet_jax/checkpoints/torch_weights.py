"""Official PyTorch checkpoints as our networks: which tensor goes where, and proof that all of them went.

`slots` names, for a network, every tensor its checkpoint must hold. Loading is all or nothing: a tensor missing,
extra, misshapen, not finite, or at odds with the model_config is an error that lists every such tensor.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from redimnet_jax.checkpoints import torch_file
from redimnet_jax.checkpoints.download import licence_note, sha256
from redimnet_jax.errors import UserError, some_of
from redimnet_jax.models import blocks, pooling, size
from redimnet_jax.models import config as model_config
from redimnet_jax.models.frontend import FRONT_ENDS, PREEMPHASIS, TorchMel
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel
from redimnet_jax.nn import layers
from redimnet_jax.nn.normalization import BatchNorm

# The key layouts that exist: today's, the one before November 2024, ReDimNet2's and the Matryoshka wrapper's.
LAYOUTS = ("redimnet", "redimnet_legacy", "redimnet2", "redimnet_mrl")
WRAPPER_DEFAULTS = {"embed_dim": 256, "mrl_dims": [64, 128, 192, 256]}
# Stored front-end constants may differ from those of the model_config by rounding and no more: by this, and in a
# checkpoint of half precision by one unit in the last place of its dtype as well.
CONSTANT_TOLERANCE = 1e-3
MOST_CONFIG_VALUES = 10_000  # A published model_config has less than 200.
# What wrappers put into names: torch.compile, the data-parallel ones, activation checkpointing.
WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one checkpoint tensor of `shape` goes: `variable`, after `layout`; `expected` when it is known already.

    Without a variable the tensor is only checked (a constant of ours, or a counter of training steps).
    """

    shape: tuple[int, ...]
    layout: Callable[[np.ndarray], np.ndarray] = lambda x: x
    variable: nnx.Variable | None = None
    expected: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened to the tensors of a checkpoint."""

    layout: str
    tensors_read: int
    tensors_mapped: int
    constants_checked: int
    counters_dropped: int
    left_over: int
    parameters: int
    elements: int
    subnormals_flushed: int
    prefix_removed: str = "none"


def _vector(variable: nnx.Variable) -> Slot:
    return Slot(tuple(variable.shape), variable=variable)


def _affine(module, prefix: str) -> Iterator[tuple[str, Slot]]:
    yield f"{prefix}.weight", _vector(module.scale)
    yield f"{prefix}.bias", _vector(module.bias)


def _batch_norm(module: BatchNorm, prefix: str) -> Iterator[tuple[str, Slot]]:
    yield from _affine(module, prefix)
    yield f"{prefix}.running_mean", _vector(module.mean)
    yield f"{prefix}.running_var", _vector(module.var)
    yield f"{prefix}.num_batches_tracked", Slot(())


def _dense(module: layers.Dense, prefix: str, rank: int = 2) -> Iterator[tuple[str, Slot]]:
    features_in, features_out = module.kernel.shape
    shape = (features_out, features_in) + (1,) * (rank - 2)
    yield f"{prefix}.weight", Slot(shape, lambda w: w.reshape(w.shape[:2]).T, module.kernel)
    yield f"{prefix}.bias", _vector(module.bias)


def _conv(module, prefix: str) -> Iterator[tuple[str, Slot]]:
    if isinstance(module, layers.DepthwiseConv1d):
        taps, channels = module.kernel.shape
        yield f"{prefix}.weight", Slot((channels, 1, taps), lambda w: w[:, 0].T, module.kernel)
    else:
        yield (
            f"{prefix}.weight",
            Slot(module.kernel.shape[::-1], lambda w: w.transpose(3, 2, 1, 0), module.kernel),
        )
    if module.bias is not None:
        yield f"{prefix}.bias", _vector(module.bias)


def _aggregate(module: blocks.Aggregate, name: str) -> Iterator[tuple[str, Slot]]:
    yield name, Slot((1, *module.w.shape, 1), lambda w: w[0, :, :, 0], module.w)


def _convnext(module: blocks.ConvNeXtBlock, prefix: str, rank: int) -> Iterator[tuple[str, Slot]]:
    for i, convolution in enumerate(module.dwconvs):
        yield from _conv(convolution, f"{prefix}.dwconvs.{i}")
    yield from _batch_norm(module.norm, f"{prefix}.norm")
    yield from _dense(module.pwconv1, f"{prefix}.pwconv1", rank)


def _block_2d(module: blocks.ConvNeXtBlock | blocks.ResBlock, prefix: str) -> Iterator[tuple[str, Slot]]:
    if isinstance(module, blocks.ConvNeXtBlock):
        yield from _convnext(module, prefix, rank=4)
        return
    for i, conv, pointwise, norm in (
        (1, module.conv1, module.conv1pw, module.bn1),
        (2, module.conv2, module.conv2pw, module.bn2),
    ):
        yield from _conv(conv, f"{prefix}.conv{i}")
        if pointwise is not None:
            yield from _dense(pointwise, f"{prefix}.conv{i}pw", rank=4)
        yield from _batch_norm(norm, f"{prefix}.bn{i}")
    if module.se is not None:
        yield from _dense(module.se.squeeze, f"{prefix}.se.squeeze")
        yield from _dense(module.se.exitation, f"{prefix}.se.exitation")


def _context_layer(module: nnx.Module, prefix: str, index: int) -> Iterator[tuple[str, Slot]]:
    if isinstance(module, blocks.FullyConnected):
        yield from _dense(module.expand, f"{prefix}.0", rank=3)
        yield from _affine(module.norm, f"{prefix}.1")
        yield from _dense(module.reduce, f"{prefix}.3", rank=3)
        return
    prefix = f"{prefix}.{index}"
    if isinstance(module, blocks.ConvNeXtBlock):
        yield from _convnext(module, prefix, rank=3)
    elif isinstance(module, blocks.PositionalConv):
        yield from _conv(module.conv, f"{prefix}.conv")
        yield from _affine(module.norm, f"{prefix}.norm")
    else:
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _dense(getattr(module.attention, name), f"{prefix}.attention.{name}")
        yield from _affine(module.layer_norm, f"{prefix}.layer_norm")
        for name in ("intermediate_dense", "output_dense"):
            yield from _dense(getattr(module.feed_forward, name), f"{prefix}.feed_forward.{name}")
        yield from _affine(module.final_layer_norm, f"{prefix}.final_layer_norm")


def _context(module: blocks.TimeContextBlock, prefix: str) -> Iterator[tuple[str, Slot]]:
    yield from _dense(module.reduce, f"{prefix}.red_dim_conv.0", rank=3)
    yield from _affine(module.norm, f"{prefix}.red_dim_conv.1")
    for i, layer in enumerate(module.tcm):
        yield from _context_layer(layer, f"{prefix}.tcm", i)
    yield from _dense(module.expand, f"{prefix}.exp_dim_conv", rank=3)


def _stem(module, prefix: str) -> Iterator[tuple[str, Slot]]:
    yield from _conv(module.conv, f"{prefix}.0")
    yield from _affine(module.norm, f"{prefix}.1")


def _backbone_v1(backbone, legacy: bool) -> Iterator[tuple[str, Slot]]:
    aggregates = [stage.aggregate for stage in backbone.stages] + [backbone.aggregate]
    if legacy:
        for i, aggregate in enumerate(aggregates):
            yield from _aggregate(aggregate, f"backbone.inputs_weights.{i}")
    else:
        for i, aggregate in enumerate(aggregates[:-1]):
            yield from _aggregate(aggregate, f"backbone.stage{i}.0.w")
        yield from _aggregate(aggregates[-1], "backbone.fin_wght1d.w")
    yield from _stem(backbone.stem, "backbone.stem")
    for i, stage in enumerate(backbone.stages):
        prefix = f"backbone.stage{i}"
        # A published stage is a flat list: (aggregate, to2d,) patch, blocks, (squeeze,) to1d, (context).
        at = 0 if legacy else 2
        yield from _conv(stage.patch, f"{prefix}.{at}")
        at += 1
        for block in stage.blocks:
            yield from _block_2d(block, f"{prefix}.{at}.conv_block")
            at += 1
        if stage.squeeze is not None:
            yield from _conv(stage.squeeze.conv, f"{prefix}.{at}.0")
            yield from _batch_norm(stage.squeeze.norm, f"{prefix}.{at}.1")
            yield from _dense(stage.squeeze.pointwise, f"{prefix}.{at}.3", rank=4)
            at += 1
        if stage.context is not None:
            yield from _context(stage.context, f"{prefix}.{at + 1}")
    if backbone.mfa is not None:
        yield from _dense(backbone.mfa.conv, "backbone.mfa.0", rank=3)
        yield from _batch_norm(backbone.mfa.norm, "backbone.mfa.1")


def _backbone_v2(backbone) -> Iterator[tuple[str, Slot]]:
    yield from _stem(backbone.stem, "backbone.stem")
    if backbone.stem_norm is not None:
        yield from _affine(backbone.stem_norm, "backbone.stem_gnorm")
    for i, stage in enumerate(backbone.stages):
        prefix = f"backbone.stage{i}_pre" if stage.dual else f"backbone.stage{i}"
        yield from _aggregate(stage.aggregate, f"{prefix}.0.w")
        # (aggregate, to2d, (frequency embedding,) patch, blocks, (squeeze,) to1d, (context,) repeat, (norm))
        at = 2
        if stage.freq_embedding is not None:
            yield f"{prefix}.{at}.freq_embedder.weight", _vector(stage.freq_embedding)
            at += 1
        yield from _conv(stage.patch, f"{prefix}.{at}")
        at += 1
        for block in stage.blocks:
            yield from _block_2d(block, f"{prefix}.{at}.conv_block")
            at += 1
        if stage.squeeze is not None:
            yield from _dense(stage.squeeze.conv, f"{prefix}.{at}.0", rank=4)
            yield from _batch_norm(stage.squeeze.norm, f"{prefix}.{at}.1")
            at += 1
        norms = [f"{prefix}.{at + 2 + (stage.context is not None)}"]
        if stage.context is not None:
            yield from _context(stage.context, f"backbone.stage{i}_1d" if stage.dual else f"{prefix}.{at + 1}")
        if stage.dual:
            norms = [f"backbone.stage{i}_up_2d.1", f"backbone.stage{i}_up_1d.1"]
        if stage.norms is not None:
            for norm, name in zip(stage.norms, norms, strict=True):
                yield from _affine(norm, name)
    yield from _aggregate(backbone.aggregate, "backbone.fin_wght1d.w")
    if backbone.head is not None:
        yield from _dense(backbone.head, "backbone.head", rank=3 if backbone.output_2d is None else 4)


def _frontend(network: SpeakerNetwork) -> Iterator[tuple[str, Slot]]:
    config, frontend = network.config, network.frontend
    derived = FRONT_ENDS[config.feat_type](config.F, config.hop_length, config.spec)
    if config.spec.do_preemph:
        yield (
            "spec.torchfbank.1.flipped_filter",
            Slot((1, 1, 2), expected=np.array([[[-PREEMPHASIS, 1.0]]], np.float32)),
        )

    def constant(name: str, layout=lambda x: x, shape=lambda s: s) -> Slot:
        expected = np.asarray(getattr(derived, name)[...])
        return Slot(shape(expected.shape), layout, getattr(frontend, name), expected)

    if isinstance(frontend, TorchMel):
        yield "spec.torchfbank.2.spectrogram.window", constant("window")
        yield "spec.torchfbank.2.mel_scale.fb", constant("filter_bank")
        if frontend.spec_norm is not None:
            yield from _batch_norm(frontend.spec_norm, "spec.spec_norm")
    else:
        for torch_name, name in (("real_kernel_pt", "real_kernel"), ("image_kernel_pt", "imag_kernel")):
            slot = constant(name, lambda w: w[:, 0].T, lambda s: (s[1], 1, s[0]))
            yield f"spec.torchfbank.2.{torch_name}", slot
        slot = constant("filter_bank", lambda w: w[:, :, 0].T, lambda s: (s[1], s[0], 1))
        yield "spec.torchfbank.2.melbanks_pt", slot


def _pool(module: nnx.Module, prefix: str) -> Iterator[tuple[str, Slot]]:
    if isinstance(module, pooling.ASTP):
        yield from _dense(module.linear1, f"{prefix}.linear1", rank=3)
        yield from _dense(module.linear2, f"{prefix}.linear2", rank=3)
    elif isinstance(module, pooling.MHASTP):
        for i, pair in enumerate(zip(module.att_0, module.att_1, strict=True)):
            for j, dense in enumerate(pair):
                yield from _dense(dense, f"{prefix}.heads_att_trans.{i}.att_{j}", rank=3)
    elif isinstance(module, pooling.MQMHASTP):
        for i, query in enumerate(module.n_query):
            yield from _pool(query, f"{prefix}.n_query.{i}")


def _all_slots(network: SpeakerNetwork, layout: str) -> Iterator[tuple[str, Slot]]:
    if layout == "redimnet2":
        yield from _backbone_v2(network.backbone)
    else:
        yield from _backbone_v1(network.backbone, legacy=layout == "redimnet_legacy")
    yield from _frontend(network)
    yield from _pool(network.pool, "pool")
    yield from _batch_norm(network.bn, "bn")
    yield from _dense(network.linear, "linear")
    if network.bn2 is not None:
        yield from _batch_norm(network.bn2, "bn2")
    if network.classifier is not None:
        yield from _dense(network.classifier, "cls_head.2")


def slots(network: SpeakerNetwork, layout: str) -> dict[str, Slot]:
    """Checkpoint name -> Slot, for every tensor that a checkpoint of `network` in `layout` holds."""
    named = dict(_all_slots(network, layout))
    if layout != "redimnet_mrl":
        return named
    return {
        ("projection." if name.startswith(("bn.", "linear.")) else "backbone.") + name: slot
        for name, slot in named.items()
    }


def detect_layout(state_dict: Mapping[str, np.ndarray]) -> str:
    """The layout whose tell-tale keys `state_dict` has."""
    if any(name.startswith("backbone.backbone.") for name in state_dict):
        return "redimnet_mrl"
    if any(name.startswith("backbone.inputs_weights.") for name in state_dict):
        return "redimnet_legacy"
    if any(re.match(r"backbone\.(stage\d+_pre|stem_gnorm|head)\.", name) for name in state_dict):
        return "redimnet2"
    # The first stage has a single input, whose weight is stored once, or in ReDimNet2 once a channel.
    first = state_dict.get("backbone.stage0.0.w")
    return "redimnet2" if first is not None and first.size > 1 else "redimnet"


@dataclasses.dataclass(frozen=True)
class TorchCheckpoint:
    """A PyTorch checkpoint as read: where it is from, its tensors, their layout and the configuration."""

    path: Path
    state_dict: dict[str, np.ndarray]
    layout: str
    model_config: dict[str, Any]
    prefix: str = ""  # of wrappers, which every name began with, or had within


def read_checkpoint(
    path: str | Path, *, arch: str | None = None, model_config: Mapping[str, Any] | None = None
) -> TorchCheckpoint:
    """Reads a `.pt` file: official, legacy, ReDimNet2, the wrapper's `best.pt`, or a bare state dict.

    `arch` (one of LAYOUTS) overrides detection; `model_config` is for files that hold none, and wins over theirs.
    """
    path = Path(path)
    content = torch_file.read(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint; give a file with a state dict.")
    state_dict, stored = content, None
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content.get(key), Mapping):
            state_dict, stored = content[key], content.get("model_config")
            break
    strangers = [k for k, v in state_dict.items() if not isinstance(k, str) or not isinstance(v, np.ndarray)]
    if strangers or not state_dict:
        what = f"entries that are not tensors ({some_of(strangers)})" if strangers else "no tensors"
        raise UserError(f"{path} is not a speaker checkpoint: its state dict has {what}; give another file.")
    state_dict, prefix = unwrapped(state_dict)
    if arch is not None and arch not in LAYOUTS:
        raise UserError(f"There is no checkpoint layout {arch!r}; choose one of {', '.join(LAYOUTS)}.")
    layout = arch or detect_layout(state_dict)
    config = stored if model_config is None else model_config
    if config is None:
        other = " (hyper_parameters, which Lightning writes, are none)" if "hyper_parameters" in content else ""
        raise UserError(f"{path} holds no model_config{other}; give it in a JSON file with --model_config=FILE.")
    if not isinstance(config, Mapping):
        raise UserError(
            f"The model_config in {path} is a {type(config).__name__}; give one with --model_config=FILE."
        )
    return TorchCheckpoint(path, state_dict, layout, _plain_config(path, config), prefix)


def unwrapped(state_dict: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Returns `state_dict` under the names of the network itself, and what wrappers had put before or into them.

    In every layout names begin in several ways, so a beginning that all names share is a wrapper's (`_orig_mod.`,
    `module.`, `model.` and the like, in any number). Nothing is removed where no known name would remain.
    """
    names, removed = list(state_dict), []
    while len(names) > 1 and all("." in name for name in names):
        first = names[0].partition(".")[0]
        if not all(name.startswith(f"{first}.") for name in names):
            break
        names = [name.partition(".")[2] for name in names]
        removed.append(first)
    inner = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names]
    if inner != names and len(set(inner)) == len(inner):
        removed += sorted(WRAPPERS.intersection(part for name in names for part in name.split(".")))
        names = inner
    if not any(name.startswith("backbone.") for name in names):
        return dict(state_dict), ""
    return dict(zip(names, state_dict.values(), strict=True)), "".join(f"{part}." for part in removed)


def _plain_config(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns mappings and sequences as dicts and lists, as JSON has them; UserError for more than a config holds."""
    left = MOST_CONFIG_VALUES

    def plain(value: Any) -> Any:
        nonlocal left
        left -= value.size if isinstance(value, np.ndarray) else 1
        if left < 0:
            raise UserError(
                f"The model_config of {path} has more than {MOST_CONFIG_VALUES:,} values; give one with "
                "--model_config=FILE."
            )
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value.tolist() if isinstance(value, np.generic | np.ndarray) else value

    try:
        return plain(config)
    except RecursionError:
        raise UserError(
            f"The model_config of {path} is nested too deeply; give one with --model_config=FILE."
        ) from None


def from_torch(
    path: str | Path,
    *,
    model_config: Mapping[str, Any] | None = None,
    arch: str | None = None,
    dtype: Any = jnp.float32,
) -> SpeakerModel:
    """The model in a PyTorch checkpoint file, read without PyTorch; arguments as for `read_checkpoint` and `load`."""
    return convert(read_checkpoint(path, arch=arch, model_config=model_config), dtype)[0]


def convert(checkpoint: TorchCheckpoint, dtype: Any = jnp.float32) -> tuple[SpeakerModel, Report]:
    """The model of `checkpoint`, every variable of it filled from a tensor, and the report."""
    entries = checkpoint.model_config
    if checkpoint.layout == "redimnet_mrl":
        entries = WRAPPER_DEFAULTS | entries
    arch = "redimnet2" if checkpoint.layout == "redimnet2" else "redimnet"
    config = model_config.parse(arch, entries)
    tensors = checkpoint.state_dict.values()
    size.check(config, len(tensors), sum(tensor.size for tensor in tensors), str(checkpoint.path))
    network = nnx.eval_shape(lambda: SpeakerNetwork(config, dtype=dtype, rngs=nnx.Rngs(0)))
    report = fill(network, checkpoint)
    path = checkpoint.path
    source = Source(path.name, sha256(path), checkpoint.layout, licence_note(path.name))
    return SpeakerModel(network, entries, source), report


def fill(network: SpeakerNetwork, checkpoint: TorchCheckpoint) -> Report:
    """Puts every tensor of `checkpoint` into `network`; all or, with a UserError that lists the reasons, none."""
    wanted, given = slots(network, checkpoint.layout), checkpoint.state_dict
    _check(wanted, given, checkpoint)
    flushed = 0
    for name, slot in wanted.items():
        if slot.variable is None:
            continue
        if slot.expected is not None and given[name].dtype.itemsize < 4:
            # A checkpoint that was rounded as a whole: its network was trained with the exact constant.
            slot.variable.set_value(jnp.asarray(slot.expected))
            continue
        array, count = flush_subnormals(given[name].astype(np.float32))
        flushed += count
        slot.variable.set_value(jnp.asarray(slot.layout(array)))
    mapped = [slot for slot in wanted.values() if slot.variable is not None]
    buffers = [s for s in mapped if isinstance(s.variable, nnx.BatchStat) or s.expected is not None]
    checked = [slot for slot in wanted.values() if slot.variable is None and slot.expected is not None]
    return Report(
        layout=checkpoint.layout,
        tensors_read=len(given),
        tensors_mapped=len(mapped),
        constants_checked=len(checked),
        counters_dropped=len(wanted) - len(mapped) - len(checked),
        left_over=len(given.keys() - wanted.keys()),
        parameters=_elements(mapped) - _elements(buffers),
        elements=sum(x.size for x in given.values()),
        subnormals_flushed=flushed,
        prefix_removed=checkpoint.prefix or "none",
    )


def _elements(slots: list[Slot]) -> int:
    return sum(math.prod(slot.shape) for slot in slots)


def _check(wanted: dict[str, Slot], given: dict[str, np.ndarray], checkpoint: TorchCheckpoint) -> None:
    fitting = [n for n, slot in wanted.items() if n in given and given[n].shape == slot.shape]
    numbers = [n for n in fitting if given[n].dtype.kind in "fiuV"]
    problems = {
        "missing": [n for n in wanted if n not in given],
        "unexpected": [n for n in given if n not in wanted],
        "misshapen": [
            f"{n} is {list(given[n].shape)}, not {list(slot.shape)}"
            for n, slot in wanted.items()
            if n in given and given[n].shape != slot.shape
        ],
        "not numbers": [n for n in fitting if n not in numbers],
        "not finite": [n for n in numbers if not _is_finite(given[n])],
        "at odds with the front end in model_config": [
            n for n in numbers if wanted[n].expected is not None and not _agrees(wanted[n], given[n])
        ],
    }
    found = [f"{len(names)} {kind} ({some_of(names)})" for kind, names in problems.items() if names]
    if found:
        raise UserError(
            f"The tensors in {checkpoint.path}, read as {checkpoint.layout}, do not fit its model_config: "
            f"{'; '.join(found)}; nothing was loaded, so correct the model_config or the --arch, "
            "or use an intact file."
        )


def _is_finite(tensor: np.ndarray) -> bool:
    with np.errstate(over="ignore"):  # A float64 beyond float32 becomes infinite, which is what is asked.
        return bool(np.isfinite(tensor.astype(np.float32)).all())


def _agrees(slot: Slot, tensor: np.ndarray) -> bool:
    tolerance = CONSTANT_TOLERANCE
    if tensor.dtype.itemsize < 4 and tensor.dtype.kind in "fV":
        tolerance = tolerance + float(ml_dtypes.finfo(tensor.dtype).eps) * np.abs(slot.expected)
    return bool((np.abs(slot.layout(tensor.astype(np.float32)) - slot.expected) <= tolerance).all())


def flush_subnormals(array: np.ndarray) -> tuple[np.ndarray, int]:
    """float32 `array` with subnormal numbers (dead channels, slow on a CPU) set to zero, and how many there were."""
    subnormal = (array != 0) & (np.abs(array) < np.finfo(np.float32).tiny)
    return np.where(subnormal, np.float32(0), array), int(subnormal.sum())
