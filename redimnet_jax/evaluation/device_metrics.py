"""EER and minDCF on the device, for many rows of scores and many resamples of the trials at once.

The figures are those of `metrics`, in float32. The scores are sorted once. A resample gives every trial a count of
how often it occurs, so it costs running sums over the one sorted order and no sort. The order is cut into chunks, and
one scan goes through all chunks of all rows and resamples side by side, keeping only the running sums and what has
been found so far: nothing of the size resamples x trials is ever stored.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from redimnet_jax.metrics import cost_weights

Array = jax.Array

# Trials in a chunk: the steps of the scan. More of them make fewer chunks, whose sums then stay in a cache.
CHUNK = 256
# Steps that run as one program, between which the sums stay in registers.
UNROLL = 2


class Ranking(NamedTuple):
    """Trials by falling score, all (CHUNK, rows, chunks): position within a chunk, row of scores, chunk.

    `first`, `second`: int32, the one or two units that a trial consists of (see `rates`); `target`: bool; `last`:
    bool, the last trial of a score, where the operating point stands.
    """

    first: Array
    second: Array
    target: Array
    last: Array


def rank(scores: Array, labels: Array, first: Array, second: Array, units: int) -> Ranking:
    """Sorts `scores` (rows, trials); `labels`, `first` and `second` (trials,) are those of every row.

    Places beyond the last trial belong to a unit of their own, number `units`, that never occurs.
    """
    index = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
    falling, order = jax.lax.sort((-scores, index), num_keys=1, is_stable=False)
    last = jnp.pad(falling[:, 1:] != falling[:, :-1], ((0, 0), (0, 1)), constant_values=True)

    def chunks(x: Array, beyond) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK)), constant_values=beyond)
        return jnp.moveaxis(x.reshape(len(x), -1, CHUNK), 2, 0)

    return Ranking(
        chunks(first[order], units), chunks(second[order], units), chunks(labels[order], False), chunks(last, False)
    )


def rates(ranking: Ranking, counts: Array, costs: Array) -> tuple[Array, Array]:
    """EER (rows, resamples) and minDCF (costs, rows, resamples), float32; NaN where a class does not occur.

    `counts` (units + 1, resamples), int32, says how often each unit occurs, the last one 0. A trial of one unit
    (`first` == `second`) occurs that often; a trial of two, once for every pairing of them: the product of the
    counts. `costs` (costs, 2) are the normalised costs of a miss rate and of a false alarm rate of one.
    """

    def weights(place: Ranking) -> tuple[Array, Array]:
        """How often each trial occurs as a target trial and as a non-target trial, (rows, chunks, resamples)."""
        one, two = counts[place.first], counts[place.second]
        weight = jnp.where((place.first == place.second)[..., None], one, one * two)
        target = place.target[..., None]
        return jnp.where(target, weight, 0), jnp.where(target, 0, weight)

    def add(sums, place: Ranking):
        return jax.tree.map(jnp.add, sums, weights(place)), None

    zeros = jnp.zeros((*ranking.first.shape[1:], counts.shape[1]), jnp.int32)
    (targets, nontargets), _ = jax.lax.scan(add, (zeros, zeros), ranking, unroll=UNROLL)
    all_targets, all_nontargets = targets.sum(axis=1, keepdims=True), nontargets.sum(axis=1, keepdims=True)
    # One over the count: a reciprocal is rounded once for all points, so the rates stay monotone.
    per_target, per_nontarget = 1.0 / all_targets.astype(jnp.float32), 1.0 / all_nontargets.astype(jnp.float32)
    missed = all_targets - (jnp.cumsum(targets, axis=1) - targets)
    accepted = jnp.cumsum(nontargets, axis=1) - nontargets

    def visit(state, place: Ranking):
        missed, accepted, strict, lenient, least = state
        target, nontarget = weights(place)
        missed, accepted = missed - target, accepted + nontarget
        frr, far = missed * per_target, accepted * per_nontarget
        here = place.last[..., None]
        before = far < frr
        # Along the order far rises and frr falls, so the two points around far = frr are extremes of what is seen.
        strict = (
            jnp.where(here & before, jnp.maximum(strict[0], far), strict[0]),
            jnp.where(here & before, jnp.minimum(strict[1], frr), strict[1]),
        )
        lenient = (
            jnp.where(here & ~before, jnp.minimum(lenient[0], far), lenient[0]),
            jnp.where(here & ~before, jnp.maximum(lenient[1], frr), lenient[1]),
        )
        least = jnp.where(here, jnp.minimum(least, miss * frr + false_alarm * far), least)
        return (missed, accepted, strict, lenient, least), None

    zero, one = jnp.zeros(zeros.shape, jnp.float32), jnp.ones(zeros.shape, jnp.float32)
    # Reject all is where every search starts: far 0, frr 1. Accept all, far 1 and frr 0, is among the points.
    miss, false_alarm = jnp.moveaxis(jnp.asarray(costs, jnp.float32), 1, 0)[..., None, None, None]
    least = jnp.broadcast_to(miss, (len(costs), *zeros.shape))
    state = (missed, accepted, (zero, one), (one, zero), least)
    (_, _, strict, lenient, least), _ = jax.lax.scan(visit, state, ranking, unroll=UNROLL)
    strict = strict[0].max(axis=1), strict[1].min(axis=1)
    lenient = lenient[0].min(axis=1), lenient[1].max(axis=1)
    ahead, behind = strict[1] - strict[0], lenient[0] - lenient[1]
    equal = strict[0] + ahead / (ahead + behind) * (lenient[0] - strict[0])
    both = ((all_targets > 0) & (all_nontargets > 0))[:, 0]
    return jnp.where(both, equal, jnp.nan), jnp.where(both, least.min(axis=2), jnp.nan)


def eer_and_min_dcf(
    scores: ArrayLike,
    labels: ArrayLike,
    p_targets: tuple[float, ...] = (0.01, 0.05),
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> tuple[Array, Array]:
    """EER (rows,) and minDCF (p_targets, rows), float32, of `scores` (rows, trials) with `labels` (trials,).

    Equal to `metrics.eer` and `metrics.min_dcf` to 1e-6. Works under `jit`, where nothing can be refused: NaN scores
    give NaN in their row, and a single class NaN everywhere.
    """
    return _eer_and_min_dcf(jnp.asarray(scores), jnp.asarray(labels), normalised_costs(p_targets, c_miss, c_fa))


@jax.jit
def _eer_and_min_dcf(scores: Array, labels: Array, costs: Array) -> tuple[Array, Array]:
    unit = jnp.zeros(scores.shape[1], jnp.int32)
    ranking = rank(scores, labels.astype(bool), unit, unit, 1)
    equal, least = rates(ranking, jnp.array([[1], [0]], jnp.int32), costs)
    broken = jnp.isnan(scores).any(axis=1)
    return jnp.where(broken, jnp.nan, equal[:, 0]), jnp.where(broken, jnp.nan, least[:, :, 0])


def normalised_costs(p_targets: tuple[float, ...], c_miss: float = 1.0, c_fa: float = 1.0) -> np.ndarray:
    """The costs of a miss rate and of a false alarm rate of one, over the lesser: float32 (p_targets, 2)."""
    costs = np.array([cost_weights(p_target, c_miss, c_fa) for p_target in p_targets]).reshape(-1, 2)
    return (costs / costs.min(axis=1, keepdims=True)).astype(np.float32)
