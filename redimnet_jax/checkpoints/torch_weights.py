"""Conversion of PyTorch checkpoints into our networks, with a report of what became of every tensor.

Loading is all or nothing: a tensor missing, extra, misshapen, not finite, or at odds with the model_config is an
error that lists every such tensor.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from redimnet_jax import buckets, files
from redimnet_jax.checkpoints import native, safetensors_file, torch_file, wespeaker
from redimnet_jax.checkpoints.download import licence_note, sha256
from redimnet_jax.checkpoints.torch_mapping import LAYOUTS, Slot, slots
from redimnet_jax.errors import UserError, shown, some_of
from redimnet_jax.models import config as model_config
from redimnet_jax.models import size
from redimnet_jax.models.network import SpeakerNetwork, without_values
from redimnet_jax.models.speaker_model import Source, SpeakerModel

# Absent entries of a Matryoshka wrapper, which has defaults of its own.
WRAPPER_DEFAULTS = {"embed_dim": 256, "mrl_dims": [64, 128, 192, 256]}
# Stored front-end constants may differ from those of the model_config by rounding and no more: by this, and in a
# checkpoint of half precision by one unit in the last place of its dtype as well.
CONSTANT_TOLERANCE = 1e-3
MAX_CONFIG_VALUES = 10_000  # A published model_config has less than 200.
OWN_METADATA = "redimnet_jax"  # the key, in a safetensors file, of what native.describe gave
# What wrappers put into names: torch.compile, the data-parallel ones, activation checkpointing.
WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


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


def detect_layout(state_dict: Mapping[str, np.ndarray]) -> str:
    """Return the layout whose tell-tale keys `state_dict` has."""
    if "seg_1.weight" in state_dict:
        return "wespeaker_redimnet"
    if any(name.startswith("frontend.spec.") for name in state_dict):
        return "wespeaker_redimnet2"
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
    """A checkpoint with PyTorch's names as read: where it is from, its tensors, their layout and configuration."""

    path: Path
    state_dict: dict[str, np.ndarray]
    layout: str
    model_config: dict[str, Any]
    prefix: str = ""  # of wrappers, which every name began with, or had within
    description: dict[str, Any] | None = None  # what a file of our own says about itself


def read_checkpoint(
    path: str | Path, *, arch: str | None = None, model_config: Mapping[str, Any] | None = None
) -> TorchCheckpoint:
    """Read a `.pt` or safetensors file: official, legacy, ReDimNet2, the wrapper's, WeSpeaker's, or a state dict.

    `arch` (one of LAYOUTS) overrides detection; `model_config` is for files that hold none, and wins over theirs. For
    WeSpeaker's files it may be the content of their config.yaml, which is otherwise read from beside the file.
    """
    given, path = path, buckets.staged(path)
    content, description = _content(path)
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
    if model_config is not None or arch is not None:
        description = None  # It is of the file as it says it is.
    layout = arch or (description["arch"] if description else detect_layout(state_dict))
    if layout not in LAYOUTS:
        raise UserError(f"There is no checkpoint layout {shown(layout)}; choose one of {', '.join(LAYOUTS)}.")
    config = stored if model_config is None else model_config
    if layout in wespeaker.KINDS:
        config = wespeaker.model_config(config, layout, given)
    if config is None:
        other = " (hyper_parameters, which Lightning writes, are none)" if "hyper_parameters" in content else ""
        raise UserError(f"{path} holds no model_config{other}; give it in a JSON file with --model_config=FILE.")
    if not isinstance(config, Mapping):
        raise UserError(
            f"The model_config in {path} is a {type(config).__name__}; give one with --model_config=FILE."
        )
    return TorchCheckpoint(path, state_dict, layout, _plain_config(path, config), prefix, description)


