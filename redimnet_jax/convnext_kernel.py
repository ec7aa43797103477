"""A ConvNeXt-like 2-D block in eval mode as one kernel for CUDA GPUs (Pallas, Triton), bfloat16.

x + gelu(batchnorm(3x3 grouped convolution of x)) W + b reads its map once and writes it once; XLA makes four passes
of it. A program does a few consecutive positions (batch, time, frequency) and all channels. Matrix units take blocks
of channels, of which the kernel of the convolution is block-diagonal.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from redimnet_jax.convolution import block_diagonal

Array = jax.Array

TAPS = tuple((time, freq) for time in (-1, 0, 1) for freq in (-1, 0, 1))


def suits(channels: int, kernel_shape: tuple[int, ...]) -> bool:
    """Whether the kernel takes maps of `channels` and a convolution (kt, kf, in/groups, out)."""
    kt, kf, members, out = kernel_shape
    return (kt, kf) == (3, 3) and out == channels and channels % 16 == 0 and 16 % members == 0


def normal_cdf(x: Array) -> Array:
    """Pallas has no erf for Triton: Abramowitz and Stegun, formula 7.1.26, to 1.5e-7."""
    t = 1.0 / (1.0 + 0.3275911 * math.sqrt(0.5) * jnp.abs(x))
    polynomial = 1.061405429
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = coefficient + t * polynomial
    tail = 0.5 * t * polynomial * jnp.exp(-0.5 * x * x)
    return jnp.where(x > 0, 1.0 - tail, tail)


def block_diagonal_taps(kernel: Array, block: int) -> Array:
    """(3, 3, in/groups, out) -> (9, out / block, block, block): of every block of channels the dense kernel."""
    members, out = kernel.shape[2:]
    blocks = kernel.reshape(3, 3, members, out // block, block)
    dense = jax.vmap(lambda kernel: block_diagonal(kernel, block // members), in_axes=3, out_axes=2)(blocks)
    return dense.reshape(9, out // block, block, block)


def _body(x_ref, taps_ref, scale_ref, shift_ref, kernel_ref, bias_ref, *refs, frames: int, bins: int, rows: int):
    (count, channels), block = x_ref.shape, taps_ref.shape[2]
    *mask_refs, out_ref = refs
    positions = pl.program_id(0) * rows + jnp.arange(rows)
    inside = positions < count
    bin_, frame = lax.rem(positions, bins), lax.rem(lax.div(positions, bins), frames)
    reached = []
    for time, freq in TAPS:
        there = inside & (frame + time >= 0) & (frame + time < frames) & (bin_ + freq >= 0) & (bin_ + freq < bins)
        for mask_ref in mask_refs:
            there &= plt.load(mask_ref.at[lax.div(positions, bins) + time], mask=there, other=0) != 0
        reached.append(there)

    def load(offset, valid, first, size):
        at = x_ref.at[(positions + offset)[:, None], (first + jnp.arange(size))[None]]
        return plt.load(at, mask=jnp.broadcast_to(valid[:, None], (rows, size)), other=0.0)

    def add(i, sums):
        here = pl.ds(i * block, block)
        h = jnp.zeros((rows, block), jnp.float32)
        for tap, (time, freq) in enumerate(TAPS):
            h += plt.dot(load(time * bins + freq, reached[tap], i * block, block), taps_ref[tap, i])
        h = h * scale_ref[here] + shift_ref[here]
        h = (h * normal_cdf(h)).astype(x_ref.dtype)
        return tuple(s + plt.dot(h, kernel_ref[here, pl.ds(o * width, width)]) for o, s in enumerate(sums))

    width = min(channels & -channels, 64)
    sums = tuple(jnp.zeros((rows, width), jnp.float32) for _ in range(channels // width))
    sums = add(0, sums) if block == channels else lax.fori_loop(0, channels // block, add, sums)
    for o, total in enumerate(sums):
        out = total + bias_ref[pl.ds(o * width, width)] + load(0, inside, o * width, width).astype(jnp.float32)
        at = out_ref.at[positions[:, None], (o * width + jnp.arange(width))[None]]
        plt.store(at, out.astype(out_ref.dtype), mask=jnp.broadcast_to(inside[:, None], (rows, width)))


# Under jit of its own, blocks of the same shape are lowered once.
@jax.jit
def convnext(
    x: Array,
    mask: Array | None,
    taps: Array,
    scale: Array,
    shift: Array,
    kernel: Array,
    bias: Array,
) -> Array:
    """x + gelu(scale conv(x) + shift) kernel + bias, of the frames inside `mask` (batch, time) where it is given.

    `x` (batch, time, freq, channels) bfloat16; float32 `taps` (3, 3, channels/groups, channels), `scale`, `shift` and
    `bias` (channels,) and `kernel` (channels, channels). Returns the shape and dtype of `x`.
    """
    batch, frames, bins, channels = x.shape
    count = batch * frames * bins
    block = channels if channels <= 32 else 16
    rows = 128 if channels == 16 else 64
    arrays = [
        x.reshape(count, channels),
        block_diagonal_taps(taps, block).astype(x.dtype),
        scale,
        shift,
        kernel.astype(x.dtype),
        bias,
    ]
    if mask is not None:
        arrays.append(mask.reshape(-1).astype(jnp.int32))
    out = pl.pallas_call(
        functools.partial(_body, frames=frames, bins=bins, rows=rows),
        grid=(pl.cdiv(count, rows),),
        out_shape=jax.ShapeDtypeStruct((count, channels), x.dtype),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1 if block == channels else 2),
    )(*arrays)
    return out.reshape(x.shape)
