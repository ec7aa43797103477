"""A checkpoint's `model_config`, checked: every entry known, of the right kind, and able to build a network.

Absent entries take the defaults of the published constructors (`ReDimNetWrap`, `ReDimNet2Wrap`).
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from redimnet_jax.errors import UserError, shown, some_of
from redimnet_jax.models.blocks import BLOCKS_1D, BLOCKS_2D
from redimnet_jax.models.frontend import FRONT_ENDS, SpecParams
from redimnet_jax.models.pooling import POOLING_HEADS, POOLINGS

ARCHITECTURES = ("redimnet", "redimnet2")
ATTENTION_HEADS = 4
ACTIVATIONS = ("ReLU", "Tanh", "Sigmoid", "GELU", "Identity")
# Far beyond every published network, and near enough that no arithmetic on entries takes long or overflows.
LARGEST = 1_000_000
LARGEST_FFT, LARGEST_KERNEL, MOST_KERNELS, MOST_STAGES, MOST_BLOCKS = 65_536, 1_000, 16, 64, 1_000
TINIEST = 1e-30  # its inverse is a float32 too


@dataclasses.dataclass(frozen=True)
class Stage:
    """One entry of `stages_setup`. `att_block_red` None means no 1-D block."""

    freq_stride: int
    time_stride: int
    blocks: int
    conv_exp: float
    kernel_sizes: tuple[tuple[int, int], ...]
    att_block_red: int | None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape and the arithmetic of a network."""

    arch: str
    F: int
    C: int
    block_1d_type: str
    block_2d_type: str
    stages: tuple[Stage, ...]
    group_divisor: int | None
    out_channels: int | None
    embed_dim: int
    num_classes: int | None
    class_dropout: float
    feat_agg_dropout: float
    head_activation: str | None
    hop_length: int
    pooling_func: str
    feat_type: str
    global_context_att: bool
    emb_bn: bool
    spec: SpecParams
    mrl_dims: tuple[int, ...] | None = None
    # ReDimNet2 alone:
    compress_tconvs: bool = True
    return_2d_output: bool = False
    use_freq_pos_enc: bool = False
    dual_agg: bool = False
    agg_gnorm: bool = False
    pad_right_samples: int = 0
    before_pool_offset: int = 0

    @property
    def channels(self) -> int:
        """Width of the 1-D maps."""
        return self.F * self.C

    @property
    def time_stride(self) -> int:
        return math.prod(stage.time_stride for stage in self.stages)


_SPEC_DEFAULT = {"do_spec_aug": False, "freq_mask_width": [0, 6], "time_mask_width": [0, 8]}

_COMMON = {
    "F": 72,
    "out_channels": None,
    "embed_dim": 192,
    "num_classes": None,
    "feat_agg_dropout": 0.0,
    "head_activation": None,
    "hop_length": 160,
    "pooling_func": "ASTP",
    "feat_type": "pt",
    "emb_bn": False,
    "spec_params": _SPEC_DEFAULT,
    "return_all_outputs": False,
    "mrl_dims": None,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "redimnet": _COMMON
    | {
        "C": 16,
        "block_1d_type": "att",
        "block_2d_type": "convnext_like",
        "group_divisor": 4,
        "class_dropout": 0.0,
        "global_context_att": False,
        "tf_optimized_arch": False,
        "stages_setup": [
            [1, 2, 1, [[3, 3]], 12],
            [2, 2, 1, [[3, 3]], 12],
            [1, 3, 1, [[3, 3]], 12],
            [2, 4, 1, [[3, 3]], 8],
            [1, 4, 1, [[3, 3]], 8],
            [2, 4, 1, [[3, 3]], 4],
        ],
    },
    "redimnet2": _COMMON
    | {
        "C": 24,
        "causal": False,
        "spec_in_channels": 1,
        "block_1d_type": "conv+att",
        "block_2d_type": "basic_resnet",
        "compress_tconvs": True,
        "return_2d_output": False,
        "use_freq_pos_enc": False,
        "fm_weigthing_type": "NC",
        "group_divisor": 1,
        "dual_agg": False,
        "agg_gnorm": False,
        "pad_right_samples": None,
        "before_pool_offset": None,
        "global_context_att": True,
        "stages_setup": [
            [[1, 1], 2, 4, [[3, 3]], 24],
            [[2, 1], 3, 3, [[3, 3]], 24],
            [[1, 2], 4, 2, [[3, 3]], 24],
            [[2, 1], 5, 1, [[3, 3]], 24],
            [[1, 2], 4, 1, [[3, 3]], 24],
            [[2, 1], 3, 1, [[3, 3]], 24],
        ],
    },
}


