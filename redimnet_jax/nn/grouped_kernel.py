"""Kernels of grouped 2-D convolutions, (kt, kf, in/groups, out), in other forms."""

import jax
import jax.numpy as jnp

Array = jax.Array


def groups_of(x: Array, kernel: Array) -> int:
    """Return the number of groups of the convolution of `x` (..., in) with `kernel` (kt, kf, in/groups, out)."""
    return x.shape[-1] // kernel.shape[2]


def block_diagonal(kernel: Array, groups: int) -> Array:
    """Return a grouped kernel (kt, kf, in/groups, out) as the dense one (kt, kf, in, out) that does the same."""
    kt, kf, n, out = kernel.shape
    split = kernel.reshape(kt, kf, 1, n, groups, out // groups)
    eye = jnp.eye(groups, dtype=kernel.dtype)[:, None, :, None]
    return (split * eye).reshape(kt, kf, groups * n, out)


def dense_in_blocks(kernel: Array, groups: int, blocks: int) -> Array:
    """Return a kernel of `groups` groups as that of `blocks` groups, (kt, kf, in/blocks, out), that does the same."""
    return jnp.concatenate(
        [block_diagonal(part, groups // blocks) for part in jnp.split(kernel, blocks, axis=-1)], axis=-1
    )


def transposed(kernel: Array, groups: int) -> Array:
    """Return the grouped kernel whose convolution of an output's gradient is that of the input."""
    kt, kf, n, out = kernel.shape
    swapped = jnp.einsum("tfigo->tfogi", kernel[::-1, ::-1].reshape(kt, kf, n, groups, out // groups))
    return swapped.reshape(kt, kf, out // groups, groups * n)
