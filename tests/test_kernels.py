"""The kernels for CUDA GPUs, interpreted, against the plain forms in float32, and lowered as for a GPU."""

import re

import checkpoints
import cuda_forms
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from redimnet_jax import attention, convnext, from_torch

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
    value, backward = jax.vjp(ours, *inputs, *others)
    expected, expected_backward = jax.vjp(theirs, *exact(inputs), *others)
    assert value.dtype == jnp.bfloat16
    assert relative(value, expected) < ROUNDING
    for a, b in zip(backward(dout), expected_backward(dout.astype(jnp.float32)), strict=True):
        assert relative(a, b) < 2 * ROUNDING


def mask(batch: int, frames: int):
    return jnp.arange(frames)[None] < jnp.array([frames - 3 * i for i in range(batch)])[:, None]


@pytest.mark.parametrize(("frames", "channels", "masked"), [(41, 96, True), (70, 48, False), (16, 144, True)])
def test_attention(frames, channels, masked, monkeypatch):
    q, k, v, dout = (normal(i, (2, frames, channels), jnp.bfloat16) for i in range(4))
    keys = mask(2, frames) if masked else None
    with cuda_forms.chosen(monkeypatch) as kernels:
        agree(
            lambda *x: attention.attention(*x, keys, 4),
            lambda *x: attention._plain(*x, keys, 4),
            (q, k, v),
            (),
            dout,
        )
        assert kernels == ["_forward_kernel", "_backward_kernel"]


def block(channels: int, members: int) -> list:
    return [
        normal(1, (3, 3, members, channels)) / 6,
        0.1 * normal(2, (channels,)),
        0.1 * normal(3, (channels,)),
        1 + 0.1 * normal(4, (channels,)),
        normal(5, (channels,)),
        normal(6, (channels, channels)) / channels**0.5,
        normal(7, (channels,)),
    ]


@pytest.mark.parametrize(
    ("channels", "bins", "members", "masked"), [(16, 12, 4, False), (32, 5, 16, True), (48, 3, 1, True)]
)
def test_convnext_block(channels, bins, members, masked, monkeypatch):
    x, dout = (normal(i, (2, 9, bins, channels), jnp.bfloat16) for i in (0, 8))
    frames = mask(2, 9) if masked else None
    with cuda_forms.chosen(monkeypatch) as kernels:
        agree(
            lambda x, *rest: convnext.block_2d(x, frames, *rest),
            lambda x, *rest: convnext._block_2d_plain(x, frames, *rest),
            (x,),
            block(channels, members),
            dout,
        )
        assert kernels == ["_body"]


def test_blocks_that_the_kernel_does_not_take(monkeypatch):
    with cuda_forms.chosen(monkeypatch) as kernels:
        for channels, members in ((12, 4), (24, 24), (48, 48)):
            x = normal(0, (1, 4, 3, channels), jnp.bfloat16)
            convnext.block_2d(x, None, *block(channels, members))
        assert not kernels


def test_mixing_channels_keeps_its_gradient():
    x, y, dout = (normal(i, (2, 7, 3, c), jnp.bfloat16) for i, c in ((0, 8), (1, 24), (2, 8)))
    *_, mean, gain, offset, _, bias = block(24, 1)
    others = mean, gain, offset, normal(6, (24, 8)) / 5, bias[:8]

    def plain(x, y, mean, gain, offset, kernel, bias):
        activated = jax.nn.gelu((y - mean) * gain + offset, approximate=False)
        return x + jnp.matmul(activated, kernel, precision=lax.Precision.HIGHEST) + bias

    agree(convnext.mix_channels, plain, (x, y), others, dout)


def test_a_network_in_bfloat16(tmp_path, monkeypatch):
    case = checkpoints.case("v1_base")
    with cuda_forms.chosen(monkeypatch) as kernels:
        model = from_torch(checkpoints.save(tmp_path / "x.pt", "v1_base"), dtype=jnp.bfloat16)
        # 11,777 samples are padded to 12,000 and masked.
        ours, theirs = model.embed(golden.audio(*case.audio[1])), case.arrays["embedding1"]
        assert np.min(np.sum(ours * theirs, -1) / np.linalg.norm(theirs, axis=-1)) > 0.9995
    assert {"_body", "_forward_kernel"} == set(kernels)


def test_a_network_in_float32_holds_the_thresholds(tmp_path, monkeypatch):
    """The FFT, the convolutions as dense ones and the stem: no kernel has a part in float32."""
    case = checkpoints.case("v1_base")
    with cuda_forms.chosen(monkeypatch) as kernels:
        model = from_torch(checkpoints.save(tmp_path / "x.pt", "v1_base"))
        ours = model.embed(golden.audio(*case.audio[1]), normalize=False)
        assert relative(ours, case.arrays["embedding1"]) <= 5e-5
    assert not kernels


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("channels", "bins"), [(16, 72), (32, 36), (96, 12), (192, 6)])
def test_blocks_of_b2_are_lowered_for_a_gpu(channels, bins, masked):
    x = jax.ShapeDtypeStruct((2, 201, bins, channels), jnp.bfloat16)
    frames = jax.ShapeDtypeStruct((2, 201), bool) if masked else None
    assert triton_calls(convnext.block_2d, x, frames, *block(channels, 4)) == 1


@pytest.mark.parametrize("channels", [96, 144, 288])
def test_attention_of_b2_is_lowered_for_a_gpu(channels):
    q = jax.ShapeDtypeStruct((2, 201, channels), jnp.bfloat16)

    def squares(*x):
        return jnp.square(attention.attention(*x, None, 4).astype(jnp.float32)).sum()

    assert triton_calls(jax.grad(squares, (0, 1, 2)), q, q, q) == (2 if channels < 288 else 0)


def triton_calls(function, *arguments) -> int:
    program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return len(re.findall(r"custom_call @\S*triton", program))
