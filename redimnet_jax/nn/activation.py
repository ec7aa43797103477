"""GELU (arXiv 1606.08415): exact, and by its tanh formula.

The exact one is that of jax.nn in float32. Of a bfloat16 map XLA would take it through erfc, which costs a GPU twice
what reading and writing the map does; erf in float32 is enough there. The derivative starts from the input again:
left to itself it keeps several maps, of float32 even where the input is not.
"""

import functools
import math

import jax
import jax.numpy as jnp

from redimnet_jax.numerics import exact

Array = jax.Array

gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


def _normal_cdf(x: Array) -> Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def gelu_derivative(x: Array) -> Array:
    """Phi(x) + x phi(x) of the normal distribution, of `x` of any shape in float32."""
    return _normal_cdf(x) + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """x Phi(x) in the dtype of `x`, of any shape; Phi is the normal distribution."""
    if x.dtype.itemsize >= 4:
        return jax.nn.gelu(x, approximate=False)
    return (exact(x) * _normal_cdf(exact(x))).astype(x.dtype)


def _gelu_fwd(x: Array):
    return gelu(x), x


def _gelu_bwd(x: Array, dy: Array):
    return ((gelu_derivative(exact(x)) * exact(dy)).astype(x.dtype),)


gelu.defvjp(_gelu_fwd, _gelu_bwd)
