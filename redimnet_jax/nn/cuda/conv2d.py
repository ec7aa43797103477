"""Grouped 3x3 convolutions of maps (batch, time, freq, channels), bfloat16, and what blocks do with them.

Their plain forms are in `convolution`, `convnext` and `residual`.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from redimnet_jax.nn.cuda import device, operands, program
from redimnet_jax.nn.cuda.sharding import by_batch
from redimnet_jax.nn.grouped_kernel import block_diagonal
from redimnet_jax.nn.weights import Affine, Pointwise

Array = jax.Array

FRAMES = 16
# Products' operands of 16 x 8 that a warp can hold of a pointwise kernel.
HELD = 36
# With more channels the product after a convolution is a library's: one kernel for both was not tried there.
MAX_CHANNELS_WITH_PRODUCT = 128


def _taps_in_lane_order(kernel: Array, block: int) -> Array:
    """Rearrange a grouped kernel (3, 3, in/groups, out) -> (9, out / 16, block / 16, 32 lanes, 8) bfloat16."""
    members, out = kernel.shape[2:]
    blocks = kernel.reshape(3, 3, members, out // block, block)
    dense = jax.vmap(lambda kernel: block_diagonal(kernel, block // members), in_axes=3, out_axes=2)(blocks)
    ordered = operands.lane_order(dense.reshape(9, out // block, block, block))
    ordered = ordered.reshape(9, out // block, block // 16, block // 16, 2, 32, 4)
    return ordered.transpose(0, 1, 3, 2, 5, 4, 6).reshape(9, out // 16, block // 16, 32, 8)


def _strip(bins: int, channels: int, block: int) -> tuple[int, float]:
    """Return (the number of bins that shares the work of a tile most evenly, bins of the busiest warp).

    Neighbours count a third. Of 32 input channels a warp keeps all sums between two passes: at most 6 bins of them.
    """

    def bins_of_a_warp(n: int) -> float:
        return math.ceil(channels // 16 * math.ceil(bins / n) / device.WARPS) * (n + (n + 2) / 3)

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
        of_one = 16 * device.WARPS * _strip(n, c, block)[1] + copied / 2
        return math.ceil(bins / n) * channels / c * of_one, -n * c

    sizes = {math.ceil(bins / parts) for parts in range(1, bins + 1)}
    tiles = [
        (n, c) for c in tile_channels for n in sizes if _conv_bytes(n, c, n == bins) <= device.shared_bytes() // 2
    ]
    return min(tiles, key=work, default=None)


def _n_warps(bins: int, channels: int) -> int:
    """Of the divisors of 8 the number of warps to share the output channels of a bin."""
    tiles = channels // 8

    def cost(n: int) -> tuple[bool, int]:
        return channels // 16 * (tiles // n) > HELD, math.ceil(bins / (device.WARPS // n)) * (tiles // n)

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
    """Whether one kernel takes maps of `bins`, a grouped kernel (kt, kf, in/groups, out) and a product behind it."""
    if not suits_conv(bins, kernel_shape):
        return False
    channels = kernel_shape[3]
    tile = _tile(bins, channels, _block(kernel_shape[2]), [channels])
    return tile is not None and channels // 16 * (channels // 8 // _n_warps(tile[0], channels)) <= HELD


class Epilogue(NamedTuple):
    """What one kernel does with a convolution before it writes the map; what is None is left out.

    With `shift` gelu(conv + shift) takes the place of the convolution; `product` is applied to it, then `residual` is
    added, and `scale` comes last, after a relu. All but `residual`, a map, are float32.
    """

    shift: Array | None = None
    product: Pointwise | None = None
    scale: Affine | None = None


def convnext_2d(x: Array, mask: Array | None, taps: Array, shift: Array, product: Pointwise) -> Array:
    """Return x + gelu(conv(x) + shift) kernel + bias.

    Weights are float32: `taps` (3, 3, channels/groups, channels), `shift` (channels,).
    """
    return by_batch(_conv2d, x, mask, x, taps, Epilogue(shift, product), batched=3)


def conv2d_and_product(
    x: Array,
    mask: Array | None,
    residual: Array | None,
    taps: Array,
    product: Pointwise,
    scale: Affine | None = None,
    *,
    relu: bool,
) -> Array:
    """Return relu(conv(x) kernel + bias + `residual`) gain + offset, without what is None, or relu if not `relu`.

    `taps` (3, 3, channels/groups, channels) are float32. With `scale` there must be a relu and no residual. This is
    one kernel, or one for the convolution and a library's product.
    """
    if x.shape[3] > MAX_CHANNELS_WITH_PRODUCT or not suits_product(x.shape[2], taps.shape):
        convolved = grouped_conv2d(x, taps, mask=mask)
        y = jnp.matmul(convolved, product.kernel.astype(x.dtype)) + product.bias.astype(x.dtype)
        y = y if residual is None else y + residual
        y = jax.nn.relu(y) if relu else y
        return y if scale is None else (y.astype(jnp.float32) * scale.gain + scale.offset).astype(x.dtype)
    function = functools.partial(_conv2d, relu=relu)
    return by_batch(function, x, mask, residual, taps, Epilogue(None, product, scale), batched=3)


def grouped_conv2d(x: Array, kernel: Array, residual: Array | None = None, mask: Array | None = None) -> Array:
    """Convolve `x` with a grouped kernel (3, 3, channels/groups, channels), and add `residual` if given."""
    return by_batch(_conv2d, x, mask, residual, kernel, Epilogue(), batched=3)


def grouped_conv2d_sums(x: Array, kernel: Array) -> Array:
    """Return the sums over all positions of the convolution's values and their squares, (2, channels) float32."""

    def partial_sums(x: Array, taps: Array) -> Array:
        return _tiled_conv2d(x, None, None, taps, Epilogue(), statistics=True)

    sums = by_batch(partial_sums, x, kernel, batched=1)
    # (batch, programs of an utterance, tiles of channels, their blocks, strips, sum or sum of squares, 16 channels)
    return sums.sum((0, 1, 4)).transpose(2, 0, 1, 3).reshape(2, x.shape[3])


