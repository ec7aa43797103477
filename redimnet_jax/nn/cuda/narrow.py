"""Kernels for maps of few channels: residual blocks of depthwise convolutions, squeezes, pointwise products."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from redimnet_jax.nn.cuda import device, operands, program
from redimnet_jax.nn.cuda.sharding import by_batch
from redimnet_jax.nn.grouped_kernel import block_diagonal
from redimnet_jax.nn.weights import Affine, Pointwise

Array = jax.Array


def _positions_bytes(frames: int, bins: int, columns: int) -> int:
    """Shared memory of `frames` as positions, of `columns` when filled up."""
    beyond = math.ceil(bins / 16) * 16 + 1 - bins
    return 2 * (frames * (bins + 1) + beyond) * 8 * (columns // 8 | 1)


def _columns(channels: int) -> int:
    return math.ceil(channels / 8) * 8


def _residual_bytes(frames: int, bins: int, channels: int) -> int:
    return sum(_positions_bytes(frames + more, bins, _columns(channels)) for more in (4, 2))


def _squeeze_bytes(frames: int, bins: int, steps: int, out: int) -> int:
    before = _positions_bytes(frames + 2, bins, steps * _columns(out))
    return before + _positions_bytes(frames, bins, _columns(out))


def _frames_in_memory(size: Callable[[int], int]) -> tuple[int, int] | None:
    """(warps of a program, frames that it has memory for), given the bytes of some frames; None where it has for few.

    Two programs of 8 warps share a multiprocessor, where that leaves each 6 frames: two more are computed twice.
    """
    # Of every program's memory the GPU takes 1 KiB more for itself.
    for programs in (2, 1):
        limit = (device.shared_bytes() + 1024) // programs - 1024
        frames = max((n for n in range(65) if size(n) <= limit), default=0)
        if frames >= 6:
            return 16 // programs, frames
    return None


def _residual_tile(bins: int, channels: int) -> tuple[int, int] | None:
    return _frames_in_memory(lambda frames: _residual_bytes(frames, bins, channels))


def _squeeze_tile(bins: int, steps: int, out: int) -> tuple[int, int] | None:
    return _frames_in_memory(lambda frames: _squeeze_bytes(frames, bins, steps, out))


def _even(frames: int, most: int) -> int:
    """Frames of a tile, at most `most`, of which the last has about as many as the others."""
    return math.ceil(frames / math.ceil(frames / most))


def _strip_of_frames(frames: int, bins: int, channels: int, warps: int) -> int:
    """Return the frames, up to 6, that share a convolution's work most evenly, where neighbours count a third."""

    def cost(n: int) -> float:
        pairs = math.ceil(math.ceil(bins / 16) * math.ceil(frames / n) / 2)
        return math.ceil(math.ceil(channels / 8) * pairs / warps) * (n + (n + 2) / 3)

    return min(range(1, 7), key=cost)


