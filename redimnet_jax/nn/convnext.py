"""The arithmetic of ConvNeXt-like blocks in bfloat16: x + gelu(batchnorm(convolution of x)) W + b.

Bound by memory, it keeps few maps for the backward pass, which computes the others again: of a block in train mode
`x` and the convolution, on CUDA GPUs and of a block in eval mode `x` alone. There, a 2-D block is one kernel, and in
eval mode the convolution of a 1-D block with normalisation and GELU.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from redimnet_jax.nn.activation import gelu, gelu_derivative
from redimnet_jax.nn.convolution import depthwise_conv1d, gradients_by_kernels, grouped_conv2d, materialised
from redimnet_jax.nn.cuda import conv2d, depthwise, mixing
from redimnet_jax.nn.cuda.derivative import with_derivative_of
from redimnet_jax.nn.layers import batch_statistics, masked, normalised, pointwise
from redimnet_jax.numerics import exact

Array = jax.Array


@jax.custom_vjp
def mix_channels(x: Array, y: Array, mean: Array, gain: Array, offset: Array, kernel: Array, bias: Array) -> Array:
    """x + gelu((y - mean) gain + offset) kernel + bias.

    `x` (..., out) and `y` (..., in), bfloat16; `mean`, `gain`, `offset` (in,), `kernel` (in, out) and `bias` (out,),
    float32. Returns (..., out), bfloat16.
    """
    activated = gelu(normalised(y, mean, gain, offset).astype(y.dtype))
    return x + (jnp.matmul(activated, kernel.astype(y.dtype)) + bias.astype(y.dtype))


def _mix_channels_fwd(*arrays: Array):
    return mix_channels(*arrays), arrays


def _mix_channels_bwd(arrays, dout: Array):
    _, y, mean, gain, offset, kernel, _ = arrays
    dnormalised, dkernel, (doffset, dgain, dbias) = _mixing_gradient(y, dout, mean, gain, offset, kernel)
    dy = (exact(dnormalised) * gain).astype(y.dtype)
    return dout, dy, -gain * doffset, dgain, doffset, dkernel, dbias


mix_channels.defvjp(_mix_channels_fwd, _mix_channels_bwd)


def _mixing_gradient(
    y: Array, dout: Array, mean: Array, gain: Array, offset: Array, kernel: Array
) -> tuple[Array, Array, list[Array]]:
    """The gradients of `mix_channels` in the normalised `y`, in `kernel`, and in offset, gain and bias."""
    arrays = y, dout, mean, gain, offset, kernel
    if y.dtype != jnp.bfloat16 or not mixing.suits_mix_channels_gradient(*kernel.shape):
        return _plain_mixing_gradient(*arrays)
    return lax.platform_dependent(*arrays, cuda=mixing.mix_channels_gradient, default=_plain_mixing_gradient)


def _plain_mixing_gradient(y: Array, dout: Array, mean: Array, gain: Array, offset: Array, kernel: Array):
    wide = normalised(y, mean, gain, offset)
    activated = gelu(wide.astype(y.dtype))
    dactivated = jnp.matmul(dout, kernel.astype(y.dtype).T)
    # In bfloat16, as three sums and a map are made of it: XLA would keep float32, were it free to.
    dnormalised = materialised((exact(dactivated) * gelu_derivative(wide)).astype(y.dtype))
    positions = tuple(range(y.ndim - 1))
    # A product for every eight utterances: XLA would cut up one over all positions, and pad what eight do not divide.
    products = y.shape[0] // math.gcd(y.shape[0], 8)
    dkernel = jnp.einsum(
        "bpi,bpo->bio",
        activated.reshape(products, -1, y.shape[-1]),
        dout.reshape(products, -1, dout.shape[-1]),
        preferred_element_type=jnp.float32,
    )
    doffset, dgain = (exact(dnormalised) * factor for factor in (1.0, exact(y) - mean))
    return dnormalised, dkernel.sum(0), [x.sum(positions) for x in (doffset, dgain, exact(dout))]


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def block_of_batch(
    x: Array, taps: Array, scale: Array, offset: Array, kernel: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array]:
    """(`mix_channels` of `x` and its convolution, with the statistics of the batch; their mean; biased variance).

    `x` (batch, time, freq, channels), bfloat16, `taps` (kt, kf, channels/groups, channels), the others as there. The
    statistics (channels,), float32, have no gradient of their own. The kernels for CUDA GPUs keep no convolution: the
    forward pass makes it twice, of which it once takes the statistics alone, and the backward pass again.
    """
    return _block_of_batch_fwd(x, taps, scale, offset, kernel, bias, eps)[0]


def _block_of_batch_fwd(x, taps, scale, offset, kernel, bias, eps: float):
    arrays = x, taps, scale, offset, kernel, bias, jnp.float32(eps)
    if _suits_kernels_of_batch(x, taps):
        out, mean, var, y = lax.platform_dependent(*arrays, cuda=_fused_of_batch, default=_plain_of_batch)
    else:
        out, mean, var, y = _plain_of_batch(*arrays)
    return (out, mean, var), (x, y, mean, var, taps, scale, offset, kernel)


def _suits_kernels_of_batch(x: Array, taps: Array) -> bool:
    channels = x.shape[3]
    suits = conv2d.suits_product(x.shape[2], taps.shape) and mixing.suits_mix_channels_gradient(channels, channels)
    return suits and x.dtype == jnp.bfloat16


def _convolution(x: Array, taps: Array) -> Array:
    return grouped_conv2d(x, taps.astype(x.dtype))


def _plain_of_batch(x, taps, scale, offset, kernel, bias, eps) -> tuple[Array, ...]:
    y = _convolution(x, taps)
    mean, var, _ = batch_statistics(y, None)
    return mix_channels(x, y, mean, scale * lax.rsqrt(var + eps), offset, kernel, bias), mean, var, y


def _fused_of_batch(x, taps, scale, offset, kernel, bias, eps) -> tuple[Array, ...]:
    # Of sums in float32, before the convolution is rounded: where the mean is not many deviations large.
    mean, square = conv2d.grouped_conv2d_sums(x, taps) / (x.size // x.shape[3])
    var = jnp.maximum(square - jnp.square(mean), 0.0)
    gain = scale * lax.rsqrt(var + eps)
    out = conv2d.convnext_2d(x, None, taps * gain, offset - mean * gain, kernel, bias)
    return out, mean, var, jnp.zeros_like(x)


def _block_of_batch_bwd(eps: float, residuals, cotangents):
    x, y, mean, var, taps, scale, offset, kernel = residuals
    dout, inverse = cotangents[0], lax.rsqrt(var + eps)

    def through_norm(y: Array):
        # The statistics are of the convolution as well: Ioffe and Szegedy (arXiv 1502.03167), section 3.
        dnormalised, dkernel, (doffset, moments, dbias) = _mixing_gradient(
            y, dout, mean, scale * inverse, offset, kernel
        )
        dscale, count = inverse * moments, y.size // y.shape[3]
        through_statistics = (doffset + (exact(y) - mean) * (inverse * dscale)) / count
        dy = (scale * inverse * (exact(dnormalised) - through_statistics)).astype(y.dtype)
        return materialised(dy), (dscale, doffset, dkernel, dbias)

    def plain(x: Array, y: Array):
        dy, others = through_norm(y)
        dx, dtaps = jax.vjp(_convolution, x, taps)[1](dy)
        return dout + dx, dtaps, *others

    def fused(x: Array, _):
        # Not before `dout` is there: XLA would do it in the forward pass, and keep the map until then.
        now, _ = lax.optimization_barrier((x, dout))
        dy, others = through_norm(conv2d.grouped_conv2d(now, taps))
        return *gradients_by_kernels(x, taps, dy, dout), *others

    if not _suits_kernels_of_batch(x, taps):
        return plain(x, y)
    return lax.platform_dependent(x, y, cuda=fused, default=plain)


block_of_batch.defvjp(_block_of_batch_fwd, _block_of_batch_bwd)


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
    return depthwise.suits_depthwise(x.shape[2]) if x.ndim == 3 else conv2d.suits_product(x.shape[2], taps.shape)


def _plain(x: Array, mask: Array | None, taps: Array, taps_bias: Array, *norm_and_pointwise: Array) -> Array:
    inside = masked(x, mask)
    y = depthwise_conv1d(inside, taps.astype(x.dtype)) if x.ndim == 3 else _convolution(inside, taps)
    mean, *rest = norm_and_pointwise
    return mix_channels(x, y, mean - taps_bias, *rest)


def _fused(x: Array, mask: Array | None, taps: Array, taps_bias: Array, *norm_and_pointwise: Array) -> Array:
    mean, gain, offset, kernel, bias = norm_and_pointwise
    scaled, shift = taps * gain, (taps_bias - mean) * gain + offset
    if x.ndim == 4:
        return conv2d.convnext_2d(x, mask, scaled, shift, kernel, bias)
    activated = depthwise.depthwise_conv1d(x, mask, scaled, shift)
    return x + pointwise(activated, kernel, bias)
