"""The kernels for CUDA GPUs against the plain forms in float32: their own source on a CPU, and made for a GPU."""

import functools
import re
import shutil
import subprocess
import types
from pathlib import Path

import checkpoint_files
import compiling
import cuda_forms
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from redimnet_jax import from_torch
from redimnet_jax.models import blocks, pooling
from redimnet_jax.nn import attention, convnext, convolution, residual, squeeze
from redimnet_jax.nn.cuda import attention as attention_kernels
from redimnet_jax.nn.cuda import conv2d, depthwise, device, program
from redimnet_jax.nn.layers import pointwise
from redimnet_jax.nn.normalization import LayerNorm
from redimnet_jax.nn.weights import Affine, ConvNeXtWeights, Norm, Pointwise, ResidualHalf

# Of bfloat16 results, whose rounding alone is up to 2e-3.
ROUNDING = 6e-3


def relative(ours, theirs) -> float:
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def normal(key: int, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(key), shape, dtype)


def exact(arrays):
    return [x.astype(jnp.float32) for x in arrays]


def agree(ours, theirs, inputs, others, dout) -> None:
    """Values and gradients in `inputs`, bfloat16, against those of float32; `others` are float32 on both sides."""

    @functools.partial(compiling.jit, static_argnums=0)
    def values_and_gradients(function, arrays, dout):
        values, backward = jax.vjp(function, *arrays)
        return values, backward(dout)

    values, gradients = values_and_gradients(ours, (*inputs, *others), dout)
    dout_dtype = jax.tree.leaves(dout)[0].dtype
    dout = jax.tree.map(lambda x: x.astype(jnp.float32), dout)
    expected, expected_gradients = values_and_gradients(theirs, (*exact(inputs), *others), dout)
    assert jax.tree.leaves(values)[0].dtype == dout_dtype
    for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True):
        assert relative(a, b) < ROUNDING
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        assert relative(a, b) < 2 * ROUNDING


def mask(batch: int, frames: int):
    return jnp.arange(frames)[None] < jnp.array([frames - 3 * i for i in range(batch)])[:, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "channels", "masked"),
    [(70, 48, False), (16, 144, True), (130, 288, True), (33, 20, True), (17, 24, False)],
)
def test_attention(frames, channels, masked, monkeypatch):
    q, k, v, dout = (normal(i, (2, frames, channels), jnp.bfloat16) for i in range(4))
    keys = mask(2, frames) if masked else None
    with cuda_forms.chosen(monkeypatch) as names:
        agree(
            lambda *x: attention.attention(*x, keys, 4),
            lambda *x: attention._plain(*x, keys, 4),
            (q, k, v),
            (),
            dout,
        )
        assert names == ["attention", "attention_gradient"]


def mixing(channels: int) -> tuple[Norm, Pointwise]:
    norm = Norm(0.1 * normal(3, (channels,)), 1 + 0.1 * normal(4, (channels,)), normal(5, (channels,)))
    return norm, Pointwise(normal(6, (channels, channels)) / channels**0.5, normal(7, (channels,)))


def block(channels: int, *taps: int) -> list[ConvNeXtWeights]:
    kernel = normal(1, (*taps, channels)) / np.prod(taps) ** 0.5
    return [ConvNeXtWeights(kernel, 0.1 * normal(2, (channels,)), *mixing(channels))]