def _conv2d(
    x: Array, mask: Array | None, residual: Array | None, taps: Array, epilogue: Epilogue, *, relu: bool = False
) -> Array:
    """Launch the kernel for these operands: the streamed one where it fits and has no GELU."""
    has_product = epilogue.product is not None
    is_bare = _block(taps.shape[2]) == 16 and not has_product
    stream = None if is_bare or epilogue.shift is not None else _stream(x.shape[2], x.shape[3], has_product)
    if stream is None:
        return _tiled_conv2d(x, mask, residual, taps, epilogue, relu=relu)
    given = _kernel_operands(x, mask, residual, taps, epilogue)
    macros = _epilogue_macros(mask, residual, epilogue, relu)
    return _streamed_conv2d(given, _block(taps.shape[2]), *stream, **macros)


def _kernel_operands(
    x: Array, mask: Array | None, residual: Array | None, taps: Array, epilogue: Epilogue
) -> list[Array]:
    product, scale = epilogue.product, epilogue.scale
    pointwise = [] if product is None else [operands.lane_order(product.kernel), product.bias]
    ordered = [residual, _taps_in_lane_order(taps, _block(taps.shape[2])), epilogue.shift, *pointwise, *(scale or ())]
    return [x, *operands.masks(mask), *(operand for operand in ordered if operand is not None)]


def _epilogue_macros(mask: Array | None, residual: Array | None, epilogue: Epilogue, relu: bool) -> dict[str, int]:
    return {
        "MASKED": int(mask is not None),
        "RESIDUAL": int(residual is not None),
        "POINTWISE": int(epilogue.product is not None),
        "SCALED": int(epilogue.scale is not None),
        "RELU": int(relu and epilogue.scale is None),
    }


