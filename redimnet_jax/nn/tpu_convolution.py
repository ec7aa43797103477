"""Grouped convolutions in the forms by which the compiler for TPUs makes the fastest programs.

Its matrix unit takes many channels at once and zeros cost it little, so a depthwise convolution is a product with a
banded matrix, and a grouped one is dense over blocks of groups. docs/dev/tpu.md says what each form gains.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from redimnet_jax.nn import tpu_chip
from redimnet_jax.nn.grouped_kernel import dense_in_blocks, groups_of
from redimnet_jax.numerics import precision

Array = jax.Array

# Input channels that a TPU's matrix unit takes at once. A dense convolution of more also multiplies the zeros between
# blocks of as many.
CHANNELS = 128
# Channels of a block in eval mode, two rows of a register in bfloat16: the fewer, the fewer zeros. A gradient of so
# small blocks takes longer than that of large ones.
EVAL_CHANNELS = 16
# Taps of the banded matrices by which a TPU convolves in one dimension, the fewest for which they are worth while,
# and the most frames of a block: with those the taps reach to on both sides they are the columns of its matrix unit.
# Of more blocks the program takes too long to compile.
BAND_TAPS = 59
MIN_TAPS = 19
BAND_FRAMES = 70
MAX_BLOCKS = 6


def banded_1d(x: Array, kernel: Array) -> Array:
    """Convolve each channel of `x` (batch, time, channels) with its filter in `kernel` (taps, channels); odd taps.

    Blocks of frames are multiplied with a banded matrix for each channel, by a unit to which its zeros cost little.
    """
    frames, taps = x.shape[1], BAND_TAPS
    # Padded, kernels of any number of taps have the same program, which is compiled once.
    kernel = jnp.pad(kernel, (((taps - kernel.shape[0]) // 2,) * 2, (0, 0)))
    blocks = -(-frames // BAND_FRAMES)
    block = -(-frames // blocks)
    width = block + taps - 1
    product = functools.partial(jnp.einsum, precision=precision(x.dtype), preferred_element_type=x.dtype)
    tap = jnp.arange(width) - jnp.arange(block)[:, None] == jnp.arange(taps)[:, None, None]
    bands = product("kc,kts->cts", kernel, tap.astype(kernel.dtype))
    # Barriers keep copies to other layouts out of the product, which would take several times as long to compile.
    across = lax.optimization_barrier(x.transpose(2, 1, 0))
    across = jnp.pad(across, ((0, 0), (taps // 2, taps // 2 + blocks * block - frames), (0, 0)))
    windows = jnp.concatenate([across[:, i * block : i * block + width] for i in range(blocks)], axis=2)
    y = lax.optimization_barrier(product("csb,cts->ctb", *lax.optimization_barrier((windows, bands))))
    # Stacked and not concatenated, since that would be a sum of blocks that are padded to all frames.
    y = jnp.stack([part.transpose(2, 1, 0) for part in jnp.split(y, blocks, axis=2)], axis=1)
    return lax.optimization_barrier(y.reshape(len(x), blocks * block, -1))[:, :frames]


def suits_bands(x: Array, kernel: Array) -> bool:
    """Return whether `banded_1d` is worth while for `x` (batch, time, channels) and `kernel` (taps, channels)."""
    # In an export the number of frames may be a symbol.
    few = isinstance(x.shape[1], int) and x.shape[1] <= MAX_BLOCKS * BAND_FRAMES
    return few and MIN_TAPS <= kernel.shape[0] <= BAND_TAPS and kernel.shape[0] % 2 == 1


def blocks_of(x: Array, kernel: Array, channels: int) -> int:
    """Return in how many convolutions a TPU computes that of `x` with the grouped `kernel`, of `channels` each."""
    groups = groups_of(x, kernel)
    return next(n for n in range(1, groups + 1) if groups % n == 0 and (n == groups or x.shape[-1] <= n * channels))


class Blocks(NamedTuple):
    """How a convolution's results lie along the last axis: blocks of channels, of each `bins` frequencies."""

    blocks: int
    bins: int

    def of_channels(self, x: Array) -> Array:
        """Return `x` (channels,) along that axis, (blocks * bins * channels of a block,)."""
        return jnp.tile(x.reshape(self.blocks, 1, -1), (1, self.bins, 1)).reshape(-1)

    def of_product(self, kernel: Array) -> Array:
        """Return `kernel` (channels, out) from that axis to the outputs of each frequency, (..., bins * out)."""
        parts = kernel.reshape(self.blocks, -1, kernel.shape[1])
        wide = jnp.einsum("kio,ab->kaibo", parts, jnp.eye(self.bins, dtype=kernel.dtype))
        return wide.reshape(self.bins * len(kernel), -1)


ONE_BLOCK = Blocks(1, 1)


def grouped_conv2d_in_blocks(x: Array, kernel: Array) -> tuple[Array, Blocks]:
    """Convolve `x` (batch, time, freq, channels) with the grouped `kernel`, as a TPU does it best in eval mode.

    Return the convolution (batch, time, freq / bins, blocks * bins * channels of a block), and its `Blocks`.
    """
    (kt, kf, _, channels), groups, columns = kernel.shape, groups_of(x, kernel), tpu_chip.chip().columns
    blocks = blocks_of(x, kernel, EVAL_CHANNELS)
    width = channels // blocks

    def fits(bins: int) -> bool:
        return x.shape[2] % bins == 0 and max(kt * (kf + bins - 1) * width, bins * channels) <= columns

    bins = next(bins for bins in range(columns, 0, -1) if bins == 1 or fits(bins))
    dense = dense_in_blocks(kernel, groups, blocks).reshape(kt, kf, -1, blocks, width)
    # (kt, kf + bins - 1, in, blocks, bins, out): the kernel at each place among the bins.
    places = [jnp.pad(dense, ((0, 0), (i, bins - 1 - i), *[(0, 0)] * 3)) for i in range(bins)]
    kernel = jnp.stack(places, axis=4)
    y = lax.conv_general_dilated(
        x,
        kernel.reshape(*kernel.shape[:3], -1),
        window_strides=(1, bins),
        padding=(((kt - 1) // 2, kt // 2), ((kf - 1) // 2, kf // 2)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=blocks,
        precision=precision(x.dtype),
    )
    # Without the barrier XLA would write float32 where the next operation begins with a conversion to it.
    return lax.optimization_barrier(y), Blocks(blocks, bins)