GRADIENTS = ["grouped_conv2d", "grouped_conv2d", "grouped_kernel_gradient"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bins", "channels", "taps", "masked", "run"),
    [
        (12, 16, (3, 3, 4), False, ["grouped_conv2d", *GRADIENTS, "mix_channels_gradient"]),
        (5, 32, (3, 3, 16), True, ["grouped_conv2d", *GRADIENTS, "mix_channels_gradient"]),
        (3, 48, (3, 3, 1), True, ["grouped_conv2d", *GRADIENTS, "mix_channels_gradient"]),
        (None, 16, (7,), False, ["depthwise_conv1d"] * 3 + ["depthwise_kernel_gradient", "mix_channels_gradient"]),
        (None, 40, (19,), True, ["depthwise_conv1d"] * 3 + ["depthwise_kernel_gradient"]),
        (None, 20, (7,), True, ["depthwise_conv1d"] * 3 + ["pointwise"]),
    ],
)
def test_block(bins, channels, taps, masked, run, monkeypatch):
    """Several tiles of frames, the last of which is not full."""
    shape = (2, 41, bins, channels) if bins else (2, 230, channels)
    x, dout = (normal(i, shape, jnp.bfloat16) for i in (0, 8))
    frames = mask(2, shape[1]) if masked else None
    with cuda_forms.chosen(monkeypatch) as names:
        agree(
            lambda x, *rest: convnext.block(x, frames, *rest),
            lambda x, *rest: convnext._plain(x, frames, *rest),
            (x,),
            block(channels, *taps),
            dout,
        )
        assert sorted(names) == run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bins", "channels", "members", "shared_bytes"),
    [
        (4, 256, 32, None),
        (15, 64, 32, 80_000),
        (5, 208, 16, None),
        (11, 32, 4, 40_000),
    ],
)
def test_grouped_conv2d(bins, channels, members, shared_bytes, monkeypatch):
    """Several tiles of channels, and of bins where there is little shared memory."""
    if shared_bytes:
        monkeypatch.setattr(device, "SHARED_BYTES", shared_bytes)
    x, dout = (normal(i, (2, 19, bins, channels), jnp.bfloat16) for i in (0, 1))
    kernel = (normal(2, (3, 3, members, channels)) / (3 * members**0.5)).astype(jnp.bfloat16)
    convolve = convolution.grouped_conv2d
    with cuda_forms.chosen(monkeypatch) as names:
        agree(convolve, convolve, (x, kernel), (), dout)
        assert sorted(names) == (GRADIENTS if members < 32 else GRADIENTS[:2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("half", "bins", "channels", "members", "masked", "shared_bytes", "kernel"),
    [
        ("first", 5, 64, 32, True, None, "grouped_conv2d"),
        ("second", 7, 32, 16, True, 30_000, "grouped_conv2d"),
        ("first", 4, 192, 32, False, None, "grouped_conv2d"),
        ("first", 12, 64, 32, False, None, "streamed_conv2d"),
        ("before squeeze-excitation", 9, 128, 16, True, None, "streamed_conv2d"),
        ("second", 6, 192, 32, True, None, "streamed_conv2d"),
    ],
)
def test_half_of_a_residual_block(half, bins, channels, members, masked, shared_bytes, kernel, monkeypatch):
    """In one kernel, with one tile of bins and two, and in two; with more tiles than programs."""
    monkeypatch.setattr(device, "multiprocessors", lambda: 2)
    if shared_bytes:
        monkeypatch.setattr(device, "SHARED_BYTES", shared_bytes)
    x, other = (normal(i, (3, 19, bins, channels), jnp.bfloat16) for i in (0, 1))
    norm, product = mixing(channels)
    taps = normal(2, (3, 3, members, channels)) / (3 * members**0.5)
    frames, relu = mask(3, 19) if masked else None, half != "before squeeze-excitation"
    scale = Affine(norm.gain, norm.offset) if half == "first" else None
    expected = residual._convolved(x.astype(jnp.float32), frames, taps, product)
    expected = expected + other if half == "second" else expected
    expected = jax.nn.relu(expected) if relu else expected
    expected = expected * norm.gain + norm.offset if half == "first" else expected
    with cuda_forms.chosen(monkeypatch) as names:
        added = other if half == "second" else None
        ours = conv2d.conv2d_and_product(x, frames, added, taps, product, scale, relu=relu)
        assert names == [kernel] and ours.dtype == jnp.bfloat16
    assert relative(ours, expected) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize(("members", "use_se"), [(32, False), (16, True)])
def test_residual_block(members, use_se, monkeypatch):
    """In eval mode, or with frozen norms, two kernels."""
    block = blocks.ResBlock(64, 3, members, use_se, rngs=nnx.Rngs(0))
    for i, norm in enumerate((block.bn1, block.bn2)):
        norm.mean[...], norm.scale[...], norm.bias[...] = (normal(10 * i + j, (64,)) for j in range(3))
        norm.frozen = True
    x, frames = normal(0, (2, 19, 3, 64), jnp.bfloat16), mask(2, 19)
    expected = block(x.astype(jnp.float32), frames, train=False)
    with cuda_forms.chosen(monkeypatch) as names:
        ours = block(x, frames, train=True)
        assert names == ["streamed_conv2d"] * 2
    assert relative(ours, expected) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "bins", "channels", "members"), [(19, 7, 48, 8), (70, 4, 16, 1)])
