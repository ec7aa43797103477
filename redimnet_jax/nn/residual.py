"""The residual block of grouped 3x3 convolutions with given statistics.

h = batchnorm(relu(conv(x) P)), y = batchnorm(conv(h) P), and with a residual relu(x + y); P are pointwise products
with biases. The batch norms are in eval mode. On CUDA GPUs, in bfloat16, a block of depthwise convolutions is one
kernel. Each half of any other block is one kernel, or a convolution and a product with what follows it.
"""

import functools

import jax
import jax.numpy as jnp

from redimnet_jax.nn.convolution import grouped_conv2d, suits_kernel
from redimnet_jax.nn.cuda import conv2d, narrow
from redimnet_jax.nn.dispatch import by_platform, with_derivative_of
from redimnet_jax.nn.normalization import masked, normalized
from redimnet_jax.nn.weights import Pointwise, ResidualHalf
from redimnet_jax.numerics import precision

Array = jax.Array


def block(x: Array, mask: Array | None, first: ResidualHalf, second: ResidualHalf, *, add: bool) -> Array:
    """Return relu(x + y), or y where not `add`; `x` and the result are (batch, time, freq, channels)."""
    plain = functools.partial(_plain, add=add)
    fused = None
    if narrow.suits_depthwise_residual(x, first.taps):
        fused = with_derivative_of(plain, functools.partial(_depthwise, add=add))
    elif suits_kernel(x, first.taps):
        fused = with_derivative_of(plain, functools.partial(_by_halves, add=add))
    return by_platform(x, mask, first, second, plain=plain, cuda=fused)


def _plain(x: Array, mask: Array | None, first: ResidualHalf, second: ResidualHalf, *, add: bool) -> Array:
    h = jax.nn.relu(_convolved(x, mask, first.taps, first.pointwise))
    h = normalized(h, first.norm).astype(x.dtype)
    y = normalized(_convolved(h, mask, second.taps, second.pointwise), second.norm).astype(x.dtype)
    return jax.nn.relu(x + y) if add else y


def _convolved(x: Array, mask: Array | None, taps: Array, product: Pointwise) -> Array:
    y = grouped_conv2d(masked(x, mask), taps.astype(x.dtype))
    return jnp.matmul(y, product.kernel.astype(x.dtype), precision=precision(x.dtype)) + product.bias.astype(x.dtype)


def _product_with_norm(half: ResidualHalf) -> Pointwise:
    """Return the pointwise product of `half` with the norm after it."""
    (kernel, bias), norm = half.pointwise, half.norm
    return Pointwise(kernel * norm.gain, (bias - norm.mean) * norm.gain + norm.offset)


def _depthwise(x: Array, mask: Array | None, first: ResidualHalf, second: ResidualHalf, *, add: bool) -> Array:
    halves = (
        narrow.DepthwiseHalf(first.taps, first.pointwise),
        first.norm.affine(),
        narrow.DepthwiseHalf(second.taps, _product_with_norm(second)),
    )
    return narrow.depthwise_residual(x, mask, *halves, add=add)


def _by_halves(x: Array, mask: Array | None, first: ResidualHalf, second: ResidualHalf, *, add: bool) -> Array:
    norm = first.norm.affine()
    h = conv2d.conv2d_and_product(x, mask, None, first.taps, first.pointwise, norm, relu=True)
    residual = x if add else None
    return conv2d.conv2d_and_product(h, mask, residual, second.taps, _product_with_norm(second), relu=add)
