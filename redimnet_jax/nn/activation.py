"""GELU (arXiv 1606.08415): exact, and by its tanh formula.

In float32 the exact form is that of jax.nn. For a bfloat16 map XLA would compute that through erfc, which costs a GPU
twice what reading and writing the map does; erf in float32 is accurate enough. The derivative is computed from the
input alone: differentiation by JAX would keep several float32 maps for it.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from redimnet_jax.nn import tpu_chip
from redimnet_jax.nn.dispatch import by_platform
from redimnet_jax.numerics import exact

Array = jax.Array

gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


# The odd polynomial p for which (1 + tanh(p(x))) / 2 is the normal distribution, to 3e-5 in x times it.
_TANH_COEFFICIENTS = (0.79750788, 3.7005651e-2, -3.5151746e-4)
# Beyond this square the polynomial turns, and the distribution is 0 or 1.
_TANH_MAX_SQUARE = 50.0


def _normal_cdf(x: Array) -> Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _normal_cdf_by_tanh(x: Array) -> Array:
    # Every TPU has an instruction for tanh; those without one for erf compute that by twenty operations.
    square = jnp.minimum(x * x, _TANH_MAX_SQUARE)
    c1, c3, c5 = _TANH_COEFFICIENTS
    return 0.5 + 0.5 * jnp.tanh(x * (c1 + square * (c3 + square * c5)))


class ScaledGelu(NamedTuple):
    """GELU of x is `outer` * `function`(`inner` * x), for float32 x of any shape, accurate enough for bfloat16."""

    inner: float
    function: Callable[[Array], Array]
    outer: float


def scaled_gelu() -> ScaledGelu:
    """Return the form of GELU that takes a TPU the fewest steps for each element, without the scales."""
    if tpu_chip.chip().has_erf:
        return ScaledGelu(math.sqrt(0.5), _gelu_by_erf, math.sqrt(0.5))
    return ScaledGelu(0.5, _gelu_by_tanh, 1.0)


def _gelu_by_erf(x: Array) -> Array:
    return x + x * jax.lax.erf(x)


def _gelu_by_tanh(x: Array) -> Array:
    square = jnp.minimum(x * x, _TANH_MAX_SQUARE / 4)
    c1, c3, c5 = (factor * c for factor, c in zip((2, 8, 32), _TANH_COEFFICIENTS, strict=True))
    return x + x * jnp.tanh(x * (c1 + square * (c3 + square * c5)))


def _rounded_normal_cdf(x: Array) -> Array:
    """Return the normal distribution at float32 `x`, accurate enough for a result that is rounded to bfloat16."""
    return by_platform(x, plain=_normal_cdf, tpu=None if tpu_chip.chip().has_erf else _normal_cdf_by_tanh)


def gelu_derivative(x: Array, dtype: jnp.dtype) -> Array:
    """Return the derivative of GELU at float32 `x` of any shape, in float32 and accurate enough for `dtype`."""
    cdf = _normal_cdf(x) if dtype.itemsize >= 4 else _rounded_normal_cdf(x)
    return cdf + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Return x Phi(x) in the dtype of `x`, of any shape; Phi is the normal distribution."""
    if x.dtype.itemsize >= 4:
        return jax.nn.gelu(x, approximate=False)
    return (exact(x) * _rounded_normal_cdf(exact(x))).astype(x.dtype)


def _gelu_fwd(x: Array):
    return gelu(x), x


def _gelu_bwd(x: Array, dy: Array):
    return ((gelu_derivative(exact(x), x.dtype) * exact(dy)).astype(x.dtype),)


gelu.defvjp(_gelu_fwd, _gelu_bwd)
