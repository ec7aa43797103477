"""Bootstrap confidence intervals of EER and minDCF, and a paired test of two systems.

Trials that share a speaker are not independent, so resampling trials makes intervals too narrow. This module
resamples speakers: a resample draws as many speakers as there are, with replacement. A target trial then occurs as
often as its speaker was drawn, a non-target trial once for every pairing of copies of its two speakers.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from redimnet_jax.errors import ArgumentError, UserError
from redimnet_jax.evaluation import device_metrics, resampling
from redimnet_jax.metrics import checked_labels

Array = jax.Array

P_TARGETS = (0.01, 0.05)


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Percentile intervals, float64, (lower, upper) last: `eer` (rows, 2), `min_dcf` (rows, p_targets, 2).

    `resamples` counts the resamples with both classes; the others have no error rates and are left out.
    """

    eer: np.ndarray
    min_dcf: np.ndarray
    resamples: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The EER of a second system minus that of the first, for every row of scores.

    `difference`, float64 (rows,), is that on all trials; `interval`, float64 (rows, 2), its percentile interval;
    `p_value`, float64 (rows,), two-sided; `differs`, bool (rows,), says whether the interval excludes 0.
    """

    difference: np.ndarray
    interval: np.ndarray
    p_value: np.ndarray
    differs: np.ndarray
    resamples: int


def bootstrap(
    scores: ArrayLike,
    labels: ArrayLike,
    left: ArrayLike | None = None,
    right: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    p_targets: tuple[float, ...] = P_TARGETS,
) -> Intervals:
    """Return intervals of EER and minDCF for every row of `scores` (rows, trials), or (trials,) for one row.

    `left` and `right` (trials,) are the numbers of each trial's speakers, as `trials.speakers` gives them. Without
    them trials are resampled as if they were independent. The same seed gives the same resamples for any scores.
    Raise UserError for what `metrics.roc` refuses, for labels at odds with the speakers, and for so few speakers that
    most resamples lack a class.
    """
    _check_numbers(resamples, level)
    scores, labels, first, second = _checked(scores, labels, left, right)
    costs = device_metrics.normalised_costs(p_targets)
    trials = _Trials(scores, labels, first, second, _units(first, second))
    eers, min_dcfs = _resampled_or_refused(trials, resamples, seed, costs)
    return Intervals(_interval(eers, level), _interval(np.swapaxes(min_dcfs, 0, 1), level), eers.shape[-1])


def bootstrap_within(
    scores: ArrayLike,
    labels: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    inside: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray | None:
    """Return 95% intervals of the EER, float64 (rows, 2), of the trials that are `inside`, bool (trials,).

    The resamples are those that `bootstrap` draws for all of the trials, of all of their speakers, so that all groups
    of a list have the same ones, and the same compiled program. Return None where fewer than half of the resamples
    have both classes. The other arguments and errors are those of `bootstrap`.
    """
    _check_numbers(resamples, 0.95)
    scores, is_target, first, second = _checked(scores, labels, left, right)
    units = _units(first, second)
    # The unit beyond the last one is never drawn.
    first, second = (jnp.where(inside, side, units) for side in (first, second))
    costs = device_metrics.normalised_costs(P_TARGETS)
    eers, _ = _resampled(_Trials(scores, is_target, first, second, units), resamples, seed, costs)
    return _interval(eers, 0.95) if 2 * eers.shape[1] >= resamples else None


def compare(
    scores: ArrayLike,
    others: ArrayLike,
    labels: ArrayLike,
    left: ArrayLike | None = None,
    right: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Test whether the EER of `others` differs from that of `scores`, both (rows, trials) or (trials,).

    The test is paired: every resample (see `bootstrap`) serves both systems, which have the same trials. The p-value
    is twice the smaller share of resamples on either side of no difference; the observation counts as one of them, so
    the p-value is never 0.
    """
    _check_numbers(resamples, level)
    scores, labels, first, second = _checked(scores, labels, left, right)
    others, *_ = _checked(others, labels, left, right)
    if scores.shape != others.shape:
        raise UserError(f"The scores to compare have shapes {scores.shape} and {others.shape}; give the same trials.")
    both = jnp.concatenate([scores, others])
    rows = len(scores)
    no_costs = np.zeros((0, 2), np.float32)
    observed, _ = device_metrics.eer_and_min_dcf(both, labels, ())
    trials = _Trials(both, labels, first, second, _units(first, second))
    eers, _ = _resampled_or_refused(trials, resamples, seed, no_costs)
    differences = eers[rows:] - eers[:rows]
    smaller_side = np.minimum((differences <= 0).sum(axis=1), (differences >= 0).sum(axis=1))
    interval = _interval(differences, level)
    return Comparison(
        np.asarray(observed[rows:] - observed[:rows], np.float64),
        interval,
        np.minimum(1.0, 2 * (smaller_side + 1) / (differences.shape[1] + 1)),
        (interval[:, 0] > 0) | (interval[:, 1] < 0),
        differences.shape[1],
    )


