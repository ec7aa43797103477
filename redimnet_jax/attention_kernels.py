"""Attention on the chip of a CUDA GPU, forward and backward (Pallas, Triton), bfloat16.

Keys and values of one head of an utterance fit there whole, so that no running maximum is needed, and the backward
pass computes the weights again rather than keep them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

Array = jax.Array

# Queries of a program at once: the backward pass needs more registers for each.
QUERIES, QUERIES_BACKWARD = 64, 16
# What stands for minus infinity, so that a row with no key gives numbers.
LOWEST = -1e30


def _power_of_two(n: int) -> int:
    """The least power of two from `n` up, 16 at least: the extents that Triton's blocks and products can have."""
    return max(16, 1 << (n - 1).bit_length())


def _block(ref, batch, frames: Array, columns: Array, end: int):
    """(where in `ref` (batch, time, channels), which of it exists) for a block of `frames` x `columns`."""
    at = ref.at[batch, frames[:, None], columns[None]]
    inside = (frames < ref.shape[1])[:, None] & (columns < end)[None]
    return at, inside


def _load(ref, batch, frames: Array, columns: Array, end: int) -> Array:
    at, inside = _block(ref, batch, frames, columns, end)
    return plt.load(at, mask=inside, other=0.0)


def _store(ref, value: Array, batch, frames: Array, columns: Array, end: int) -> None:
    at, inside = _block(ref, batch, frames, columns, end)
    plt.store(at, value.astype(ref.dtype), mask=inside)


def _weights(q: Array, k: Array, keys: Array, size: int) -> Array:
    """float32 attention weights (queries, keys); `keys` is False where a key has none."""
    logits = jnp.where(keys[None], plt.dot(q, k.T) * size**-0.5, LOWEST)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _keys(mask_ref, batch, frames: Array) -> Array:
    return plt.load(mask_ref.at[batch, frames], mask=frames < mask_ref.shape[1], other=0) != 0


def _forward_kernel(q_ref, k_ref, v_ref, mask_ref, o_ref, *, heads: int, rows: int):
    batch, head, block = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    size = q_ref.shape[2] // heads
    columns, end = head * size + jnp.arange(_power_of_two(size)), (head + 1) * size
    frames, queries = jnp.arange(_power_of_two(q_ref.shape[1])), block * rows + jnp.arange(rows)
    k, v = (_load(ref, batch, frames, columns, end) for ref in (k_ref, v_ref))
    q = _load(q_ref, batch, queries, columns, end)
    weights = _weights(q, k, _keys(mask_ref, batch, frames), size)
    _store(o_ref, plt.dot(weights.astype(v.dtype), v), batch, queries, columns, end)


def _backward_kernel(q_ref, k_ref, v_ref, mask_ref, do_ref, dq_ref, dk_ref, dv_ref, *, heads: int, rows: int):
    batch, head = pl.program_id(0), pl.program_id(1)
    time, size = q_ref.shape[1], q_ref.shape[2] // heads
    columns, end = head * size + jnp.arange(_power_of_two(size)), (head + 1) * size
    frames = jnp.arange(_power_of_two(time))
    keys = _keys(mask_ref, batch, frames)

    def block(i, sums):
        dk, dv = sums
        k, v = (_load(ref, batch, frames, columns, end) for ref in (k_ref, v_ref))
        queries = i * rows + jnp.arange(rows)
        q, do = (_load(ref, batch, queries, columns, end) for ref in (q_ref, do_ref))
        weights = _weights(q, k, keys, size)
        dweights = plt.dot(do, v.T)
        dlogits = weights * (dweights - (weights * dweights).sum(axis=1, keepdims=True)) * size**-0.5
        dlogits, weights = dlogits.astype(q.dtype), weights.astype(q.dtype)
        _store(dq_ref, plt.dot(dlogits, k), batch, queries, columns, end)
        return dk + plt.dot(dlogits.T, q), dv + plt.dot(weights.T, do)

    zeros = jnp.zeros((frames.size, columns.size), jnp.float32)
    dk, dv = lax.fori_loop(0, pl.cdiv(time, rows), block, (zeros, zeros))
    _store(dk_ref, dk, batch, frames, columns, end)
    _store(dv_ref, dv, batch, frames, columns, end)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q: Array, k: Array, v: Array, mask: Array, heads: int) -> Array:
    """`q`, `k`, `v` (batch, time, channels) bfloat16, int32 `mask` (batch, time), nonzero where a key counts."""
    batch, time, _ = q.shape
    return pl.pallas_call(
        functools.partial(_forward_kernel, heads=heads, rows=QUERIES),
        grid=(batch, heads, pl.cdiv(time, QUERIES)),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1),
    )(q, k, v, mask)


def _attend_fwd(q: Array, k: Array, v: Array, mask: Array, heads: int):
    return attend(q, k, v, mask, heads), (q, k, v, mask)


def _attend_bwd(heads: int, residuals, do: Array):
    q, k, v, mask = residuals
    gradients = pl.pallas_call(
        functools.partial(_backward_kernel, heads=heads, rows=QUERIES_BACKWARD),
        grid=(q.shape[0], heads),
        out_shape=[jax.ShapeDtypeStruct(y.shape, y.dtype) for y in (q, k, v)],
        compiler_params=plt.CompilerParams(num_warps=8, num_stages=1),
    )(q, k, v, mask, do)
    return *gradients, None


attend.defvjp(_attend_fwd, _attend_bwd)
