"""Layers: masks, convolutions, dense layers, normalizations and activations.

A dense layer is a convolution of one tap. Batch norms in eval mode become part of the layer before them.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np

from redimnet_jax.errors import UserError
from redimnet_jax.export.graph.builder import Graph
from redimnet_jax.nn.activation import gelu
from redimnet_jax.nn.layers import Conv2d, Dense, DepthwiseConv1d, PatchConv2d
from redimnet_jax.nn.normalization import BatchNorm, GroupNorm, LayerNorm

FLOAT, INT64 = 1, 7  # of onnx.TensorProto
END = np.iinfo(np.int64).max
EXACT = "exact"  # the scope of what must be float32 in any precision: sums over time


@dataclasses.dataclass(frozen=True)
class Mask:
    """Which frames belong to an utterance: `inside` (batch, 1, time), bool, and as float32 1.0 and 0.0 in `weight`.

    `count`, (batch, 1, 1) float32, is their number.
    """

    inside: str
    weight: str
    count: str

    def apply(self, g: Graph, x: str, axes: int = 3) -> str:
        """Return `x`, of 3 or 4 axes, with zeros in the other frames."""
        return g("Mul", x, self.weight if axes == 3 else g("Unsqueeze", self.weight, (1,)))

    def mean(self, g: Graph, x: str) -> str:
        """Return the mean over time of `x` (batch, channels, time) inside the mask, (batch, channels, 1)."""
        with g.scope(EXACT):
            return g("Div", g.total(self.apply(g, x), (2,)), self.count)


def mask_of(g: Graph, inside: str) -> Mask:
    """Return the mask of `inside` (batch, 1, time), bool."""
    with g.scope(EXACT):
        weight = g("Cast", inside, to=FLOAT)
        return Mask(inside, weight, g.total(weight, (2,)))


class Affine(NamedTuple):
    """x gain + offset along the channels, float64."""

    gain: np.ndarray
    offset: np.ndarray


def array(variable) -> np.ndarray:
    """Return the array of a variable of a network in float64."""
    return np.asarray(variable[...], np.float64)


def affine(norm: BatchNorm) -> Affine:
    """Return a batch norm in eval mode."""
    gain = array(norm.scale) / np.sqrt(array(norm.var) + norm.eps)
    return Affine(gain, array(norm.bias) - array(norm.mean) * gain)


def scaled(g: Graph, x: str, by: Affine, axes: int) -> str:
    """Return x gain + offset of a map of 3 or 4 axes."""
    gain, offset = (each.reshape(-1, *[1] * (axes - 2)) for each in by)
    return g("Add", g("Mul", x, gain), offset)


def _convolution(
    g: Graph, x: str, kernel: np.ndarray, bias: np.ndarray | None, after: Affine | None, **attributes
) -> str:
    """Convolve with `kernel` (out, in/groups, taps...) and `bias`, and apply `after`."""
    bias = np.zeros(len(kernel)) if bias is None else bias
    if after is not None:
        kernel = kernel * after.gain.reshape(-1, *[1] * (kernel.ndim - 1))
        bias = bias * after.gain + after.offset
    return g("Conv", x, kernel, bias, **attributes)


def dense(g: Graph, x: str, layer: Dense, axes: int = 3, after: Affine | None = None) -> str:
    """Apply a dense layer to the channels of a map of 3 or 4 axes, and then `after`."""
    kernel = array(layer.kernel).T
    return _convolution(g, x, kernel.reshape(*kernel.shape, *[1] * (axes - 2)), array(layer.bias), after)


def rows_dense(g: Graph, x: str, layer: Dense, gain: float = 1.0) -> str:
    """Apply a dense layer, times `gain`, to rows: (..., in) -> (..., out)."""
    return g("Add", g("MatMul", x, array(layer.kernel) * gain), array(layer.bias) * gain)


def conv2d(g: Graph, x: str, layer: Conv2d, channels: int, mask: Mask, after: Affine | None = None) -> str:
    """Convolve a 2-D map of `channels` with zeros outside the mask, and apply `after`."""
    kernel = array(layer.kernel).transpose(3, 2, 1, 0)
    sizes = kernel.shape[2:]
    pads = [*((size - 1) // 2 for size in sizes), *(size // 2 for size in sizes)]
    bias = None if layer.bias is None else array(layer.bias)
    groups = channels // kernel.shape[1]
    return _convolution(g, mask.apply(g, x, 4), kernel, bias, after, pads=pads, group=groups)


def patch_conv2d(g: Graph, x: str, layer: PatchConv2d) -> str:
    """Convolve a 2-D map with a stride that is the kernel's size."""
    kernel = array(layer.kernel).transpose(3, 2, 1, 0)
    return _convolution(g, x, kernel, array(layer.bias), None, strides=list(kernel.shape[2:]), group=layer.groups)


def depthwise_conv1d(g: Graph, x: str, layer: DepthwiseConv1d, mask: Mask, after: Affine | None = None) -> str:
    """Convolve each channel of a 1-D map with zeros outside the mask, and apply `after`."""
    kernel = array(layer.kernel).T[:, None]
    channels, _, taps = kernel.shape
    pads = [taps // 2, taps // 2]
    return _convolution(g, mask.apply(g, x), kernel, array(layer.bias), after, pads=pads, group=channels)


def rows_layer_norm(g: Graph, x: str, norm: LayerNorm) -> str:
    """Normalize the last axis."""
    return g("LayerNormalization", x, array(norm.scale), array(norm.bias), axis=-1, epsilon=norm.eps)


def rows(g: Graph, x: str) -> str:
    """Return a 1-D map as (batch, time, channels), or such rows as a map."""
    return g.transpose(x, (0, 2, 1))


def group_norm(g: Graph, x: str, norm: GroupNorm, mask: Mask) -> str:
    """Normalize each group of channels of a 1-D map over the group and the frames of the mask."""
    channels = norm.scale.shape[0]
    members = channels // norm.groups
    with g.scope(EXACT):
        inside = g("Unsqueeze", mask.weight, (1,))
        count = g("Mul", g("Unsqueeze", mask.count, (1,)), float(members))
        h = g.reshape(x, (0, norm.groups, members, -1))
        centred = g("Sub", h, g("Div", g.total(g("Mul", h, inside), (2, 3)), count))
        variance = g("Div", g.total(g("Mul", g("Mul", centred, centred), inside), (2, 3)), count)
        h = g("Div", centred, g("Sqrt", g("Add", variance, norm.eps)))
    return scaled(g, g.reshape(h, (0, channels, -1)), Affine(array(norm.scale), array(norm.bias)), 3)


def exact_gelu(g: Graph, x: str) -> str:
    """Return x Phi(x), in the form in which runtimes recognise it."""
    cdf = g("Add", g("Erf", g("Div", x, math.sqrt(2.0))), 1.0)
    return g("Mul", g("Mul", x, cdf), 0.5)


def tanh_gelu(g: Graph, x: str) -> str:
    """Return GELU by its tanh formula."""
    cube = g("Mul", g("Mul", x, x), x)
    inner = g("Mul", g("Add", x, g("Mul", cube, 0.044715)), math.sqrt(2.0 / math.pi))
    return g("Mul", g("Mul", x, g("Add", g("Tanh", inner), 1.0)), 0.5)


def activation(g: Graph, x: str, function) -> str:
    """Apply the activation of a block; raise UserError for one that has no form here."""
    if function is gelu:
        return exact_gelu(g, x)
    if function is jax.nn.relu:
        return g("Relu", x)
    name = getattr(function, "__name__", str(function))
    raise UserError(f"The format onnx has no form of the activation {name}; choose another format.")
