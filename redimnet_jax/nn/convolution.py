"""Grouped convolutions in forms whose value and gradient are fast on CPU, GPU and TPU.

Both networks are full of grouped 3x3 and depthwise 1-D convolutions. No backend runs XLA's own grouped convolution
well, and its gradient on a CPU is slower by orders of magnitude, so the same sums are written here as shifted
multiply-adds or as one dense convolution with block-diagonal weights, and in bfloat16 on CUDA GPUs as kernels
(`cuda`). Maps are channels last; padding is zero and keeps the size ("same", as in PyTorch).
"""

import functools
import math
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax

from redimnet_jax.nn import tpu_convolution
from redimnet_jax.nn.cuda import conv2d, depthwise, operands
from redimnet_jax.nn.dispatch import by_platform
from redimnet_jax.nn.grouped_kernel import dense_in_blocks, groups_of, transposed
from redimnet_jax.numerics import exact, precision

Array = jax.Array

# Above this many inputs a group the shifted form has too many terms, and the dense one wins on a CPU as well.
MAX_SHIFTED_GROUP = 4
# Input channels of a product in the gradient of a grouped kernel.
GRADIENT_BLOCK = 32
# Frames of a product in the gradient of a depthwise 1-D kernel.
GRADIENT_FRAMES = 64


@jax.custom_vjp
def materialised(x: Array) -> Array:
    """Return `x`, computed once: otherwise XLA may repeat its computation in every operation that reads it."""
    return by_platform(x, plain=lax.optimization_barrier, cpu=_through_empty_loop)


def _through_empty_loop(x: Array) -> Array:
    # XLA for CPU removes barriers before it fuses, but it computes the initial value of a loop. This loop never runs
    # its body, because no element is above infinity, and XLA cannot know that.
    return lax.while_loop(lambda x: x[(0,) * x.ndim] > jnp.inf, jnp.negative, x)


def _materialised_fwd(x: Array):
    return materialised(x), None


def _materialised_bwd(_, dy: Array):
    return (materialised(dy),)


materialised.defvjp(_materialised_fwd, _materialised_bwd)


