"""gelu(batchnorm(convolution of x)) kernel + bias, with given statistics: on CUDA GPUs, in bfloat16, one kernel."""

import jax
import jax.numpy as jnp
from jax import lax

from redimnet_jax.nn.activation import gelu
from redimnet_jax.nn.convolution import grouped_conv2d
from redimnet_jax.nn.cuda import positions as kernels
from redimnet_jax.nn.cuda.derivative import with_derivative_of
from redimnet_jax.nn.layers import masked, normalised
from redimnet_jax.numerics import precision

Array = jax.Array


def squeeze(x: Array, mask: Array | None, taps: Array, *norm_and_pointwise: Array) -> Array:
    """gelu((conv(x) - mean) gain + offset) kernel + bias: (batch, time, freq, out), in the dtype of `x`.

    `x` (batch, time, freq, in); `taps` (kt, kf, in/groups, out), then mean, gain and offset (out,), kernel (out, out)
    and bias (out,), float32.
    """
    arrays = x, mask, taps, *norm_and_pointwise
    if x.dtype != jnp.bfloat16 or not kernels.suits_squeeze(*x.shape[2:], taps.shape):
        return _plain(*arrays)
    return lax.platform_dependent(*arrays, cuda=with_derivative_of(_plain, _fused), default=_plain)


def _plain(x: Array, mask: Array | None, taps: Array, *norm_and_pointwise: Array) -> Array:
    mean, gain, offset, kernel, bias = norm_and_pointwise
    y = grouped_conv2d(masked(x, mask), taps.astype(x.dtype))
    activated = gelu(normalised(y, mean, gain, offset).astype(x.dtype))
    return jnp.matmul(activated, kernel.astype(x.dtype), precision=precision(x.dtype)) + bias.astype(x.dtype)


def _fused(x: Array, mask: Array | None, taps: Array, *norm_and_pointwise: Array) -> Array:
    mean, gain, offset, kernel, bias = norm_and_pointwise
    return kernels.squeeze(x, mask, taps * gain, offset - mean * gain, kernel, bias)
