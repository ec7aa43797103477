"""Depthwise convolutions of maps (batch, time, channels), and their kernels' gradient."""

import math

import jax
import jax.numpy as jnp

from redimnet_jax.nn.cuda import operands, program
from redimnet_jax.nn.cuda.sharding import by_batch

Array = jax.Array

# Odd, so that threads side by side read different banks.
FRAMES_A_THREAD = 13


def suits_depthwise(x: Array) -> bool:
    """Return whether `depthwise_conv1d` takes `x` (batch, time, channels)."""
    return operands.is_map(x) and x.shape[2] % 4 == 0


def suits_depthwise_gradient(x: Array) -> bool:
    """Return whether `depthwise_kernel_gradient` takes `x` (batch, time, channels)."""
    return operands.is_map(x) and x.shape[2] % 8 == 0


def _depthwise_tile(channels: int) -> int:
    return next(n for n in (48, 32, 24, 16, 8, 60, 20, 12, 4) if channels % n == 0)


def depthwise_conv1d(x: Array, mask: Array | None, kernel: Array, shift: Array | None = None) -> Array:
    """Return the convolution of `x` (batch, time, channels) with `kernel` (taps, channels), an odd number of taps.

    Where `shift` (channels,), float32, is given, gelu(conv + shift).
    """
    return by_batch(_depthwise_conv1d, x, mask, kernel.astype(jnp.float32), shift, batched=2)


def _depthwise_conv1d(x: Array, mask: Array | None, kernel: Array, shift: Array | None) -> Array:
    (batch, frames, channels), taps = x.shape, kernel.shape[0]
    tile = _depthwise_tile(channels)
    strips = min(16, math.ceil(frames / FRAMES_A_THREAD))
    rows = strips * FRAMES_A_THREAD
    (out,) = program.launch(
        "depthwise_conv1d",
        [x, *operands.masks(mask), kernel, *([] if shift is None else [shift])],
        operands.like(x),
        grid=(batch * math.ceil(frames / rows), channels // tile),
        threads=tile // 2 * strips,
        shared_bytes=2 * (rows + taps - 1) * tile + 4 * taps * tile,
        FRAMES=frames,
        CHANNELS=channels,
        TILE_CHANNELS=tile,
        TAPS=taps,
        STRIPS=strips,
        FRAMES_A_THREAD=FRAMES_A_THREAD,
        ACTIVATED=int(shift is not None),
        MASKED=int(mask is not None),
    )
    return out


def depthwise_kernel_gradient(x: Array, dy: Array, taps: int) -> Array:
    """Return the gradient of a depthwise kernel (taps, channels), float32, from input and output gradient."""
    return by_batch(lambda *maps: _depthwise_kernel_gradient(*maps, taps=taps), x, dy, batched=2).sum(0)


def _depthwise_kernel_gradient(x: Array, dy: Array, *, taps: int) -> Array:
    batch, frames, channels = x.shape
    tile, part = _depthwise_tile(channels), min(8, 1 << (taps - 1).bit_length())
    parts, rows = math.ceil(taps / part), min(208, math.ceil(frames / part) * part)
    (partial,) = program.launch(
        "depthwise_kernel_gradient",
        [x, dy],
        jax.ShapeDtypeStruct((batch, taps, channels), jnp.float32),
        grid=(batch, channels // tile),
        threads=tile // 2 * parts,
        shared_bytes=2 * tile * (2 * rows + parts * part - 1),
        FRAMES=frames,
        CHANNELS=channels,
        TILE_CHANNELS=tile,
        TILE_FRAMES=rows,
        TAPS=taps,
        TAPS_A_THREAD=part,
    )
    return partial