def _content(path: Path) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
    """Return what is in a file, a safetensors file as if it were a `.pt` file, and the description in one of ours."""
    if not safetensors_file.is_one(path):
        content = torch_file.read(path)
        if not isinstance(content, Mapping):
            kind = type(content).__name__
            raise UserError(f"{path} holds a {kind}, not a checkpoint; give a file with a state dict.")
        return content, None
    tensors, metadata = safetensors_file.read(path)
    content, description = {"state_dict": tensors}, None
    try:
        if OWN_METADATA in metadata:
            description = native.checked(files.parse_json(metadata[OWN_METADATA]), path)
            content["model_config"] = description["model_config"]
        elif "model_config" in metadata:
            content["model_config"] = files.parse_json(metadata["model_config"])
    except ValueError as error:
        raise UserError(f"The metadata of {path} is not JSON ({error}); download or save it again.") from error
    return content, description


def unwrapped(state_dict: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Return `state_dict` under the names of the network itself, and what wrappers had put before or into them.

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
    """Return mappings and sequences as dicts and lists; raise UserError for more than a config holds."""
    left = MAX_CONFIG_VALUES

    def plain(value: Any) -> Any:
        nonlocal left
        left -= value.size if isinstance(value, np.ndarray) else 1
        if left < 0:
            raise UserError(
                f"The model_config of {path} has more than {MAX_CONFIG_VALUES:,} values; give one with "
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
    """Read the model in a PyTorch or safetensors file, without PyTorch; see `read_checkpoint` and `load`."""
    return convert(read_checkpoint(path, arch=arch, model_config=model_config), dtype)[0]


def convert(checkpoint: TorchCheckpoint, dtype: Any = jnp.float32) -> tuple[SpeakerModel, Report]:
    """Return the model of `checkpoint`, every variable of it filled from a tensor, and the report."""
    entries = checkpoint.model_config
    if checkpoint.layout == "redimnet_mrl":
        entries = WRAPPER_DEFAULTS | entries
    config = model_config.parse(LAYOUTS[checkpoint.layout], entries)
    tensors = checkpoint.state_dict.values()
    size.check(config, len(tensors), sum(tensor.size for tensor in tensors), str(checkpoint.path))
    network = without_values(config, dtype)
    report = fill(network, checkpoint)
    path = checkpoint.path
    if checkpoint.description is not None:
        _check_sums(network, checkpoint.description, path)
        return SpeakerModel(network, entries, Source(**checkpoint.description["source"])), report
    source = Source(path.name, sha256(path), checkpoint.layout, licence_note(path.name))
    return SpeakerModel(network, entries, source), report


def _check_sums(network: SpeakerNetwork, description: dict[str, Any], path: Path) -> None:
    found = native.config_checksum(description["arch"], description["model_config"])
    if found != description["config_sha256"] or native.checksum(native.flat(network)) != description["arrays_sha256"]:
        raise UserError(
            f"The tensors or the model_config in {path} were changed after it was written; download or save it again."
        )


def fill(network: SpeakerNetwork, checkpoint: TorchCheckpoint) -> Report:
    """Put every tensor of `checkpoint` into `network`; all or, with a UserError that lists the reasons, none."""
    slots_by_name, tensors = slots(network, checkpoint.layout), checkpoint.state_dict
    _check(slots_by_name, tensors, checkpoint)
    flushed = 0
    for name, slot in slots_by_name.items():
        if slot.variable is None:
            continue
        if slot.expected is not None and tensors[name].dtype.itemsize < 4:
            # A checkpoint that was rounded as a whole: its network was trained with the exact constant.
            slot.variable.set_value(jax.device_put(slot.expected))
            continue
        array = tensors[name].astype(np.float32)
        if checkpoint.description is None:
            array, count = flush_subnormals(array)
            flushed += count
        slot.variable.set_value(jax.device_put(slot.convert(array)))
    mapped = [slot for slot in slots_by_name.values() if slot.variable is not None]
    buffers = [s for s in mapped if isinstance(s.variable, nnx.BatchStat) or s.expected is not None]
    checked = [slot for slot in slots_by_name.values() if slot.variable is None and slot.expected is not None]
    return Report(
        layout=checkpoint.layout,
        tensors_read=len(tensors),
        tensors_mapped=len(mapped),
        constants_checked=len(checked),
        counters_dropped=len(slots_by_name) - len(mapped) - len(checked),
        left_over=len(tensors.keys() - slots_by_name.keys()),
        parameters=_elements(mapped) - _elements(buffers),
        elements=sum(x.size for x in tensors.values()),
        subnormals_flushed=flushed,
        prefix_removed=checkpoint.prefix or "none",
    )


def state_dict(network: SpeakerNetwork, layout: str) -> dict[str, np.ndarray]:
    """Return the tensors of `network` under the names and in the order of `layout`; the inverse of `fill`.

    They are float32, and int64 in counters of training steps, which are zero.
    """
    return {name: _tensor(slot) for name, slot in slots(network, layout).items()}


def _tensor(slot: Slot) -> np.ndarray:
    if slot.variable is not None:
        return slot.restore(np.asarray(slot.variable[...]))
    return np.zeros(slot.shape, np.int64) if slot.expected is None else slot.restore(slot.expected)


def _elements(slots: list[Slot]) -> int:
    return sum(math.prod(slot.shape) for slot in slots)


def _check(slots_by_name: dict[str, Slot], tensors: dict[str, np.ndarray], checkpoint: TorchCheckpoint) -> None:
    fitting = [n for n, slot in slots_by_name.items() if n in tensors and tensors[n].shape == slot.shape]
    numbers = [n for n in fitting if tensors[n].dtype.kind in "fiuV"]
    problems = {
        "missing": [n for n in slots_by_name if n not in tensors],
        "unexpected": [n for n in tensors if n not in slots_by_name and not _is_classifier(n, checkpoint.layout)],
        "misshapen": [
            f"{n} is {list(tensors[n].shape)}, not {list(slot.shape)}"
            for n, slot in slots_by_name.items()
            if n in tensors and tensors[n].shape != slot.shape
        ],
        "not numbers": [n for n in fitting if n not in numbers],
        "not finite": [n for n in numbers if not _is_finite(tensors[n])],
        "at odds with the front end in model_config": [
            n for n in numbers if slots_by_name[n].expected is not None and not _agrees(slots_by_name[n], tensors[n])
        ],
    }
    found = [f"{len(names)} {kind} ({some_of(names)})" for kind, names in problems.items() if names]
    if found:
        raise UserError(
            f"The tensors in {checkpoint.path}, read as {checkpoint.layout}, do not fit its model_config: "
            f"{'; '.join(found)}; nothing was loaded, so correct the model_config or the --arch, "
            "or use an intact file."
        )


def _is_classifier(name: str, layout: str) -> bool:
    """Return whether a tensor is of the classes that WeSpeaker trained with, which no embedding needs."""
    return layout in wespeaker.KINDS and name.startswith(wespeaker.CLASSIFIER)


def _is_finite(tensor: np.ndarray) -> bool:
    with np.errstate(over="ignore"):  # A float64 beyond float32 becomes infinite, which is what is asked.
        return bool(np.isfinite(tensor.astype(np.float32)).all())


def _agrees(slot: Slot, tensor: np.ndarray) -> bool:
    expected = np.asarray(slot.expected)
    tolerance = CONSTANT_TOLERANCE
    if tensor.dtype.itemsize < 4 and tensor.dtype.kind in "fV":
        tolerance = tolerance + float(ml_dtypes.finfo(tensor.dtype).eps) * np.abs(expected)
    return bool((np.abs(slot.convert(tensor.astype(np.float32)) - expected) <= tolerance).all())


def flush_subnormals(array: np.ndarray) -> tuple[np.ndarray, int]:
    """float32 `array` with subnormal numbers (dead channels, slow on a CPU) set to zero, and how many there were."""
    subnormal = (array != 0) & (np.abs(array) < np.finfo(np.float32).tiny)
    return np.where(subnormal, np.float32(0), array), int(subnormal.sum())
