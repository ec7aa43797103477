"""The kernels as functions of arrays. Their plain forms are in `convolution` and `convnext`.

Maps are bfloat16 and channels last: (batch, time, freq, channels) or (batch, time, channels). Frames outside `mask`
(batch, time) count as zeros, as beyond the ends.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from redimnet_jax.cuda import program
from redimnet_jax.cuda.sharding import by_batch
from redimnet_jax.grouped_kernel import block_diagonal

Array = jax.Array

WARPS, FRAMES = 8, 16
# Shared memory that a program can have at most, in general and by compute capability.
SHARED_BYTES = 227 * 1024
LESS_SHARED_BYTES = {"8.0": 163 * 1024, "8.6": 99 * 1024, "8.7": 163 * 1024, "8.9": 99 * 1024, "12.0": 99 * 1024}
# Products' operands of 16 x 8 that a warp can hold of a pointwise kernel.
HELD = 36
# Odd, so that threads side by side read different banks.
FRAMES_A_THREAD = 13


def _shared_bytes() -> int:
    # On other backends the kernels are traced and left out.
    of_device = jax.devices()[0].compute_capability if jax.default_backend() == "gpu" else ""
    return min(SHARED_BYTES, LESS_SHARED_BYTES.get(of_device, SHARED_BYTES))


def _multiprocessors() -> int:
    # An H200's, where the kernels are left out.
    return jax.devices()[0].core_count if jax.default_backend() == "gpu" else 132


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _masks(mask: Array | None) -> list[Array]:
    return [] if mask is None else [mask.astype(jnp.int32)]


def _lane_order(kernel: Array) -> Array:
    """(..., in, out) float32 -> bfloat16, (..., in / 16, out / 8, 32 lanes, 4): what a lane holds of a product."""
    *_, rows, columns = kernel.shape
    split = kernel.astype(jnp.bfloat16).reshape(*kernel.shape[:-2], rows // 16, 2, 4, 2, columns // 8, 8)
    # (in / 16, half, pair, one, out / 8, group) -> (in / 16, out / 8, group, pair, half, one)
    ordered = jnp.moveaxis(split, (-2, -1, -4, -5, -3), (-5, -4, -3, -2, -1))
    return ordered.reshape(*kernel.shape[:-2], rows // 16, columns // 8, 32, 4)


def _taps_in_lane_order(kernel: Array, block: int) -> Array:
    """Grouped (3, 3, in/groups, out) -> (9, out / 16, block / 16, 32 lanes, 8) bfloat16."""
    members, out = kernel.shape[2:]
    blocks = kernel.reshape(3, 3, members, out // block, block)
    dense = jax.vmap(lambda kernel: block_diagonal(kernel, block // members), in_axes=3, out_axes=2)(blocks)
    ordered = _lane_order(dense.reshape(9, out // block, block, block))
    ordered = ordered.reshape(9, out // block, block // 16, block // 16, 2, 32, 4)
    return ordered.transpose(0, 1, 3, 2, 5, 4, 6).reshape(9, out // 16, block // 16, 32, 8)


def _strip(bins: int, channels: int, block: int) -> tuple[int, float]:
    """(the number of bins that shares the work of a tile most evenly, bins of the busiest warp).

    Neighbours count a third. Of 32 input channels a warp keeps all sums between two passes: at most 6 bins of them.
    """

    def bins_of_a_warp(n: int) -> float:
        return math.ceil(channels // 16 * math.ceil(bins / n) / WARPS) * (n + (n + 2) / 3)

    strip = min(range(1, 10 if block == 16 else 7), key=bins_of_a_warp)
    return strip, bins_of_a_warp(strip)


def _tile(bins: int, channels: int, block: int, tile_channels: Sequence[int]) -> tuple[int, int] | None:
    """(bins, channels) of a program's tile, of which a multiprocessor has two; None where none is small enough.

    Those that take the least work in all, where a value that is copied counts half of one that is computed, and of
    several such the largest.
    """

    def work(tile: tuple[int, int]) -> tuple[float, int]:
        n, c = tile
        copied = c * (n if n == bins else n + 2)
        of_one = 16 * WARPS * _strip(n, c, block)[1] + copied / 2
        return math.ceil(bins / n) * channels / c * of_one, -n * c

    sizes = {math.ceil(bins / parts) for parts in range(1, bins + 1)}
    tiles = [(n, c) for c in tile_channels for n in sizes if _conv_bytes(n, c, n == bins) <= _shared_bytes() // 2]
    return min(tiles, key=work, default=None)


def _n_warps(bins: int, channels: int) -> int:
    """Of the divisors of 8 the number of warps to share the output channels of a bin."""
    tiles = channels // 8

    def cost(n: int) -> tuple[bool, int]:
        return channels // 16 * (tiles // n) > HELD, math.ceil(bins / (WARPS // n)) * (tiles // n)

    return min((n for n in (1, 2, 4, 8) if tiles % n == 0), key=cost)


def _block(members: int) -> int:
    return max(16, members)


def _conv_bytes(bins: int, channels: int, all_bins: bool, output_tile: bool = True) -> int:
    loaded = bins if all_bins else bins + 2
    return 2 * ((FRAMES + 2) * (loaded * channels + 8) + output_tile * FRAMES * (bins * channels + 8))


def suits_conv(bins: int, kernel_shape: tuple[int, ...]) -> bool:
    """Whether `grouped_conv2d` takes maps of `bins` and a grouped kernel (kt, kf, in/groups, out)."""
    kt, kf, members, out = kernel_shape
    return bins > 2 and (kt, kf) == (3, 3) and members in (1, 2, 4, 8, 16, 32) and out % _block(members) == 0


def suits_gradient(kernel_shape: tuple[int, ...]) -> bool:
    """Whether `grouped_kernel_gradient` takes what `grouped_conv2d` does: at most 16 channels a group."""
    return kernel_shape[2] <= 16


def suits_product(bins: int, kernel_shape: tuple[int, ...]) -> bool:
    """Whether `conv2d_and_product` takes maps of `bins` and a grouped kernel (kt, kf, in/groups, out)."""
    if not suits_conv(bins, kernel_shape):
        return False
    channels = kernel_shape[3]
    tile = _tile(bins, channels, _block(kernel_shape[2]), [channels])
    return tile is not None and channels // 16 * (channels // 8 // _n_warps(tile[0], channels)) <= HELD


def suits_depthwise(channels: int) -> bool:
    """Whether `depthwise_conv1d` takes maps of `channels`."""
    return channels % 4 == 0


def suits_depthwise_gradient(channels: int) -> bool:
    """Whether `depthwise_kernel_gradient` takes maps of `channels`."""
    return channels % 8 == 0


def convnext_2d(x: Array, mask: Array | None, taps: Array, shift: Array, kernel: Array, bias: Array) -> Array:
    """x + gelu(conv(x) + shift) kernel + bias.

    Float32 `taps` (3, 3, channels/groups, channels), `shift` and `bias` (channels,), `kernel` (channels, channels).
    """
    return by_batch(_conv2d, x, mask, x, taps, shift, kernel, bias, batched=3)


def conv2d_and_product(
    x: Array,
    mask: Array | None,
    residual: Array | None,
    taps: Array,
    kernel: Array,
    bias: Array,
    gain: Array | None = None,
    offset: Array | None = None,
    *,
    relu: bool,
) -> Array:
    """relu(conv(x) kernel + bias + `residual`) gain + offset; what is None, and relu if not `relu`, is left out.

    Float32 `taps` (3, 3, channels/groups, channels), `kernel` (channels, channels), `bias`, `gain` and `offset`
    (channels,). With a gain there is a relu and no residual.
    """
    arrays = x, mask, residual, taps, None, kernel, bias, gain, offset
    return by_batch(lambda *arrays: _conv2d(*arrays, relu=relu), *arrays, batched=3)


def grouped_conv2d(x: Array, kernel: Array, residual: Array | None = None, mask: Array | None = None) -> Array:
    """The convolution of `x` with a grouped kernel (3, 3, channels/groups, channels), plus `residual` if given."""
    return by_batch(_conv2d, x, mask, residual, kernel, batched=3)


def grouped_conv2d_sums(x: Array, kernel: Array) -> Array:
    """Of the convolution the sums over all positions of its values and of their squares, (2, channels) float32."""
    sums = by_batch(lambda x, taps: _conv2d(x, None, None, taps, statistics=True), x, kernel, batched=1)
    # (batch, programs of an utterance, tiles of channels, their blocks, strips, what, 16 channels)
    return sums.sum((0, 1, 4)).transpose(2, 0, 1, 3).reshape(2, x.shape[3])


def _conv2d(
    x: Array,
    mask: Array | None,
    residual: Array | None,
    taps: Array,
    shift: Array | None = None,
    kernel: Array | None = None,
    bias: Array | None = None,
    gain: Array | None = None,
    offset: Array | None = None,
    *,
    relu: bool = False,
    statistics: bool = False,
) -> Array:
    """What is None is left out; `statistics` in place of the map."""
    batch, frames, bins, channels = x.shape
    block = _block(taps.shape[2])
    pointwise = None if kernel is None else _lane_order(kernel)
    operands = [residual, _taps_in_lane_order(taps, block), shift, pointwise, bias, gain, offset]
    operands = [x, *_masks(mask), *(operand for operand in operands if operand is not None)]
    around = {
        "MASKED": int(mask is not None),
        "RESIDUAL": int(residual is not None),
        "POINTWISE": int(kernel is not None),
        "SCALED": int(gain is not None),
        "RELU": int(relu and gain is None),
    }
    plain = block == 16 and kernel is None
    stream = None if plain or shift is not None or statistics else _stream(bins, channels, kernel is not None)
    if stream is not None:
        return _streamed_conv2d(operands, block, *stream, **around)
    tile_bins, tile_channels = _tile(bins, channels, block, _tile_channels(channels, block, kernel is not None))
    strip, _ = _strip(tile_bins, tile_channels, block)
    blocks, tiles = tile_channels // 16, channels // tile_channels
    frame_tiles, bin_tiles = math.ceil(frames / FRAMES), math.ceil(bins / tile_bins)
    sums = batch, frame_tiles * bin_tiles, tiles, blocks, math.ceil(tile_bins / strip), 2, 16
    (out,) = program.launch(
        "grouped_conv2d",
        operands,
        jax.ShapeDtypeStruct(sums, jnp.float32) if statistics else _like(x),
        grid=(batch * frame_tiles, bin_tiles * tiles),
        threads=32 * WARPS,
        shared_bytes=_conv_bytes(tile_bins, tile_channels, tile_bins == bins, not statistics),
        FRAMES=frames,
        BINS=bins,
        CHANNELS=channels,
        TILE_BINS=tile_bins,
        TILE_CHANNELS=tile_channels,
        KERNEL_CHANNELS=block,
        STRIP=strip,
        N_WARPS=1 if kernel is None else _n_warps(tile_bins, channels),
        GELU=int(shift is not None),
        STATISTICS=int(statistics),
        **around,
    )
    return out


def _stream_bytes(channels: int, step: int, stages: int, pointwise: bool) -> int:
    units = 4 // (channels // 32)
    loaded, convolved = (FRAMES + 2) * (step * channels + 8), (step + 1) * FRAMES * (channels + 8)
    return 2 * (units * (stages * loaded + 2 * convolved) + pointwise * 4 * 2 * FRAMES * 40)


def _stream(bins: int, channels: int, pointwise: bool) -> tuple[int, int, int] | None:
    """(channels of a tile, bins a step, steps in shared memory) of `streamed_conv2d`; None where it does not fit."""
    tiles = [n for n in (128, 64) if (n == channels if pointwise else channels % n == 0)]
    sizes = [(n, step, stages) for n in tiles for stages in (4, 3) for step in (6, 3) if bins % step == 0]
    return next((size for size in sizes if _stream_bytes(*size, pointwise) <= _shared_bytes()), None)


def _streamed_conv2d(
    operands: Sequence[Array], block: int, tile_channels: int, step: int, stages: int, **around: int
) -> Array:
    x = operands[0]
    batch, frames, bins, channels = x.shape
    units, channel_tiles = 4 // (tile_channels // 32), channels // tile_channels
    rounds = math.ceil(batch * math.ceil(frames / FRAMES) / units)
    (out,) = program.launch(
        "streamed_conv2d",
        operands,
        _like(x),
        grid=(min(rounds, max(1, _multiprocessors() // channel_tiles)), channel_tiles),
        threads=32 * WARPS,
        shared_bytes=_stream_bytes(tile_channels, step, stages, bool(around["POINTWISE"])),
        BATCH=batch,
        FRAMES=frames,
        BINS=bins,
        CHANNELS=channels,
        TILE_CHANNELS=tile_channels,
        KERNEL_CHANNELS=block,
        STEP=step,
        STAGES=stages,
        **around,
    )
    return out


def _tile_channels(channels: int, block: int, pointwise: bool) -> list[int]:
    """The numbers of channels that a tile may have."""
    fit = [n for n in range(block, min(channels, 192) + 1, block) if channels % n == 0]
    # Lines of memory are 64 channels.
    return [channels] if pointwise else [n for n in fit if n >= 64] or fit[-1:]


def grouped_kernel_gradient(x: Array, dy: Array, members: int) -> Array:
    """The gradient of the kernel (3, 3, members, channels), float32, from the input and the output's gradient."""
    channels, groups = x.shape[3], 16 // members
    partial = by_batch(_partial_gradients, x, dy, batched=2)
    full = partial.sum((0, 1)).reshape(channels // 16, 9, groups, members, groups, members)
    return jnp.einsum("btgigo->tibgo", full).reshape(3, 3, members, channels)


def _partial_gradients(x: Array, dy: Array) -> Array:
    batch, frames, bins, channels = x.shape
    # Sixteen channels and three bins for each of eight warps.
    blocks = next(n for n in (4, 2, 1) if channels // 16 % n == 0)
    tile_channels, tile_bins = 16 * blocks, min(bins, WARPS // blocks * 3)
    bin_tiles, sums = math.ceil(bins / tile_bins), 4 * WARPS * 9 * 16 * 16
    (partial,) = program.launch(
        "grouped_kernel_gradient",
        [x, dy],
        jax.ShapeDtypeStruct((batch, bin_tiles, channels // 16, 9, 16, 16), jnp.float32),
        grid=(batch, bin_tiles * channels // tile_channels),
        threads=32 * WARPS,
        shared_bytes=max(sums, 2 * _conv_bytes(tile_bins, tile_channels, False)),
        FRAMES=frames,
        BINS=bins,
        CHANNELS=channels,
        TILE_BINS=tile_bins,
        TILE_CHANNELS=tile_channels,
    )
    return partial


def suits_mix_channels_gradient(channels: int, out: int) -> bool:
    """Whether `mix_channels_gradient` takes a pointwise kernel (channels, out)."""
    return channels == out and channels % 16 == 0 and channels <= 192 and _mixing_bytes(channels) <= _shared_bytes()


def _row_warps(channels: int) -> int:
    return max(1, WARPS // (channels // 16))


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
    """The gradients of x + gelu((y - mean) gain + offset) kernel + bias, from that of the result.

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
    parts = min(math.ceil(rows / tile), math.ceil(_multiprocessors() * at_once / batch))
    sums = batch, parts * row_warps
    dnormalised, dkernel, sums = program.launch(
        "mix_channels_gradient",
        [y, dout, mean, gain, offset, _lane_order(kernel.T)],
        _like(y),
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
        limit = (_shared_bytes() + 1024) // programs - 1024
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
    pointwise = _lane_order(together(kernel1, kernel2, rows=-channels % 16))

    (out,) = program.launch(
        "depthwise_residual",
        [x, *_masks(mask), taps, pointwise, together(bias1, gain, shift, bias2)],
        _like(x),
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
    limit = (_shared_bytes() + 1024) // 3 - 1024
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
        [x, _lane_order(jnp.pad(kernel, ((0, -channels % 16), fill))), jnp.pad(bias, fill)],
        jax.ShapeDtypeStruct((*x.shape[:3], out_channels), x.dtype),
        grid=(batch * math.ceil(frames / tile_frames), 1),
        threads=32 * WARPS,
        shared_bytes=_pointwise_bytes(tile_frames, bins, channels, out_channels),
        FRAMES=frames,
        BINS=bins,
        CHANNELS=channels,
        OUT=out_channels,
        TILE_FRAMES=tile_frames,
        WARPS=WARPS,
        PROGRAMS=3,
        TILES_A_WARP=min(2, _positions_a_warp(tile_frames * (bins + 1), channels, WARPS)),
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
    pointwise = _lane_order(jnp.pad(kernel, ((0, -out_channels % 16), fill)))
    vectors = jnp.pad(jnp.stack([shift, bias]), ((0, 0), fill))
    (out,) = program.launch(
        "squeeze",
        [x, *_masks(mask), _taps_of_steps(taps, channels, steps), pointwise, vectors],
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


def _depthwise_tile(channels: int) -> int:
    return next(n for n in (48, 32, 24, 16, 8, 60, 20, 12, 4) if channels % n == 0)


def depthwise_conv1d(x: Array, mask: Array | None, kernel: Array, shift: Array | None = None) -> Array:
    """The convolution of `x` (batch, time, channels) with `kernel` (taps, channels), an odd number of taps.

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
        [x, *_masks(mask), kernel, *([] if shift is None else [shift])],
        _like(x),
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


def suits_layer_norm(channels: int) -> bool:
    """Whether `layer_norm` takes maps of `channels`."""
    return channels % 4 == 0 and channels <= 1024


def layer_norm(x: Array, scale: Array, shift: Array, eps: float) -> Array:
    """The last axis of `x` (batch, ..., channels) normalised, times `scale`, plus `shift` (channels,), float32."""
    return by_batch(_layer_norm, x, jnp.float32(eps), scale, shift, batched=1)


def _layer_norm(x: Array, eps: Array, scale: Array, shift: Array) -> Array:
    channels, rows = x.shape[-1], math.prod(x.shape[:-1])
    lanes = min(32, 1 << (channels // 4 - 1).bit_length())
    (out,) = program.launch(
        "layer_norm",
        [x, eps, scale, shift],
        _like(x),
        grid=(math.ceil(rows / (32 * WARPS // lanes)), 1),
        threads=32 * WARPS,
        shared_bytes=0,
        MAP_ROWS=rows,
        CHANNELS=channels,
        LANES_A_ROW=lanes,
    )
    return out


def depthwise_kernel_gradient(x: Array, dy: Array, taps: int) -> Array:
    """The gradient of a depthwise kernel (taps, channels), float32, from the input and the output's gradient."""
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


def suits_attention(frames: int, channels: int, heads: int) -> bool:
    """Whether `attention` and its gradient take maps of `frames` and `channels`."""
    size = channels // heads
    return size <= 128 and _head_bytes(frames, size, tiles=4, rows=3) <= _shared_bytes()


def _head_bytes(frames: int, size: int, *, tiles: int, rows: int) -> int:
    length = math.ceil(frames / 16) * 16
    return length * (2 * tiles * (math.ceil(size / 16) * 16 + 8) + 4 * rows)


def _warps_of_rows(frames: int) -> int:
    """Of at most eight warps as many as share tiles of 16 rows evenly."""
    tiles = math.ceil(frames / 16)
    return math.ceil(tiles / math.ceil(tiles / 8))


def attention(q: Array, k: Array, v: Array, mask: Array | None, heads: int) -> tuple[Array, Array]:
    """(softmax(q k^T / sqrt(channels / heads)) v, log2 of the sums of weights (batch, heads, time), float32)."""
    out, log_sums = by_batch(lambda *arrays: _attention(*arrays, heads=heads), q, k, v, mask, batched=4)
    return out, log_sums


def _attention(q: Array, k: Array, v: Array, mask: Array | None, *, heads: int) -> list[Array]:
    batch, frames, channels = q.shape
    return program.launch(
        "attention",
        [q, k, v, *_masks(mask)],
        _like(q),
        jax.ShapeDtypeStruct((batch, heads, frames), jnp.float32),
        grid=(batch * heads, 1),
        threads=32 * _warps_of_rows(frames),
        shared_bytes=_head_bytes(frames, channels // heads, tiles=3, rows=1),
        FRAMES=frames,
        CHANNELS=channels,
        SIZE=channels // heads,
        HEADS=heads,
        WARPS=_warps_of_rows(frames),
        MASKED=int(mask is not None),
    )


def attention_gradient(
    q: Array, k: Array, v: Array, out: Array, log_sums: Array, dout: Array, mask: Array | None
) -> list[Array]:
    """The gradients of `attention` in `q`, `k` and `v`, from what it gave."""
    return by_batch(_attention_gradient, q, k, v, out, log_sums, dout, mask, batched=7)


def _attention_gradient(
    q: Array, k: Array, v: Array, out: Array, log_sums: Array, dout: Array, mask: Array | None
) -> list[Array]:
    (batch, frames, channels), heads = q.shape, log_sums.shape[1]
    return program.launch(
        "attention_gradient",
        [q, k, v, out, log_sums, dout, *_masks(mask)],
        *[_like(q)] * 3,
        grid=(batch * heads, 1),
        threads=32 * _warps_of_rows(frames),
        shared_bytes=_head_bytes(frames, channels // heads, tiles=4, rows=3),
        FRAMES=frames,
        CHANNELS=channels,
        SIZE=channels // heads,
        HEADS=heads,
        WARPS=_warps_of_rows(frames),
        MASKED=int(mask is not None),
    )


def attentive_statistics(x: Array, logits: Array, mask: Array | None) -> Array:
    """(mean, standard deviation) (batch, 2 channels), float32, of `x` over time under softmax of `logits` like it.

    An even number of channels.
    """
    return by_batch(_attentive_statistics, x, logits, mask, batched=3)


def _attentive_statistics(x: Array, logits: Array, mask: Array | None) -> Array:
    batch, frames, channels = x.shape
    (out,) = program.launch(
        "attentive_statistics",
        [x, logits, *_masks(mask)],
        jax.ShapeDtypeStruct((batch, 2 * channels), jnp.float32),
        grid=(batch, math.ceil(channels / 64)),
        threads=32 * WARPS,
        shared_bytes=3 * 8 * 32 * WARPS,
        FRAMES=frames,
        CHANNELS=channels,
        MASKED=int(mask is not None),
    )
    return out
