"""Softmax attention over time: softmax(Q K^T / sqrt(d)) V of every head, masked keys left out.

The plain form writes the attention weights to memory. On CUDA GPUs, in bfloat16, kernels (Pallas, Triton) keep them
on the chip (`attention_kernels`). cuDNN's, behind `jax.nn.dot_product_attention`, cannot take their place: it refuses
heads of 36 channels and, in the backward pass, an odd number of frames.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from redimnet_jax.convolution import exact, precision

Array = jax.Array

# Frames, and channels of a head, that the kernels hold on the chip; with more they run out of registers.
MAX_FRAMES = 256
MAX_SIZE = 64


def attention(q: Array, k: Array, v: Array, mask: Array | None, heads: int) -> Array:
    """`q`, `k`, `v` (batch, time, channels), `mask` (batch, time) of the keys or None -> (batch, time, channels)."""
    plain = functools.partial(_plain, heads=heads)
    if q.dtype != jnp.bfloat16 or q.shape[1] > MAX_FRAMES or q.shape[2] // heads > MAX_SIZE:
        return plain(q, k, v, mask)
    return lax.platform_dependent(q, k, v, mask, cuda=functools.partial(_fused, heads=heads), default=plain)


def _plain(q: Array, k: Array, v: Array, mask: Array | None, heads: int) -> Array:
    size = q.shape[-1] // heads
    q_heads, k_heads, v_heads = (y.reshape(*y.shape[:-1], heads, size) for y in (q * size**-0.5, k, v))
    product = functools.partial(jnp.einsum, precision=precision(q.dtype))
    logits = product("bqhd,bkhd->bhqk", q_heads, k_heads, preferred_element_type=exact(q).dtype)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return product("bhqk,bkhd->bqhd", weights, v_heads).reshape(q.shape)


def _fused(q: Array, k: Array, v: Array, mask: Array | None, heads: int) -> Array:
    # Not above: Pallas takes a while to import.
    from redimnet_jax.attention_kernels import attend

    mask = jnp.ones(q.shape[:2], bool) if mask is None else mask
    return attend(q, k, v, mask.astype(jnp.int32), heads)