def _tiled_conv2d(
    x: Array,
    mask: Array | None,
    residual: Array | None,
    taps: Array,
    epilogue: Epilogue,
    *,
    relu: bool = False,
    statistics: bool = False,
) -> Array:
    """Launch `grouped_conv2d`; with `statistics` it returns partial sums in place of the map."""
    batch, frames, bins, channels = x.shape
    block = _block(taps.shape[2])
    has_product = epilogue.product is not None
    tile = _tile(bins, channels, block, _tile_channels(channels, block, has_product))
    assert tile is not None  # `suits_conv` has looked.
    tile_bins, tile_channels = tile
    strip, _ = _strip(tile_bins, tile_channels, block)
    blocks, tiles = tile_channels // 16, channels // tile_channels
    frame_tiles, bin_tiles = math.ceil(frames / FRAMES), math.ceil(bins / tile_bins)
    sums = batch, frame_tiles * bin_tiles, tiles, blocks, math.ceil(tile_bins / strip), 2, 16
    (out,) = program.launch(
        "grouped_conv2d",
        _kernel_operands(x, mask, residual, taps, epilogue),
        jax.ShapeDtypeStruct(sums, jnp.float32) if statistics else operands.like(x),
        grid=(batch * frame_tiles, bin_tiles * tiles),
        threads=32 * device.WARPS,
        shared_bytes=_conv_bytes(tile_bins, tile_channels, tile_bins == bins, not statistics),
        FRAMES=frames,
        BINS=bins,
        CHANNELS=channels,
        TILE_BINS=tile_bins,
        TILE_CHANNELS=tile_channels,
        KERNEL_CHANNELS=block,
        STRIP=strip,
        N_WARPS=_n_warps(tile_bins, channels) if has_product else 1,
        GELU=int(epilogue.shift is not None),
        STATISTICS=int(statistics),
        **_epilogue_macros(mask, residual, epilogue, relu),
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
    return next((size for size in sizes if _stream_bytes(*size, pointwise) <= device.shared_bytes()), None)


def _streamed_conv2d(
    given: Sequence[Array], block: int, tile_channels: int, step: int, stages: int, **around: int
) -> Array:
    x = given[0]
    batch, frames, bins, channels = x.shape
    units, channel_tiles = 4 // (tile_channels // 32), channels // tile_channels
    rounds = math.ceil(batch * math.ceil(frames / FRAMES) / units)
    (out,) = program.launch(
        "streamed_conv2d",
        given,
        operands.like(x),
        grid=(min(rounds, max(1, device.multiprocessors() // channel_tiles)), channel_tiles),
        threads=32 * device.WARPS,
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
    """Return the numbers of channels that a tile may have."""
    fit = [n for n in range(block, min(channels, 192) + 1, block) if channels % n == 0]
    # Lines of memory are 64 channels.
    return [channels] if pointwise else [n for n in fit if n >= 64] or fit[-1:]


def grouped_kernel_gradient(x: Array, dy: Array, members: int) -> Array:
    """Return the gradient of the kernel (3, 3, members, channels), float32, from input and output gradient."""
    channels, groups = x.shape[3], 16 // members
    partial = by_batch(_partial_gradients, x, dy, batched=2)
    full = partial.sum((0, 1)).reshape(channels // 16, 9, groups, members, groups, members)
    return jnp.einsum("btgigo->tibgo", full).reshape(3, 3, members, channels)


def _partial_gradients(x: Array, dy: Array) -> Array:
    batch, frames, bins, channels = x.shape
    # Sixteen channels and three bins for each of eight warps.
    blocks = next(n for n in (4, 2, 1) if channels // 16 % n == 0)
    tile_channels, tile_bins = 16 * blocks, min(bins, device.WARPS // blocks * 3)
    bin_tiles, sums = math.ceil(bins / tile_bins), 4 * device.WARPS * 9 * 16 * 16
    (partial,) = program.launch(
        "grouped_kernel_gradient",
        [x, dy],
        jax.ShapeDtypeStruct((batch, bin_tiles, channels // 16, 9, 16, 16), jnp.float32),
        grid=(batch, bin_tiles * channels // tile_channels),
        threads=32 * device.WARPS,
        shared_bytes=max(sums, 2 * _conv_bytes(tile_bins, tile_channels, False)),
        FRAMES=frames,
        BINS=bins,
        CHANNELS=channels,
        TILE_BINS=tile_bins,
        TILE_CHANNELS=tile_channels,
    )
    return partial
