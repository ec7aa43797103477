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
from redimnet_jax.nn.dispatch import by_platform
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
    return by_platform(q, k, v, mask, plain=functools.partial(_plain, heads=heads), cuda=fused if suits else None)


def _plain(q: Array, k: Array, v: Array, mask: Array | None, heads: int) -> Array:
    size = q.shape[-1] // heads
    q_heads, k_heads, v_heads = (y.reshape(*y.shape[:-1], heads, size) for y in (q * size**-0.5, k, v))
    product = functools.partial(jnp.einsum, precision=precision(q.dtype))
    logits = product("bqhd,bkhd->bhqk", q_heads, k_heads, preferred_element_type=exact(q).dtype)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return product("bhqk,bkhd->bqhd", weights, v_heads).reshape(q.shape)


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
