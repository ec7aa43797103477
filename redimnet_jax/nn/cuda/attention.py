"""Attention of maps (batch, time, channels), and its gradient."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from redimnet_jax.nn.cuda import device, operands, program
from redimnet_jax.nn.cuda.sharding import by_batch

Array = jax.Array


def suits_attention(frames: int, channels: int, heads: int) -> bool:
    """Whether `attention` and its gradient take maps of `frames` and `channels`."""
    size = channels // heads
    return size <= 128 and _head_bytes(frames, size, tiles=4, rows=3) <= device.shared_bytes()


def _head_bytes(frames: int, size: int, *, tiles: int, rows: int) -> int:
    length = math.ceil(frames / 16) * 16
    return length * (2 * tiles * (math.ceil(size / 16) * 16 + 8) + 4 * rows)


def _warps_of_rows(frames: int) -> int:
    """Of at most eight warps as many as share tiles of 16 rows evenly."""
    tiles = math.ceil(frames / 16)
    return math.ceil(tiles / math.ceil(tiles / 8))


def _a_head_a_program(q: Array, mask: Array | None, heads: int, *, tiles: int, rows: int) -> dict[str, Any]:
    """How a kernel is launched whose programs have `tiles` maps of a head, and `rows` of numbers, in their memory."""
    batch, frames, channels = q.shape
    warps = _warps_of_rows(frames)
    return {
        "grid": (batch * heads, 1),
        "threads": 32 * warps,
        "shared_bytes": _head_bytes(frames, channels // heads, tiles=tiles, rows=rows),
        "FRAMES": frames,
        "CHANNELS": channels,
        "SIZE": channels // heads,
        "HEADS": heads,
        "WARPS": warps,
        "MASKED": int(mask is not None),
    }


def attention(q: Array, k: Array, v: Array, mask: Array | None, heads: int) -> tuple[Array, Array]:
    """(softmax(q k^T / sqrt(channels / heads)) v, log2 of the sums of weights (batch, heads, time), float32)."""
    out, log_sums = by_batch(lambda *arrays: _attention(*arrays, heads=heads), q, k, v, mask, batched=4)
    return out, log_sums


def _attention(q: Array, k: Array, v: Array, mask: Array | None, *, heads: int) -> list[Array]:
    batch, frames, _ = q.shape
    return program.launch(
        "attention",
        [q, k, v, *operands.masks(mask)],
        operands.like(q),
        jax.ShapeDtypeStruct((batch, heads, frames), jnp.float32),
        **_a_head_a_program(q, mask, heads, tiles=3, rows=1),
    )


def attention_gradient(
    q: Array, k: Array, v: Array, out: Array, log_sums: Array, dout: Array, mask: Array | None
) -> list[Array]:
    """Return the gradients of `attention` in `q`, `k` and `v`, from what it gave."""
    return by_batch(_attention_gradient, q, k, v, out, log_sums, dout, mask, batched=7)


def _attention_gradient(
    q: Array, k: Array, v: Array, out: Array, log_sums: Array, dout: Array, mask: Array | None
) -> list[Array]:
    return program.launch(
        "attention_gradient",
        [q, k, v, out, log_sums, dout, *operands.masks(mask)],
        *[operands.like(q)] * 3,
        **_a_head_a_program(q, mask, log_sums.shape[1], tiles=4, rows=3),
    )
