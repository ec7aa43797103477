"""The gradients of what `convnext.mix_channels` does."""

import math

import jax
import jax.numpy as jnp

from redimnet_jax.nn.cuda import device, operands, program
from redimnet_jax.nn.cuda.sharding import by_batch

Array = jax.Array


def suits_mix_channels_gradient(channels: int, out: int) -> bool:
    """Whether `mix_channels_gradient` takes a pointwise kernel (channels, out)."""
    return (
        channels == out
        and channels % 16 == 0
        and channels <= 192
        and _mixing_bytes(channels) <= device.shared_bytes()
    )


def _row_warps(channels: int) -> int:
    return max(1, device.WARPS // (channels // 16))


def _mixing_tile(channels: int) -> int:
    return 64 if channels > 64 else 128 if channels > 16 else 256


def _kernel_held(channels: int) -> bool:
    return channels <= 128


def _mixing_bytes(channels: int) -> int:
    tiles = 4 * _mixing_tile(channels) * (channels + 8)
    return 2 * (tiles if _kernel_held(channels) else tiles + channels * channels)


def mix_channels_gradient(
    y: Array, dout: Array, mean: Array, gain: Array, offset: Array, kernel: Array
) -> tuple[Array, Array, list[Array]]:
    """Return the gradients of x + gelu((y - mean) gain + offset) kernel + bias, from that of the result.

    That of the GELU's argument, bfloat16; of `kernel` (in, out), float32; and those of offset, gain and bias
    (channels,), float32: sums over all positions of the first, of the first times y - mean, and of `dout`.
    """
    arrays = y, dout, mean, gain, offset, kernel
    dnormalised, dkernel, sums = by_batch(_mix_channels_gradient, *arrays, batched=2)
    return dnormalised, dkernel.sum(0).T, list(sums.sum(0))


def _mix_channels_gradient(
    y: Array, dout: Array, mean: Array, gain: Array, offset: Array, kernel: Array
) -> tuple[Array, Array, Array]:
    batch, channels = y.shape[0], y.shape[-1]
    rows, tile, row_warps = y.size // batch // channels, _mixing_tile(channels), _row_warps(channels)
    at_once = 2 if channels <= 96 else 1
    parts = min(math.ceil(rows / tile), math.ceil(device.multiprocessors() * at_once / batch))
    sums = batch, parts * row_warps
    dnormalised, dkernel, sums = program.launch(
        "mix_channels_gradient",
        [y, dout, mean, gain, offset, operands.lane_order(kernel.T)],
        operands.like(y),
        jax.ShapeDtypeStruct((*sums, channels, channels), jnp.float32),
        jax.ShapeDtypeStruct((*sums, 3, channels), jnp.float32),
        grid=(batch, parts),
        threads=32 * row_warps * channels // 16,
        shared_bytes=_mixing_bytes(channels),
        MAP_ROWS=rows,
        CHANNELS=channels,
        PARTS=parts,
        ROW_WARPS=row_warps,
        TILE_ROWS=tile,
        KERNEL_HELD=int(_kernel_held(channels)),
        MIN_PROGRAMS=at_once,
    )
    return dnormalised, dkernel.sum(1), sums.sum(1)
