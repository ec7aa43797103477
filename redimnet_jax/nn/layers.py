"""The layers of both networks, on channels-last maps: (batch, time, channels) and (batch, time, freq, channels).

Parameters are float32; a layer computes in the dtype of its input, with statistics (means, variances, softmax) in
float32. `mask` is (batch, time), True where a frame belongs to the utterance, or None when all frames do.
Attribute names are those of the published PyTorch modules.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from redimnet_jax.nn.convolution import depthwise_conv1d, grouped_conv2d
from redimnet_jax.nn.cuda import layer_norm, positions
from redimnet_jax.nn.cuda.derivative import with_derivative_of
from redimnet_jax.numerics import exact, precision

Array = jax.Array

BATCH_NORM_MOMENTUM = 0.1


class Constant(nnx.Variable):
    """A tensor that a checkpoint holds and nothing trains: a window, a filter bank."""


def _per_frame(mask: Array, ndim: int) -> Array:
    """`mask` (batch, time) with trailing axes, to broadcast against a map of `ndim` axes."""
    return mask.reshape(mask.shape + (1,) * (ndim - 2))


def masked(x: Array, mask: Array | None) -> Array:
    """`x` (batch, time, ...) with the frames outside `mask` set to zero."""
    return x if mask is None else jnp.where(_per_frame(mask, x.ndim), x, jnp.zeros((), x.dtype))


def masked_sum(x: Array, mask: Array | None, axes: Sequence[int], keepdims: bool = False) -> tuple[Array, Array]:
    """(float32 sum over `axes` of `x` (batch, time, ...), number of terms in each), of the frames inside `mask`."""
    total = masked(exact(x), mask).sum(axes, keepdims=keepdims)
    if mask is None:
        return total, jnp.asarray(math.prod(x.shape[a] for a in axes), total.dtype)
    weight = jnp.broadcast_to(_per_frame(mask, x.ndim), x.shape).astype(total.dtype)
    return total, weight.sum(axes, keepdims=keepdims)


def masked_mean(x: Array, mask: Array | None, axes: Sequence[int], keepdims: bool = False) -> Array:
    """float32 mean over `axes` of the frames inside `mask`."""
    total, count = masked_sum(x, mask, axes, keepdims)
    return total / count


def masked_variance(x: Array, mask: Array | None, axes: Sequence[int], mean: Array, ddof: int = 0) -> Array:
    """float32 variance about `mean` (`axes` kept); `ddof` 1 divides by n - 1, as `torch.var` does."""
    total, count = masked_sum(jnp.square(exact(x) - mean), mask, axes, keepdims=True)
    return total / (count - ddof)


def _uniform(rngs: nnx.Rngs, shape: Sequence[int], fan_in: int) -> nnx.Param:
    """PyTorch's default for convolutions, linear layers and their biases: U(-1, 1) / sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)
    return nnx.Param(jax.random.uniform(rngs.params(), tuple(shape), jnp.float32, -bound, bound))


def pointwise(x: Array, kernel: Array, bias: Array) -> Array:
    """x kernel + bias (..., out) of `x` (..., in), in its dtype; `kernel` (in, out) and `bias` (out,), float32."""

    def plain(x: Array, kernel: Array, bias: Array) -> Array:
        return jnp.matmul(x, kernel.astype(x.dtype), precision=precision(x.dtype)) + bias.astype(x.dtype)

    if x.dtype != jnp.bfloat16 or not positions.suits_pointwise(x.shape, bias.shape[0]):
        return plain(x, kernel, bias)
    fused = with_derivative_of(plain, positions.pointwise)
    return jax.lax.platform_dependent(x, kernel, bias, cuda=fused, default=plain)


class Dense(nnx.Module):
    """(..., in) -> (..., out): PyTorch's `Linear`, and every 1x1 convolution."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs):
        self.kernel = _uniform(rngs, (features_in, features_out), features_in)
        self.bias = _uniform(rngs, (features_out,), features_in)

    def __call__(self, x: Array) -> Array:
        return pointwise(x, self.kernel[...], self.bias[...])


class DepthwiseConv1d(nnx.Module):
    """(batch, time, channels), one filter of an odd number of taps a channel, "same" zero padding."""

    def __init__(self, channels: int, taps: int, *, rngs: nnx.Rngs):
        self.kernel = _uniform(rngs, (taps, channels), taps)
        self.bias = _uniform(rngs, (channels,), taps)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        return self.without_bias(x, mask) + self.bias[...].astype(x.dtype)

    def without_bias(self, x: Array, mask: Array | None) -> Array:
        return depthwise_conv1d(masked(x, mask), self.kernel[...].astype(x.dtype))


class Conv2d(nnx.Module):
    """(batch, time, freq, in) -> (batch, time, freq, out), stride 1, "same" zero padding; kernel (freq, time)."""

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
            # As one product of rows: of an einsum with an axis of one group a CPU makes transposed copies.
            rows = patches.swapaxes(2, 3).reshape(b, t // kt, f // kf, kt * kf * n)
            return pointwise(rows, self.kernel[...].reshape(-1, out), self.bias[...])
        kernel = self.kernel[...].astype(x.dtype).reshape(kt, kf, n, groups, out // groups)
        y = jnp.einsum("btkflgi,kligo->btfgo", patches, kernel, precision=precision(x.dtype))
        return y.reshape(b, t // kt, f // kf, out) + self.bias[...].astype(x.dtype)


def normalised(y: Array, mean: Array, gain: Array, offset: Array) -> Array:
    """(y - mean) gain + offset of the last axis, in float32 at least."""
    return (exact(y) - mean) * gain + offset


def batch_statistics(x: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Mean and biased variance of the last axis (features,), float32, and the number of terms of each."""
    axes = tuple(range(x.ndim - 1))
    total, count = masked_sum(x, mask, axes)
    mean = total / count
    return mean, masked_variance(x, mask, axes, mean).reshape(mean.shape), count


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalised_by_batch(
    x: Array, mask: Array | None, scale: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, Array, Array]]:
    """(`x` normalised by its own statistics, scaled and shifted, in the dtype of `x`; those statistics).

    The statistics have no gradient of their own. The derivative is that of Ioffe and Szegedy (arXiv 1502.03167),
    section 3, from two sums over the map, where one through mean and variance takes twice as many.
    """
    mean, var, count = batch_statistics(x, mask)
    y = (exact(x) - mean) * (scale * jax.lax.rsqrt(var + eps)) + bias
    return y.astype(x.dtype), (mean, var, count)


