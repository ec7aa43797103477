"""GELU (arXiv 1606.08415): exact, and by its tanh formula.

XLA takes jax.nn's exact GELU of a bfloat16 map through erfc, which costs a GPU twice what reading and writing the map
does, and its derivative keeps float32 maps. Here erf in float32 is enough for such a map, and the derivative starts
from the input again.
"""

import functools
import math

import jax
import jax.numpy as jnp

from redimnet_jax.convolution import exact

Array = jax.Array

gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


def gelu(x: Array) -> Array:
    """x Phi(x) in the dtype of `x`, of any shape; Phi is the normal distribution."""
    return _gelu_in_float32(x) if x.dtype.itemsize < 4 else jax.nn.gelu(x, approximate=False)


def _normal_cdf(x: Array) -> Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def gelu_derivative(x: Array) -> Array:
    """Phi(x) + x phi(x), float32 `x` of any shape."""
    return _normal_cdf(x) + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


@jax.custom_vjp
def _gelu_in_float32(x: Array) -> Array:
    wide = exact(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_fwd(x: Array):
    return _gelu_in_float32(x), x


def _gelu_bwd(x: Array, dy: Array):
    return ((gelu_derivative(exact(x)) * exact(dy)).astype(x.dtype),)


_gelu_in_float32.defvjp(_gelu_fwd, _gelu_bwd)
