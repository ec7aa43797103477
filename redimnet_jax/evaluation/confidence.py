"""How sure a figure is: bootstrap intervals of EER and minDCF, and a paired test of two systems.

The trials of a speaker share that speaker, so they are not independent, and resampling trials makes intervals too
narrow. Resampling speakers does not: a resample draws as many speakers as there are, with replacement; a target trial
then occurs as often as its speaker was drawn, a non-target trial once for every pairing of its two speakers' copies.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import device_metrics
from redimnet_jax.metrics import checked_labels

Array = jax.Array

# Resamples that run side by side: a multiple of every vector width, little memory.
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Percentile intervals, lower and upper end last: `eer` (rows, 2), `min_dcf` (rows, p_targets, 2), float64.

    `resamples` is how many of those drawn had both classes; the others have no error rates and are left out.
    """

    eer: np.ndarray
    min_dcf: np.ndarray
    resamples: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """EER of a second system minus that of the first, all float64, a value a row.

    `difference` (rows,) on all trials; `interval` (rows, 2) its percentile interval; `p_value` (rows,) two-sided;
    `differs` (rows,) bool, whether the interval excludes 0.
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
    p_targets: tuple[float, ...] = (0.01, 0.05),
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> Intervals:
    """Intervals of EER and minDCF for every row of `scores` (rows, trials), or (trials,) for one row.

    `left` and `right` (trials,) are the numbers of each trial's speakers, as `trials.speakers` gives them; without
    them trials are resampled as if they were independent. The same seed gives the same resamples for any scores.
    Raises UserError on what `metrics.roc` refuses, labels at odds with the speakers, and speakers so few that most
    resamples lack a class.
    """
    _check_numbers(resamples, level)
    scores, labels, first, second = _checked(scores, labels, left, right)
    costs = device_metrics.normalised_costs(p_targets, c_miss, c_fa)
    equal, least = _resampled(scores, labels, first, second, resamples, seed, costs)
    return Intervals(_interval(equal, level), _interval(np.swapaxes(least, 0, 1), level), equal.shape[-1])


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
    """Whether the EER of `others` differs from that of `scores`, both (rows, trials) or (trials,) of the same trials.

    A paired test: every resample (see `bootstrap`) serves both systems. The p-value is twice the smaller share of
    resamples on either side of no difference, with the observation counted in, so it is never 0.
    """
    _check_numbers(resamples, level)
    scores, labels, first, second = _checked(scores, labels, left, right)
    others, *_ = _checked(others, labels, left, right)
    if scores.shape != others.shape:
        raise UserError(f"The scores to compare have shapes {scores.shape} and {others.shape}; give the same trials.")
    both, rows = jnp.concatenate([scores, others]), len(scores)
    no_costs = np.zeros((0, 2), np.float32)
    observed, _ = device_metrics.eer_and_min_dcf(both, labels, ())
    equal, _ = _resampled(both, labels, first, second, resamples, seed, no_costs)
    differences = equal[rows:] - equal[:rows]
    sides = np.minimum((differences <= 0).sum(axis=1), (differences >= 0).sum(axis=1))
    interval = _interval(differences, level)
    return Comparison(
        np.asarray(observed[rows:] - observed[:rows], np.float64),
        interval,
        np.minimum(1.0, 2 * (sides + 1) / (differences.shape[1] + 1)),
        (interval[:, 0] > 0) | (interval[:, 1] < 0),
        differences.shape[1],
    )


def _interval(samples: np.ndarray, level: float) -> np.ndarray:
    """The middle `level` of `samples` (..., resamples): (..., 2)."""
    tail = (1 - level) / 2
    return np.moveaxis(np.quantile(samples.astype(np.float64), [tail, 1 - tail], axis=-1), 0, -1)


def _resampled(
    scores: Array, labels: Array, first: Array, second: Array, resamples: int, seed: int, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """EER (rows, resamples) and minDCF (costs, rows, resamples) of the resamples with both classes."""
    batch = min(BATCH, resamples)
    batches = -(-resamples // batch)
    keys = jax.random.split(jax.random.key(seed), batches * batch).reshape(batches, batch)
    units = 1 + int(jnp.maximum(first.max(), second.max()))
    equal, least = _bootstrap(scores, labels, first, second, keys, costs, units)
    equal, least = np.asarray(equal)[..., :resamples], np.asarray(least)[..., :resamples]
    whole = ~np.isnan(equal[0])
    if 2 * whole.sum() < resamples:
        raise UserError(
            f"Only {whole.sum()} of {resamples} resamples of {units} speakers have target and non-target trials; "
            "give trials of more speakers."
        )
    return equal[:, whole], least[..., whole]


@functools.partial(jax.jit, static_argnums=6)
def _bootstrap(scores, labels, first, second, keys, costs, units: int) -> tuple[Array, Array]:
    ranking = device_metrics.rank(scores, labels, first, second, units)

    def draw(key: Array) -> Array:
        return jnp.zeros(units + 1, jnp.int32).at[jax.random.randint(key, (units,), 0, units)].add(1)

    def batch(keys: Array) -> tuple[Array, Array]:
        return device_metrics.rates(ranking, jax.vmap(draw, out_axes=1)(keys), costs)

    results = jax.lax.map(batch, keys)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], keys.size), results)


def _check_numbers(resamples: int, level: float) -> None:
    if resamples < 1:
        raise UserError(f"resamples is {resamples} but must be at least 1.")
    if not 0 < level < 1:
        raise UserError(f"level is {level} but must be a share between 0 and 1, such as 0.95.")


def _checked(scores, labels, left, right) -> tuple[Array, Array, Array, Array]:
    scores = jnp.atleast_2d(jnp.asarray(scores, jnp.float32))
    if scores.ndim != 2 or np.ndim(labels) != 1 or scores.shape[1] != len(labels):
        raise UserError(f"Scores have shape {scores.shape} but labels {np.shape(labels)}; give one label a trial.")
    if 0 in scores.shape:
        raise UserError("There are no trials; give at least one target and one non-target trial.")
    if bool(jnp.isnan(scores).any()):
        raise UserError("Some scores are NaN; find the utterance whose embedding is not finite.")
    labels = checked_labels(labels)
    if left is None and right is None:
        left = right = np.arange(len(labels))
    elif left is None or right is None:
        raise UserError("Only one side's speakers are given; give left and right, or neither.")
    else:
        left, right = np.asarray(left), np.asarray(right)
        if left.shape != labels.shape or right.shape != labels.shape:
            raise UserError(
                f"The speakers have shapes {left.shape} and {right.shape} but there are {len(labels)} trials."
            )
        odd = (left == right) != labels
        if odd.any():
            raise UserError(
                f"{int(odd.sum())} of {len(labels)} labels are at odds with the speakers, the first that of trial "
                f"{int(np.argmax(odd))}; correct the list or the speakers."
            )
        # Numbers without gaps: only speakers that occur are drawn.
        left, right = np.unique(np.stack([left, right]), return_inverse=True)[1].reshape(2, -1)
    return scores, jnp.asarray(labels), jnp.asarray(left, jnp.int32), jnp.asarray(right, jnp.int32)
