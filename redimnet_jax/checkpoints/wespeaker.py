"""WeSpeaker's configuration of a ReDimNet, `config.yaml` beside `avg_model.pt`, as our `model_config` and back.

WeSpeaker computes the features outside its models: of a ReDimNet by Kaldi's filter bank, of a ReDimNet2 by the
TensorFlow front end, whose constants its checkpoints hold. A ReDimNet has no batch norm before its linear layer.
Source: `wespeaker/models/redimnet.py` and `redimnet2.py`, `frontend/tfmel.py`, `dataset/processor.py` and
`bin/extract.py` of github.com/wenet-e2e/wespeaker at dfa7419.
"""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redimnet_jax import addresses, files
from redimnet_jax.errors import UserError, shown, some_of
from redimnet_jax.models.config import ModelConfig, ReDimNetConfig
from redimnet_jax.models.config_entries import is_integer
from redimnet_jax.models.variants import VARIANTS

CONFIG = "config.yaml"
CLASSIFIER = "projection."  # how the names of its tensors begin
KINDS = {"wespeaker_redimnet": "ReDimNet", "wespeaker_redimnet2": "ReDimNet2"}
_MAX_BYTES = 1 << 16  # of config.yaml; published ones have less than 4,000
# The models by name, as entries of model_config; what a name does not fix has the default of our configuration.
_REDIMNET = {"block_1d_type": "conv+att", "global_context_att": True}
_MODELS: dict[str, dict[str, Any]] = {
    "ReDimNet": _REDIMNET | {"block_2d_type": "basic_resnet"},
    "ReDimNetB2": _REDIMNET,
    "ReDimNetB4": VARIANTS["b5"][1] | {"group_divisor": 1},
    **{f"ReDimNetB{size}": VARIANTS[f"b{size}"][1] for size in (0, 1, 3, 5, 6)},
    "ReDimNet2Custom": {},
    "ReDimNet2Wrap": {},
}
_SIZES = {0: (12, 64), 1: (16, 64), 2: (20, 64), 3: (24, 64), 4: (32, None), 5: (48, 256), 6: (64, 224)}
for _size, (_channels, _out) in _SIZES.items():
    _stages = VARIANTS[f"redimnet2-b{0 if _size == 3 else _size}"][1]["stages_setup"]
    _MODELS[f"ReDimNet2B{_size}"] = {"C": _channels, "out_channels": _out, "stages_setup": _stages}
_MODELS["ReDimNet2B6"]["return_2d_output"] = True

# Arguments of the models that are entries of model_config, and the others with the values that change nothing.
_ARGUMENTS = ("C", "block_1d_type", "block_2d_type", "stages_setup", "group_divisor", "out_channels", "embed_dim")
_ARGUMENTS += ("pooling_func", "global_context_att")
_ARGUMENTS_2 = ("emb_bn", "compress_tconvs", "return_2d_output", "use_freq_pos_enc", "dual_agg", "agg_gnorm")
_ARGUMENTS_2 += ("causal", "fm_weigthing_type", "spec_in_channels", "before_pool_offset")
_FIXED: dict[str, tuple[Any, ...]] = {"two_emb_layer": (False,), "pad_right_samples": (None, 0)}
_FIXED |= {"return_all_outputs": (False,), "spec": (None, "fbank")}
# Arguments that WeSpeaker's ReDimNet2 takes and never reads.
_UNREAD = ("num_classes", "feat_agg_dropout", "head_activation", "hop_length", "feat_type", "spec_params")
_SPEC_PARAMS = ("n_fft", "win_length", "f_min", "f_max", "do_spec_aug", "norm_signal", "do_preemph", "eps")
_SPEC_PARAMS += ("freq_mask_width", "time_mask_width")
_LACKING_BLOCKS = ("conv", "convnext_like_relu")  # of WeSpeaker's ReDimNet
_LACKING_POOLINGS = ("TMAP",)


def model_config(config: Any, layout: str, path: str | Path) -> Any:
    """Return the model_config for the checkpoint at `path` of `layout`.

    It is that in `config`, which may have our form or WeSpeaker's, or where `config` is None that in the config.yaml
    beside the checkpoint.
    """
    if config is None:
        return _entries_beside(path, layout)
    if isinstance(config, Mapping) and "model_args" in config:
        return entries(config, layout, "The given configuration")
    return config


def _entries_beside(path: str | Path, layout: str) -> dict[str, Any]:
    address = addresses.of(path)
    place = Path(path).with_name(CONFIG) if address is None else f"{address.rpartition('/')[0]}/{CONFIG}"
    try:
        text = read(place)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is WeSpeaker's and holds no model_config; put the {CONFIG} of its training beside it, or give "
            "it with --model_config=FILE."
        ) from error
    except OSError as error:
        raise UserError(f"{place} cannot be read ({error.strerror or error}); check its permissions.") from error
    return entries(parse(text, str(place)), layout, str(place))