def _normalised_by_batch_fwd(x: Array, mask: Array | None, scale: Array, bias: Array, eps: float):
    y, statistics = normalised_by_batch(x, mask, scale, bias, eps)
    return (y, statistics), (x, mask, scale, *statistics)


def _normalised_by_batch_bwd(eps: float, residuals, cotangents):
    x, mask, scale, mean, var, count = residuals
    axes = tuple(range(x.ndim - 1))
    inverse = jax.lax.rsqrt(var + eps)
    dy, normalised = exact(cotangents[0]), (exact(x) - mean) * inverse
    dbias, dscale = dy.sum(axes), (dy * normalised).sum(axes)
    # The statistics take part in every frame, and the frames inside the mask make them.
    through_statistics = masked((dbias + normalised * dscale) / count, mask)
    return (scale * inverse * (dy - through_statistics)).astype(x.dtype), None, dscale, dbias


normalised_by_batch.defvjp(_normalised_by_batch_fwd, _normalised_by_batch_bwd)


class BatchNorm(nnx.Module):
    """Normalises the last axis over all others, with PyTorch's momentum and unbiased running variance.

    Under `jit` on a sharded batch the statistics are those of the global batch. When `frozen` it is in eval mode, in
    whichever mode the network is.
    """

    def __init__(self, features: int, eps: float = 1e-5):
        self.eps, self.frozen = eps, False
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        if train and not self.frozen:
            y, statistics = normalised_by_batch(x, mask, self.scale[...], self.bias[...], self.eps)
            self.keep(*statistics)
            return y
        mean, gain = self.mean_and_gain()
        return normalised(x, mean, gain, self.bias[...]).astype(x.dtype)

    def mean_and_gain(self) -> tuple[Array, Array]:
        """What is subtracted and what that is multiplied by in eval mode, each (features,), float32."""
        return self.mean[...], self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)

    def gain_of_batch(self, mean: Array, var: Array, count: Array | int) -> Array:
        """The gain in train mode, given a batch's statistics, which are kept."""
        self.keep(mean, var, count)
        return self.scale[...] * jax.lax.rsqrt(var + self.eps)

    def keep(self, mean: Array, var: Array, count: Array | int) -> None:
        """Moves the running statistics towards those of a batch, of `count` positions."""
        keep = 1 - BATCH_NORM_MOMENTUM
        unbiased = var * (count / (count - 1))
        self.mean[...] = jax.lax.stop_gradient(keep * self.mean[...] + BATCH_NORM_MOMENTUM * mean)
        self.var[...] = jax.lax.stop_gradient(keep * self.var[...] + BATCH_NORM_MOMENTUM * unbiased)


def _normalised_rows(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    h = exact(x)
    h = h - h.mean(-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + eps)
    return (h * scale + bias).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Normalises the last axis of each position."""

    def __init__(self, features: int, eps: float = 1e-6):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array) -> Array:
        arrays = x, self.scale[...], self.bias[...]
        plain = functools.partial(_normalised_rows, eps=self.eps)
        if x.dtype != jnp.bfloat16 or not layer_norm.suits_layer_norm(x.shape[-1]):
            return plain(*arrays)
        fused = with_derivative_of(plain, functools.partial(layer_norm.layer_norm, eps=self.eps))
        return jax.lax.platform_dependent(*arrays, cuda=fused, default=plain)


class GroupNorm(nnx.Module):
    """Normalises each group of consecutive channels of (batch, time, channels) over the group and time."""

    def __init__(self, groups: int, features: int, eps: float = 1e-5):
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array, mask: Array | None) -> Array:
        h = x.reshape(*x.shape[:-1], self.groups, -1)
        mean = masked_mean(h, mask, (1, 3), keepdims=True)
        var = masked_variance(h, mask, (1, 3), mean)
        h = ((exact(h) - mean) * jax.lax.rsqrt(var + self.eps)).reshape(x.shape)
        return (h * self.scale[...] + self.bias[...]).astype(x.dtype)


def dropout(x: Array, rate: float, *, train: bool, key: Array | None) -> Array:
    """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate); identity in eval mode."""
    if not train or rate == 0.0:
        return x
    if key is None:
        raise ValueError("dropout in train mode draws random numbers: pass key=jax.random.key(...).")
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
