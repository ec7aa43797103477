"""The map from tensor names of published PyTorch checkpoints to the variables of our networks.

`slots` names, for a network, every tensor that its checkpoint must hold; a slot leads from either to the other.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from flax import nnx

from redimnet_jax.models import blocks, pooling, redimnet, redimnet2
from redimnet_jax.models.frontend import FRONT_ENDS, PREEMPHASIS, KaldiFbank, TorchMel
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.nn import layers, normalization

# The layouts of names that exist, and the architectures they are of: the present one, the one before November 2024,
# that of ReDimNet2, that of the Matryoshka wrapper, and those of WeSpeaker.
LAYOUTS = {
    "redimnet": "redimnet",
    "redimnet_legacy": "redimnet",
    "redimnet2": "redimnet2",
    "redimnet_mrl": "redimnet",
    "wespeaker_redimnet": "redimnet",
    "wespeaker_redimnet2": "redimnet2",
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """The destination of one checkpoint tensor of `shape`: `variable`, after `convert` has changed its axes.

    Without a variable the tensor is only checked (a constant, or a counter of training steps). `expected` is the
    value that the tensor must have, in the axes of the variable, where that is known.
    """

    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray] = lambda x: x
    variable: nnx.Variable | None = None
    expected: np.ndarray | None = None

    def restore(self, array: np.ndarray) -> np.ndarray:
        """Return the checkpoint tensor that `convert` makes `array` of; `convert` does nothing but move elements."""
        positions = self.convert(np.arange(math.prod(self.shape)).reshape(self.shape))
        tensor = np.empty(positions.size, array.dtype)
        tensor[positions.ravel()] = array.ravel()
        return tensor.reshape(self.shape)


Slots = Iterator[tuple[str, Slot]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A submodule: its published name, our attribute (the same unless given), the rank of its weight if pointwise."""

    name: str
    attribute: str = ""
    rank: int = 2


# The published submodules of each module class.
PARTS: dict[type, tuple[Part, ...]] = {
    redimnet.Stem: (Part("0", "conv"), Part("1", "norm")),
    redimnet.Squeeze: (Part("0", "conv"), Part("1", "norm"), Part("3", "pointwise", rank=4)),
    redimnet2.Squeeze: (Part("0", "conv", rank=4), Part("1", "norm")),
    redimnet.FrameProjection: (Part("0", "conv", rank=3), Part("1", "norm")),
    blocks.ResBlock: (
        Part("conv1"),
        Part("conv1pw", rank=4),
        Part("bn1"),
        Part("conv2"),
        Part("conv2pw", rank=4),
        Part("bn2"),
        Part("se"),
    ),
    # The published name is misspelt.
    blocks.FrequencySE: (Part("squeeze"), Part("exitation", "excitation")),
    blocks.TimeContextBlock: (
        Part("red_dim_conv.0", "reduce", rank=3),
        Part("red_dim_conv.1", "norm"),
        Part("tcm"),
        Part("exp_dim_conv", "expand", rank=3),
    ),
    blocks.FullyConnected: (Part("0", "expand", rank=3), Part("1", "norm"), Part("3", "reduce", rank=3)),
    blocks.PositionalConv: (Part("conv"), Part("norm")),
    blocks.TransformerLayer: (
        Part("attention"),
        Part("layer_norm"),
        Part("feed_forward"),
        Part("final_layer_norm"),
    ),
    blocks.Attention: (Part("k_proj"), Part("v_proj"), Part("q_proj"), Part("out_proj")),
    blocks.FeedForward: (Part("intermediate_dense"), Part("output_dense")),
    pooling.TAP: (),
    pooling.TMAP: (),
    pooling.TSDP: (),
    pooling.TSTP: (),
    pooling.ASTP: (Part("linear1", rank=3), Part("linear2", rank=3)),
    pooling.MQMHASTP: (Part("n_query"),),
}


def _vector(variable: nnx.Variable) -> Slot:
    return Slot(tuple(variable.shape), variable=variable)


def _affine(module: Any, prefix: str, rank: int) -> Slots:
    yield f"{prefix}.weight", _vector(module.scale)
    yield f"{prefix}.bias", _vector(module.bias)


def _batch_norm(module: normalization.BatchNorm, prefix: str, rank: int) -> Slots:
    yield from _affine(module, prefix, rank)
    yield f"{prefix}.running_mean", _vector(module.mean)
    yield f"{prefix}.running_var", _vector(module.var)
    yield f"{prefix}.num_batches_tracked", Slot(())


def _dense(module: layers.Dense, prefix: str, rank: int) -> Slots:
    features_in, features_out = module.kernel.shape
    shape = (features_out, features_in) + (1,) * (rank - 2)
    yield f"{prefix}.weight", Slot(shape, lambda w: w.reshape(w.shape[:2]).T, module.kernel)
    yield f"{prefix}.bias", _vector(module.bias)