def _shifted_1d(x: Array, kernel: Array) -> Array:
    taps, frames = kernel.shape[0], x.shape[1]
    x = jnp.pad(materialised(x), ((0, 0), (taps // 2, taps // 2), (0, 0)))
    return cast(Array, sum(x[:, k : k + frames] * kernel[k] for k in range(taps)))


def _native_1d(x: Array, kernel: Array) -> Array:
    y = lax.conv_general_dilated(
        x,
        kernel[:, None],
        window_strides=(1,),
        padding="SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[2],
        precision=precision(x.dtype),
    )
    # Fused into the product after it, the convolution would be done again for every block of output channels.
    return lax.optimization_barrier(y)


def _depthwise_1d(x: Array, kernel: Array) -> Array:
    def fused(x: Array, kernel: Array) -> Array:
        return depthwise.depthwise_conv1d(x, None, kernel)

    cuda = fused if depthwise.suits_depthwise(x) else None
    # XLA for TPU computes a convolution of few taps well, and would fuse a sum of shifts into the product after it.
    tpu = tpu_convolution.banded_1d if tpu_convolution.suits_bands(x, kernel) else _native_1d
    return by_platform(x, kernel, plain=_shifted_1d, cuda=cuda, tpu=tpu)


@jax.custom_vjp
def depthwise_conv1d(x: Array, kernel: Array) -> Array:
    """Convolve each channel of `x` (batch, time, channels) with its filter in `kernel` (taps, channels); odd taps."""
    return _depthwise_1d(x, kernel)


def _depthwise_conv1d_fwd(x: Array, kernel: Array):
    return depthwise_conv1d(x, kernel), (x, kernel)


def _kernel_gradient_1d_by_taps(x: Array, dy: Array) -> Array:
    """Return the sums over batch and time of `dy` times the shifts of `x` (batch, time + taps - 1, channels)."""

    def tap(k):
        window = lax.dynamic_slice_in_dim(x, k, dy.shape[1], axis=1)
        return jnp.sum(exact(window) * dy, axis=(0, 1))

    return lax.map(tap, jnp.arange(x.shape[1] - dy.shape[1] + 1))


def _kernel_gradient_1d_by_products(x: Array, dy: Array) -> Array:
    """Compute the same by matrix products of all pairs of frames in a block, whose diagonals are then summed."""
    (batch, frames, channels), taps = dy.shape, x.shape[1] - dy.shape[1] + 1
    blocks = -(-frames // GRADIENT_FRAMES)
    extra = blocks * GRADIENT_FRAMES - frames
    x, dy = (jnp.pad(y, ((0, 0), (0, extra), (0, 0))) for y in (x, dy))
    width = GRADIENT_FRAMES + taps - 1
    starts = range(0, blocks * GRADIENT_FRAMES, GRADIENT_FRAMES)
    windows = jnp.stack([x[:, start : start + width] for start in starts])
    dy = dy.reshape(batch, blocks, GRADIENT_FRAMES, channels)
    products = jnp.einsum(
        "nbsc,bntc->cts", windows, dy, precision=precision(dy.dtype), preferred_element_type=exact(dy).dtype
    )
    # Rows one column longer move row t by t places, and the diagonal s = t + k becomes column k.
    rows = jnp.pad(products.reshape(channels, -1), ((0, 0), (0, GRADIENT_FRAMES)))
    return rows.reshape(channels, GRADIENT_FRAMES, width + 1).sum(axis=1)[:, :taps].T


def _depthwise_conv1d_bwd(residuals, dy: Array):
    x, kernel = residuals
    dy = materialised(dy)
    taps = kernel.shape[0]

    def padded(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)))

    def by_products(x: Array, dy: Array) -> Array:
        return _kernel_gradient_1d_by_products(padded(x), dy)

    def by_taps(x: Array, dy: Array) -> Array:
        return _kernel_gradient_1d_by_taps(padded(x), dy)

    fused = None
    if depthwise.suits_depthwise_gradient(x):
        fused = functools.partial(depthwise.depthwise_kernel_gradient, taps=taps)
    dkernel = by_platform(x, dy, plain=by_products, cpu=by_taps, cuda=fused)
    return _depthwise_1d(dy, kernel[::-1]), dkernel.astype(kernel.dtype)


depthwise_conv1d.defvjp(_depthwise_conv1d_fwd, _depthwise_conv1d_bwd)


def _dense_2d(x: Array, kernel: Array, blocks: int = 1) -> Array:
    """Convolve with block-diagonal weights, in `blocks` convolutions of as many groups each."""
    groups = groups_of(x, kernel)
    if groups > blocks:
        kernel = dense_in_blocks(kernel, groups, blocks)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=blocks,
        precision=precision(x.dtype),
    )


def _windows_2d(x: Array, kt: int, kf: int) -> list[list[Array]]:
    """Return the kt x kf shifts of `x` (batch, time, freq, channels) under zero padding, each of the shape of `x`."""
    frames, bins = x.shape[1:3]
    # The padded map is what is kept together: of a shift by nothing XLA would otherwise take `x` itself, and put what
    # made it into the loop over all shifts, which then takes several times as long on a CPU.
    x = materialised(jnp.pad(x, ((0, 0), (kt // 2, kt // 2), (kf // 2, kf // 2), (0, 0))))
    return [[x[:, t : t + frames, f : f + bins] for f in range(kf)] for t in range(kt)]


@jax.custom_vjp
def _shifted_2d(x: Array, kernel: Array) -> Array:
    return materialised(_shifted(x, kernel))


def _shifted(x: Array, kernel: Array) -> Array:
    (kt, kf, n, out), groups = kernel.shape, groups_of(x, kernel)
    members = x.reshape(*x.shape[:-1], groups, n)
    total = jnp.zeros((), x.dtype)
    for i in range(n):
        windows = _windows_2d(jnp.repeat(members[..., i], out // groups, axis=-1), kt, kf)
        for t in range(kt):
            for f in range(kf):
                total = total + windows[t][f] * kernel[t, f, i]
    return total


def _shifted_2d_fwd(x: Array, kernel: Array):
    return _shifted_2d(x, kernel), (x, kernel)


def _shifted_2d_bwd(residuals, dy: Array):
    x, kernel = residuals

    def of_one(maps):
        x, dy = maps
        return _shifted_2d_gradients(x[None], dy[None], kernel)

    # One utterance at a time: what the shifts and their products read stays in the cache.
    dx, dkernel = lax.map(of_one, (x, dy))
    return dx.reshape(x.shape), dkernel.sum(axis=0)


def _shifted_2d_gradients(x: Array, dy: Array, kernel: Array) -> tuple[Array, Array]:
    (kt, kf, n, out), groups = kernel.shape, groups_of(x, kernel)
    # A product of all channels would multiply every group with every other, so it is a few groups at a time. One
    # transpose serves all products: each is then (out, positions) x (positions, in), as a CPU likes it.
    blocks = math.gcd(groups, max(1, groups * n // GRADIENT_BLOCK))
    rows = materialised(dy.reshape(-1, out).T).reshape(blocks, out // blocks, -1)

    def tap(window):
        if n == 1 and out == groups:
            return jnp.sum(window * dy, axis=(0, 1, 2))[None]
        columns = jnp.split(window.reshape(-1, groups * n), blocks, axis=1)
        products = [jnp.matmul(*pair, precision=precision(x.dtype)) for pair in zip(rows, columns, strict=True)]
        full = jnp.stack(products).reshape(blocks, groups // blocks, out // groups, groups // blocks, n)
        return jnp.einsum("bgogi->ibgo", full).reshape(n, out)

    dkernel = jnp.stack([jnp.stack([tap(window) for window in row]) for row in _windows_2d(x, kt, kf)])
    return _shifted(dy, materialised(transposed(kernel, groups))), dkernel


_shifted_2d.defvjp(_shifted_2d_fwd, _shifted_2d_bwd)


@jax.custom_vjp
def _spread_2d(x: Array, kernel: Array) -> Array:
    """Convolve one input channel, for which matrix units are of no use."""
    kt, kf, _, _ = kernel.shape
    windows = _windows_2d(x, kt, kf)
    return cast(Array, sum(windows[t][f] * kernel[t, f, 0] for t in range(kt) for f in range(kf)))


def _spread_2d_fwd(x: Array, kernel: Array):
    return _spread_2d(x, kernel), (x, kernel)


def _spread_2d_bwd(residuals, dy: Array):
    x, kernel = residuals
    kt, kf, _, _ = kernel.shape
    windows = jnp.concatenate([window for row in _windows_2d(x, kt, kf) for window in row], axis=-1)
    product = functools.partial(jnp.einsum, precision=precision(x.dtype))
    dkernel = product("btfk,btfo->ko", windows, dy).reshape(kernel.shape)
    taps = _windows_2d(product("btfo,klio->btfkl", dy, kernel).reshape(*x.shape[:3], -1), kt, kf)
    shifts = (taps[kt - 1 - t][kf - 1 - f][..., t * kf + f] for t in range(kt) for f in range(kf))
    return cast(Array, sum(shifts))[..., None], dkernel


_spread_2d.defvjp(_spread_2d_fwd, _spread_2d_bwd)


@jax.custom_vjp
def _fused_2d(x: Array, kernel: Array) -> Array:
    return conv2d.grouped_conv2d(x, kernel)


def _fused_2d_fwd(x: Array, kernel: Array):
    return _fused_2d(x, kernel), (x, kernel)


def _fused_2d_bwd(residuals, dy: Array):
    x, kernel = residuals
    return gradients_by_kernels(x, kernel, dy)


def gradients_by_kernels(x: Array, kernel: Array, dy: Array, other: Array | None = None) -> tuple[Array, Array]:
    """Compute the gradients of the grouped convolution in `x`, plus `other`, and in `kernel`, by CUDA kernels.

    The operands must be ones that `suits_kernel` accepts.
    """
    dx = conv2d.grouped_conv2d(dy, transposed(kernel, groups_of(x, kernel)), other)
    if conv2d.suits_gradient(kernel.shape):
        dkernel = conv2d.grouped_kernel_gradient(x, dy, kernel.shape[2])
    else:
        (dkernel,) = jax.linear_transpose(lambda kernel: _dense_2d(x, kernel), kernel.astype(x.dtype))(dy)
    return dx, dkernel.astype(kernel.dtype)


_fused_2d.defvjp(_fused_2d_fwd, _fused_2d_bwd)


def suits_kernel(x: Array, kernel: Array) -> bool:
    """Return whether a kernel for CUDA GPUs convolves `x` with the grouped `kernel`."""
    same_channels = x.shape[3] == kernel.shape[3]
    return operands.is_map(x) and same_channels and conv2d.suits_conv(x.shape[2], kernel.shape)


def grouped_conv2d(x: Array, kernel: Array) -> Array:
    """Convolve `x` (batch, time, freq, in) with `kernel` (kt, kf, in/groups, out) to (batch, time, freq, out)."""
    (kt, kf, n, _), groups = kernel.shape, groups_of(x, kernel)
    if groups == n == 1 and kt % 2 and kf % 2:
        return by_platform(x, kernel, plain=_dense_2d, cuda=_spread_2d)
    shifted = groups > 1 and n <= MAX_SHIFTED_GROUP and kt % 2 and kf % 2
    on_cpu = _shifted_2d if shifted else None
    on_cuda = _fused_2d if suits_kernel(x, kernel) else None
    blocks = tpu_convolution.blocks_of(x, kernel, tpu_convolution.CHANNELS)
    on_tpu = functools.partial(_dense_2d, blocks=blocks) if blocks > 1 else None
    return by_platform(x, kernel, plain=_dense_2d, cpu=on_cpu, cuda=on_cuda, tpu=on_tpu)