def _positions_a_warp(positions: int, channels: int, warps: int) -> int:
    """Of up to 10 registers' worth of tiles of 16 positions how many a warp takes at once; each needs the kernel."""
    tiles = math.ceil(positions / 16)
    most = max(1, min(4, 10 // math.ceil(channels / 16)))
    return min(range(1, most + 1), key=lambda n: math.ceil(math.ceil(tiles / n) / warps) * (n + 0.5))


def suits_depthwise_residual(x: Array, kernel: Array) -> bool:
    """Return whether `depthwise_residual` takes `x` (batch, time, freq, channels) and `kernel` (kt, kf, 1, out)."""
    *taps, members, channels = kernel.shape
    suits = operands.is_map(x) and taps == [3, 3] and members == 1 and channels % 2 == 0 and channels <= 128
    return suits and _residual_tile(x.shape[2], channels) is not None


class DepthwiseHalf(NamedTuple):
    """A depthwise convolution with `taps` (3, 3, 1, channels), followed by a pointwise product."""

    taps: Array
    pointwise: Pointwise


def depthwise_residual(
    x: Array, mask: Array | None, first: DepthwiseHalf, norm: Affine, second: DepthwiseHalf, *, add: bool
) -> Array:
    """Return relu(x + y), or y where not `add`, of y = second(relu(first(x)) gain + offset); weights are float32."""
    function = functools.partial(_depthwise_residual, add=add)
    return by_batch(function, x, mask, first, norm, second, batched=2)


def _depthwise_residual(
    x: Array, mask: Array | None, first: DepthwiseHalf, norm: Affine, second: DepthwiseHalf, *, add: bool
) -> Array:
    batch, frames, bins, channels = x.shape
    columns = _columns(channels)
    tile = _residual_tile(bins, channels)
    assert tile is not None  # `suits_depthwise_residual` has looked.
    warps, most = tile
    tile_frames = _even(frames, most)

    def together(*arrays: Array, rows: int = 0) -> Array:
        """Return arrays stacked and padded: every operand costs operations of its own, so there are few of them."""
        fill = [(0, 0), (0, rows), (0, columns - channels)]
        return jnp.pad(jnp.stack(arrays), fill if arrays[0].ndim == 2 else fill[::2])

    taps = together(first.taps.reshape(9, channels), second.taps.reshape(9, channels)).astype(x.dtype)
    pointwise = operands.lane_order(together(first.pointwise.kernel, second.pointwise.kernel, rows=-channels % 16))

    vectors = together(first.pointwise.bias, *norm, second.pointwise.bias)
    (out,) = program.launch(
        "depthwise_residual",
        [x, *operands.masks(mask), taps, pointwise, vectors],
        operands.like(x),
        grid=(batch * math.ceil(frames / tile_frames), 1),
        threads=32 * warps,
        shared_bytes=_residual_bytes(tile_frames, bins, channels),
        FRAMES=frames,
        BINS=bins,
        CHANNELS=channels,
        TILE_FRAMES=tile_frames,
        WARPS=warps,
        STRIP1=_strip_of_frames(tile_frames + 2, bins, channels, warps),
        STRIP2=_strip_of_frames(tile_frames, bins, channels, warps),
        TILES_A_WARP=_positions_a_warp((tile_frames + 2) * (bins + 1) + 1, channels, warps),
        RESIDUAL=int(add),
        MASKED=int(mask is not None),
    )
    return out


def _pointwise_bytes(frames: int, bins: int, channels: int, out: int) -> int:
    return sum(_positions_bytes(frames, bins, _columns(n)) for n in (channels, out))


def _pointwise_frames(bins: int, channels: int, out: int) -> int:
    """Frames of a program, of which a multiprocessor has three."""
    limit = (device.shared_bytes() + 1024) // 3 - 1024
    return max((n for n in range(65) if _pointwise_bytes(n, bins, channels, out) <= limit), default=0)


def suits_pointwise(x: Array, weights: Pointwise) -> bool:
    """Return whether `pointwise` takes `x` (batch, time, [freq,] channels) and is faster than a library's product.

    That product makes copies where the channels are no multiple of eight.
    """
    if not operands.is_map(x) or x.ndim < 2:
        return False
    *outer, bins, channels = x.shape
    out = weights.bias.shape[0]
    if len(outer) not in (1, 2) or channels % 2 or out % 2 or (channels % 8 == 0 and out % 8 == 0):
        return False
    return channels <= 80 and out <= 128 and _pointwise_frames(bins, channels, out) > 0


def pointwise(x: Array, weights: Pointwise) -> Array:
    """Return x kernel + bias of `x` (batch, time, [freq,] channels)."""
    if x.ndim == 3:
        # All frames of an utterance count as the bins of one frame.
        return by_batch(_pointwise, x[:, None], weights, batched=1)[:, 0]
    return by_batch(_pointwise, x, weights, batched=1)


def _pointwise(x: Array, weights: Pointwise) -> Array:
    kernel, bias = weights
    (batch, frames, bins, channels), out_channels = x.shape, bias.shape[0]
    fill = (0, -out_channels % 8)
    tile_frames = _even(frames, _pointwise_frames(bins, channels, out_channels))
    (out,) = program.launch(
        "pointwise",
        [x, operands.lane_order(jnp.pad(kernel, ((0, -channels % 16), fill))), jnp.pad(bias, fill)],
        jax.ShapeDtypeStruct((*x.shape[:3], out_channels), x.dtype),
        grid=(batch * math.ceil(frames / tile_frames), 1),
        threads=32 * device.WARPS,
        shared_bytes=_pointwise_bytes(tile_frames, bins, channels, out_channels),
        FRAMES=frames,
        BINS=bins,
        CHANNELS=channels,
        OUT=out_channels,
        TILE_FRAMES=tile_frames,
        WARPS=device.WARPS,
        PROGRAMS=3,
        TILES_A_WARP=min(2, _positions_a_warp(tile_frames * (bins + 1), channels, device.WARPS)),
    )
    return out


def _steps(features: int, kernel_shape: tuple[int, ...]) -> int:
    """Blocks of 8 inputs of 8 outputs of a grouped kernel (kt, kf, in/groups, out); 0 where they are not whole."""
    *_, members, out = kernel_shape
    outputs = out * members // features
    return members // outputs if outputs in (1, 2, 4, 8) and members % outputs == 0 else 0


def suits_squeeze(x: Array, kernel: Array) -> bool:
    """Return whether `squeeze` takes `x` (batch, time, freq, in) and a grouped kernel (kt, kf, in/groups, out)."""
    kt, kf, _, out = kernel.shape
    bins, features = x.shape[2:]
    steps = _steps(features, kernel.shape)
    suits = (
        operands.is_map(x) and (kt, kf) == (3, 3) and features % 2 == out % 2 == 0 and 0 < steps <= 8 and out <= 128
    )
    return suits and _squeeze_tile(bins, steps, out) is not None


def squeeze(x: Array, mask: Array | None, taps: Array, shift: Array, product: Pointwise) -> Array:
    """Return gelu(conv(x) + shift) kernel + bias, of fewer channels.

    Weights are float32: `taps` (3, 3, channels/groups, out), `shift` (out,), and `product` from out to out channels.
    """
    return by_batch(_squeeze, x, mask, taps, shift, product, batched=2)


def _taps_of_steps(taps: Array, features: int, steps: int) -> Array:
    """Rearrange a grouped kernel (3, 3, in/groups, out) -> (9, out / 8 rounded up, steps, 32 lanes, 2) bfloat16."""
    members, out = taps.shape[2:]
    blocks = _columns(out) // 8
    dense = block_diagonal(taps, features // members).reshape(9, features, out)
    filled = jnp.pad(dense, ((0, 0), (0, 8 * steps * blocks - features), (0, 8 * blocks - out)))
    diagonal = jnp.einsum("tjsjo->tjso", filled.reshape(9, blocks, 8 * steps, blocks, 8))
    pairs = diagonal.astype(jnp.bfloat16).reshape(9, blocks, steps, 4, 2, 8)
    return pairs.transpose(0, 1, 2, 5, 3, 4).reshape(9, blocks, steps, 32, 2)


def _squeeze(x: Array, mask: Array | None, taps: Array, shift: Array, product: Pointwise) -> Array:
    kernel, bias = product
    (batch, frames, bins, channels), out_channels = x.shape, taps.shape[3]
    steps, fill = _steps(channels, taps.shape), (0, -out_channels % 8)
    tile = _squeeze_tile(bins, steps, out_channels)
    assert tile is not None  # `suits_squeeze` has looked.
    warps, most = tile
    tile_frames = _even(frames, most)
    pointwise = operands.lane_order(jnp.pad(kernel, ((0, -out_channels % 16), fill)))
    vectors = jnp.pad(jnp.stack([shift, bias]), ((0, 0), fill))
    (out,) = program.launch(
        "squeeze",
        [x, *operands.masks(mask), _taps_of_steps(taps, channels, steps), pointwise, vectors],
        jax.ShapeDtypeStruct((*x.shape[:3], out_channels), x.dtype),
        grid=(batch * math.ceil(frames / tile_frames), 1),
        threads=32 * warps,
        shared_bytes=_squeeze_bytes(tile_frames, bins, steps, out_channels),
        FRAMES=frames,
        BINS=bins,
        CHANNELS=channels,
        OUT=out_channels,
        INPUT_BLOCKS=steps,
        TILE_FRAMES=tile_frames,
        WARPS=warps,
        STRIP=_strip_of_frames(tile_frames, bins, out_channels, warps),
        TILES_A_WARP=_positions_a_warp(tile_frames * (bins + 1), out_channels, warps),
        MASKED=int(mask is not None),
    )
    return out