def _depthwise(module: layers.DepthwiseConv1d, prefix: str, rank: int) -> Slots:
    taps, channels = module.kernel.shape
    yield f"{prefix}.weight", Slot((channels, 1, taps), lambda w: w[:, 0].T, module.kernel)
    yield f"{prefix}.bias", _vector(module.bias)


def _conv_2d(module: layers.Conv2d | layers.PatchConv2d, prefix: str, rank: int) -> Slots:
    yield f"{prefix}.weight", Slot(module.kernel.shape[::-1], lambda w: w.transpose(3, 2, 1, 0), module.kernel)
    if module.bias is not None:
        yield f"{prefix}.bias", _vector(module.bias)


def _aggregate(module: blocks.Aggregate, prefix: str, rank: int) -> Slots:
    yield prefix, Slot((1, *module.w.shape, 1), lambda w: w[0, :, :, 0], module.w)


def _convnext(module: blocks.ConvNeXtBlock, prefix: str, rank: int) -> Slots:
    is_1d = isinstance(module.dwconvs[0], layers.DepthwiseConv1d)
    yield from _tensors(module.dwconvs, f"{prefix}.dwconvs")
    yield from _tensors(module.norm, f"{prefix}.norm")
    yield from _tensors(module.pwconv1, f"{prefix}.pwconv1", rank=3 if is_1d else 4)


def _heads(module: pooling.MHASTP, prefix: str, rank: int) -> Slots:
    for index, pair in enumerate(zip(module.att_0, module.att_1, strict=True)):
        for layer, dense in enumerate(pair):
            yield from _tensors(dense, f"{prefix}.heads_att_trans.{index}.att_{layer}", rank=3)


# The tensors of each module class that is not the sum of its parts: (module, published name, rank) -> slots.
LEAVES: dict[type, Callable[[Any, str, int], Slots]] = {
    normalization.BatchNorm: _batch_norm,
    normalization.LayerNorm: _affine,
    normalization.GroupNorm: _affine,
    layers.Dense: _dense,
    layers.DepthwiseConv1d: _depthwise,
    layers.Conv2d: _conv_2d,
    layers.PatchConv2d: _conv_2d,
    nnx.Param: lambda variable, prefix, rank: iter([(prefix, _vector(variable))]),
    blocks.Aggregate: _aggregate,
    blocks.ConvNeXtBlock: _convnext,
    pooling.MHASTP: _heads,
}


def _tensors(module: Any, prefix: str, rank: int = 2) -> Slots:
    """Yield the tensors of `module`, published as `prefix`; an absent module (None) has none."""
    if module is None:
        return
    if isinstance(module, nnx.List):
        # The published layers of this class stand in the list themselves, without a module of their own.
        if len(module) == 1 and isinstance(module[0], blocks.FullyConnected):
            yield from _tensors(module[0], prefix)
            return
        for index, item in enumerate(module):
            yield from _tensors(item, f"{prefix}.{index}", rank)
    elif type(module) in LEAVES:
        yield from LEAVES[type(module)](module, prefix, rank)
    else:
        for part in PARTS[type(module)]:
            yield from _tensors(getattr(module, part.attribute or part.name), f"{prefix}.{part.name}", part.rank)


# A member of a published `nn.Sequential`: (name within the member, module), or None for one without tensors.
Member = tuple[str, Any] | None


def _sequential(prefix: str, members: Sequence[Member]) -> Slots:
    """Yield the tensors of a published `nn.Sequential`, whose names count its members."""
    for index, member in enumerate(members):
        if member is not None:
            name, module = member
            yield from _tensors(module, f"{prefix}.{index}{name}")


def _stage_members(stage: redimnet.Stage | redimnet2.Stage) -> list[Member]:
    """Return the members that the stages of both architectures have, from the patches to the 1-D map."""
    members: list[Member] = [("", stage.patch)]
    members += [(".conv_block", block) for block in stage.blocks]
    if stage.squeeze is not None:
        members.append(("", stage.squeeze))
    return [*members, None]  # The last one reshapes to 1-D.


def _redimnet(backbone: redimnet.ReDimNet, legacy: bool) -> Slots:
    if legacy:
        for index, part in enumerate([*backbone.stages, backbone]):
            yield from _tensors(part.aggregate, f"backbone.inputs_weights.{index}")
    yield from _tensors(backbone.stem, "backbone.stem")
    for index, stage in enumerate(backbone.stages):
        # The second member reshapes to 2-D.
        members: list[Member] = [] if legacy else [(".w", stage.aggregate), None]
        members += _stage_members(stage)
        if stage.context is not None:
            members.append(("", stage.context))
        yield from _sequential(f"backbone.stage{index}", members)
    if not legacy:
        yield from _tensors(backbone.aggregate, "backbone.fin_wght1d.w")
    yield from _tensors(backbone.mfa, "backbone.mfa")