def test_block_with_batch_statistics(frames, bins, channels, members, monkeypatch):
    """Convolutions whose mean is not zero; tiles of rows of which the last is not full."""
    x, dout = (normal(i, (2, frames, bins, channels), jnp.bfloat16) for i in (0, 1))
    # The statistics are given no gradient.
    dout = dout, *(jnp.zeros(channels) for _ in range(2))
    taps = (normal(4, (3, 3, members, channels)) + 0.2) / (3 * members**0.5)
    norm, product = mixing(channels)
    others = taps, Affine(norm.gain, norm.offset), product
    with cuda_forms.chosen(monkeypatch) as names:
        block = functools.partial(convnext.block_with_batch_statistics, eps=1e-5)
        agree(lambda *x: block(*x), lambda *x: block(*x), (x + 1,), others, dout)
        conv = ["grouped_conv2d"]
        assert sorted(names) == [*conv * 4, "grouped_kernel_gradient", "mix_channels_gradient"]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "channels"), [((3, 70, 5), 32), ((2, 201), 96), ((1, 31, 3), 144)])
def test_the_gradient_of_mixing_channels(shape, channels, monkeypatch):
    """Several programs an utterance, of several tiles; one without the kernel in registers."""
    monkeypatch.setattr(device, "multiprocessors", lambda: 3)
    x, y, dout = (normal(i, (*shape, channels), jnp.bfloat16) for i in range(3))
    with cuda_forms.chosen(monkeypatch) as names:
        agree(convnext.mix_channels, convnext.mix_channels, (x, y), mixing(channels), dout)
        assert names == ["mix_channels_gradient"]


def residual_half(channels: int, key: int) -> ResidualHalf:
    norm, product = mixing(channels)
    return ResidualHalf(normal(key, (3, 3, 1, channels)) / 3, product, norm._replace(offset=0.1 * norm.offset))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "bins", "channels", "shared_bytes", "masked", "add"),
    [
        (9, 6, 10, None, True, True),
        (11, 17, 40, 30_000, False, False),
        (21, 4, 60, 40_000, True, True),
        (5, 33, 24, None, False, True),
    ],
)
def test_depthwise_residual(frames, bins, channels, shared_bytes, masked, add, monkeypatch):
    """Channels that are filled up, several tiles of frames and of bins, one program or two a multiprocessor."""
    if shared_bytes:
        monkeypatch.setattr(device, "SHARED_BYTES", shared_bytes)
    x = normal(0, (2, frames, bins, channels), jnp.bfloat16)
    counted = mask(2, frames) if masked else None
    weights = residual_half(channels, 2), residual_half(channels, 8)

    @compiling.jit
    def block(x, weights):
        return residual.block(x, counted, *weights, add=add)

    with cuda_forms.chosen(monkeypatch) as names:
        ours = block(x, weights)
        assert names == ["depthwise_residual"] and ours.dtype == x.dtype
    assert relative(ours, block(*exact([x]), weights)) < ROUNDING


