"""What is done to maps of few channels: residual blocks of depthwise convolutions, squeezes, pointwise products."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from redimnet_jax.nn.cuda import device, operands, program
from redimnet_jax.nn.cuda.sharding import by_batch
from redimnet_jax.nn.grouped_kernel import block_diagonal

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
    """The number of frames, up to 6, that shares a convolution's work most evenly, where neighbours count a third."""

    def cost(n: int) -> float:
        pairs = math.ceil(math.ceil(bins / 16) * math.ceil(frames / n) / 2)
        return math.ceil(math.ceil(channels / 8) * pairs / warps) * (n + (n + 2) / 3)

    return min(range(1, 7), key=cost)


def _positions_a_warp(positions: int, channels: int, warps: int) -> int:
    """Of up to 10 registers' worth of tiles of 16 positions how many a warp takes at once; each needs the kernel."""
    tiles = math.ceil(positions / 16)
    most = max(1, min(4, 10 // math.ceil(channels / 16)))
    return min(range(1, most + 1), key=lambda n: math.ceil(math.ceil(tiles / n) / warps) * (n + 0.5))


def suits_depthwise_residual(bins: int, kernel_shape: tuple[int, ...]) -> bool:
    """Whether `depthwise_residual` takes maps of `bins` and a depthwise kernel (kt, kf, 1, channels)."""
    *taps, members, channels = kernel_shape
    suits = taps == [3, 3] and members == 1 and channels % 2 == 0 and channels <= 128
    return suits and _residual_tile(bins, channels) is not None


def depthwise_residual(x: Array, mask: Array | None, first: Sequence[Array], second: Sequence[Array], add: bool):
    """relu(x + y), or y where not `add`: y = conv(h) kernel + bias of h = relu(conv(x) kernel + bias) gain + shift.

    `first` is (taps, kernel, bias, gain, shift) of h, `second` (taps, kernel, bias) of y, float32:
    (3, 3, 1, channels), (channels, channels) and (channels,).
    """
    return by_batch(lambda *arrays: _depthwise_residual(*arrays, add=add), x, mask, *first, *second, batched=2)


def _depthwise_residual(x: Array, mask: Array | None, *weights: Array, add: bool) -> Array:
    batch, frames, bins, channels = x.shape
    columns = _columns(channels)
    warps, most = _residual_tile(bins, channels)
    tile_frames = _even(frames, most)

    taps1, kernel1, bias1, gain, shift, taps2, kernel2, bias2 = weights

    def together(*arrays: Array, rows: int = 0) -> Array:
        """As few operands as there can be: each costs operations of its own to make."""
        fill = [(0, 0), (0, rows), (0, columns - channels)]
        return jnp.pad(jnp.stack(arrays), fill if arrays[0].ndim == 2 else fill[::2])

    taps = together(taps1.reshape(9, channels), taps2.reshape(9, channels)).astype(x.dtype)
    pointwise = operands.lane_order(together(kernel1, kernel2, rows=-channels % 16))

    (out,) = program.launch(
        "depthwise_residual",
        [x, *operands.masks(mask), taps, pointwise, together(bias1, gain, shift, bias2)],
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


def suits_pointwise(shape: tuple[int, ...], out: int) -> bool:
    """Whether `pointwise` takes maps of `shape` (batch, time, [freq,] channels) and has a use, for `out` channels.

    A library's product makes copies where eight do not divide the channels.
    """
    *outer, bins, channels = shape
    if len(outer) not in (1, 2) or channels % 2 or out % 2 or (channels % 8 == 0 and out % 8 == 0):
        return False
    return channels <= 80 and out <= 128 and _pointwise_frames(bins, channels, out) > 0


def pointwise(x: Array, kernel: Array, bias: Array) -> Array:
    """x kernel + bias of `x` (batch, time, [freq,] channels), float32 `kernel` (channels, out) and `bias` (out,)."""
    if x.ndim == 3:
        # All frames of an utterance as the bins of one.
        return by_batch(_pointwise, x[:, None], kernel, bias, batched=1)[:, 0]
    return by_batch(_pointwise, x, kernel, bias, batched=1)


def _pointwise(x: Array, kernel: Array, bias: Array) -> Array:
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


def suits_squeeze(bins: int, features: int, kernel_shape: tuple[int, ...]) -> bool:
    """Whether `squeeze` takes maps of `bins` and `features`, and a grouped kernel (kt, kf, in/groups, out)."""
    kt, kf, _, out = kernel_shape
    steps = _steps(features, kernel_shape)
    suits = (kt, kf) == (3, 3) and features % 2 == out % 2 == 0 and 0 < steps <= 8 and out <= 128
    return suits and _squeeze_tile(bins, steps, out) is not None


def squeeze(x: Array, mask: Array | None, taps: Array, shift: Array, kernel: Array, bias: Array) -> Array:
    """gelu(conv(x) + shift) kernel + bias, of fewer channels.

    Float32 `taps` (3, 3, channels/groups, out), `shift` and `bias` (out,), `kernel` (out, out).
    """
    return by_batch(_squeeze, x, mask, taps, shift, kernel, bias, batched=2)


def _taps_of_steps(taps: Array, features: int, steps: int) -> Array:
    """Grouped (3, 3, in/groups, out) -> (9, out / 8 rounded up, steps, 32 lanes, 2) bfloat16."""
    members, out = taps.shape[2:]
    blocks = _columns(out) // 8
    dense = block_diagonal(taps, features // members).reshape(9, features, out)
    filled = jnp.pad(dense, ((0, 0), (0, 8 * steps * blocks - features), (0, 8 * blocks - out)))
    diagonal = jnp.einsum("tjsjo->tjso", filled.reshape(9, blocks, 8 * steps, blocks, 8))
    pairs = diagonal.astype(jnp.bfloat16).reshape(9, blocks, steps, 4, 2, 8)
    return pairs.transpose(0, 1, 2, 5, 3, 4).reshape(9, blocks, steps, 32, 2)


def _squeeze(x: Array, mask: Array | None, taps: Array, shift: Array, kernel: Array, bias: Array) -> Array:
    (batch, frames, bins, channels), out_channels = x.shape, taps.shape[3]
    steps, fill = _steps(channels, taps.shape), (0, -out_channels % 8)
    warps, most = _squeeze_tile(bins, steps, out_channels)
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
