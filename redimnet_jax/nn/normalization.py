"""Normalization layers, and the masked statistics on which they and the poolings rest.

Maps are channels last, (batch, time, channels) or (batch, time, freq, channels). Statistics are float32 in whatever
dtype the map is. `mask` is (batch, time), True where a frame belongs to the utterance, or None when all frames do.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from redimnet_jax import sharding
from redimnet_jax.nn.cuda import layer_norm
from redimnet_jax.nn.dispatch import by_platform, with_derivative_of
from redimnet_jax.nn.weights import Norm
from redimnet_jax.numerics import exact

Array = jax.Array

BATCH_NORM_MOMENTUM = 0.1


def _per_frame(mask: Array, ndim: int) -> Array:
    """Return `mask` (batch, time) with trailing axes, to broadcast against a map of `ndim` axes."""
    return mask.reshape(mask.shape + (1,) * (ndim - 2))


def masked(x: Array, mask: Array | None) -> Array:
    """Return `x` (batch, time, ...) with the frames outside `mask` set to zero."""
    return x if mask is None else jnp.where(_per_frame(mask, x.ndim), x, jnp.zeros((), x.dtype))


def masked_sum(x: Array, mask: Array | None, axes: Sequence[int], keepdims: bool = False) -> tuple[Array, Array]:
    """Return the float32 sum over `axes` of `x` (batch, time, ...) inside `mask`, and its number of terms."""
    total = masked(exact(x), mask).sum(axes, keepdims=keepdims)
    if mask is None:
        return total, jnp.asarray(math.prod(x.shape[a] for a in axes), total.dtype)
    weight = jnp.broadcast_to(_per_frame(mask, x.ndim), x.shape).astype(total.dtype)
    return total, weight.sum(axes, keepdims=keepdims)


def masked_mean(x: Array, mask: Array | None, axes: Sequence[int], keepdims: bool = False) -> Array:
    """Return the float32 mean over `axes` of the frames of `x` inside `mask`."""
    total, count = masked_sum(x, mask, axes, keepdims)
    return total / count


def masked_variance(x: Array, mask: Array | None, axes: Sequence[int], mean: Array, ddof: int = 0) -> Array:
    """Return the float32 variance of `x` about `mean`, `axes` kept; `ddof` 1 divides by n - 1, as `torch.var`."""
    total, count = masked_sum(jnp.square(exact(x) - mean), mask, axes, keepdims=True)
    return total / (count - ddof)


def normalized(y: Array, norm: Norm) -> Array:
    """Return (y - mean) gain + offset along the last axis of `y`, in float32 at least."""
    return (exact(y) - norm.mean) * norm.gain + norm.offset


def batch_statistics(x: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Return mean and biased variance of each feature (features,), float32, and the number of terms of each.

    They are those of the rows of all devices, see `sharding.map_rows`.
    """
    axes = tuple(range(x.ndim - 1))
    total, count = masked_sum(x, mask, axes)
    mean = total / count
    var = masked_variance(x, mask, axes, mean).reshape(mean.shape)
    if sharding.devices_with_rows() == 1:
        return mean, var, count
    # Each device's own, combined: one exchange, where sums about the common mean would take two.
    own = jnp.stack([mean, var, jnp.broadcast_to(count, mean.shape)])
    means, variances, counts = sharding.gather_from_devices(own).swapaxes(0, 1)
    count = counts.sum(0)
    share = counts / count
    mean = (share * means).sum(0)
    return mean, (share * (variances + jnp.square(means - mean))).sum(0), count


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalized_by_batch(
    x: Array, mask: Array | None, scale: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Normalize `x` by its own statistics, then scale and shift it; return it in its dtype, and the statistics.

    The statistics have no gradient of their own. The derivative is that of Ioffe and Szegedy (arXiv 1502.03167),
    section 3. It takes two sums over the map, half as many as differentiating mean and variance would.
    """
    mean, var, count = batch_statistics(x, mask)
    y = (exact(x) - mean) * (scale * jax.lax.rsqrt(var + eps)) + bias
    return y.astype(x.dtype), (mean, var, count)


def _normalized_by_batch_fwd(x: Array, mask: Array | None, scale: Array, bias: Array, eps: float):
    results: Any = normalized_by_batch(x, mask, scale, bias, eps)
    y, statistics = results
    return (y, statistics), (x, mask, scale, *statistics)


def _normalized_by_batch_bwd(eps: float, residuals, cotangents):
    x, mask, scale, mean, var, count = residuals
    axes = tuple(range(x.ndim - 1))
    inverse = jax.lax.rsqrt(var + eps)
    dy = exact(cotangents[0])
    whitened = (exact(x) - mean) * inverse
    dbias = dy.sum(axes)
    dscale = (dy * whitened).sum(axes)
    # The statistics enter every frame, but only the frames inside the mask determine them.
    dbias_of_all, dscale_of_all = sharding.sum_over_devices(dbias, dscale)
    through_statistics = masked((dbias_of_all + whitened * dscale_of_all) / count, mask)
    return (scale * inverse * (dy - through_statistics)).astype(x.dtype), None, dscale, dbias


normalized_by_batch.defvjp(_normalized_by_batch_fwd, _normalized_by_batch_bwd)


class BatchNorm(nnx.Module):
    """Batch normalization of the last axis, with PyTorch's momentum and unbiased running variance.

    Under `jit` on a sharded batch the statistics are those of the global batch, and so they are under
    `sharding.map_rows`. A `frozen` layer stays in eval mode when the network is in train mode.
    """

    def __init__(self, features: int, eps: float = 1e-5):
        self.eps = eps
        self.frozen = False
        self.scale: nnx.Variable = nnx.Param(jnp.ones(features))
        self.bias: nnx.Variable = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        if train and not self.frozen:
            results: Any = normalized_by_batch(x, mask, self.scale[...], self.bias[...], self.eps)
            y, statistics = results
            self.keep(*statistics)
            return y
        return normalized(x, self.running()).astype(x.dtype)

    def running(self) -> Norm:
        """Return the layer in eval mode, by its running statistics: mean, gain and offset (features,), float32."""
        return Norm(self.mean[...], self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps), self.bias[...])

    def gain_of_batch(self, mean: Array, var: Array, count: Array | int) -> Array:
        """Return the gain in train mode for a batch's statistics, and update the running ones with them."""
        self.keep(mean, var, count)
        return self.scale[...] * jax.lax.rsqrt(var + self.eps)

    def keep(self, mean: Array, var: Array, count: Array | int) -> None:
        """Move the running statistics towards those of a batch of `count` positions."""
        keep = 1 - BATCH_NORM_MOMENTUM
        unbiased = var * (count / (count - 1))
        self.mean[...] = jax.lax.stop_gradient(keep * self.mean[...] + BATCH_NORM_MOMENTUM * mean)
        self.var[...] = jax.lax.stop_gradient(keep * self.var[...] + BATCH_NORM_MOMENTUM * unbiased)


def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    h = exact(x)
    h = h - h.mean(-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + eps)
    return (h * scale + bias).astype(x.dtype)


def _layer_norm_alone(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    # A TPU's compiler takes far longer to write the products before and after it with parts of it inside.
    normalized = _layer_norm(jax.lax.optimization_barrier(x), scale, bias, eps)
    return jax.lax.optimization_barrier(normalized)


class LayerNorm(nnx.Module):
    """Layer normalization of the last axis at each position."""

    def __init__(self, features: int, eps: float = 1e-6):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array) -> Array:
        plain = functools.partial(_layer_norm, eps=self.eps)
        fused = None
        if layer_norm.suits_layer_norm(x):
            fused = with_derivative_of(plain, functools.partial(layer_norm.layer_norm, eps=self.eps))
        alone = functools.partial(_layer_norm_alone, eps=self.eps)
        return by_platform(x, self.scale[...], self.bias[...], plain=plain, cuda=fused, tpu=alone)


class GroupNorm(nnx.Module):
    """Normalization of each group of consecutive channels of (batch, time, channels) over the group and time."""

    def __init__(self, groups: int, features: int, eps: float = 1e-5):
        self.groups = groups
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array, mask: Array | None) -> Array:
        h = x.reshape(*x.shape[:-1], self.groups, -1)
        mean = masked_mean(h, mask, (1, 3), keepdims=True)
        var = masked_variance(h, mask, (1, 3), mean)
        h = ((exact(h) - mean) * jax.lax.rsqrt(var + self.eps)).reshape(x.shape)
        return (h * self.scale[...] + self.bias[...]).astype(x.dtype)
