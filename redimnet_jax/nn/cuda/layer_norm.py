"""Layer norm."""

import math

import jax
import jax.numpy as jnp

from redimnet_jax.nn.cuda import device, operands, program
from redimnet_jax.nn.cuda.sharding import by_batch

Array = jax.Array


def suits_layer_norm(x: Array) -> bool:
    """Return whether `layer_norm` takes `x` (batch, ..., channels)."""
    channels = x.shape[-1]
    return operands.is_map(x) and channels % 4 == 0 and channels <= 1024


def layer_norm(x: Array, scale: Array, shift: Array, eps: float) -> Array:
    """Normalise the last axis of `x` (batch, ..., channels), times `scale`, plus `shift` (channels,), float32."""
    return by_batch(_layer_norm, x, jnp.float32(eps), scale, shift, batched=1)


def _layer_norm(x: Array, eps: Array, scale: Array, shift: Array) -> Array:
    channels, rows = x.shape[-1], math.prod(x.shape[:-1])
    lanes = min(32, 1 << (channels // 4 - 1).bit_length())
    (out,) = program.launch(
        "layer_norm",
        [x, eps, scale, shift],
        operands.like(x),
        grid=(math.ceil(rows / (32 * device.WARPS // lanes)), 1),
        threads=32 * device.WARPS,
        shared_bytes=0,
        MAP_ROWS=rows,
        CHANNELS=channels,
        LANES_A_ROW=lanes,
    )
    return out
