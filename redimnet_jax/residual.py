"""The residual block of grouped 3x3 convolutions with given statistics: on CUDA GPUs, when depthwise, one kernel.

h = batchnorm(relu(conv(x) P)), y = batchnorm(conv(h) P), and with a residual relu(x + y); P are pointwise products
with biases. The batch norms are those of eval mode.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from redimnet_jax.convolution import exact, grouped_conv2d, precision
from redimnet_jax.cuda import kernels
from redimnet_jax.cuda.derivative import with_derivative_of
from redimnet_jax.layers import masked

Array = jax.Array


def block(x: Array, mask: Array | None, first: Sequence[Array], second: Sequence[Array], *, add: bool) -> Array:
    """relu(x + y), or y where not `add`; each (batch, time, freq, channels).

    `first` and `second` are (taps (kt, kf, channels/groups, channels), P's kernel (channels, channels), its bias
    and the norm's mean, gain and offset (channels,)), float32.
    """

    def plain(x: Array, mask: Array | None, *weights: Array) -> Array:
        h = _normalised(jax.nn.relu(_convolved(x, mask, *weights[:3])), *weights[3:6])
        y = _normalised(_convolved(h, mask, *weights[6:9]), *weights[9:])
        return jax.nn.relu(x + y) if add else y

    def fused(x: Array, mask: Array | None, *weights: Array) -> Array:
        mean, gain, offset = weights[3:6]
        taps2, kernel2, bias2, mean2, gain2, offset2 = weights[6:]
        h = *weights[:3], gain, offset - mean * gain
        y = taps2, kernel2 * gain2, (bias2 - mean2) * gain2 + offset2
        return kernels.depthwise_residual(x, mask, h, y, add)

    arrays = x, mask, *first, *second
    if x.dtype != jnp.bfloat16 or not kernels.suits_depthwise_residual(x.shape[2], first[0].shape):
        return plain(*arrays)
    return lax.platform_dependent(*arrays, cuda=with_derivative_of(plain, fused), default=plain)


def _convolved(x: Array, mask: Array | None, taps: Array, kernel: Array, bias: Array) -> Array:
    y = grouped_conv2d(masked(x, mask), taps.astype(x.dtype), x.shape[3] // taps.shape[2])
    return jnp.matmul(y, kernel.astype(x.dtype), precision=precision(x.dtype)) + bias.astype(x.dtype)


def _normalised(y: Array, mean: Array, gain: Array, offset: Array) -> Array:
    return ((exact(y) - mean) * gain + offset).astype(y.dtype)
