"""The configuration of a network, parsed and checked from the `model_config` of a checkpoint.

The fields of `ReDimNetConfig` and `ReDimNet2Config` are the entries of their `model_config`, with the defaults of the
published constructors (`ReDimNetWrap`, `ReDimNet2Wrap`), and those of `OWN_ENTRIES`. Networks read their constants
from here.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from redimnet_jax.errors import UserError, shown
from redimnet_jax.models import config_entries as entries
from redimnet_jax.models import config_spec
from redimnet_jax.models.config_entries import MAX_BLOCKS, MAX_FFT, MAX_KERNEL_SIZE, entry
from redimnet_jax.models.config_spec import SpecParams
from redimnet_jax.models.config_stages import Stage, frequency_stride, stages, stride_pair

BLOCKS_1D = ("fc", "conv", "att", "conv+att")
BLOCKS_2D = ("convnext_like", "convnext_like_relu", "basic_resnet", "basic_resnet_fwse")
ATTENTION_HEADS = 4  # of the 1-D blocks with attention
HEAD_ACTIVATIONS = ("ReLU", "Tanh", "Sigmoid", "GELU", "Identity")
FEATURE_TYPES = ("pt", "pt_mel", "tf", "tf_mel", "kaldi")
# Entries, and a value of another, that no published constructor takes.
OWN_ENTRIES = ("mrl_dims", "pool_bn")
OWN_FEATURE_TYPE = "kaldi"
# The channels of the pooled map must split into this many heads.
POOLING_HEADS = {"TAP": 1, "TMAP": 1, "TSDP": 1, "TSTP": 1, "ASTP": 1, "MHASTP": 2, "MQMHASTP": 8}


def _head_activation(name: str, value: Any) -> str | None:
    """Return the name in text such as "nn.Tanh()", or None for None."""
    if value is None:
        return None
    match = re.fullmatch(r"(?:torch\.)?nn\.(\w+)\(\)", value) if isinstance(value, str) else None
    if not match or match[1] not in HEAD_ACTIVATIONS:
        allowed = ", ".join(f"'nn.{activation}()'" for activation in HEAD_ACTIVATIONS)
        raise UserError(
            f"model_config entry {name!r} is {shown(value)}, and text from a checkpoint is never evaluated; "
            f"use one of {allowed} or null."
        )
    return match[1]


@dataclasses.dataclass(frozen=True)
class _SharedConfig:
    """The configuration that both architectures share. A field without `entry` is fixed for one of them."""

    arch: ClassVar[str]
    # Entries that a published constructor takes and never reads.
    unused: ClassVar[frozenset[str]] = frozenset({"return_all_outputs"})
    # Entries of which the published code runs a few values alone: (those values, the reason).
    restricted: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {}

    F: int = entry(72, entries.integer())  # mel bands
    C: int = entry(16, entries.integer())  # channels of the stem
    block_1d_type: str = entry("att", entries.choice(BLOCKS_1D))
    block_2d_type: str = entry("convnext_like", entries.choice(BLOCKS_2D))
    stages_setup: tuple[Stage, ...] = ()
    group_divisor: int | None = entry(4, entries.optional(entries.integer()))
    out_channels: int | None = entry(None, entries.optional(entries.integer()))
    embed_dim: int = entry(192, entries.integer())
    hop_length: int = entry(160, entries.integer(maximum=MAX_FFT))  # samples
    pooling_func: str = entry("ASTP", entries.choice(POOLING_HEADS))
    global_context_att: bool = entry(False, entries.boolean)
    pool_bn: bool = True  # a batch norm between pooling and linear layer, which WeSpeaker's ReDimNet lacks
    emb_bn: bool = entry(False, entries.boolean)
    feat_type: str = entry("pt", entries.choice(FEATURE_TYPES))
    spec_params: SpecParams = entry(SpecParams(freq_mask_width=(0, 6), time_mask_width=(0, 8)))
    mrl_dims: tuple[int, ...] | None = entry(None)
    num_classes: int | None = None
    class_dropout: float = 0.0
    feat_agg_dropout: float = 0.0
    head_activation: str | None = None
    pad_right_samples: int = 0
    before_pool_offset: int = 0  # frames

    @property
    def channels(self) -> int:
        """Width of the 1-D maps."""
        return self.F * self.C

    @property
    def time_stride(self) -> int:
        """Product of all stages' strides in time."""
        return math.prod(stage.time_stride for stage in self.stages_setup)

    @property
    def pooled_channels(self) -> int:
        """Width of the map that the pooling sees."""
        return self.channels if self.out_channels is None else self.out_channels


