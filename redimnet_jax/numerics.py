"""Arithmetic that every part shares: exact dtypes, unit vectors and cosines."""

import jax
import jax.numpy as jnp

Array = jax.Array

UNIT_EPS = 1e-12  # the length below which a row counts as zero


def precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """float32 means float32 on every backend (no TF32, no bfloat16 passes); lower dtypes take the fast path."""
    return jax.lax.Precision.HIGHEST if dtype.itemsize >= 4 else jax.lax.Precision.DEFAULT


def exact(x: Array) -> Array:
    """`x` in float32 at least: the dtype of statistics, whatever that of the arithmetic around them."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def unit(x: Array, eps: float = UNIT_EPS) -> Array:
    """Rows of `x` (..., features) scaled to length one; a zero row stays zero."""
    x = exact(x)
    # The floor goes under the root, where the gradient at zero is still finite.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), eps**2))


def cosines(embeddings: Array, prototypes: Array) -> Array:
    """Cosine (batch, classes) of every row of `embeddings` (batch, dim) and `prototypes` (classes, dim)."""
    return jnp.matmul(unit(embeddings), unit(prototypes).T, precision=jax.lax.Precision.HIGHEST)
