"""The arithmetic of ConvNeXt-like blocks in bfloat16: x + gelu(batchnorm(convolution of x)) W + b.

Memory traffic bounds these blocks, so the backward pass computes most maps again. A block in train mode keeps `x` and
the convolution for it; on CUDA GPUs, and in eval mode, it keeps `x` alone. On CUDA GPUs a 2-D block is one kernel; in
eval mode one kernel computes the convolution of a 1-D block with its normalization and GELU.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from redimnet_jax import sharding
from redimnet_jax.nn.activation import gelu, gelu_derivative, scaled_gelu
from redimnet_jax.nn.convolution import depthwise_conv1d, gradients_by_kernels, grouped_conv2d, materialised
from redimnet_jax.nn.cuda import conv2d, depthwise, mixing, operands
from redimnet_jax.nn.dispatch import by_platform, with_derivative_of
from redimnet_jax.nn.layers import pointwise
from redimnet_jax.nn.normalization import batch_statistics, masked, normalized
from redimnet_jax.nn.tpu_convolution import ONE_BLOCK, grouped_conv2d_in_blocks
from redimnet_jax.nn.weights import Affine, ConvNeXtWeights, Norm, Pointwise
from redimnet_jax.numerics import exact

Array = jax.Array


@jax.custom_vjp
def mix_channels(x: Array, y: Array, norm: Norm, product: Pointwise) -> Array:
    """Return x + gelu((y - mean) gain + offset) kernel + bias, of `x` (..., out) and `y` (..., in), all bfloat16."""
    activated = gelu(normalized(y, norm).astype(y.dtype))
    return x + (jnp.matmul(activated, product.kernel.astype(y.dtype)) + product.bias.astype(y.dtype))


def _mix_channels_fwd(x: Array, y: Array, norm: Norm, product: Pointwise):
    return mix_channels(x, y, norm, product), (y, norm, product)


def _mix_channels_bwd(residuals, dout: Array):
    y, norm, product = residuals
    dnormalized, dkernel, (doffset, dgain, dbias) = _mixing_gradient(y, dout, norm, product.kernel)
    dy = (exact(dnormalized) * norm.gain).astype(y.dtype)
    return dout, dy, Norm(-norm.gain * doffset, dgain, doffset), Pointwise(dkernel, dbias)


mix_channels.defvjp(_mix_channels_fwd, _mix_channels_bwd)


def _mixing_gradient(y: Array, dout: Array, norm: Norm, kernel: Array) -> tuple[Array, Array, list[Array]]:
    """Return the gradients of `mix_channels` in the normalized `y`, in `kernel`, and in offset, gain and bias."""

    def fused(y: Array, dout: Array, norm: Norm, kernel: Array):
        return mixing.mix_channels_gradient(y, dout, *norm, kernel)

    suits = operands.is_map(y) and mixing.suits_mix_channels_gradient(*kernel.shape)
    return by_platform(y, dout, norm, kernel, plain=_plain_mixing_gradient, cuda=fused if suits else None)


def _plain_mixing_gradient(y: Array, dout: Array, norm: Norm, kernel: Array):
    wide = normalized(y, norm)
    activated = gelu(wide.astype(y.dtype))
    dactivated = jnp.matmul(dout, kernel.astype(y.dtype).T)
    # In bfloat16, because three sums and a map are computed from it: XLA would otherwise keep it in float32.
    dnormalized = materialised((exact(dactivated) * gelu_derivative(wide, y.dtype)).astype(y.dtype))
    positions = tuple(range(y.ndim - 1))
    # One product for every eight utterances: XLA would split one over all positions, and pad a batch that is no
    # multiple of eight.
    products = y.shape[0] // math.gcd(y.shape[0], 8)
    dkernel = jnp.einsum(
        "bpi,bpo->bio",
        activated.reshape(products, -1, y.shape[-1]),
        dout.reshape(products, -1, dout.shape[-1]),
        preferred_element_type=jnp.float32,
    )
    doffset, dgain = (exact(dnormalized) * factor for factor in (1.0, exact(y) - norm.mean))
    return dnormalized, dkernel.sum(0), [x.sum(positions) for x in (doffset, dgain, exact(dout))]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def block_with_batch_statistics(
    x: Array, taps: Array, affine: Affine, product: Pointwise, eps: float
) -> tuple[Array, Array, Array]:
    """Return `mix_channels` of `x` and its convolution by the batch's statistics, and their mean and biased variance.

    `x` is (batch, time, freq, channels), bfloat16, `taps` (kt, kf, channels/groups, channels), float32. The
    statistics (channels,), float32, have no gradient. The kernels for CUDA GPUs keep no convolution: the forward pass
    computes it twice, first for the statistics alone, and the backward pass once more.
    """
    return _block_with_batch_statistics_fwd(x, taps, affine, product, eps)[0]


def _block_with_batch_statistics_fwd(x: Array, taps: Array, affine: Affine, product: Pointwise, eps: float):
    fused = _fused_with_batch_statistics if _suits_batch_kernels(x, taps) else None
    arrays = x, taps, affine, product, jnp.float32(eps)
    out, mean, var, y = by_platform(*arrays, plain=_plain_with_batch_statistics, cuda=fused)
    return (out, mean, var), (x, y, mean, var, taps, affine, product)


def positions_of_batch(x: Array) -> int:
    """Return the number of positions of the map `x` (..., channels), with the rows of all devices."""
    return sharding.devices_with_rows() * x.size // x.shape[-1]


def _suits_batch_kernels(x: Array, taps: Array) -> bool:
    channels = x.shape[3]
    suits = conv2d.suits_product(x.shape[2], taps.shape) and mixing.suits_mix_channels_gradient(channels, channels)
    return suits and operands.is_map(x)


def _convolution(x: Array, taps: Array) -> Array:
    return grouped_conv2d(x, taps.astype(x.dtype))


def _plain_with_batch_statistics(x: Array, taps: Array, affine: Affine, product: Pointwise, eps: Array):
    y = _convolution(x, taps)
    mean, var, _ = batch_statistics(y, None)
    norm = Norm(mean, affine.gain * lax.rsqrt(var + eps), affine.offset)
    return mix_channels(x, y, norm, product), mean, var, y


def _fused_with_batch_statistics(x: Array, taps: Array, affine: Affine, product: Pointwise, eps: Array):
    # From float32 sums before the convolution is rounded: accurate unless the mean is many deviations large.
    sums = conv2d.grouped_conv2d_sums(x, taps)
    mean, square = sharding.sum_over_devices(sums)[0] / positions_of_batch(x)
    var = jnp.maximum(square - jnp.square(mean), 0.0)
    gain = affine.gain * lax.rsqrt(var + eps)
    out = conv2d.convnext_2d(x, None, taps * gain, affine.offset - mean * gain, product)
    return out, mean, var, jnp.zeros_like(x)


def _block_with_batch_statistics_bwd(eps: float, residuals, cotangents):
    x, y, mean, var, taps, affine, product = residuals
    dout = cotangents[0]
    inverse = lax.rsqrt(var + eps)
    norm = Norm(mean, affine.gain * inverse, affine.offset)

    def through_norm(y: Array):
        # The statistics depend on the convolution too: Ioffe and Szegedy (arXiv 1502.03167), section 3.
        dnormalized, dkernel, (doffset, moments, dbias) = _mixing_gradient(y, dout, norm, product.kernel)
        dgain = inverse * moments
        offset_of_all, gain_of_all = sharding.sum_over_devices(doffset, dgain)
        through_statistics = (offset_of_all + (exact(y) - mean) * (inverse * gain_of_all)) / positions_of_batch(y)
        dy = (norm.gain * (exact(dnormalized) - through_statistics)).astype(y.dtype)
        return materialised(dy), (Affine(dgain, doffset), Pointwise(dkernel, dbias))

    def plain(x: Array, y: Array):
        dy, others = through_norm(y)
        dx, dtaps = jax.vjp(_convolution, x, taps)[1](dy)
        return dout + dx, dtaps, *others

    def fused(x: Array, _):
        # Without the barrier XLA would convolve in the forward pass, before `dout` exists, and keep the map.
        now, _ = lax.optimization_barrier((x, dout))
        dy, others = through_norm(conv2d.grouped_conv2d(now, taps))
        return *gradients_by_kernels(x, taps, dy, dout), *others

    return by_platform(x, y, plain=plain, cuda=fused if _suits_batch_kernels(x, taps) else None)


block_with_batch_statistics.defvjp(_block_with_batch_statistics_fwd, _block_with_batch_statistics_bwd)


def block(x: Array, mask: Array | None, weights: ConvNeXtWeights) -> Array:
    """Return `mix_channels` of `x` (batch, time, [freq,] channels) and its convolution, in one or two dimensions.

    Frames outside `mask` (batch, time) count as zeros in the convolution.
    """
    fused = with_derivative_of(_plain, _fused) if _suits_kernel(x, weights.taps) else None
    return by_platform(x, mask, weights, plain=_plain, cuda=fused, tpu=with_derivative_of(_plain, _folded))


def _suits_kernel(x: Array, taps: Array) -> bool:
    if x.ndim == 3:
        return depthwise.suits_depthwise(x)
    return operands.is_map(x) and conv2d.suits_product(x.shape[2], taps.shape)


def _plain(x: Array, mask: Array | None, weights: ConvNeXtWeights) -> Array:
    inside, taps = masked(x, mask), weights.taps
    y = depthwise_conv1d(inside, taps.astype(x.dtype)) if x.ndim == 3 else _convolution(inside, taps)
    norm = weights.norm
    return mix_channels(x, y, norm._replace(mean=norm.mean - weights.taps_bias), weights.pointwise)


def _folded_norm(weights: ConvNeXtWeights) -> tuple[Array, Array]:
    """Return taps and shift of one convolution that is the block's with its normalization."""
    norm = weights.norm
    return weights.taps * norm.gain, (weights.taps_bias - norm.mean) * norm.gain + norm.offset