@dataclasses.dataclass(frozen=True)
class ReDimNetConfig(_SharedConfig):
    """Everything that decides the shape and the arithmetic of a ReDimNet."""

    arch = "redimnet"
    restricted = {
        "tf_optimized_arch": ((False, None), "it names a class that was never published; set it to false"),
    }

    stages_setup: tuple[Stage, ...] = entry(
        (
            Stage(1, 1, 2, 1, att_block_red=12),
            Stage(2, 1, 2, 1, att_block_red=12),
            Stage(1, 1, 3, 1, att_block_red=12),
            Stage(2, 1, 4, 1, att_block_red=8),
            Stage(1, 1, 4, 1, att_block_red=8),
            Stage(2, 1, 4, 1, att_block_red=4),
        ),
        stages(frequency_stride),
    )
    pool_bn: bool = entry(True, entries.boolean)
    num_classes: int | None = entry(None, entries.optional(entries.integer()))
    class_dropout: float = entry(0.0, entries.rate)
    feat_agg_dropout: float = entry(0.0, entries.rate)
    head_activation: str | None = entry(None, _head_activation)


@dataclasses.dataclass(frozen=True)
class ReDimNet2Config(_SharedConfig):
    """Everything that decides the shape and the arithmetic of a ReDimNet2, which has no classification head."""

    arch = "redimnet2"
    unused = frozenset({"return_all_outputs", "num_classes", "feat_agg_dropout", "head_activation"})
    restricted = {
        "causal": ((False, None, "none"), "its causal blocks were never published; set it to 'none'"),
        "fm_weigthing_type": (("NC",), "only 'NC', one weight a map and channel, builds"),
        "spec_in_channels": ((1,), "its front ends give one channel; set it to 1"),
    }

    C: int = entry(24, entries.integer())
    block_1d_type: str = entry("conv+att", entries.choice(BLOCKS_1D))
    block_2d_type: str = entry("basic_resnet", entries.choice(BLOCKS_2D))
    stages_setup: tuple[Stage, ...] = entry(
        (
            Stage(1, 1, 2, 4, att_block_red=24),
            Stage(2, 1, 3, 3, att_block_red=24),
            Stage(1, 2, 4, 2, att_block_red=24),
            Stage(2, 1, 5, 1, att_block_red=24),
            Stage(1, 2, 4, 1, att_block_red=24),
            Stage(2, 1, 3, 1, att_block_red=24),
        ),
        stages(stride_pair),
    )
    group_divisor: int | None = entry(1, entries.optional(entries.integer()))
    global_context_att: bool = entry(True, entries.boolean)
    pad_right_samples: int = entry(0, entries.optional(entries.integer(0, MAX_FFT), default=0))
    before_pool_offset: int = entry(0, entries.optional(entries.integer(0, MAX_FFT), default=0))
    compress_tconvs: bool = entry(True, entries.boolean)
    return_2d_output: bool = entry(False, entries.boolean)
    use_freq_pos_enc: bool = entry(False, entries.boolean)
    dual_agg: bool = entry(False, entries.boolean)
    agg_gnorm: bool = entry(False, entries.boolean)

    @property
    def pooled_channels(self) -> int:
        """Width of the map that the pooling sees."""
        if self.out_channels is None or not self.return_2d_output:
            return super().pooled_channels
        return self.F // math.prod(stage.freq_stride for stage in self.stages_setup) * self.out_channels


ModelConfig = ReDimNetConfig | ReDimNet2Config

_CONFIGS: dict[str, type[ModelConfig]] = {config.arch: config for config in (ReDimNetConfig, ReDimNet2Config)}
ARCHITECTURES = tuple(_CONFIGS)