@pytest.mark.slow
def test_the_gradient_of_a_depthwise_residual_is_that_of_its_plain_form(monkeypatch):
    x, dout = (normal(i, (2, 5, 3, 20), jnp.bfloat16) for i in (0, 1))
    first, second = residual_half(20, 2), residual_half(20, 8)
    # Biases and offsets so large that rounding takes no value past zero.
    first = first._replace(pointwise=first.pointwise._replace(bias=first.pointwise.bias + 20))
    second = second._replace(norm=second.norm._replace(offset=second.norm.offset + 20))

    def gradients():
        back = jax.vjp(lambda *x: residual.block(x[0], None, x[1], x[2], add=True), x, first, second)[1]
        return compiling.jit(back)(dout)

    expected = gradients()
    with cuda_forms.chosen(monkeypatch) as names:
        ours = gradients()
        assert "depthwise_residual" in names
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert relative(a, b) < 2 * ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "bins", "channels", "members", "out", "shared_bytes", "masked"),
    [(9, 6, 60, 3, 20, None, True), (13, 17, 40, 2, 20, 50_000, False), (7, 3, 64, 8, 32, None, False)],
)
def test_squeeze(frames, bins, channels, members, out, shared_bytes, masked, monkeypatch):
    """Groups of one output and of several, blocks of inputs beyond the last channel."""
    if shared_bytes:
        monkeypatch.setattr(device, "SHARED_BYTES", shared_bytes)
    x = normal(0, (2, frames, bins, channels), jnp.bfloat16)
    counted = mask(2, frames) if masked else None
    weights = [normal(1, (3, 3, members, out)) / (3 * members**0.5), *mixing(out)]
    with cuda_forms.chosen(monkeypatch) as names:
        ours = squeeze.squeeze(x, counted, *weights)
        assert names == ["squeeze"] and ours.dtype == x.dtype
    assert relative(ours, squeeze.squeeze(*exact([x]), counted, *weights)) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "bins", "channels", "out", "shared_bytes"),
    [(9, 6, 10, 12, None), (13, 17, 20, 60, 40_000), (37, None, 20, 20, None)],
)
def test_pointwise(frames, bins, channels, out, shared_bytes, monkeypatch):
    if shared_bytes:
        monkeypatch.setattr(device, "SHARED_BYTES", shared_bytes)
    x = normal(0, (2, frames, bins, channels) if bins else (2, frames, channels), jnp.bfloat16)
    weights = Pointwise(normal(1, (channels, out)) / channels**0.5, normal(2, (out,)))
    with cuda_forms.chosen(monkeypatch) as names:
        ours = pointwise(x, weights)
        assert names == ["pointwise"] and ours.dtype == x.dtype
    assert relative(ours, pointwise(*exact([x]), weights)) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("channels", [20, 144, 1024])
def test_layer_norm(channels, monkeypatch):
    def norm(x, scale, bias):
        layer = LayerNorm(channels, 1e-5)
        layer.scale[...], layer.bias[...] = scale, bias
        return layer(x)

    x, dout = (1 + normal(i, (3, 7, channels), jnp.bfloat16) for i in (0, 1))
    with cuda_forms.chosen(monkeypatch) as names:
        agree(norm, norm, (x,), (1 + normal(2, (channels,)), normal(3, (channels,))), dout)
        assert names == ["layer_norm"]


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "channels", "masked"), [(5, 70, False), (41, 32, True)])
def test_attentive_statistics(frames, channels, masked, monkeypatch):
    x, logits = (1 + normal(i, (2, frames, channels), jnp.bfloat16) for i in (0, 1))
    counted = mask(2, frames) if masked else None
    with cuda_forms.chosen(monkeypatch) as names:
        pooled = functools.partial(pooling.attentive_statistics, mask=counted)
        agree(pooled, pooled, (x, logits), (), normal(2, (2, 2 * channels)))
        assert names == ["attentive_statistics"]


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "channels", "taps"), [(230, 24, 5), (41, 96, 59)])
def test_depthwise_conv1d(frames, channels, taps, monkeypatch):
    x, dout = (normal(i, (2, frames, channels), jnp.bfloat16) for i in (0, 1))
    kernel = (normal(2, (taps, channels)) / taps**0.5).astype(jnp.bfloat16)
    with cuda_forms.chosen(monkeypatch) as names:
        agree(convolution.depthwise_conv1d, convolution.depthwise_conv1d, (x, kernel), (), dout)
        assert sorted(names) == ["depthwise_conv1d", "depthwise_conv1d", "depthwise_kernel_gradient"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "shown"),
    [
        ("__syncthreads();", "", None),
        ("wait_for_copies<0>();", "", None),
        ("if (frame >= FRAMES) break;", "", "wrote beyond array"),
    ],
)
def test_the_emulation_shows_mistakes(right, wrong, shown, monkeypatch):
    source = program.source("depthwise_conv1d", primitives=str(cuda_forms.EMULATION))
    # Of the kernel alone, not of the emulation before it.
    emulation, kernel = source[: source.index("// A depthwise")], source[source.index("// A depthwise") :]
    assert right in kernel
    x, taps = normal(0, (2, 20, 16), jnp.bfloat16), normal(1, (3, 16))
    with cuda_forms.chosen(monkeypatch):
        expected = depthwise.depthwise_conv1d(x, None, taps)
        assert np.isfinite(np.asarray(expected, np.float32)).all()
        monkeypatch.setattr(program, "source", lambda *_, **__: emulation + kernel.replace(right, wrong))
        if shown:
            with pytest.raises(jax.errors.JaxRuntimeError, match=shown):
                depthwise.depthwise_conv1d(x, None, taps).block_until_ready()
        else:
            assert np.isnan(np.asarray(depthwise.depthwise_conv1d(x, None, taps), np.float32)).any()