def _interval(samples: np.ndarray, level: float) -> np.ndarray:
    """Return the bounds, (..., 2), of the middle share `level` of `samples` (..., resamples)."""
    tail = (1 - level) / 2
    return np.moveaxis(np.quantile(samples.astype(np.float64), [tail, 1 - tail], axis=-1), 0, -1)


class _Trials(NamedTuple):
    """Scores (rows, trials), their labels, and the units on either side, of which there are `units`."""

    scores: Array
    labels: Array
    first: Array
    second: Array
    units: int


def _units(first: Array, second: Array) -> int:
    return 1 + int(jnp.maximum(first.max(), second.max()))


def _resampled(trials: _Trials, resamples: int, seed: int, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return EER (rows, resamples) and minDCF (costs, rows, resamples) of the resamples with both classes."""
    keys = resampling.keys(resamples, seed)
    scores, labels, first, second, units = trials
    device_eers, device_min_dcfs = _bootstrap(scores, labels, first, second, keys, costs, units)
    eers = np.asarray(device_eers)[..., :resamples]
    min_dcfs = np.asarray(device_min_dcfs)[..., :resamples]
    with_both = ~np.isnan(eers[0])
    return eers[:, with_both], min_dcfs[..., with_both]


def _resampled_or_refused(
    trials: _Trials, resamples: int, seed: int, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `_resampled` does; raise UserError where most resamples lack a class."""
    eers, min_dcfs = _resampled(trials, resamples, seed, costs)
    if 2 * eers.shape[1] < resamples:
        raise UserError(
            f"Only {eers.shape[1]} of {resamples} resamples of {trials.units} speakers have target and non-target "
            "trials; give trials of more speakers."
        )
    return eers, min_dcfs


@functools.partial(jax.jit, static_argnums=6)
def _bootstrap(
    scores: Array, labels: Array, first: Array, second: Array, keys: Array, costs: Array, units: int
) -> tuple[Array, Array]:
    """Return EER (rows, resamples) and minDCF (costs, rows, resamples); `keys` has one random key a resample."""
    ranking = device_metrics.rank(scores, labels, first, second, units)

    def batch(keys: Array) -> tuple[Array, Array]:
        counts = jax.vmap(lambda key: resampling.draw(key, units), out_axes=1)(keys)
        return device_metrics.rates(ranking, counts, costs)

    results = jax.lax.map(batch, keys)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], keys.size), results)


def _check_numbers(resamples: int, level: float) -> None:
    if resamples < 1:
        raise ArgumentError(f"`resamples` is {resamples} but must be at least 1.")
    if not 0 < level < 1:
        raise ArgumentError(f"`level` is {level} but must be a share between 0 and 1, such as 0.95.")


def _checked(
    scores: ArrayLike, labels: ArrayLike, left: ArrayLike | None, right: ArrayLike | None
) -> tuple[Array, Array, Array, Array]:
    """Return scores, float32 (rows, trials), labels, and speaker numbers without gaps, int32; raise UserError."""
    scores = jnp.atleast_2d(jnp.asarray(scores, jnp.float32))
    labels = np.asarray(labels)
    if scores.ndim != 2 or labels.ndim != 1 or scores.shape[1] != len(labels):
        raise UserError(f"Scores have shape {scores.shape} but labels {labels.shape}; give one label a trial.")
    if 0 in scores.shape:
        raise UserError("There are no trials; give at least one target and one non-target trial.")
    if bool(jnp.isnan(scores).any()):
        raise UserError("Some scores are NaN; find the utterance whose embedding is not finite.")
    is_target = checked_labels(labels)
    first, second = _checked_speakers(is_target, left, right)
    return scores, jnp.asarray(is_target), jnp.asarray(first, jnp.int32), jnp.asarray(second, jnp.int32)


def _checked_speakers(
    labels: np.ndarray, left: ArrayLike | None, right: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the speakers of both sides as numbers without gaps, or a number for every trial when none are given."""
    if left is None and right is None:
        return np.arange(len(labels)), np.arange(len(labels))
    if left is None or right is None:
        raise ArgumentError(
            "Only one of `left` and `right`, the speakers of both sides, is given; give both or none."
        )
    sides = np.asarray(left), np.asarray(right)
    if sides[0].shape != labels.shape or sides[1].shape != labels.shape:
        raise UserError(
            f"The speakers have shapes {sides[0].shape} and {sides[1].shape} but there are {len(labels)} trials."
        )
    odd = (sides[0] == sides[1]) != labels
    if odd.any():
        raise UserError(
            f"{int(odd.sum())} of {len(labels)} labels are at odds with the speakers, the first that of trial "
            f"{int(np.argmax(odd))}; correct the list or the speakers."
        )
    # Without gaps, only speakers that occur are drawn.
    numbers = np.unique(np.stack(sides), return_inverse=True)[1].reshape(2, -1)
    return numbers[0], numbers[1]
