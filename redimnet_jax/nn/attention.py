"""Softmax attention over time: softmax(Q K^T / sqrt(d)) V in every head, without the masked keys.

The plain form writes the attention weights to memory. On CUDA GPUs, in bfloat16, kernels keep them on the chip
(`cuda`). cuDNN's, behind `jax.nn.dot_product_attention`, cannot take their place: it refuses heads of 36 channels,
and in the backward pass an odd number of frames.
"""

import functools

import jax
import jax.numpy as jnp

from redimnet_jax.nn.cuda import attention as kernels
from redimnet_jax.nn.cuda import operands
from redimnet_jax.nn.dispatch import by_platform, with_derivative_of
from redimnet_jax.numerics import exact, precision

Array = jax.Array


def attention(q: Array, k: Array, v: Array, mask: Array | None, heads: int) -> Array:
    """Return attention (batch, time, channels) of `q`, `k`, `v`, each of that shape.

    `mask` (batch, time) is True for the keys that take part; None stands for all of them.
    """

    def fused(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        # `custom_vjp` takes non-differentiable arguments by position alone.
        return _fused(q, k, v, mask, heads)

    suits = operands.is_map(q) and kernels.suits_attention(q.shape[1], q.shape[2], heads)
    plain, on_tpu = functools.partial(_plain, heads=heads), functools.partial(_divided_last, heads=heads)
    return by_platform(
        q, k, v, mask, plain=plain, cuda=fused if suits else None, tpu=with_derivative_of(plain, on_tpu)
    )


def _logits(q: Array, k: Array, mask: Array | None, heads: int, axes: str) -> Array:
    """Return the logits, in float32 at least, along `axes`, an order of batch b, head h, query q and key k."""
    of_queries, of_keys = _by_head(q * (q.shape[-1] // heads) ** -0.5, heads), _by_head(k, heads)
    product = f"bqhd,bkhd->{axes}"
    logits = jnp.einsum(
        product, of_queries, of_keys, precision=precision(q.dtype), preferred_element_type=exact(q).dtype
    )
    if mask is None:
        return logits
    return jnp.where(jnp.expand_dims(mask, [axes.index("h"), axes.index("q")]), logits, -jnp.inf)


def _by_head(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, -1)


def _plain(q: Array, k: Array, v: Array, mask: Array | None, heads: int) -> Array:
    weights = jax.nn.softmax(_logits(q, k, mask, heads, "bhqk"), axis=-1).astype(q.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, _by_head(v, heads), precision=precision(q.dtype)).reshape(q.shape)


def _divided_last(q: Array, k: Array, v: Array, mask: Array | None, heads: int) -> Array:
    """Sum the weights by the product with the values, to which ones are appended, and divide by the sums at the end.

    XLA for TPU would compute the logits three times, for their maxima with the sums, for the weights, and for these
    divided.
    """
    logits = _logits(q, k, mask, heads, "bhkq")
    weights = jnp.exp(logits - logits.max(axis=2, keepdims=True)).astype(q.dtype)
    values = jnp.pad(_by_head(v, heads), [(0, 0)] * 3 + [(0, 1)], constant_values=1)
    sums = jnp.einsum(
        "bhkq,bkhd->bqhd", weights, values, precision=precision(q.dtype), preferred_element_type=logits.dtype
    )
    return (sums[..., :-1] / sums[..., -1:]).astype(q.dtype).reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _fused(q: Array, k: Array, v: Array, mask: Array | None, heads: int) -> Array:
    return _fused_fwd(q, k, v, mask, heads)[0]


def _fused_fwd(q: Array, k: Array, v: Array, mask: Array | None, heads: int):
    out, log_sums = kernels.attention(q, k, v, mask, heads)
    return out, (q, k, v, mask, out, log_sums)


def _fused_bwd(heads: int, residuals, dout: Array):
    q, k, v, mask, out, log_sums = residuals
    return *kernels.attention_gradient(q, k, v, out, log_sums, dout, mask), None


_fused.defvjp(_fused_fwd, _fused_bwd)