def read(place: str | Path) -> bytes:
    """Return what is in a local file or at an address, or so much of it that `parse` finds it too large."""
    if addresses.of(place) is not None:
        return addresses.read(place)
    with open(place, "rb") as file:
        return file.read(_MAX_BYTES + 1)


def parse(text: bytes, where: str) -> Any:
    """Return the value of YAML; raise UserError for what is none, is too large, or would make an object."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Knows no merges, which can grow without end."""

        def flatten_mapping(self, node: Any) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise yaml.YAMLError("it merges mappings")

    try:
        if len(text) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES:,} bytes")
        return yaml.load(text, Loader)
    except RecursionError:
        raise UserError(
            f"{where} is not a configuration of WeSpeaker (it is nested too deeply); correct it."
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        reason = getattr(error, "problem", None) or files.first_line(error)
        raise UserError(f"{where} is not a configuration of WeSpeaker ({reason}); correct it.") from error


def entries(config: Any, layout: str, where: str) -> dict[str, Any]:
    """Return the model_config of `config`, the content of a config.yaml, for a checkpoint of `layout`.

    Raises UserError, which names the entry of the file `where`, for what our networks do not have.
    """
    arguments = dict(_section(config, "model_args", where))
    data = _section(config, "dataset_args", where)
    name, kind = config.get("model"), KINDS[layout]
    if not isinstance(name, str) or name not in _MODELS or name.startswith("ReDimNet2") != (kind == "ReDimNet2"):
        known = ", ".join(each for each in _MODELS if each.startswith("ReDimNet2") == (kind == "ReDimNet2"))
        raise _wrong(where, "model", name, f"one of {known}, of which the tensors are")
    for argument, allowed in _FIXED.items():
        value = arguments.pop(argument, allowed[0])
        if value not in allowed:
            raise _wrong(where, f"model_args.{argument}", value, allowed[0])
    known = {"feat_dim", *_ARGUMENTS, *((*_ARGUMENTS_2, *_UNREAD, "F") if kind == "ReDimNet2" else ())}
    if strangers := sorted(map(shown, arguments.keys() - known)):
        raise UserError(f"{where} has unknown model_args ({some_of(strangers)}); remove or correct them.")
    made = {key: value for key, value in _MODELS[name].items() if key in ("F", *_ARGUMENTS, *_ARGUMENTS_2)}
    made |= {key: value for key, value in arguments.items() if key not in ("feat_dim", *_UNREAD)}
    mels = arguments.get("feat_dim") or made.get("F", 72)
    if not is_integer(mels):
        raise _wrong(where, "model_args.feat_dim", mels, "an integer")
    features = _tf_features if kind == "ReDimNet2" else _kaldi_features
    return made | {"F": mels} | features(data, mels, where)


def _kaldi_features(data: Mapping[str, Any], mels: Any, where: str) -> dict[str, Any]:
    _expect(where, "dataset_args.frontend", data.get("frontend", "fbank"), "fbank")
    _expect(where, "dataset_args.cmvn", data.get("cmvn", True), True)
    cmvn = _options(data, "cmvn_args", where)
    for name, value in {"norm_mean": True, "norm_var": False}.items():
        _expect(where, f"dataset_args.cmvn_args.{name}", cmvn.get(name, value), value)
    options = _options(data, "fbank_args", where)
    _expect(where, "dataset_args.fbank_args.num_mel_bins", options.get("num_mel_bins", 80), mels)
    rate = data.get("resample_rate", 16000)
    window = _samples(options.get("frame_length", 25), rate, "dataset_args.fbank_args.frame_length", where)
    return {
        "feat_type": "kaldi",
        "pool_bn": False,
        "hop_length": _samples(options.get("frame_shift", 10), rate, "dataset_args.fbank_args.frame_shift", where),
        "spec_params": {
            "sample_rate": rate,
            "win_length": window,
            "n_fft": _power_of_two(window),
            "f_min": 20,
            "f_max": rate / 2,
        },
    }


def _tf_features(data: Mapping[str, Any], mels: Any, where: str) -> dict[str, Any]:
    _expect(where, "dataset_args.frontend", data.get("frontend", "fbank"), "tfmel")
    _expect(where, "dataset_args.cmvn", data.get("cmvn", True), False)
    options = _options(data, "tfmel_args", where)
    _expect(where, "dataset_args.tfmel_args.n_mels", options.pop("n_mels", 80), mels)
    hop = options.pop("hop_length", 160)
    rate = options.pop("sample_rate", data.get("resample_rate", 16000))
    if strangers := sorted(map(shown, options.keys() - set(_SPEC_PARAMS))):
        raise UserError(f"{where} has unknown tfmel_args ({some_of(strangers)}); remove or correct them.")
    return {"feat_type": "tf", "hop_length": hop, "spec_params": {"sample_rate": rate} | options}


def document(config: ModelConfig) -> dict[str, Any]:
    """Return the content of the config.yaml with which WeSpeaker builds and feeds a network of `config`.

    Raises UserError, which names the entry of model_config that WeSpeaker has no place for.
    """
    _check_expressible(config)
    names = _ARGUMENTS if isinstance(config, ReDimNetConfig) else (*_ARGUMENTS, *_ARGUMENTS_2)
    arguments = {"feat_dim": config.F} | {name: getattr(config, name, None) for name in names}
    arguments["stages_setup"] = [_stage(config, stage) for stage in config.stages_setup]
    spec = config.spec_params
    if isinstance(config, ReDimNetConfig):
        shift, length = (_milliseconds(each, spec.sample_rate) for each in (config.hop_length, spec.win_length))
        options = {"num_mel_bins": config.F, "frame_shift": shift, "frame_length": length, "dither": 1.0}
        data: dict[str, Any] = {"frontend": "fbank", "fbank_args": options, "cmvn": True}
        return {
            "model": "ReDimNet",
            "model_args": arguments,
            "dataset_args": {"resample_rate": spec.sample_rate} | data,
        }
    arguments |= {"causal": "none", "fm_weigthing_type": "NC", "spec_in_channels": 1}
    options = {"n_mels": config.F, "hop_length": config.hop_length}
    options |= {name: _plain(getattr(spec, name)) for name in _SPEC_PARAMS}
    data = {"frontend": "tfmel", "tfmel_args": options, "cmvn": False}
    name = "ReDimNet2Custom"
    return {"model": name, "model_args": arguments, "dataset_args": {"resample_rate": spec.sample_rate} | data}


def _check_expressible(config: ModelConfig) -> None:
    spec = config.spec_params
    lacking: dict[str, Any] = {"mrl_dims": config.mrl_dims}
    if config.pooling_func in _LACKING_POOLINGS:
        lacking["pooling_func"] = config.pooling_func
    if isinstance(config, ReDimNetConfig):
        lacking |= {"num_classes": config.num_classes, "emb_bn": config.emb_bn, "pool_bn": config.pool_bn}
        lacking |= {"feat_agg_dropout": config.feat_agg_dropout, "spec_params.do_spec_aug": spec.do_spec_aug}
        lacking |= {
            name: getattr(config, name)
            for name in ("block_1d_type", "block_2d_type")
            if getattr(config, name) in _LACKING_BLOCKS
        }
        fixed = {"f_min": 20, "f_max": spec.sample_rate / 2, "n_fft": _power_of_two(spec.win_length)}
        lacking |= {
            f"spec_params.{name}": getattr(spec, name) for name in fixed if getattr(spec, name) != fixed[name]
        }
    else:
        lacking["pad_right_samples"] = config.pad_right_samples
    needed = "kaldi" if isinstance(config, ReDimNetConfig) else "tf"
    if config.feat_type.partition("_")[0] != needed:
        raise UserError(
            f"WeSpeaker feeds a {config.arch} with the features {needed!r} alone, not with feat_type "
            f"{config.feat_type!r} of model_config; take the format torch or safetensors."
        )
    if found := [f"{name} {shown(value)}" for name, value in lacking.items() if value]:
        raise UserError(
            f"WeSpeaker has no {some_of(found)} of model_config; take the format safetensors, and of several "
            "prefixes the dim of one."
        )


def _stage(config: ModelConfig, stage: Any) -> list[Any]:
    stride = stage.freq_stride
    if not isinstance(config, ReDimNetConfig):
        stride = [stage.freq_stride, stage.time_stride]
    return [stride, stage.blocks, stage.conv_exp, [list(size) for size in stage.kernel_sizes], stage.att_block_red]


def _section(config: Any, name: str, where: str) -> Mapping[str, Any]:
    section = config.get(name) if isinstance(config, Mapping) else None
    if not isinstance(section, Mapping):
        raise UserError(f"{where} is not a configuration of WeSpeaker (it has no {name}); give the training's.")
    return section


def _options(data: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    value = data.get(name) or {}
    if not isinstance(value, Mapping):
        raise _wrong(where, f"dataset_args.{name}", value, "a mapping")
    return dict(value)


def _expect(where: str, name: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise _wrong(where, name, value, expected)


def _wrong(where: str, name: str, value: Any, expected: Any) -> UserError:
    return UserError(f"{where} has {name} {shown(value)} but only {expected} can be converted; correct it.")


def _samples(milliseconds: Any, rate: Any, name: str, where: str) -> int:
    if not is_integer(rate):
        raise _wrong(where, "dataset_args.resample_rate", rate, "an integer")
    # Python would repeat text and lists.
    if isinstance(milliseconds, int | float):
        with contextlib.suppress(ValueError, OverflowError):
            return int(rate * milliseconds * 0.001)  # as Kaldi counts them
    raise _wrong(where, name, milliseconds, "a number of milliseconds")


def _milliseconds(samples: int, rate: int) -> float:
    value = samples * 1000 / rate
    if _samples(value, rate, "", "") != samples:
        value = math.nextafter(value, math.inf)
    return int(value) if value.is_integer() else value


def _power_of_two(samples: int) -> int:
    return 1 << max(samples - 1, 1).bit_length()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
