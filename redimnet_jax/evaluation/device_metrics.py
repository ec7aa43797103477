"""EER and minDCF on the device, for many rows of scores and many resamples of the trials at once.

The figures are those of `metrics`, in float32. The scores are sorted once. A resample gives every trial a count of
how often it occurs, so it takes running sums over the one sorted order and no further sort. The order is cut into
chunks, and one scan goes through all chunks of all rows and resamples side by side. It keeps only the running sums
and the extremes so far, so nothing of the size resamples x trials is ever stored.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from redimnet_jax.metrics import cost_weights

Array = jax.Array

# Trials in a chunk, which are the steps of the scan. With more of them there are fewer chunks, whose sums then stay
# in a cache.
CHUNK = 256
# Steps of the scan that run as one program, between which the sums stay in registers.
UNROLL = 2


class Ranking(NamedTuple):
    """Trials by falling score; all arrays are (CHUNK, rows, chunks): position in a chunk, row of scores, chunk.

    `first` and `second`, int32, are the one or two units that a trial consists of (see `rates`). `target`, bool,
    marks target trials. `last`, bool, marks the last trial of every score, where the operating point lies.
    """

    first: Array
    second: Array
    target: Array
    last: Array


def rank(scores: Array, labels: Array, first: Array, second: Array, units: int) -> Ranking:
    """Sort `scores` (rows, trials); `labels`, `first` and `second`, (trials,) each, are the same for every row.

    Padding beyond the last trial belongs to a unit of its own, number `units`, that never occurs.
    """
    index = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
    falling, order = jax.lax.sort((-scores, index), num_keys=1, is_stable=False)
    last = jnp.pad(falling[:, 1:] != falling[:, :-1], ((0, 0), (0, 1)), constant_values=True)

    def chunks(x: Array, beyond: int | bool) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK)), constant_values=beyond)
        return jnp.moveaxis(x.reshape(len(x), -1, CHUNK), 2, 0)

    return Ranking(
        chunks(first[order], units), chunks(second[order], units), chunks(labels[order], False), chunks(last, False)
    )


def rates(ranking: Ranking, counts: Array, costs: ArrayLike) -> tuple[Array, Array]:
    """Return EER (rows, resamples) and minDCF (costs, rows, resamples), float32; NaN where a class does not occur.

    `counts`, int32 (units + 1, resamples), says how often each unit occurs, the last one 0. A trial of one unit
    (`first` == `second`) occurs that often; a trial of two units occurs once for every pairing, the product of their
    counts. `costs` (costs, 2) has the normalised costs of a miss rate and of a false alarm rate of one.
    """

    def weights(place: Ranking) -> tuple[Array, Array]:
        """Return how often each trial occurs as target and as non-target trial, (rows, chunks, resamples) each."""
        one = counts[place.first]
        two = counts[place.second]
        weight = jnp.where((place.first == place.second)[..., None], one, one * two)
        target = place.target[..., None]
        return jnp.where(target, weight, 0), jnp.where(target, 0, weight)

    def add(sums: Any, place: Ranking) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, weights(place)), None

    zeros = jnp.zeros((*ranking.first.shape[1:], counts.shape[1]), jnp.int32)
    (targets, nontargets), _ = jax.lax.scan(add, (zeros, zeros), ranking, unroll=UNROLL)
    all_targets = targets.sum(axis=1, keepdims=True)
    all_nontargets = nontargets.sum(axis=1, keepdims=True)
    # The reciprocal of a count is rounded once for all points, so the rates stay monotone.
    per_target = 1.0 / all_targets.astype(jnp.float32)
    per_nontarget = 1.0 / all_nontargets.astype(jnp.float32)
    missed = all_targets - (jnp.cumsum(targets, axis=1) - targets)
    accepted = jnp.cumsum(nontargets, axis=1) - nontargets

    def visit(state: Any, place: Ranking) -> tuple[Any, None]:
        missed, accepted, strict, lenient, min_dcf = state
        target, nontarget = weights(place)
        missed = missed - target
        accepted = accepted + nontarget
        frr = missed * per_target
        far = accepted * per_nontarget
        here = place.last[..., None]
        before = far < frr
        # Along the order far rises and frr falls, so the two points around far = frr are extremes of those visited.
        strict = (
            jnp.where(here & before, jnp.maximum(strict[0], far), strict[0]),
            jnp.where(here & before, jnp.minimum(strict[1], frr), strict[1]),
        )
        lenient = (
            jnp.where(here & ~before, jnp.minimum(lenient[0], far), lenient[0]),
            jnp.where(here & ~before, jnp.maximum(lenient[1], frr), lenient[1]),
        )
        min_dcf = jnp.where(here, jnp.minimum(min_dcf, miss * frr + false_alarm * far), min_dcf)
        return (missed, accepted, strict, lenient, min_dcf), None

    zero = jnp.zeros(zeros.shape, jnp.float32)
    one = jnp.ones(zeros.shape, jnp.float32)
    # Every search starts where all trials are rejected: far 0, frr 1. Accepting all, far 1 and frr 0, is among the
    # points.
    miss, false_alarm = jnp.moveaxis(jnp.asarray(costs, jnp.float32), 1, 0)[..., None, None, None]
    start = jnp.broadcast_to(miss, (miss.shape[0], *zeros.shape))
    state = (missed, accepted, (zero, one), (one, zero), start)
    (_, _, strict, lenient, min_dcf), _ = jax.lax.scan(visit, state, ranking, unroll=UNROLL)
    strict_far = strict[0].max(axis=1)
    strict_frr = strict[1].min(axis=1)
    lenient_far = lenient[0].min(axis=1)
    lenient_frr = lenient[1].max(axis=1)
    ahead = strict_frr - strict_far
    behind = lenient_far - lenient_frr
    eer = strict_far + ahead / (ahead + behind) * (lenient_far - strict_far)
    both = ((all_targets > 0) & (all_nontargets > 0))[:, 0]
    return jnp.where(both, eer, jnp.nan), jnp.where(both, min_dcf.min(axis=2), jnp.nan)


def eer_and_min_dcf(
    scores: ArrayLike,
    labels: ArrayLike,
    p_targets: tuple[float, ...] = (0.01, 0.05),
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> tuple[Array, Array]:
    """Return EER (rows,) and minDCF (p_targets, rows), float32, of `scores` (rows, trials) with `labels` (trials,).

    They equal `metrics.eer` and `metrics.min_dcf` to 1e-6. The function works under `jit`, where it cannot raise:
    NaN scores give NaN in their row, and a single class gives NaN everywhere.
    """
    return _eer_and_min_dcf(jnp.asarray(scores), jnp.asarray(labels), normalised_costs(p_targets, c_miss, c_fa))


@jax.jit
def _eer_and_min_dcf(scores: Array, labels: Array, costs: Array) -> tuple[Array, Array]:
    unit = jnp.zeros(scores.shape[1], jnp.int32)
    ranking = rank(scores, labels.astype(bool), unit, unit, 1)
    eer, min_dcf = rates(ranking, jnp.array([[1], [0]], jnp.int32), costs)
    broken = jnp.isnan(scores).any(axis=1)
    return jnp.where(broken, jnp.nan, eer[:, 0]), jnp.where(broken, jnp.nan, min_dcf[:, :, 0])


def normalised_costs(p_targets: tuple[float, ...], c_miss: float = 1.0, c_fa: float = 1.0) -> np.ndarray:
    """Return the costs of a miss rate and a false alarm rate of one over the smaller cost, float32 (p_targets, 2)."""
    costs = np.array([cost_weights(p_target, c_miss, c_fa) for p_target in p_targets]).reshape(-1, 2)
    return (costs / costs.min(axis=1, keepdims=True)).astype(np.float32)