def parse(arch: str, entries: Mapping[str, Any]) -> ModelConfig:
    """The checked configuration of `arch` ('redimnet' or 'redimnet2') from `entries` as a checkpoint holds them.

    Raises UserError naming the entry when one is unknown, of the wrong kind, or asks for what the published code
    cannot run either.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"There is no architecture {shown(arch)}; choose one of {', '.join(ARCHITECTURES)}.")
    defaults = DEFAULTS[arch]
    _refuse_unknown(entries, defaults, f"model_config has unknown entries for {arch}")
    e = _Entries(defaults | dict(entries))
    _refuse_what_does_not_run(arch, e)
    feat_type = e.choice("feat_type", FRONT_ENDS)
    two = arch == "redimnet2"
    config = ModelConfig(
        arch=arch,
        F=e.integer("F"),
        C=e.integer("C"),
        block_1d_type=e.choice("block_1d_type", BLOCKS_1D),
        block_2d_type=e.choice("block_2d_type", BLOCKS_2D),
        stages=_stages(arch, e["stages_setup"]),
        group_divisor=e.optional_integer("group_divisor"),
        out_channels=e.optional_integer("out_channels"),
        embed_dim=e.integer("embed_dim"),
        # ReDimNet2's constructor takes the classifier's entries but builds none.
        num_classes=None if two else e.optional_integer("num_classes"),
        class_dropout=0.0 if two else e.rate("class_dropout"),
        feat_agg_dropout=0.0 if two else e.rate("feat_agg_dropout"),
        head_activation=None if two else _head_activation(e["head_activation"]),
        hop_length=e.integer("hop_length", most=LARGEST_FFT),
        pooling_func=e.choice("pooling_func", POOLINGS),
        feat_type=feat_type,
        global_context_att=e.boolean("global_context_att"),
        emb_bn=e.boolean("emb_bn"),
        spec=_spec_params(feat_type, e["spec_params"]),
        mrl_dims=_mrl_dims(e["mrl_dims"], e.integer("embed_dim")),
    )
    if two:
        config = dataclasses.replace(
            config,
            **{k: e.boolean(k) for k in ("compress_tconvs", "return_2d_output", "use_freq_pos_enc")},
            **{k: e.boolean(k) for k in ("dual_agg", "agg_gnorm")},
            **{
                k: e.optional_integer(k, least=0, most=LARGEST_FFT) or 0
                for k in ("pad_right_samples", "before_pool_offset")
            },
        )
    _check_it_builds(config)
    return config


class _Entries(dict):
    """Entries read by kind; an error names the entry, what it holds and what it must be."""

    def _fail(self, key: str, wanted: str):
        raise UserError(f"model_config entry {key!r} is {shown(self[key])} but must be {wanted}; correct it.")

    def integer(self, key: str, least: int = 1, most: int = LARGEST) -> int:
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            wanted = f"an integer of at least {least}"
            self._fail(
                key, wanted if not isinstance(value, int) or value < least else f"{wanted} and at most {most:,}"
            )
        return value

    def optional_integer(self, key: str, least: int = 1, most: int = LARGEST) -> int | None:
        return None if self[key] is None else self.integer(key, least, most)

    def boolean(self, key: str) -> bool:
        if not isinstance(self[key], bool):
            self._fail(key, "true or false")
        return self[key]

    def number(self, key: str) -> float:
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            self._fail(key, f"a number of at most {LARGEST:,}")
        return value

    def rate(self, key: str) -> float:
        if not 0.0 <= self.number(key) < 1.0:
            self._fail(key, "a rate of at least 0 and below 1")
        return float(self[key])

    def choice(self, key: str, choices) -> str:
        if not isinstance(self[key], str) or self[key] not in choices:
            self._fail(key, f"one of {', '.join(choices)}")
        return self[key]

    def range(self, key: str) -> tuple[int, int]:
        value = self[key]
        if not _is_integers(value, 2) or not 0 <= value[0] < value[1] <= LARGEST:
            self._fail(key, f"two integers, 0 <= low < high <= {LARGEST:,}")
        return tuple(value)


def _is_integers(value: Any, count: int | None = None) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        and (count is None or len(value) == count)
    )


def _is_sizes(value: Any) -> bool:
    return _is_integers(value, 2) and min(value) >= 1 and max(value) <= LARGEST_KERNEL


def _refuse_unknown(entries: Mapping[str, Any], known: Mapping[str, Any], what: str) -> None:
    unknown = sorted(set(entries) - set(known), key=str)
    if unknown:
        raise UserError(
            f"{what}: {some_of(map(shown, unknown))}; remove or correct them (known: {', '.join(sorted(known))})."
        )


def _refuse_what_does_not_run(arch: str, e: _Entries) -> None:
    def refuse(key: str, why: str):
        raise UserError(f"model_config entry {key!r} is {shown(e[key])}, which the published code cannot run: {why}.")

    if arch == "redimnet":
        if e["tf_optimized_arch"]:
            refuse("tf_optimized_arch", "it names a class that was never published; set it to false")
        return
    if e["causal"] not in (False, None, "none"):
        refuse("causal", "its causal blocks were never published; set it to 'none'")
    if e["fm_weigthing_type"] != "NC":
        refuse("fm_weigthing_type", "only 'NC', one weight a map and channel, builds")
    if e["spec_in_channels"] != 1:
        refuse("spec_in_channels", "its front ends give one channel; set it to 1")


def _stages(arch: str, setup: Any) -> tuple[Stage, ...]:
    if not isinstance(setup, Sequence) or isinstance(setup, str) or not setup:
        raise UserError("model_config entry 'stages_setup' must be a list of at least one stage; correct it.")
    if len(setup) > MOST_STAGES:
        raise UserError(
            f"model_config entry 'stages_setup' has {len(setup):,} stages, more than {MOST_STAGES}; lower it."
        )
    stages = []
    for i, entry in enumerate(setup):
        if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 5:
            raise UserError(
                f"model_config entry 'stages_setup'[{i}] is {shown(entry)} but must have five parts "
                "(stride, blocks, conv_exp, kernel_sizes, att_block_red); correct it."
            )
        names = ("stride", "blocks", "conv_exp", "kernel_sizes", "att_block_red")
        e = _Entries({f"stages_setup[{i}].{n}": v for n, v in zip(names, entry, strict=True)})
        stride, blocks, conv_exp, kernel_sizes, att_block_red = e
        if arch == "redimnet":
            if e[stride] not in (1, 2, 3):
                e._fail(stride, "1, 2 or 3")
            strides = (e.integer(stride), 1)
        else:
            if not _is_sizes(e[stride]):
                e._fail(stride, f"two positive integers up to {LARGEST_KERNEL}, (frequency, time)")
            strides = tuple(e[stride])
        if e.number(conv_exp) <= 0:
            e._fail(conv_exp, "positive")
        kernels = [[3, 3]] if e[kernel_sizes] is None else e[kernel_sizes]
        if (
            not isinstance(kernels, Sequence)
            or not 1 <= len(kernels) <= MOST_KERNELS
            or not all(map(_is_sizes, kernels))
        ):
            e._fail(
                kernel_sizes,
                f"a list of pairs (frequency, time) of positive integers, at most {MOST_KERNELS} and up to "
                f"{LARGEST_KERNEL}",
            )
        stages.append(
            Stage(
                *strides,
                blocks=e.integer(blocks, least=0, most=MOST_BLOCKS),
                conv_exp=e[conv_exp],
                kernel_sizes=tuple(tuple(k) for k in kernels),
                att_block_red=e.optional_integer(att_block_red),
            )
        )
    return tuple(stages)


def _spec_params(feat_type: str, entries: Any) -> SpecParams:
    if not isinstance(entries, Mapping):
        raise UserError(f"model_config entry 'spec_params' is {shown(entries)} but must be a mapping; correct it.")
    elsewhere = ("spec_norm", "num_apply_spec_aug") if feat_type.startswith("tf") else ("eps",)
    known = {f.name: f.default for f in dataclasses.fields(SpecParams) if f.name not in elsewhere}
    _refuse_unknown(
        entries, known, f"model_config entry 'spec_params' has unknown entries for feat_type {feat_type!r}"
    )
    e = _Entries(known | dict(entries))
    kinds = {"freq_mask_width": e.range, "time_mask_width": e.range, "f_min": e.number, "f_max": e.number}
    kinds |= {k: e.boolean for k in ("do_spec_aug", "norm_signal", "do_preemph")}
    kinds |= {"eps": e.number, "spec_norm": lambda key: e.choice(key, ("mn", "mvn", "bn"))}
    kinds |= {"freq_start_bin": lambda key: e.integer(key, least=0)}
    kinds |= {"win_length": lambda key: e.integer(key, least=2, most=LARGEST_FFT)}
    kinds |= {"n_fft": lambda key: e.integer(key, most=LARGEST_FFT)}
    kinds |= {"num_apply_spec_aug": lambda key: e.integer(key, most=MOST_BLOCKS)}
    params = SpecParams(**{key: kinds.get(key, e.integer)(key) for key in e})
    if not TINIEST <= params.eps < 1:
        e._fail("eps", f"at least {TINIEST:g} and below 1")
    if not 0 <= params.f_min < params.f_max <= params.sample_rate / 2:
        raise UserError(
            f"spec_params has f_min {params.f_min} and f_max {params.f_max} Hz but needs 0 <= f_min < f_max <= "
            f"{params.sample_rate / 2:g}, half the sample rate; correct them."
        )
    if params.win_length > params.n_fft:
        raise UserError(
            f"spec_params has win_length {params.win_length}, longer than n_fft {params.n_fft}; correct them."
        )
    return params


def _head_activation(text: Any) -> str | None:
    if text is None:
        return None
    match = re.fullmatch(r"(?:torch\.)?nn\.(\w+)\(\)", text) if isinstance(text, str) else None
    if not match or match[1] not in ACTIVATIONS:
        allowed = ", ".join(f"'nn.{name}()'" for name in ACTIVATIONS)
        raise UserError(
            f"model_config entry 'head_activation' is {shown(text)}, and text from a checkpoint is never evaluated; "
            f"use one of {allowed} or null."
        )
    return match[1]


def _mrl_dims(dims: Any, embed_dim: int) -> tuple[int, ...] | None:
    if dims is None:
        return None
    if not _is_integers(dims) or not dims or list(dims) != sorted(set(dims)) or dims[0] < 1:
        raise UserError(
            f"model_config entry 'mrl_dims' is {shown(dims)} but must be increasing positive integers; correct it."
        )
    if dims[-1] > embed_dim:
        raise UserError(
            f"model_config entry 'mrl_dims' ends at {shown(dims[-1])}, beyond embed_dim {embed_dim}; lower it."
        )
    return tuple(dims) if dims[-1] == embed_dim else (*dims, embed_dim)


def _check_it_builds(config: ModelConfig) -> None:
    def require(condition: bool, message: str):
        if not condition:
            raise UserError(f"model_config cannot build a network: {message}; correct it.")

    c, f = config.C, config.F
    blocks = sum(stage.blocks for stage in config.stages)
    require(blocks <= MOST_BLOCKS, f"'stages_setup' has {blocks:,} blocks, more than {MOST_BLOCKS:,}")
    require(
        config.time_stride <= LARGEST_KERNEL,
        f"the strides in time make {shown(config.time_stride)} together, more than {LARGEST_KERNEL}",
    )
    for i, stage in enumerate(config.stages):
        where = f"'stages_setup'[{i}]"
        stride = stage.freq_stride
        require(f % stride == 0, f"{where} divides {f} frequencies by {stride}")
        c, f = stride * c, f // stride
        inner = int(c * stage.conv_exp)
        require(inner >= 1, f"{where} has conv_exp {stage.conv_exp}, which leaves none of {c} channels")
        if config.group_divisor is not None:
            groups = inner // config.group_divisor
            require(
                groups >= 1 and inner % groups == 0,
                f"{where} has {inner} channels that group_divisor {config.group_divisor} cannot group",
            )
            if config.arch == "redimnet" and stage.conv_exp != 1:
                groups = c // config.group_divisor
                require(
                    groups >= 1 and c % groups == 0 and inner % groups == 0,
                    f"{where} squeezes {inner} channels into {c}, which group_divisor {config.group_divisor} "
                    "cannot group",
                )
        if stage.att_block_red is not None:
            hidden = config.channels // stage.att_block_red
            heads = ATTENTION_HEADS if "att" in config.block_1d_type else 1
            require(
                hidden >= 1 and hidden % heads == 0,
                f"{where} has att_block_red {stage.att_block_red}, so {hidden} channels for {heads} heads",
            )
    pooled = pooled_channels(config)
    heads = POOLING_HEADS.get(config.pooling_func, 1)
    require(pooled % heads == 0, f"{config.pooling_func} splits {pooled} channels into {heads} heads")


def pooled_channels(config: ModelConfig) -> int:
    """Width of the map that the pooling sees."""
    if config.out_channels is None:
        return config.channels
    if config.return_2d_output:
        return config.F // math.prod(stage.freq_stride for stage in config.stages) * config.out_channels
    return config.out_channels
