"""Operands of kernels in the order in which they take them."""

import jax
import jax.numpy as jnp

Array = jax.Array


def is_map(x: Array) -> bool:
    """Return whether `x` has the dtype of the maps that kernels take."""
    return x.dtype == jnp.bfloat16


def like(x: Array) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of `x`, for a result that is alike."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def masks(mask: Array | None) -> list[Array]:
    """Return the operands that a mask (batch, time) adds to a launch: none, or one of int32."""
    return [] if mask is None else [mask.astype(jnp.int32)]


def lane_order(kernel: Array) -> Array:
    """(..., in, out) float32 -> bfloat16, (..., in / 16, out / 8, 32 lanes, 4): what a lane holds of a product."""
    *_, rows, columns = kernel.shape
    split = kernel.astype(jnp.bfloat16).reshape(*kernel.shape[:-2], rows // 16, 2, 4, 2, columns // 8, 8)
    # (in / 16, half, pair, one, out / 8, group) -> (in / 16, out / 8, group, pair, half, one)
    ordered = jnp.moveaxis(split, (-2, -1, -4, -5, -3), (-5, -4, -3, -2, -1))
    return ordered.reshape(*kernel.shape[:-2], rows // 16, columns // 8, 32, 4)
