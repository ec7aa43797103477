"""The blocks of both networks: 2-D blocks, 1-D time-context blocks and the aggregation of earlier feature maps.

Papers: ReDimNet, Yakovlev et al., Interspeech 2024 (arXiv 2407.18223); ReDimNet2, Interspeech 2026 submission;
ConvNeXt, arXiv 2201.03545; frequency-wise squeeze-excitation, arXiv 1709.01507 over frequency.
Shapes, masks and dtypes are those of `layers.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from redimnet_jax.models.config import ATTENTION_HEADS, BLOCKS_1D
from redimnet_jax.nn import convnext, residual
from redimnet_jax.nn.activation import gelu, gelu_tanh
from redimnet_jax.nn.attention import attention
from redimnet_jax.nn.convolution import materialised
from redimnet_jax.nn.layers import Constant, Conv2d, Dense, DepthwiseConv1d
from redimnet_jax.nn.normalization import BatchNorm, LayerNorm, batch_statistics, masked_mean
from redimnet_jax.nn.weights import Affine, ConvNeXtWeights, Norm, ResidualHalf

Array = jax.Array


class Aggregate(nnx.Module):
    """Softmax-weighted sum of N maps (batch, time, channels), one weight a map and channel: `w` (N, channels).

    A single map passes through: its weight is one whatever `w` holds, so `w` is a constant, not a parameter.
    """

    def __init__(self, maps: int, channels: int):
        self.w = (nnx.Param if maps > 1 else Constant)(jnp.zeros((maps, channels)))

    def __call__(self, maps: Sequence[Array]) -> Array:
        if len(maps) == 1:
            return maps[0]
        weights = jax.nn.softmax(self.w[...], axis=0).astype(maps[0].dtype)
        # Computed once: of a sum that several reductions read XLA would read all maps for each of them.
        return materialised(sum(weight * x for weight, x in zip(weights, maps, strict=True)))


class ConvNeXtBlock(nnx.Module):
    """x + pointwise(act(batchnorm(concat(convolutions of x)))), in one or two dimensions."""

    def __init__(
        self,
        channels: int,
        convolutions: Sequence[Any],
        activation: Callable[[Array], Array] = gelu,
        *,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.dwconvs: nnx.List[Any] = nnx.List(convolutions)
        self.norm = BatchNorm(channels * len(convolutions))
        self.pwconv1 = Dense(channels * len(convolutions), channels, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None, *, train: bool) -> Array:
        if self.activation is gelu and x.dtype == jnp.bfloat16:
            return self._in_bfloat16(x, mask, train)
        h = self._convolutions(x, mask)
        return x + self.pwconv1(self.activation(self.norm(h, mask, train=train)))

    def _convolutions(self, x: Array, mask: Array | None) -> Array:
        return jnp.concatenate([convolution(x, mask) for convolution in self.dwconvs], axis=-1)

    def _in_bfloat16(self, x: Array, mask: Array | None, train: bool) -> Array:
        product = self.pwconv1.weights()
        biases = jnp.concatenate([convolution.bias[...] for convolution in self.dwconvs])
        alone = self.dwconvs[0].kernel[...] if len(self.dwconvs) == 1 else None
        # A bias before a normalisation moves the mean and nothing else, so no map has it.
        if not train or self.norm.frozen:
            norm = self.norm.running()
            if alone is not None:
                return convnext.block(x, mask, ConvNeXtWeights(alone, biases, norm, product))
            h = self._without_biases(x, mask)
            return convnext.mix_channels(x, h, norm._replace(mean=norm.mean - biases), product)
        if alone is not None and alone.ndim == 4 and mask is None:
            affine = Affine(self.norm.scale[...], self.norm.bias[...])
            results: Any = convnext.block_with_batch_statistics(x, alone, affine, product, self.norm.eps)
            out, mean, var = results
            self.norm.keep(mean + biases, var, convnext.positions_of_batch(x))
            return out
        h = self._without_biases(x, mask)
        mean, var, count = batch_statistics(h, mask)
        gain = self.norm.gain_of_batch(mean + biases, var, count)
        return convnext.mix_channels(x, h, Norm(mean, gain, self.norm.bias[...]), product)

    def _without_biases(self, x: Array, mask: Array | None) -> Array:
        return jnp.concatenate([convolution.without_bias(x, mask) for convolution in self.dwconvs], axis=-1)


class Execution(NamedTuple):
    """How the blocks of a backbone are executed; the results are the same.

    With `remat` nothing within a block is kept, and the backward pass does it again: less memory, more time. With
    `scan` equal blocks in a row are one block in a loop: a program that takes less time to compile.
    """

    remat: bool = False
    scan: bool = False


def in_turn(
    blocks: Sequence[nnx.Module], x: Array, mask: Array | None, *, train: bool, execution: Execution
) -> Array:
    """`x` through `blocks`."""
    graphs = [nnx.graphdef(block) for block in blocks] if execution.scan else []
    if len(graphs) > 1 and all(graph == graphs[0] for graph in graphs):
        return _in_loop(blocks, x, mask, train=train, remat=execution.remat)

    def one(block: Any, x: Array, mask: Array | None) -> Array:
        return block(x, mask, train=train)

    one = nnx.remat(one) if execution.remat else one
    for block in blocks:
        x = one(block, x, mask)
    return x


def _in_loop(blocks: Sequence[nnx.Module], x: Array, mask: Array | None, *, train: bool, remat: bool) -> Array:
    graph = nnx.graphdef(blocks[0])
    states = jax.tree.map(lambda *arrays: jnp.stack(arrays), *map(nnx.state, blocks))

    def one(x: Array, state: nnx.State) -> tuple[Array, nnx.State]:
        block: Any = nnx.merge(graph, state, copy=True)
        return block(x, mask, train=train), nnx.state(block, nnx.BatchStat)

    x, statistics = jax.lax.scan(jax.checkpoint(one) if remat else one, x, states)
    for index, block in enumerate(blocks):
        nnx.update(block, jax.tree.map(lambda array, index=index: array[index], statistics))
    return x


def convnext_1d(channels: int, taps: Sequence[int], *, rngs: nnx.Rngs) -> ConvNeXtBlock:
    """Make the 1-D block: one depthwise convolution for each entry of `taps`."""
    return ConvNeXtBlock(channels, [DepthwiseConv1d(channels, k, rngs=rngs) for k in taps], rngs=rngs)


class FrequencySE(nnx.Module):
    """Squeeze-excitation whose squeeze is one number a frequency: the mean over channels and time."""

    def __init__(self, bins: int, features: int, *, rngs: nnx.Rngs):
        self.squeeze = Dense(bins, features, rngs=rngs)
        self.excitation = Dense(features, bins, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        gate = masked_mean(x, mask, (1, 3)).astype(x.dtype)
        gate = jax.nn.sigmoid(self.excitation(jax.nn.relu(self.squeeze(gate))))
        return x * gate[:, None, :, None]


class ResBlock(nnx.Module):
    """The basic residual block with grouped 3x3 convolutions, each followed by a pointwise one when grouped."""

    def __init__(self, channels: int, bins: int, group_divisor: int | None, use_se: bool, *, rngs: nnx.Rngs):
        groups = 1 if group_divisor is None else channels // group_divisor
        grouped = group_divisor is not None
        self.conv1 = Conv2d(channels, channels, groups=groups, bias=False, rngs=rngs)
        self.conv1pw = Dense(channels, channels, rngs=rngs) if grouped else None
        self.bn1 = BatchNorm(channels)
        self.conv2 = Conv2d(channels, channels, groups=groups, bias=False, rngs=rngs)
        self.conv2pw = Dense(channels, channels, rngs=rngs) if grouped else None
        self.bn2 = BatchNorm(channels)
        self.se = FrequencySE(bins, min(64, max(channels, 32)), rngs=rngs) if use_se else None

    def __call__(self, x: Array, mask: Array | None, *, train: bool) -> Array:
        grouped = self.conv1pw is not None and self.conv2pw is not None
        if x.dtype == jnp.bfloat16 and grouped and self._has_statistics(train):
            first = self._weights(self.conv1, self.conv1pw, self.bn1)
            second = self._weights(self.conv2, self.conv2pw, self.bn2)
            if self.se is None:
                return residual.block(x, mask, first, second, add=True)
            return jax.nn.relu(self.se(residual.block(x, mask, first, second, add=False), mask) + x)
        h = self.conv1(x, mask)
        h = h if self.conv1pw is None else self.conv1pw(h)
        h = self.bn1(jax.nn.relu(h), mask, train=train)
        h = self.conv2(h, mask)
        h = h if self.conv2pw is None else self.conv2pw(h)
        h = self.bn2(h, mask, train=train)
        h = h if self.se is None else self.se(h, mask)
        return jax.nn.relu(h + x)

    def _has_statistics(self, train: bool) -> bool:
        return not train or (self.bn1.frozen and self.bn2.frozen)

    @staticmethod
    def _weights(conv: Conv2d, pointwise: Dense | None, norm: BatchNorm) -> ResidualHalf:
        assert pointwise is not None
        return ResidualHalf(conv.kernel[...], pointwise.weights(), norm.running())


def block_2d(
    kind: str,
    channels: int,
    bins: int,
    group_divisor: int | None,
    kernel_sizes: Sequence[Sequence[int]] = ((3, 3),),
    *,
    rngs: nnx.Rngs,
) -> ConvNeXtBlock | ResBlock:
    """Make the 2-D block of a `block_2d_type`; `kernel_sizes` (freq, time) matter to the ConvNeXt-like ones alone."""
    if kind.startswith("basic_resnet"):
        return ResBlock(channels, bins, group_divisor, kind == "basic_resnet_fwse", rngs=rngs)
    groups = 1 if group_divisor is None else channels // group_divisor
    convolutions = [Conv2d(channels, channels, k, groups=groups, rngs=rngs) for k in kernel_sizes]
    return ConvNeXtBlock(channels, convolutions, jax.nn.relu if kind.endswith("relu") else gelu, rngs=rngs)


class PositionalConv(nnx.Module):
    """x + layernorm(depthwise convolution of x): the position encoding of the `att` block."""

    def __init__(self, channels: int, taps: int = 59, *, rngs: nnx.Rngs):
        self.conv = DepthwiseConv1d(channels, taps, rngs=rngs)
        self.norm = LayerNorm(channels)

    def __call__(self, x: Array, mask: Array | None, *, train: bool) -> Array:
        return x + self.norm(self.conv(x, mask))


class Attention(nnx.Module):
    """Multi-head self-attention over time; keys outside the mask get no weight."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Dense(channels, channels, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x: Array, mask: Array | None) -> Array:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(attention(q, k, v, mask, ATTENTION_HEADS))


