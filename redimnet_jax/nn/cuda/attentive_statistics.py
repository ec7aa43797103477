"""The attentive statistics of pooling."""

import math

import jax
import jax.numpy as jnp

from redimnet_jax.nn.cuda import device, operands, program
from redimnet_jax.nn.cuda.sharding import by_batch

Array = jax.Array


def attentive_statistics(x: Array, logits: Array, mask: Array | None) -> Array:
    """(mean, standard deviation) (batch, 2 channels), float32, of `x` over time under softmax of `logits` like it.

    An even number of channels.
    """
    return by_batch(_attentive_statistics, x, logits, mask, batched=3)


def _attentive_statistics(x: Array, logits: Array, mask: Array | None) -> Array:
    batch, frames, channels = x.shape
    (out,) = program.launch(
        "attentive_statistics",
        [x, logits, *operands.masks(mask)],
        jax.ShapeDtypeStruct((batch, 2 * channels), jnp.float32),
        grid=(batch, math.ceil(channels / 64)),
        threads=32 * device.WARPS,
        shared_bytes=3 * 8 * 32 * device.WARPS,
        FRAMES=frames,
        CHANNELS=channels,
        MASKED=int(mask is not None),
    )
    return out
