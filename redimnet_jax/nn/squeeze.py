"""gelu(batchnorm(convolution of x)) kernel + bias, with given statistics; on CUDA GPUs, in bfloat16, one kernel."""

import jax
import jax.numpy as jnp

from redimnet_jax.nn.activation import gelu
from redimnet_jax.nn.convolution import grouped_conv2d
from redimnet_jax.nn.cuda import narrow
from redimnet_jax.nn.dispatch import by_platform, with_derivative_of
from redimnet_jax.nn.normalization import masked, normalized
from redimnet_jax.nn.weights import Norm, Pointwise
from redimnet_jax.numerics import precision

Array = jax.Array


def squeeze(x: Array, mask: Array | None, taps: Array, norm: Norm, product: Pointwise) -> Array:
    """Return gelu((conv(x) - mean) gain + offset) kernel + bias, (batch, time, freq, out), in the dtype of `x`.

    `x` is (batch, time, freq, in), `taps` (kt, kf, in/groups, out), float32. Frames outside `mask` count as zeros.
    """
    fused = with_derivative_of(_plain, _fused) if narrow.suits_squeeze(x, taps) else None
    return by_platform(x, mask, taps, norm, product, plain=_plain, cuda=fused)


def _plain(x: Array, mask: Array | None, taps: Array, norm: Norm, product: Pointwise) -> Array:
    y = grouped_conv2d(masked(x, mask), taps.astype(x.dtype))
    activated = gelu(normalized(y, norm).astype(x.dtype))
    mixed = jnp.matmul(activated, product.kernel.astype(x.dtype), precision=precision(x.dtype))
    return mixed + product.bias.astype(x.dtype)


def _fused(x: Array, mask: Array | None, taps: Array, norm: Norm, product: Pointwise) -> Array:
    return narrow.squeeze(x, mask, taps * norm.gain, norm.affine().offset, product)