def test_gelu():
    """To 3e-5, and x or 0 where the polynomial in it would turn or overflow."""
    # The exact one in float64.
    from scipy.special import ndtr

    x = np.concatenate([np.linspace(-12, 12, 100_001), [-1e4, -1e30, 0, 1e4, 1e30]]).astype(np.float32)
    loop = """
    extern "C" __global__ void every(const float* x, float* y) {
        for (int i = 0; i < COUNT; i++) y[i] = gelu(x[i]);
    }
    """
    gelu = Path(program.__file__).with_name("gelu.cuh")
    source = cuda_forms.EMULATION.read_text() + gelu.read_text() + loop
    (y,) = cuda_forms.emulated(source, "every", [x], [x], (1, 1, 1, 0), (("COUNT", x.size),))
    assert np.abs(y - x * ndtr(x.astype(np.float64)))[:-5].max() <= 3e-5
    np.testing.assert_array_equal(y[-5:], [0, 0, 0, 1e4, np.float32(1e30)])


@pytest.mark.slow
def test_mixing_channels_keeps_its_gradient():
    x, y, dout = (normal(i, (2, 7, 3, c), jnp.bfloat16) for i, c in ((0, 8), (1, 24), (2, 8)))
    norm, _ = mixing(24)
    others = norm, Pointwise(normal(6, (24, 8)) / 5, normal(7, (8,)))

    def plain(x, y, norm, product):
        activated = jax.nn.gelu((y - norm.mean) * norm.gain + norm.offset, approximate=False)
        return x + jnp.matmul(activated, product.kernel, precision=lax.Precision.HIGHEST) + product.bias

    agree(convnext.mix_channels, plain, (x, y), others, dout)


@pytest.mark.slow
def test_a_network_in_bfloat16(tmp_path, monkeypatch):
    case = checkpoint_files.case("v1_base")
    with cuda_forms.chosen(monkeypatch) as names:
        model = from_torch(checkpoint_files.save(tmp_path / "x.pt", "v1_base"), dtype=jnp.bfloat16)
        # 11,777 samples are padded to 12,000 and masked.
        ours, theirs = model.embed(golden.audio(*case.audio[1])), case.arrays["embedding1"]
        assert np.min(np.sum(ours * theirs, -1) / np.linalg.norm(theirs, axis=-1)) > 0.9995
    of_all = {"grouped_conv2d", "squeeze", "depthwise_conv1d", "layer_norm", "attention", "attentive_statistics"}
    assert of_all == set(names)


