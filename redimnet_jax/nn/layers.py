"""The layers of both networks, on channels-last maps: (batch, time, channels) and (batch, time, freq, channels).

Parameters are float32, and a layer computes in the dtype of its input. `mask` is (batch, time), True where a frame
belongs to the utterance, or None when all frames do. Attribute names are those of the published PyTorch modules.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from redimnet_jax import sharding
from redimnet_jax.nn.convolution import depthwise_conv1d, grouped_conv2d
from redimnet_jax.nn.cuda import narrow
from redimnet_jax.nn.dispatch import by_platform, with_derivative_of
from redimnet_jax.nn.normalization import masked
from redimnet_jax.nn.weights import Pointwise
from redimnet_jax.numerics import precision

Array = jax.Array


class Constant(nnx.Variable):
    """A tensor that checkpoints hold and that is not trained: a window, a filter bank."""


def _uniform(rngs: nnx.Rngs, shape: Sequence[int], fan_in: int) -> nnx.Param:
    """PyTorch's default for convolutions, linear layers and their biases: U(-1, 1) / sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)
    return nnx.Param(jax.random.uniform(rngs.params(), tuple(shape), jnp.float32, -bound, bound))


def pointwise(x: Array, weights: Pointwise) -> Array:
    """Return x kernel + bias, (..., out) in the dtype of `x` (..., in)."""
    fused = with_derivative_of(_pointwise, narrow.pointwise) if narrow.suits_pointwise(x, weights) else None
    # A TPU sums the gradient over devices in float32, where XLA would do so in the dtype of `x`.
    by_rows = sharding.with_sums_over_rows(_pointwise) if x.dtype.itemsize < 4 else None
    return by_platform(x, weights, plain=_pointwise, cuda=fused, tpu=by_rows)


def _pointwise(x: Array, weights: Pointwise) -> Array:
    product = jnp.matmul(x, weights.kernel.astype(x.dtype), precision=precision(x.dtype))
    return product + weights.bias.astype(x.dtype)


class Dense(nnx.Module):
    """PyTorch's `Linear`, and every 1x1 convolution: it maps (..., in) to (..., out)."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs):
        self.kernel = _uniform(rngs, (features_in, features_out), features_in)
        self.bias = _uniform(rngs, (features_out,), features_in)

    def __call__(self, x: Array) -> Array:
        return pointwise(x, self.weights())

    def weights(self) -> Pointwise:
        """Return the layer's arrays: kernel (in, out) and bias (out,), float32."""
        return Pointwise(self.kernel[...], self.bias[...])


class DepthwiseConv1d(nnx.Module):
    """One filter per channel of (batch, time, channels), with an odd number of taps and "same" zero padding."""

    def __init__(self, channels: int, taps: int, *, rngs: nnx.Rngs):
        self.kernel = _uniform(rngs, (taps, channels), taps)
        self.bias = _uniform(rngs, (channels,), taps)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        return self.without_bias(x, mask) + self.bias[...].astype(x.dtype)

    def without_bias(self, x: Array, mask: Array | None) -> Array:
        return depthwise_conv1d(masked(x, mask), self.kernel[...].astype(x.dtype))


class Conv2d(nnx.Module):
    """A convolution with stride 1 and "same" zero padding: (batch, time, freq, in) -> (batch, time, freq, out).

    `kernel_size` is (freq, time).
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        kernel_size: Sequence[int] = (3, 3),
        *,
        groups: int = 1,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        kf, kt = kernel_size
        fan_in = features_in // groups * kf * kt
        self.kernel = _uniform(rngs, (kt, kf, features_in // groups, features_out), fan_in)
        self.bias = _uniform(rngs, (features_out,), fan_in) if bias else None

    def __call__(self, x: Array, mask: Array | None) -> Array:
        y = self.without_bias(x, mask)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def without_bias(self, x: Array, mask: Array | None) -> Array:
        return grouped_conv2d(masked(x, mask), self.kernel[...].astype(x.dtype))


class PatchConv2d(nnx.Module):
    """A convolution whose stride is its kernel: (batch, time, freq, in) -> (batch, time/kt, freq/kf, out)."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        kernel_size: Sequence[int],
        *,
        groups: int = 1,
        rngs: nnx.Rngs,
    ):
        self.groups = groups
        kf, kt = kernel_size
        fan_in = features_in // groups * kf * kt
        self.kernel = _uniform(rngs, (kt, kf, features_in // groups, features_out), fan_in)
        self.bias = _uniform(rngs, (features_out,), fan_in)

    def __call__(self, x: Array) -> Array:
        kt, kf, n, out = self.kernel.shape
        b, t, f, _ = x.shape
        groups = self.groups
        patches = x.reshape(b, t // kt, kt, f // kf, kf, groups, n)
        if groups == 1:
            # XLA for CPU makes transposed copies for an einsum with an axis of one group, so it is a product of rows.
            rows = patches.swapaxes(2, 3).reshape(b, t // kt, f // kf, kt * kf * n)
            return pointwise(rows, Pointwise(self.kernel[...].reshape(-1, out), self.bias[...]))
        kernel = self.kernel[...].astype(x.dtype).reshape(kt, kf, n, groups, out // groups)
        y = jnp.einsum("btkflgi,kligo->btfgo", patches, kernel, precision=precision(x.dtype))
        return y.reshape(b, t // kt, f // kf, out) + self.bias[...].astype(x.dtype)


def dropout(x: Array, rate: float, *, train: bool, key: Array | None) -> Array:
    """Set elements to zero with probability `rate` and scale the others by 1 / (1 - rate); identity in eval mode."""
    if not train or rate == 0.0:
        return x
    if key is None:
        raise ValueError("dropout in train mode draws random numbers: pass key=jax.random.key(...).")
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
