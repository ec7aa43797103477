"""The residual block of grouped 3x3 convolutions with given statistics.

h = batchnorm(relu(conv(x) P)), y = batchnorm(conv(h) P), and with a residual relu(x + y); P are pointwise products
with biases. The batch norms are those of eval mode. On CUDA GPUs, in bfloat16, a block of depthwise convolutions is
one kernel, and of others each half is one, or one for the convolution and a product with what follows it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from redimnet_jax.nn.convolution import grouped_conv2d, suits_kernel
from redimnet_jax.nn.cuda import conv2d, positions
from redimnet_jax.nn.cuda.derivative import with_derivative_of
from redimnet_jax.nn.layers import masked, normalised
from redimnet_jax.numerics import precision

Array = jax.Array


def block(x: Array, mask: Array | None, first: Sequence[Array], second: Sequence[Array], *, add: bool) -> Array:
    """relu(x + y), or y where not `add`; each (batch, time, freq, channels).

    `first` and `second` are (taps (kt, kf, channels/groups, channels), P's kernel (channels, channels), its bias
    and the norm's mean, gain and offset (channels,)), float32.
    """

    def plain(x: Array, mask: Array | None, *weights: Array) -> Array:
        h = normalised(jax.nn.relu(_convolved(x, mask, *weights[:3])), *weights[3:6]).astype(x.dtype)
        y = normalised(_convolved(h, mask, *weights[6:9]), *weights[9:]).astype(x.dtype)
        return jax.nn.relu(x + y) if add else y

    def fused(x: Array, mask: Array | None, *weights: Array) -> Array:
        taps, kernel, bias, mean, gain, offset, taps2, kernel2, bias2, mean2, gain2, offset2 = weights
        norm, product = (gain, offset - mean * gain), (kernel2 * gain2, (bias2 - mean2) * gain2 + offset2)
        if depthwise:
            return positions.depthwise_residual(x, mask, (taps, kernel, bias, *norm), (taps2, *product), add)
        h = conv2d.conv2d_and_product(x, mask, None, taps, kernel, bias, *norm, relu=True)
        return conv2d.conv2d_and_product(h, mask, x if add else None, taps2, *product, relu=add)

    arrays = x, mask, *first, *second
    depthwise = positions.suits_depthwise_residual(x.shape[2], first[0].shape)
    if x.dtype != jnp.bfloat16 or not (depthwise or suits_kernel(x, first[0])):
        return plain(*arrays)
    return lax.platform_dependent(*arrays, cuda=with_derivative_of(plain, fused), default=plain)


def _convolved(x: Array, mask: Array | None, taps: Array, kernel: Array, bias: Array) -> Array:
    y = grouped_conv2d(masked(x, mask), taps.astype(x.dtype))
    return jnp.matmul(y, kernel.astype(x.dtype), precision=precision(x.dtype)) + bias.astype(x.dtype)