class FeedForward(nnx.Module):
    """Two dense layers with a GELU between them, (..., channels) to (..., channels)."""

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.intermediate_dense = Dense(channels, hidden, rngs=rngs)
        self.output_dense = Dense(hidden, channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.output_dense(gelu_tanh(self.intermediate_dense(x)))


class TransformerLayer(nnx.Module):
    """Post-norm encoder layer as in wav2vec 2.0."""

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.attention = Attention(channels, rngs=rngs)
        self.layer_norm = LayerNorm(channels)
        self.feed_forward = FeedForward(channels, hidden, rngs=rngs)
        self.final_layer_norm = LayerNorm(channels)

    def __call__(self, x: Array, mask: Array | None, *, train: bool) -> Array:
        x = self.layer_norm(x + self.attention(x, mask))
        return self.final_layer_norm(x + self.feed_forward(x))


class FullyConnected(nnx.Module):
    """The `fc` context: two pointwise layers, no context in time."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.expand = Dense(channels, 2 * channels, rngs=rngs)
        self.norm = LayerNorm(2 * channels)
        self.reduce = Dense(2 * channels, channels, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None, *, train: bool) -> Array:
        return self.reduce(gelu(self.norm(self.expand(x))))


def _time_context(kind: str, channels: int, rngs: nnx.Rngs) -> list[nnx.Module]:
    match kind:
        case "fc":
            return [FullyConnected(channels, rngs=rngs)]
        case "conv":
            return [convnext_1d(channels, (7, 15, 31), rngs=rngs) for _ in range(4)]
        case "att":
            return [PositionalConv(channels, rngs=rngs), TransformerLayer(channels, 2 * channels, rngs=rngs)]
        case "conv+att":
            convolutions = [convnext_1d(channels, (taps,), rngs=rngs) for taps in (7, 19, 31, 59)]
            return [*convolutions, TransformerLayer(channels, channels, rngs=rngs)]
    raise ValueError(f"block_1d_type {kind!r} is none of {', '.join(BLOCKS_1D)}.")


class TimeContextBlock(nnx.Module):
    """x + expand(context(layernorm(reduce(x)))) on the 1-D map (batch, time, channels)."""

    def __init__(self, kind: str, channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.reduce = Dense(channels, hidden, rngs=rngs)
        self.norm = LayerNorm(hidden)
        self.tcm = nnx.List(_time_context(kind, hidden, rngs))
        self.expand = Dense(hidden, channels, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None, *, train: bool) -> Array:
        h = self.norm(self.reduce(x))
        for layer in self.tcm:
            h = layer(h, mask, train=train)
        return x + self.expand(h)


def time_context(kind: str, channels: int, reduction: int | None, *, rngs: nnx.Rngs) -> TimeContextBlock | None:
    """Make the 1-D block of a stage whose `att_block_red` is `reduction`, or None without one."""
    return None if reduction is None else TimeContextBlock(kind, channels, channels // reduction, rngs=rngs)
