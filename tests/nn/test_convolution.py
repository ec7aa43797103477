"""The fast forms of grouped convolutions against XLA's own, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from redimnet_jax.nn import convolution, tpu_chip, tpu_convolution
from redimnet_jax.nn.layers import PatchConv2d


def close(ours, theirs):
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(np.abs(b).max()))


def value_and_gradients(f, *inputs):
    """f(inputs) and the gradients of a fixed functional of it in every input."""

    def functional(*inputs):
        y = f(*inputs)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    return f(*inputs), jax.grad(functional, argnums=tuple(range(len(inputs))))(*inputs)


def native_2d(x, kernel, groups):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel_size", "channels_in", "channels_out", "groups"),
    [
        ((3, 3), 8, 8, 8),
        ((3, 3), 8, 8, 2),
        ((3, 3), 12, 8, 4),
        ((3, 3), 4, 8, 4),
        ((3, 3), 16, 16, 2),
        ((3, 3), 64, 32, 16),
        ((3, 3), 6, 6, 1),
        ((1, 7), 8, 8, 4),
        ((5, 5), 4, 4, 2),
        ((4, 2), 8, 8, 4),
    ],
)
def test_grouped_conv2d(kernel_size, channels_in, channels_out, groups):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 9, 6, channels_in)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((*kernel_size, channels_in // groups, channels_out)), jnp.float32)
    theirs = value_and_gradients(functools.partial(native_2d, groups=groups), x, kernel)
    close(value_and_gradients(convolution.grouped_conv2d, x, kernel), theirs)
    # The form of accelerators runs on a CPU too.
    close(value_and_gradients(convolution._dense_2d, x, kernel), theirs)
    # And that of TPUs, which have several convolutions of some groups each.
    for blocks in (n for n in range(2, groups + 1) if groups % n == 0):
        close(value_and_gradients(functools.partial(convolution._dense_2d, blocks=blocks), x, kernel), theirs)


@pytest.mark.parametrize(
    ("channels", "groups", "blocks", "in_eval_mode"),
    [(16, 4, 1, 1), (96, 24, 1, 6), (192, 48, 2, 12), (288, 72, 3, 18), (320, 2, 2, 2), (20, 20, 1, 2)],
)
def test_a_tpu_convolves_blocks_of_channels(channels, groups, blocks, in_eval_mode):
    x, kernel = jnp.zeros((1, 1, 1, channels)), jnp.zeros((3, 3, channels // groups, channels))
    assert tpu_convolution.blocks_of(x, kernel, tpu_convolution.CHANNELS) == blocks
    assert tpu_convolution.blocks_of(x, kernel, tpu_convolution.EVAL_CHANNELS) == in_eval_mode


@pytest.mark.parametrize(
    ("chip", "freq", "channels", "kernel_size", "bins"),
    [
        ("TPU v5 lite", 12, 16, (3, 3), 1),
        ("TPU v6 lite", 12, 16, (3, 3), 3),
        ("TPU v6 lite", 8, 16, (3, 3), 2),
        ("TPU v6 lite", 6, 96, (3, 3), 2),
        ("TPU v6 lite", 6, 192, (3, 3), 1),
        ("TPU v6 lite", 6, 40, (1, 5), 6),
        ("TPU v6 lite", 6, 16, (4, 2), 3),
        ("TPU v6 lite", 7, 16, (3, 3), 1),
    ],
)
def test_frequencies_of_a_tpu_lie_side_by_side(chip, freq, channels, kernel_size, bins):
    """As many as the chip's unit takes; a product reads them as the channels of one frequency would be read."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((2, 5, freq, channels)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((*kernel_size, 4, channels)), jnp.float32)
    shift = jnp.asarray(rng.standard_normal(channels), jnp.float32)
    product = jnp.asarray(rng.standard_normal((channels, 7)), jnp.float32)
    with tpu_chip.compiled_for(chip):
        y, blocks = tpu_convolution.grouped_conv2d_in_blocks(x, kernel)
    assert blocks.bins == bins
    ours = (y + blocks.of_channels(shift)) @ blocks.of_product(product)
    theirs = (native_2d(x, kernel, channels // 4) + shift) @ product
    close(ours.reshape(theirs.shape), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 5)])
def test_convolution_of_one_channel(kernel_size):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((2, 7, 6, 1)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((*kernel_size, 1, 8)), jnp.float32)
    theirs = value_and_gradients(functools.partial(native_2d, groups=1), x, kernel)
    close(value_and_gradients(convolution.grouped_conv2d, x, kernel), theirs)
    close(value_and_gradients(convolution._spread_2d, x, kernel), theirs)


@pytest.mark.parametrize(("taps", "frames"), [(19, 1), (31, 70), (59, 71), (59, 201), (19, 420)])
def test_bands_convolve(taps, frames):
    """The form of TPUs for many taps, of one block of frames and of several, whose last one is not full."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, frames, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((taps, 3)), jnp.float32)
    assert tpu_convolution.suits_bands(x, kernel)
    close(tpu_convolution.banded_1d(x, kernel), convolution._native_1d(x, kernel))


def test_bands_are_for_odd_taps_of_their_width_and_few_frames():
    for taps, frames in ((17, 70), (20, 70), (61, 70), (59, 421)):
        assert not tpu_convolution.suits_bands(jnp.zeros((1, frames, 1)), jnp.zeros((taps, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(("taps", "frames"), [(1, 30), (7, 64), (59, 150)])
def test_depthwise_conv1d(taps, frames):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, frames, 5)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((taps, 5)), jnp.float32)

    def native(x, kernel):
        return lax.conv_general_dilated(
            x, kernel[:, None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=5
        )

    close(value_and_gradients(convolution.depthwise_conv1d, x, kernel), value_and_gradients(native, x, kernel))
    # The form of TPUs runs on a CPU too.
    close(convolution._native_1d(x, kernel), native(x, kernel))
    # The gradient of accelerators runs on a CPU too.
    dy = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)))
    by_products = convolution._kernel_gradient_1d_by_products(padded, dy)
    close(by_products, convolution._kernel_gradient_1d_by_taps(padded, dy))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_patch_convolution(groups):
    from flax import nnx

    layer = PatchConv2d(4, 8, (3, 2), groups=groups, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 6, 9, 4))
    theirs = lax.conv_general_dilated(
        x,
        layer.kernel[...],
        (2, 3),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    close(layer(x), theirs + layer.bias[...])
