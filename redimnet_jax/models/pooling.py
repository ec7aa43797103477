"""Poolings over time: (batch, time, channels) -> (batch, features), float32, of the frames inside `mask`.

Names and definitions are those of the published code (after WeSpeaker): TAP, TMAP, TSDP, TSTP; ASTP, attentive
statistics, ECAPA-TDNN (arXiv 2005.07143); MHASTP (arXiv 1906.09890); MQMHASTP (arXiv 2110.05042).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from redimnet_jax.models.config import POOLING_HEADS
from redimnet_jax.nn.cuda import attentive_statistics as kernels
from redimnet_jax.nn.dispatch import by_platform, with_derivative_of
from redimnet_jax.nn.layers import Dense
from redimnet_jax.nn.normalization import masked, masked_mean, masked_variance
from redimnet_jax.numerics import exact, precision

Array = jax.Array

VARIANCE_FLOOR = 1e-7


def mean_and_std(x: Array, mask: Array | None) -> tuple[Array, Array]:
    """Mean and unbiased standard deviation over time, each (batch, 1, channels), float32."""
    mean = masked_mean(x, mask, (1,), keepdims=True)
    return mean, jnp.sqrt(masked_variance(x, mask, (1,), mean, ddof=1) + VARIANCE_FLOOR)


def attentive_statistics(x: Array, logits: Array, mask: Array | None) -> Array:
    """Weighted mean and standard deviation under softmax over time of `logits` (batch, time, channels or 1)."""
    if x.dtype != jnp.bfloat16 or x.shape != logits.shape or x.shape[2] % 2:
        return _attentive_statistics(x, logits, mask)
    fused = with_derivative_of(_attentive_statistics, kernels.attentive_statistics)
    return by_platform(x, logits, mask, plain=_attentive_statistics, cuda=fused)


def _attentive_statistics(x: Array, logits: Array, mask: Array | None) -> Array:
    x, logits = exact(x), exact(logits)
    if mask is not None:
        logits = jnp.where(mask[..., None], logits, -jnp.inf)
        x = masked(x, mask)
    weights = jax.nn.softmax(logits, axis=1)
    mean = jnp.sum(weights * x, axis=1)
    variance = jnp.sum(weights * jnp.square(x), axis=1) - jnp.square(mean)
    return jnp.concatenate([mean, jnp.sqrt(jnp.maximum(variance, VARIANCE_FLOOR))], axis=-1)


class TAP(nnx.Module):
    """Mean."""

    def __init__(self, channels: int, global_context: bool, *, rngs: nnx.Rngs):
        self.features = channels

    def __call__(self, x: Array, mask: Array | None) -> Array:
        return masked_mean(x, mask, (1,))


class TMAP(nnx.Module):
    """Mean plus maximum."""

    def __init__(self, channels: int, global_context: bool, *, rngs: nnx.Rngs):
        self.features = channels

    def __call__(self, x: Array, mask: Array | None) -> Array:
        largest = x if mask is None else jnp.where(mask[..., None], x, -jnp.inf)
        return masked_mean(x, mask, (1,)) + exact(largest.max(axis=1))


class TSDP(nnx.Module):
    """Standard deviation."""

    def __init__(self, channels: int, global_context: bool, *, rngs: nnx.Rngs):
        self.features = channels

    def __call__(self, x: Array, mask: Array | None) -> Array:
        return mean_and_std(x, mask)[1][:, 0]


class TSTP(nnx.Module):
    """Mean and standard deviation."""

    def __init__(self, channels: int, global_context: bool, *, rngs: nnx.Rngs):
        self.features = 2 * channels

    def __call__(self, x: Array, mask: Array | None) -> Array:
        return jnp.concatenate(mean_and_std(x, mask), axis=-1)[:, 0]


class ASTP(nnx.Module):
    """Mean and standard deviation under attention; `global_context` lets it see the plain ones as well."""

    def __init__(self, channels: int, global_context: bool, *, rngs: nnx.Rngs, bottleneck: int = 128):
        self.features = 2 * channels
        self.global_context = global_context
        self.linear1 = Dense(3 * channels if global_context else channels, bottleneck, rngs=rngs)
        self.linear2 = Dense(bottleneck, channels, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        hidden = self._with_context(x, mask) if self.global_context else self.linear1(x)
        return attentive_statistics(x, self.linear2(jnp.tanh(hidden)), mask)

    def _with_context(self, x: Array, mask: Array | None) -> Array:
        # linear1 of (x, mean, std): mean and std are the same in every frame, so their share is computed once.
        local, context = jnp.split(self.linear1.kernel[...], [x.shape[-1]])
        statistics = jnp.concatenate(mean_and_std(x, mask), axis=-1)
        shared = jnp.matmul(statistics, context, precision=precision(statistics.dtype)) + self.linear1.bias[...]
        frames = jnp.matmul(x, local.astype(x.dtype), precision=precision(x.dtype))
        return frames + shared.astype(x.dtype)


class MHASTP(nnx.Module):
    """Attentive statistics in `heads` slices of the channels, each with its own attention.

    `per_channel` gives each channel of a slice its own weights over time; otherwise the slice shares them.
    """

    def __init__(
        self,
        channels: int,
        global_context: bool = False,
        *,
        heads: int = POOLING_HEADS["MHASTP"],
        per_channel: bool = False,
        rngs: nnx.Rngs,
        bottleneck: int = 64,
    ):
        self.features = 2 * channels
        size = channels // heads
        self.att_0 = nnx.List([Dense(size, bottleneck, rngs=rngs) for _ in range(heads)])
        self.att_1 = nnx.List([Dense(bottleneck, size if per_channel else 1, rngs=rngs) for _ in range(heads)])

    def __call__(self, x: Array, mask: Array | None) -> Array:
        chunks = jnp.split(x, len(self.att_0), axis=-1)
        return jnp.concatenate(
            [
                attentive_statistics(chunk, second(jnp.tanh(first(chunk))), mask)
                for chunk, first, second in zip(chunks, self.att_0, self.att_1, strict=True)
            ],
            axis=-1,
        )


class MQMHASTP(nnx.Module):
    """Several MHASTP side by side, one a query."""

    def __init__(self, channels: int, global_context: bool, *, rngs: nnx.Rngs, queries: int = 2):
        self.n_query = nnx.List(
            [MHASTP(channels, heads=POOLING_HEADS["MQMHASTP"], per_channel=True, rngs=rngs) for _ in range(queries)]
        )
        self.features = 2 * channels * queries

    def __call__(self, x: Array, mask: Array | None) -> Array:
        return jnp.concatenate([query(x, mask) for query in self.n_query], axis=-1)


POOLINGS = {pooling.__name__: pooling for pooling in (TAP, TMAP, TSDP, TSTP, ASTP, MHASTP, MQMHASTP)}