@pytest.mark.slow
def test_a_network_in_float32_holds_the_thresholds(tmp_path, monkeypatch):
    """The FFT, the convolutions as dense ones and the stem: no kernel has a part in float32."""
    case = checkpoint_files.case("v1_base")
    with cuda_forms.chosen(monkeypatch) as names:
        model = from_torch(checkpoint_files.save(tmp_path / "x.pt", "v1_base"))
        ours = model.embed(golden.audio(*case.audio[1]), normalize=False)
        assert relative(ours, case.arrays["embedding1"]) <= 5e-5
    assert not names


def on_a_gpu(monkeypatch, function, *arguments) -> tuple[str, dict[str, program.Defines]]:
    """The program for a GPU, in which a kernel's code is its macros; the kernels and macros of which it consists."""
    made = {}
    monkeypatch.setattr(program, "ptx", lambda name, defines: str(made.setdefault(name, defines)))
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text(), made


def launches(text: str) -> list[tuple[str, int, int, int]]:
    """(kernel, programs, threads, bytes of shared memory), in order."""
    calls = re.findall(r"custom_call @__gpu\$xla.gpu.ptx\(.*?\) \{(.*)\}", text)
    numbers = r"block_x = (\d+) : .*grid_x = (\d+) : .*grid_y = (\d+) : .*name = \"(\w+)\".*shared_mem_bytes = (\d+)"
    found = [re.search(numbers, call).groups() for call in calls]
    return [(name, int(x) * int(y), int(threads), int(size)) for threads, x, y, name, size in found]


def of(shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def shapes(channels: int, *taps: int) -> list:
    return jax.eval_shape(lambda: block(channels, *taps))


def squares(function):
    return lambda *x: jnp.square(function(*x).astype(jnp.float32)).sum()


B2 = [(72, 16), (36, 32), (12, 96), (6, 192)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("bins", "channels"), B2)
def test_blocks_of_b2_are_lowered_for_a_gpu(bins, channels, masked, monkeypatch):
    frames = of((2, 201), bool) if masked else None
    x = of((2, 201, bins, channels))
    text, made = on_a_gpu(monkeypatch, convnext.block, x, frames, *shapes(channels, 3, 3, 4))
    ((name, programs, threads, size),) = launches(text)
    # Of 201 frames a program takes 16, of which a multiprocessor has two.
    assert (name, programs, threads) == ("grouped_conv2d", 2 * 13, 256)
    assert size <= 227 * 1024 // 2
    assert dict(made[name])["MASKED"] == masked and str(made[name]) in text


@pytest.mark.slow
@pytest.mark.parametrize(("bins", "channels"), B2)
def test_train_mode_of_b2_is_lowered_for_a_gpu(bins, channels, monkeypatch):
    x, (weights,) = of((2, 201, bins, channels)), shapes(channels, 3, 3, 4)
    affine = Affine(weights.norm.gain, weights.norm.offset)
    block = squares(lambda *x: convnext.block_with_batch_statistics(*x, 1e-5)[0])
    text, _ = on_a_gpu(monkeypatch, jax.grad(block, range(4)), x, weights.taps, affine, weights.pointwise)
    names = [name for name, *_ in launches(text)]
    conv = "grouped_conv2d"
    assert sorted(names) == [*[conv] * 4, "grouped_kernel_gradient", "mix_channels_gradient"]
    assert all(size <= 227 * 1024 for *_, size in launches(text))


@pytest.mark.parametrize(("channels", "programs"), [(96, 2 * 1 * 2), (144, 2 * 1 * 3), (20, 2 * 1 * 1), (18, 0)])
def test_1d_blocks_are_lowered_for_a_gpu(channels, programs, monkeypatch):
    text, _ = on_a_gpu(monkeypatch, convnext.block, of((2, 201, channels)), None, *shapes(channels, 7))
    found = [number for name, number, *_ in launches(text) if name == "depthwise_conv1d"]
    assert found == ([programs] if programs else [])


def test_shapes_that_no_kernel_takes(monkeypatch):
    for bins, channels, *taps in ((3, 12, 3, 3, 4), (3, 24, 3, 3, 24), (2, 16, 3, 3, 4), (4, 16, 3, 5, 4)):
        x = of((1, 4, bins, channels))
        assert not launches(on_a_gpu(monkeypatch, convnext.block, x, None, *shapes(channels, *taps))[0])
    x, kernel = of((1, 4, 10)), of((3, 10))
    assert not launches(on_a_gpu(monkeypatch, jax.grad(squares(convolution.depthwise_conv1d)), x, kernel)[0])


def test_the_gradient_of_a_convolution_is_lowered_for_a_gpu(monkeypatch):
    x, kernel = of((2, 201, 36, 32)), of((3, 3, 4, 32))
    convolve = convolution.grouped_conv2d
    text, _ = on_a_gpu(monkeypatch, jax.grad(squares(convolve), (0, 1)), x, kernel)
    # A program of the gradient has 12 of 36 bins of an utterance.
    conv = ("grouped_conv2d", 26)
    assert [launch[:2] for launch in launches(text)] == [conv, conv, ("grouped_kernel_gradient", 6)]
    assert not launches(on_a_gpu(monkeypatch, convolve, *(of(y.shape, jnp.float32) for y in (x, kernel)))[0])


@pytest.mark.parametrize("channels", [96, 144, 288])
def test_attention_of_b2_is_lowered_for_a_gpu(channels, monkeypatch):
    q = of((2, 201, channels))
    attend = squares(lambda *x: attention.attention(*x, None, 4))
    text, _ = on_a_gpu(monkeypatch, jax.grad(attend, (0, 1, 2)), q, q, q)
    assert [launch[:2] for launch in launches(text)] == [("attention", 2 * 4), ("attention_gradient", 2 * 4)]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="CUDA's compiler nvcc is not there")
