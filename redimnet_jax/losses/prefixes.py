"""How much each prefix counts in a step, and how much of the gradient each element of the embedding gets.

All are functions of the weights of the prefixes, one for each in increasing order of their widths.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Durations:
    """Bind every prefix to a duration, so that short crops train narrow prefixes more and long crops wide ones.

    This is the idea of DAME (Jung et al., arXiv 2601.13999), which aligns prefixes with lengths of utterances by hard
    or soft weights; the form of the weights is our own. With `seconds` of each prefix, a crop of T seconds gives
    prefix k its weight times (the shorter of T and seconds[k] / the longer) ** `sharpness`: with a high sharpness
    only the prefixes of the nearest duration train.
    """

    seconds: tuple[float, ...]
    sharpness: float = 1.0

    def weights(self, weights: Sequence[float], crop_seconds: ArrayLike) -> Array:
        """Return the weights, float32 (prefixes,) of sum 1, in a batch of crops of `crop_seconds` > 0."""
        distance = jnp.abs(jnp.log(jnp.asarray(crop_seconds, jnp.float32) / jnp.asarray(self.seconds, jnp.float32)))
        # As a softmax, since every power may be below the smallest float.
        return jax.nn.softmax(jnp.log(jnp.asarray(weights, jnp.float32)) - self.sharpness * distance)


def sample(weights: ArrayLike, count: int, key: Array) -> Array:
    """Return `weights` (prefixes,) as float32, with zeros for all but `count` random ones of those above zero."""
    weights = jnp.asarray(weights, jnp.float32)
    draws = jnp.where(weights > 0, jax.random.uniform(key, weights.shape), -1.0)
    return jnp.where(draws >= jnp.sort(draws)[-count], weights, 0.0)


def gradient_factors(dims: Sequence[int], weights: Sequence[float]) -> tuple[float, ...]:
    """Return the factor of the gradient of the elements that each prefix adds to the one before it.

    An element gets a gradient from every prefix that contains it. The factor is the inverse of the sum of their
    `weights`, so that late elements, which few prefixes contain, learn as fast as early ones; the mean over the
    elements is 1. Park and Kim (IEEE Access 13, 2025) scale gradients by element for this purpose; the factors are
    our own. The last weight must be above zero.
    """
    added = [dim - before for before, dim in itertools.pairwise((0, *dims))]
    inverse = [1.0 / sum(weights[index:]) for index in range(len(dims))]
    mean = sum(count * factor for count, factor in zip(added, inverse, strict=True)) / dims[-1]
    return tuple(factor / mean for factor in inverse)


@jax.custom_vjp
def scale_gradient(x: Array, factors: Array) -> Array:
    """Return `x` (..., width), whose gradient is multiplied by `factors` (width,) on its way back."""
    return x


def _scale_gradient_fwd(x: Array, factors: Array) -> tuple[Array, Array]:
    return x, factors


def _scale_gradient_bwd(factors: Array, cotangent: Array) -> tuple[Array, None]:
    return cotangent * factors.astype(cotangent.dtype), None


scale_gradient.defvjp(_scale_gradient_fwd, _scale_gradient_bwd)
