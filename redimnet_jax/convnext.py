"""The arithmetic of ConvNeXt-like blocks in bfloat16: x + gelu(batchnorm(convolution of x)) W + b.

Bound by memory, it keeps few maps for the backward pass, which computes the others again: of a block in train mode
`x` and the convolution, of a 2-D block in eval mode `x` alone. The latter is one kernel on CUDA GPUs.
"""

import jax
import jax.numpy as jnp
from jax import lax

from redimnet_jax.activation import gelu, gelu_derivative
from redimnet_jax.convolution import exact, grouped_conv2d
from redimnet_jax.layers import masked

Array = jax.Array


def _normalised(y: Array, mean: Array, gain: Array, offset: Array) -> Array:
    return (exact(y) - mean) * gain + offset


@jax.custom_vjp
def mix_channels(x: Array, y: Array, mean: Array, gain: Array, offset: Array, kernel: Array, bias: Array) -> Array:
    """x + gelu((y - mean) gain + offset) kernel + bias.

    `x` (..., out) and `y` (..., in), bfloat16; `mean`, `gain`, `offset` (in,), `kernel` (in, out) and `bias` (out,),
    float32. Returns (..., out), bfloat16.
    """
    activated = gelu(_normalised(y, mean, gain, offset).astype(y.dtype))
    return x + (jnp.matmul(activated, kernel.astype(y.dtype)) + bias.astype(y.dtype))


def _mix_channels_fwd(*arrays: Array):
    return mix_channels(*arrays), arrays


def _mix_channels_bwd(arrays, dout: Array):
    _, y, mean, gain, offset, kernel, _ = arrays
    wide = _normalised(y, mean, gain, offset)
    activated = gelu(wide.astype(y.dtype))
    dactivated = jnp.matmul(dout, kernel.astype(y.dtype).T)
    # In bfloat16, as three sums and a map are made of it.
    dnormalised = (exact(dactivated) * gelu_derivative(wide)).astype(y.dtype)
    positions = tuple(range(y.ndim - 1))
    doffset = exact(dnormalised).sum(positions)
    # One product an utterance: one over all positions would be cut up, after copies with padding.
    per_utterance = (y.shape[0], -1)
    dkernel = jnp.einsum(
        "bpi,bpo->bio",
        activated.reshape(*per_utterance, y.shape[-1]),
        dout.reshape(*per_utterance, dout.shape[-1]),
        preferred_element_type=jnp.float32,
    )
    return (
        dout,
        (exact(dnormalised) * gain).astype(y.dtype),
        -gain * doffset,
        (exact(dnormalised) * (exact(y) - mean)).sum(positions),
        doffset,
        dkernel.sum(0),
        exact(dout).sum(positions),
    )


mix_channels.defvjp(_mix_channels_fwd, _mix_channels_bwd)


def block_2d(x: Array, mask: Array | None, taps: Array, taps_bias: Array, *norm_and_pointwise: Array) -> Array:
    """`mix_channels` of `x` (batch, time, freq, channels) and its grouped convolution, with given statistics.

    `taps` (kt, kf, channels/groups, channels), `taps_bias` (channels,), float32; `mask` (batch, time) or None.
    """
    from redimnet_jax.convnext_kernel import suits

    arrays = x, mask, taps, taps_bias, *norm_and_pointwise
    if not suits(x.shape[-1], taps.shape):
        return _block_2d_plain(*arrays)
    return lax.platform_dependent(*arrays, cuda=_block_2d_fused, default=_block_2d_plain)


def _block_2d_plain(x: Array, mask: Array | None, taps: Array, taps_bias: Array, *norm_and_pointwise: Array) -> Array:
    y = grouped_conv2d(masked(x, mask), taps.astype(x.dtype), taps.shape[3] // taps.shape[2])
    mean, *rest = norm_and_pointwise
    return mix_channels(x, y, mean - taps_bias, *rest)


@jax.custom_vjp
def _block_2d_fused(x: Array, mask: Array | None, taps: Array, taps_bias: Array, *norm_and_pointwise: Array) -> Array:
    from redimnet_jax.convnext_kernel import convnext

    mean, gain, offset, kernel, bias = norm_and_pointwise
    return convnext(x, mask, taps, gain, (taps_bias - mean) * gain + offset, kernel, bias)


def _block_2d_fused_fwd(*arrays):
    return _block_2d_fused(*arrays), arrays


def _block_2d_fused_bwd(arrays, dout: Array):
    x, mask, *rest = arrays
    _, backward = jax.vjp(lambda x, *rest: _block_2d_plain(x, mask, *rest), x, *rest)
    dx, *drest = backward(dout)
    return dx, None, *drest


_block_2d_fused.defvjp(_block_2d_fused_fwd, _block_2d_fused_bwd)