def _folded(x: Array, mask: Array | None, weights: ConvNeXtWeights) -> Array:
    # What a TPU does for each element of the map, besides the products, takes as long as they do.
    taps, shift = _folded_norm(weights)
    act = scaled_gelu()
    inside, taps, shift = masked(x, mask), (act.inner * taps).astype(x.dtype), act.inner * shift
    y, blocks = (depthwise_conv1d(inside, taps), ONE_BLOCK) if x.ndim == 3 else grouped_conv2d_in_blocks(inside, taps)
    activated = act.function(exact(y) + blocks.of_channels(shift)).astype(x.dtype)
    kernel, bias = act.outer * weights.pointwise.kernel, weights.pointwise.bias
    mixed = pointwise(activated, Pointwise(blocks.of_product(kernel), jnp.tile(bias, blocks.bins)))
    # Frequencies lie side by side in the residual too: after the reshape the sum would be a pass of its own.
    return (x.reshape(mixed.shape) + mixed).reshape(x.shape)


def _fused(x: Array, mask: Array | None, weights: ConvNeXtWeights) -> Array:
    scaled, shift = _folded_norm(weights)
    if x.ndim == 4:
        return conv2d.convnext_2d(x, mask, scaled, shift, weights.pointwise)
    return x + pointwise(depthwise.depthwise_conv1d(x, mask, scaled, shift), weights.pointwise)
