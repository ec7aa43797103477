"""Training losses over speaker classes, in float32 at least."""

import jax
import jax.numpy as jnp

from redimnet_jax.convolution import exact

Array = jax.Array


def unit(x: Array, eps: float = 1e-12) -> Array:
    """Rows of `x` (..., features) scaled to length one; a zero row stays zero."""
    x = exact(x)
    # The floor goes under the root, where the gradient at zero is still finite.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), eps**2))


def cosines(embeddings: Array, prototypes: Array) -> Array:
    """Cosine (batch, classes) of every row of `embeddings` (batch, dim) and `prototypes` (classes, dim)."""
    return jnp.matmul(unit(embeddings), unit(prototypes).T, precision=jax.lax.Precision.HIGHEST)


def aam_softmax(
    embeddings: Array,
    prototypes: Array,
    labels: Array,
    *,
    margin: float | Array = 0.2,
    scale: float = 30.0,
    easy_margin: bool = False,
) -> Array:
    """Mean AAM-Softmax loss (ArcFace, arXiv 1801.07698, equation 3), a float32 scalar.

    `embeddings` (batch, dim) and `prototypes` (classes, dim) of any length, `labels` (batch,) integers. The margin
    (radians) is added to the angle of the target class. Beyond pi - margin, where the cosine would turn around,
    the target logit goes on falling as cos - margin * sin(margin); with `easy_margin` targets more than 90 degrees
    away get no margin at all.
    """
    cosine = cosines(embeddings, prototypes)
    target = jnp.take_along_axis(cosine, labels[:, None], axis=1)
    margin = jnp.asarray(margin, cosine.dtype)
    cos_margin, sin_margin = jnp.cos(margin), jnp.sin(margin)
    # Strictly inside (-1, 1): the derivative of the sine is infinite at the ends.
    inside = jnp.clip(target, -1.0 + 1e-7, 1.0 - 1e-7)
    sine = jnp.sqrt(1.0 - jnp.square(inside))
    shifted = inside * cos_margin - sine * sin_margin
    if easy_margin:
        shifted = jnp.where(target > 0.0, shifted, target)
    else:
        turned = target <= -cos_margin
        shifted = jnp.where(turned, target - margin * sin_margin, shifted)
    is_target = jax.nn.one_hot(labels, cosine.shape[1], dtype=bool)
    logits = scale * jnp.where(is_target, shifted, cosine)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - scale * shifted[:, 0])