def _redimnet2(backbone: redimnet2.ReDimNet2) -> Slots:
    yield from _tensors(backbone.stem, "backbone.stem")
    yield from _tensors(backbone.stem_norm, "backbone.stem_gnorm")
    for index, stage in enumerate(backbone.stages):
        yield from _stage_of_redimnet2(stage, f"backbone.stage{index}")
    yield from _tensors(backbone.aggregate, "backbone.fin_wght1d.w")
    yield from _tensors(backbone.head, "backbone.head", rank=3 if backbone.output_2d is None else 4)


def _stage_of_redimnet2(stage: redimnet2.Stage, prefix: str) -> Slots:
    members: list[Member] = [(".w", stage.aggregate), None]
    if stage.freq_embedding is not None:
        members.append((".freq_embedder.weight", stage.freq_embedding))
    members += _stage_members(stage)
    norms = [] if stage.norms is None else list(stage.norms)
    if stage.dual:
        yield from _sequential(f"{prefix}_pre", members)
        yield from _tensors(stage.context, f"{prefix}_1d")
        if norms:
            before_context, after_context = norms
            yield from _tensors(before_context, f"{prefix}_up_2d.1")
            yield from _tensors(after_context, f"{prefix}_up_1d.1")
        return
    if stage.context is not None:
        members.append(("", stage.context))
    members.append(None)  # This one repeats the frames.
    members += [("", norm) for norm in norms]
    yield from _sequential(prefix, members)


def _constant(
    variable: nnx.Variable,
    expected: nnx.Variable,
    shape: tuple[int, ...],
    convert: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> Slot:
    return Slot(shape, convert, variable, np.asarray(expected[...]))


def _frontend(network: SpeakerNetwork) -> Slots:
    config = network.config
    frontend = network.frontend
    if isinstance(frontend, KaldiFbank):
        return  # WeSpeaker computes these features outside its models.
    # The network may have been made without values.
    derived = FRONT_ENDS[config.feat_type](config.F, config.hop_length, config.spec_params)
    if config.spec_params.do_preemph:
        filters = np.array([[[-PREEMPHASIS, 1.0]]], np.float32)
        yield "spec.torchfbank.1.flipped_filter", Slot(filters.shape, expected=filters)
    prefix = "spec.torchfbank.2"
    bins, mels = frontend.filter_bank.shape
    if isinstance(frontend, TorchMel):
        window = frontend.window
        yield f"{prefix}.spectrogram.window", _constant(window, derived.window, tuple(window.shape))
        yield f"{prefix}.mel_scale.fb", _constant(frontend.filter_bank, derived.filter_bank, (bins, mels))
        yield from _tensors(frontend.spec_norm, "spec.spec_norm")
        return
    for name, attribute in (("real_kernel_pt", "real_kernel"), ("image_kernel_pt", "imag_kernel")):
        kernel = getattr(frontend, attribute)
        samples, frequencies = kernel.shape
        shape = (frequencies, 1, samples)
        yield f"{prefix}.{name}", _constant(kernel, getattr(derived, attribute), shape, lambda w: w[:, 0].T)
    bank = _constant(frontend.filter_bank, derived.filter_bank, (mels, bins, 1), lambda w: w[:, :, 0].T)
    yield f"{prefix}.melbanks_pt", bank


def _all_slots(network: SpeakerNetwork, layout: str) -> Slots:
    backbone = network.backbone
    if isinstance(backbone, redimnet2.ReDimNet2):
        yield from _redimnet2(backbone)
    else:
        yield from _redimnet(backbone, legacy=layout in ("redimnet_legacy", "wespeaker_redimnet"))
    if layout != "wespeaker_redimnet2":
        yield from _frontend(network)
    yield from _tensors(network.pool, "pool")
    yield from _tensors(network.bn, "bn")
    yield from _tensors(network.linear, "seg_1" if layout == "wespeaker_redimnet" else "linear")
    yield from _tensors(network.bn2, "bn2")
    yield from _tensors(network.classifier, "cls_head.2")
    if layout == "wespeaker_redimnet2":
        for name, slot in _frontend(network):
            yield f"frontend.{name}", slot


def slots(network: SpeakerNetwork, layout: str) -> dict[str, Slot]:
    """Return the slot of every tensor that a checkpoint of `network` in `layout` holds, by the tensor's name.

    They are in the order of the published checkpoints.
    """
    named = dict(_all_slots(network, layout))
    if layout != "redimnet_mrl":
        return named
    projection = {name: slot for name, slot in named.items() if name.startswith(("bn.", "linear."))}
    return {
        **{f"backbone.{name}": slot for name, slot in named.items() if name not in projection},
        **{f"projection.{name}": slot for name, slot in projection.items()},
    }
