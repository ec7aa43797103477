"""The backbones: log-mel features (batch, mels, frames) to maps (batch, channels, frames) and their mask."""

import functools

from redimnet_jax.errors import UserError
from redimnet_jax.export.graph import layers
from redimnet_jax.export.graph.blocks import aggregate, in_turn, write_block
from redimnet_jax.export.graph.builder import Graph
from redimnet_jax.export.graph.layers import END, INT64, Mask, array, mask_of
from redimnet_jax.models import redimnet, redimnet2


def to_2d(g: Graph, x: str, frequencies: int, channels: int) -> str:
    """Return a 1-D map as (batch, channels, freq, time)."""
    return g.transpose(g.reshape(x, (0, frequencies, channels, -1)), (0, 2, 1, 3))


def to_1d(g: Graph, x: str, volume: int) -> str:
    """Return a 2-D map as the 1-D map (batch, volume, time)."""
    return g.reshape(g.transpose(x, (0, 2, 1, 3)), (0, volume, -1))


@functools.singledispatch
def write_backbone(module, g: Graph, features: str, mask: Mask) -> tuple[str, Mask]:
    """Write `module` and return its output with the mask of that; raise UserError when it has no form here."""
    raise UserError(f"The format onnx has no form of the backbone {type(module).__name__}; choose another format.")


@write_backbone.register
def _(module: redimnet.ReDimNet, g: Graph, features: str, mask: Mask) -> tuple[str, Mask]:
    maps = [_stem(g, features, module.stem, _volume(module), mask)]
    for index, stage in enumerate(module.stages):
        with g.scope(f"stages.{index}"):
            maps.append(_stage(g, maps, stage, mask))
    x = aggregate(g, maps, module.aggregate)
    if module.mfa is not None:
        x = layers.dense(g, x, module.mfa.conv, after=layers.affine(module.mfa.norm))
    return x, mask


def _volume(module: redimnet.ReDimNet | redimnet2.ReDimNet2) -> int:
    """Return the channels of the 1-D maps."""
    return module.aggregate.w.shape[1]


def _stem(g: Graph, features: str, module: redimnet.Stem, volume: int, mask: Mask) -> str:
    with g.scope("stem"):
        x = layers.conv2d(g, g("Unsqueeze", features, (1,)), module.conv, 1, mask)
        x = layers.rows_layer_norm(g, g.transpose(x, (0, 2, 3, 1)), module.norm)
        return g.reshape(g.transpose(x, (0, 1, 3, 2)), (0, volume, -1))


def _stage(g: Graph, maps: list[str], stage: redimnet.Stage, mask: Mask) -> str:
    x = to_2d(g, aggregate(g, maps, stage.aggregate), stage.f, stage.c)
    x = layers.patch_conv2d(g, x, stage.patch)
    x = in_turn(g, stage.blocks, x, mask, "blocks")
    if stage.squeeze is not None:
        squeeze = stage.squeeze
        wide = stage.patch.bias.shape[0]
        x = layers.conv2d(g, x, squeeze.conv, wide, mask, layers.affine(squeeze.norm))
        x = layers.dense(g, layers.exact_gelu(g, x), squeeze.pointwise, axes=4)
    x = to_1d(g, x, stage.f * stage.c)
    return x if stage.context is None else write_block(stage.context, g, x, mask)


@write_backbone.register
def _(module: redimnet2.ReDimNet2, g: Graph, features: str, mask: Mask) -> tuple[str, Mask]:
    stride = module.time_stride
    if stride > 1:
        # Frames beyond a multiple of the stride are cut off, of the batch and of each utterance.
        mask = _of_whole_strides(g, mask, stride)
        features = g.cut(features, 2, 0, g("Shape", mask.inside, start=2, end=3))
    x = _stem(g, features, module.stem, _volume(module), mask)
    maps = [x if module.stem_norm is None else layers.group_norm(g, x, module.stem_norm, mask)]
    for index, stage in enumerate(module.stages):
        with g.scope(f"stages.{index}"):
            maps.extend(_stage2(g, maps, stage, mask))
    x = aggregate(g, maps, module.aggregate)
    if module.output_2d is None:
        return (x if module.head is None else layers.dense(g, x, module.head)), mask
    x = to_2d(g, x, *module.output_2d)
    if module.head is not None:
        x = layers.dense(g, x, module.head, axes=4)
    channels = module.output_2d[1] if module.head is None else module.head.bias.shape[0]
    return g.reshape(x, (0, channels * module.output_2d[0], -1)), mask


def _of_whole_strides(g: Graph, mask: Mask, stride: int) -> Mask:
    """Return `mask` without the frames beyond the last multiple of `stride` of each row and of the batch."""
    frames = g("Mul", g("Div", g("Shape", mask.inside, start=2, end=3), stride), (stride,))
    count = g("Mul", g("Div", g("Cast", mask.count, to=INT64), stride), stride)
    positions = g("Range", 0, g("Squeeze", frames, (0,)), 1)
    return mask_of(g, g("Less", positions, count))


def _stage2(g: Graph, maps: list[str], stage: redimnet2.Stage, mask: Mask) -> list[str]:
    x = to_2d(g, aggregate(g, maps, stage.aggregate), stage.f, stage.c)
    if stage.freq_embedding is not None:
        x = g("Add", x, array(stage.freq_embedding).T[:, :, None])
    x = layers.patch_conv2d(g, x, stage.patch)
    stride = stage.time_stride
    # An utterance's frames are a multiple of the stride, so a pooled frame is wholly inside it or outside.
    pooled = mask if stride == 1 else mask_of(g, g.cut(mask.inside, 2, 0, END, stride))
    x = in_turn(g, stage.blocks, x, pooled, "blocks")
    if stage.squeeze is not None:
        x = layers.dense(g, x, stage.squeeze.conv, axes=4, after=layers.affine(stage.squeeze.norm))
    x = to_1d(g, x, stage.f * stage.c)
    outputs = [x] if stage.context is None or stage.dual else []
    if stage.context is not None:
        outputs.append(write_block(stage.context, g, x, pooled))
    outputs = [_repeated(g, x, stride, stage.f * stage.c) for x in outputs]
    if stage.norms is None:
        return outputs
    return [layers.group_norm(g, x, norm, mask) for norm, x in zip(stage.norms, outputs, strict=True)]


def _repeated(g: Graph, x: str, times: int, channels: int) -> str:
    """Return a 1-D map with every frame `times` times."""
    if times == 1:
        return x
    return g.reshape(g("Expand", g("Unsqueeze", x, (3,)), (1, 1, 1, times)), (0, channels, -1))