def parse(arch: str, model_config: Mapping[str, Any]) -> ModelConfig:
    """Return the checked configuration of `arch` from `model_config`, which has the form that checkpoints store.

    Absent entries take their defaults. Raises UserError naming the entry when `arch` or an entry is unknown, or when
    an entry is of the wrong kind or asks for what the published code cannot run either.
    """
    if arch not in _CONFIGS:
        raise UserError(f"There is no architecture {shown(arch)}; choose one of {', '.join(ARCHITECTURES)}.")
    cls = _CONFIGS[arch]
    known = entries.entry_names(cls) | cls.unused | cls.restricted.keys()
    entries.refuse_unknown(model_config, known, f"model_config has unknown entries for {arch}")
    for name, (allowed, reason) in cls.restricted.items():
        if name in model_config and model_config[name] not in allowed:
            raise UserError(
                f"model_config entry {name!r} is {shown(model_config[name])}, which the published code cannot run: "
                f"{reason}."
            )
    values = entries.check_fields(cls, model_config)
    if "spec_params" in model_config:
        feat_type = values.get("feat_type", cls.feat_type)
        values["spec_params"] = config_spec.parse(feat_type, model_config["spec_params"])
    values["mrl_dims"] = _mrl_dims(model_config.get("mrl_dims"), values.get("embed_dim", cls.embed_dim))
    config = cls(**values)
    _check_buildable(config)
    return config


def _mrl_dims(dims: Any, embed_dim: int) -> tuple[int, ...] | None:
    """Return the checked prefix widths, of which the last is `embed_dim`, or None for None."""
    if dims is None:
        return None
    if not entries.is_integers(dims) or not dims or list(dims) != sorted(set(dims)) or dims[0] < 1:
        raise entries.wrong("mrl_dims", dims, "increasing positive integers")
    if dims[-1] > embed_dim:
        raise UserError(
            f"model_config entry 'mrl_dims' ends at {shown(dims[-1])}, beyond embed_dim {embed_dim}; lower it."
        )
    return tuple(dims) if dims[-1] == embed_dim else (*dims, embed_dim)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"model_config cannot build a network: {message}; correct it.")


def _check_buildable(config: ModelConfig) -> None:
    """Raise UserError when the entries contradict each other."""
    blocks = sum(stage.blocks for stage in config.stages_setup)
    _require(blocks <= MAX_BLOCKS, f"'stages_setup' has {blocks:,} blocks, more than {MAX_BLOCKS:,}")
    _require(
        config.time_stride <= MAX_KERNEL_SIZE,
        f"the strides in time make {shown(config.time_stride)} together, more than {MAX_KERNEL_SIZE}",
    )
    channels = config.C
    frequencies = config.F
    for index, stage in enumerate(config.stages_setup):
        where = f"'stages_setup'[{index}]"
        stride = stage.freq_stride
        _require(frequencies % stride == 0, f"{where} divides {frequencies} frequencies by {stride}")
        channels *= stride
        frequencies //= stride
        _check_channels(config, stage, channels, where)
    pooled = config.pooled_channels
    heads = POOLING_HEADS[config.pooling_func]
    _require(pooled % heads == 0, f"{config.pooling_func} splits {pooled} channels into {heads} heads")


def _check_channels(config: ModelConfig, stage: Stage, channels: int, where: str) -> None:
    """Raise UserError unless the blocks of `stage`, whose 2-D map has `channels`, can split their channels."""
    inner = int(channels * stage.conv_exp)
    _require(inner >= 1, f"{where} has conv_exp {stage.conv_exp}, which leaves none of {channels} channels")
    divisor = config.group_divisor
    if divisor is not None:
        _require(
            inner >= divisor and inner % (inner // divisor) == 0,
            f"{where} has {inner} channels that group_divisor {divisor} cannot group",
        )
        if isinstance(config, ReDimNetConfig) and stage.conv_exp != 1:
            groups = channels // divisor
            _require(
                groups >= 1 and channels % groups == 0 and inner % groups == 0,
                f"{where} squeezes {inner} channels into {channels}, which group_divisor {divisor} cannot group",
            )
    if stage.att_block_red is not None:
        hidden = config.channels // stage.att_block_red
        heads = ATTENTION_HEADS if "att" in config.block_1d_type else 1
        _require(
            hidden >= 1 and hidden % heads == 0,
            f"{where} has att_block_red {stage.att_block_red}, so {hidden} channels for {heads} heads",
        )