def test_kernels_compile_for_a_gpu(tmp_path, monkeypatch):
    """For shapes of b2 and b6, and keep their variables in registers."""
    bins, channels = B2[-1]
    made = [on_a_gpu(monkeypatch, convnext.block, of((2, 201, bins, channels)), None, *shapes(channels, 3, 3, 4))]
    convolve = squares(convolution.grouped_conv2d)
    made.append(on_a_gpu(monkeypatch, jax.grad(convolve, 1), of((2, 201, 36, 32)), of((3, 3, 4, 32))))
    made.append(on_a_gpu(monkeypatch, convnext.block, of((2, 201, 96)), None, *shapes(96, 7)))
    mix = squares(convnext.mix_channels)
    for bins, channels in (B2[1], B2[3]):
        y = of((2, 201, bins, channels))
        made.append(on_a_gpu(monkeypatch, jax.grad(mix, 1), y, y, *jax.eval_shape(lambda c=channels: mixing(c))))
    attend = squares(lambda q: attention.attention(q, q, q, None, 4))
    made.append(on_a_gpu(monkeypatch, jax.grad(attend), of((2, 201, 144))))
    weights = jax.eval_shape(lambda: ResidualHalf(normal(0, (3, 3, 32, 128)), *reversed(mixing(128))))
    made.append(
        on_a_gpu(monkeypatch, lambda *x: residual.block(*x, add=True), of((2, 201, 12, 128)), None, weights, weights)
    )
    processes = []
    for i, (name, defines) in enumerate(pair for _, found in made for pair in found.items()):
        path = tmp_path / f"{i}.cu"
        path.write_text(program.source(name))
        options = ["-gencode=arch=compute_80,code=sm_80", "-std=c++17", "-cubin", "-Xptxas", "-v", "-o", f"{path}bin"]
        command = ["nvcc", *options, *(f"-D{key}={value}" for key, value in defines), path]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for process in processes:
        report, _ = process.communicate()
        assert process.returncode == 0, report
        (spilled,) = re.findall(r"(\d+) bytes spill stores", report)
        assert int(spilled) <= 64, report


@pytest.mark.parametrize(("capability", "bins", "attention"), [("9.0", 6, True), ("8.0", 6, True), ("8.6", 2, False)])
def test_what_a_smaller_gpu_takes(capability, bins, attention, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    assert conv2d._tile(6, 192, 16, [192]) == (bins, 192)
    assert attention_kernels.suits_attention(201, 288, 4) == attention
    assert attention_kernels.suits_attention(201, 96, 4)
