"""Kernels that have no derivative of their own."""

from collections.abc import Callable

import jax
from jax import lax

Array = jax.Array


def with_derivative_of(plain: Callable[..., Array], fused: Callable[..., Array]) -> Callable[..., Array]:
    """`fused`, of arrays or None, with the derivative of `plain`, the form it stands for, from the same arrays."""

    @jax.custom_vjp
    def value(*arrays: Array | None) -> Array:
        return fused(*arrays)

    def forward(*arrays):
        return fused(*arrays), arrays

    def backward(arrays, dy: Array):
        # Nothing of it before `dy` is there: XLA would do it in the forward pass, and keep the maps until then.
        arrays, dy = lax.optimization_barrier((arrays, dy))
        return jax.vjp(plain, *arrays)[1](dy)

    value.defvjp(forward, backward)
    return value
