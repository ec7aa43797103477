"""The arithmetic of ConvNeXt-like blocks in bfloat16: x + gelu(batchnorm(convolution of x)) W + b.

Bound by memory, it keeps few maps for the backward pass, which computes the others again: of a block in train mode
`x` and the convolution, of a block in eval mode `x` alone. In eval mode, on CUDA GPUs, a 2-D block is one kernel, and
the convolution of a 1-D block with normalisation and GELU.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from redimnet_jax.activation import gelu, gelu_derivative
from redimnet_jax.convolution import depthwise_conv1d, exact, grouped_conv2d, materialised, suits_kernel
from redimnet_jax.cuda import kernels
from redimnet_jax.cuda.derivative import with_derivative_of
from redimnet_jax.layers import batch_statistics, masked

Array = jax.Array


def _normalised(y: Array, mean: Array, gain: Array, offset: Array) -> Array:
    return (exact(y) - mean) * gain + offset


@jax.custom_vjp
def mix_channels(x: Array, y: Array, mean: Array, gain: Array, offset: Array, kernel: Array, bias: Array) -> Array:
    """x + gelu((y - mean) gain + offset) kernel + bias.

    `x` (..., out) and `y` (..., in), bfloat16; `mean`, `gain`, `offset` (in,), `kernel` (in, out) and `bias` (out,),
    float32. Returns (..., out), bfloat16.
    """
    activated = gelu(_normalised(y, mean, gain, offset).astype(y.dtype))
    return x + (jnp.matmul(activated, kernel.astype(y.dtype)) + bias.astype(y.dtype))


def _mix_channels_fwd(*arrays: Array):
    return mix_channels(*arrays), arrays


def _mix_channels_bwd(arrays, dout: Array):
    _, y, mean, gain, offset, kernel, _ = arrays
    wide = _normalised(y, mean, gain, offset)
    activated = gelu(wide.astype(y.dtype))
    dactivated = jnp.matmul(dout, kernel.astype(y.dtype).T)
    # In bfloat16, as three sums and a map are made of it: XLA would keep float32, were it free to.
    dnormalised = materialised((exact(dactivated) * gelu_derivative(wide)).astype(y.dtype))
    positions = tuple(range(y.ndim - 1))
    doffset = exact(dnormalised).sum(positions)
    # A product for every eight utterances: XLA would cut up one over all positions, and pad what eight do not divide.
    products = y.shape[0] // math.gcd(y.shape[0], 8)
    dkernel = jnp.einsum(
        "bpi,bpo->bio",
        activated.reshape(products, -1, y.shape[-1]),
        dout.reshape(products, -1, dout.shape[-1]),
        preferred_element_type=jnp.float32,
    )
    return (
        dout,
        (exact(dnormalised) * gain).astype(y.dtype),
        -gain * doffset,
        (exact(dnormalised) * (exact(y) - mean)).sum(positions),
        doffset,
        dkernel.sum(0),
        exact(dout).sum(positions),
    )


mix_channels.defvjp(_mix_channels_fwd, _mix_channels_bwd)


@jax.custom_vjp
def convolution_and_statistics(x: Array, taps: Array) -> tuple[Array, Array, Array]:
    """(grouped convolution of `x`, mean of every channel over all positions, its biased variance).

    `x` (batch, time, freq, channels), bfloat16, and `taps` (kt, kf, channels/groups, channels), float32; the
    statistics (channels,), float32.
    """

    def plain(x: Array, taps: Array):
        y = grouped_conv2d(x, taps.astype(x.dtype), x.shape[3] // taps.shape[2])
        return y, *batch_statistics(y, None)[:2]

    def fused(x: Array, taps: Array):
        y, total, squares = kernels.grouped_conv2d_and_sums(x, taps)
        count = math.prod(y.shape[:-1])
        # Of sums in float32, before the convolution is rounded: where the mean is not many deviations large.
        return y, total / count, jnp.maximum(squares / count - jnp.square(total / count), 0.0)

    if not suits_kernel(x, taps):
        return plain(x, taps)
    return lax.platform_dependent(x, taps, cuda=fused, default=plain)


def _convolution_and_statistics_fwd(x: Array, taps: Array):
    y, mean, var = convolution_and_statistics(x, taps)
    return (y, mean, var), (x, taps, y, mean)


def _convolution_and_statistics_bwd(residuals, cotangents):
    x, taps, y, mean = residuals
    dy, dmean, dvar = cotangents
    count = math.prod(y.shape[:-1])
    dy = (exact(dy) + dmean / count + (exact(y) - mean) * (2 / count * dvar)).astype(y.dtype)
    _, backward = jax.vjp(
        lambda x, taps: grouped_conv2d(x, taps.astype(x.dtype), x.shape[3] // taps.shape[2]), x, taps
    )
    return backward(materialised(dy))


convolution_and_statistics.defvjp(_convolution_and_statistics_fwd, _convolution_and_statistics_bwd)


def block(x: Array, mask: Array | None, taps: Array, taps_bias: Array, *norm_and_pointwise: Array) -> Array:
    """`mix_channels` of `x` and its convolution, in one or two dimensions, with given statistics.

    `x` (batch, time, [freq,] channels), `mask` (batch, time) or None; `taps` (kt, kf, channels/groups, channels) or
    (taps, channels), `taps_bias` (channels,), float32.
    """
    arrays = x, mask, taps, taps_bias, *norm_and_pointwise
    if not _suits_kernel(x, taps):
        return _plain(*arrays)
    return lax.platform_dependent(*arrays, cuda=with_derivative_of(_plain, _fused), default=_plain)


def _suits_kernel(x: Array, taps: Array) -> bool:
    return kernels.suits_depthwise(x.shape[2]) if x.ndim == 3 else kernels.suits_convnext(x.shape[2], taps.shape)


def _plain(x: Array, mask: Array | None, taps: Array, taps_bias: Array, *norm_and_pointwise: Array) -> Array:
    inside, narrow = masked(x, mask), taps.astype(x.dtype)
    y = (
        depthwise_conv1d(inside, narrow)
        if x.ndim == 3
        else grouped_conv2d(inside, narrow, x.shape[3] // taps.shape[2])
    )
    mean, *rest = norm_and_pointwise
    return mix_channels(x, y, mean - taps_bias, *rest)


def _fused(x: Array, mask: Array | None, taps: Array, taps_bias: Array, *norm_and_pointwise: Array) -> Array:
    mean, gain, offset, kernel, bias = norm_and_pointwise
    scaled, shift = taps * gain, (taps_bias - mean) * gain + offset
    if x.ndim == 4:
        return kernels.convnext_2d(x, mask, scaled, shift, kernel, bias)
    activated = kernels.depthwise_conv1d(x, mask, scaled, shift)
    return x + (jnp.matmul(activated, kernel.astype(x.dtype)) + bias.astype(x.dtype))
