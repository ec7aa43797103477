"""2-D blocks, 1-D time-context blocks, and the aggregation of earlier maps.

`write_block` takes a module, its input and the mask of its frames; every kind of block has a function for it.
"""

import functools
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from redimnet_jax.errors import UserError
from redimnet_jax.export.graph import layers
from redimnet_jax.export.graph.builder import Graph
from redimnet_jax.export.graph.layers import Affine, Mask, array
from redimnet_jax.models import blocks
from redimnet_jax.models.config import ATTENTION_HEADS
from redimnet_jax.nn.layers import DepthwiseConv1d


@functools.singledispatch
def write_block(module, g: Graph, x: str, mask: Mask) -> str:
    """Write what `module` computes of the map `x`; raise UserError for a module that has no form in ONNX here."""
    raise UserError(f"The format onnx has no form of the layer {type(module).__name__}; choose another format.")


def in_turn(g: Graph, modules: Sequence, x: str, mask: Mask, name: str) -> str:
    """Write `modules` one after another."""
    for index, module in enumerate(modules):
        with g.scope(f"{name}.{index}"):
            x = write_block(module, g, x, mask)
    return x


@write_block.register
def _(module: blocks.ConvNeXtBlock, g: Graph, x: str, mask: Mask) -> str:
    flat = isinstance(module.dwconvs[0], DepthwiseConv1d)
    channels = module.pwconv1.bias.shape[0]
    norm = layers.affine(module.norm)
    parts = []
    for index, convolution in enumerate(module.dwconvs):
        own = slice(index * channels, (index + 1) * channels)
        after = Affine(norm.gain[own], norm.offset[own])
        if flat:
            parts.append(layers.depthwise_conv1d(g, x, convolution, mask, after))
        else:
            parts.append(layers.conv2d(g, x, convolution, channels, mask, after))
    h = parts[0] if len(parts) == 1 else g("Concat", *parts, axis=1)
    h = layers.activation(g, h, module.activation)
    return g("Add", x, layers.dense(g, h, module.pwconv1, axes=3 if flat else 4))


@write_block.register
def _(module: blocks.ResBlock, g: Graph, x: str, mask: Mask) -> str:
    first, second = layers.affine(module.bn1), layers.affine(module.bn2)
    channels = len(first.gain)
    h = layers.conv2d(g, x, module.conv1, channels, mask)
    h = h if module.conv1pw is None else layers.dense(g, h, module.conv1pw, axes=4)
    # The padding of the next convolution is zero after the norm, so the norm cannot become a part of its weights.
    h = layers.scaled(g, g("Relu", h), first, axes=4)
    if module.conv2pw is None:
        h = layers.conv2d(g, h, module.conv2, channels, mask, second)
    else:
        h = layers.conv2d(g, h, module.conv2, channels, mask)
        h = layers.dense(g, h, module.conv2pw, axes=4, after=second)
    h = h if module.se is None else write_block(module.se, g, h, mask)
    return g("Relu", g("Add", h, x))


@write_block.register
def _(module: blocks.FrequencySE, g: Graph, x: str, mask: Mask) -> str:
    # The mean over the channels alone is small, and the mask goes on that: (batch, freq, time).
    channels_mean = g("ReduceMean", x, axes=[1], keepdims=0)
    gate = rows = layers.rows(g, mask.mean(g, channels_mean))
    gate = g("Relu", layers.rows_dense(g, rows, module.squeeze))
    gate = g("Sigmoid", layers.rows_dense(g, gate, module.excitation))
    return g("Mul", x, g("Unsqueeze", g.transpose(gate, (0, 2, 1)), (1,)))


@write_block.register
def _(module: blocks.PositionalConv, g: Graph, x: str, mask: Mask) -> str:
    h = layers.rows(g, layers.depthwise_conv1d(g, x, module.conv, mask))
    return g("Add", x, layers.rows(g, layers.rows_layer_norm(g, h, module.norm)))


@write_block.register
def _(module: blocks.TransformerLayer, g: Graph, x: str, mask: Mask) -> str:
    x = layers.rows(g, x)
    x = layers.rows_layer_norm(g, g("Add", x, _attention(g, x, module.attention, mask)), module.layer_norm)
    hidden = layers.tanh_gelu(g, layers.rows_dense(g, x, module.feed_forward.intermediate_dense))
    x = g("Add", x, layers.rows_dense(g, hidden, module.feed_forward.output_dense))
    return layers.rows(g, layers.rows_layer_norm(g, x, module.final_layer_norm))


def _attention(g: Graph, x: str, module: blocks.Attention, mask: Mask) -> str:
    channels = module.out_proj.bias.shape[0]
    size = channels // ATTENTION_HEADS

    def heads(layer, order: Sequence[int], gain: float = 1.0) -> str:
        return g.transpose(g.reshape(layers.rows_dense(g, x, layer, gain), (0, -1, ATTENTION_HEADS, size)), order)

    q = heads(module.q_proj, (0, 2, 1, 3), size**-0.5)
    logits = g("MatMul", q, heads(module.k_proj, (0, 2, 3, 1)))
    inside = g("Unsqueeze", mask.inside, (1,))
    weights = g("Softmax", g("Where", inside, logits, -np.inf), axis=-1)
    y = g.transpose(g("MatMul", weights, heads(module.v_proj, (0, 2, 1, 3))), (0, 2, 1, 3))
    return layers.rows_dense(g, g.reshape(y, (0, -1, channels)), module.out_proj)


@write_block.register
def _(module: blocks.FullyConnected, g: Graph, x: str, mask: Mask) -> str:
    h = layers.rows_layer_norm(g, layers.rows(g, layers.dense(g, x, module.expand)), module.norm)
    return layers.dense(g, layers.rows(g, layers.exact_gelu(g, h)), module.reduce)


@write_block.register
def _(module: blocks.TimeContextBlock, g: Graph, x: str, mask: Mask) -> str:
    h = layers.rows(g, layers.dense(g, x, module.reduce))
    h = layers.rows(g, layers.rows_layer_norm(g, h, module.norm))
    h = in_turn(g, module.tcm, h, mask, "tcm")
    return g("Add", x, layers.dense(g, h, module.expand))


def aggregate(g: Graph, maps: Sequence[str], module: blocks.Aggregate) -> str:
    """Write the weighted sum of 1-D maps."""
    if len(maps) == 1:
        return maps[0]
    weights = softmax(array(module.w), axis=0)
    return g("Sum", *(g("Mul", x, weight[:, None]) for x, weight in zip(maps, weights, strict=True)))
