"""False acceptances and false rejections over thresholds of the log-likelihood ratio, with their intervals.

A curve is all that a decision needs to know of the trials that a system was measured on: it gives the threshold for a
false acceptance rate, and the chance of error at any threshold.
"""

import dataclasses
import math

import numpy as np

from redimnet_jax import metrics
from redimnet_jax.errors import ArgumentError
from redimnet_jax.evaluation import resampling
from redimnet_jax.evaluation.protocol import TrialSet

PER_DECADE = 20  # points of each of the two rates
ROUND_RATES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class ErrorRates:
    """False acceptance and false rejection rate at a threshold, each with its 95% interval."""

    far: float
    far_ci95: Interval
    frr: float
    frr_ci95: Interval


@dataclasses.dataclass(frozen=True)
class ErrorCurve:
    """Error rates at rising `thresholds`, from "accept all" to "reject all", on trials that `description` names.

    far, frr: the rates, (points,). far_ci95, frr_ci95: their 95% intervals by the bootstrap over speakers.
    targets, nontargets, speakers: how many of each there were.
    """

    thresholds: tuple[float, ...]
    far: tuple[float, ...]
    frr: tuple[float, ...]
    far_ci95: tuple[Interval, ...]
    frr_ci95: tuple[Interval, ...]
    targets: int
    nontargets: int
    speakers: int
    description: str

    def at(self, threshold: float) -> ErrorRates:
        """Return the rates at a `threshold`; between points of the curve they are interpolated."""

        def along(values) -> float:
            return float(np.interp(threshold, self.thresholds, values))

        def interval(bounds) -> Interval:
            low, high = zip(*bounds, strict=True)
            return along(low), along(high)

        return ErrorRates(along(self.far), interval(self.far_ci95), along(self.frr), interval(self.frr_ci95))

    def threshold_at_far(self, far: float) -> float:
        """Return the lowest threshold of the curve with at most this false acceptance rate.

        Raise ArgumentError when `far` is no rate, or lower than the trials can show.
        """
        if not 0 < far < 1:
            raise ArgumentError(f"`far` is {far} but must be a rate between 0 and 1, both excluded.")
        if far * self.nontargets < 1:
            raise ArgumentError(
                f"`far` is {far:g} but {self.nontargets:,} non-target trials show no rate below "
                f"{1 / self.nontargets:.1g}; ask for a higher rate, or calibrate on more trials."
            )
        return self.thresholds[next(i for i, rate in enumerate(self.far) if rate <= far)]


def measure(
    llrs: np.ndarray, trial_set: TrialSet, description: str, *, resamples: int = 1000, seed: int = 0
) -> ErrorCurve:
    """Return the curve of log-likelihood ratios `llrs` (trials,) on `trial_set`, which messages call `description`.

    Raise UserError for what `resampling.trial_weights` refuses.
    """
    labels = trial_set.trials.labels
    thresholds = _thresholds(llrs, labels)
    # Trials of bin i are accepted at the thresholds 0 to i - 1.
    bins = np.searchsorted(thresholds, llrs, side="right")
    sides = trial_set.speaker_numbers()
    rates = [
        _rates(bins, labels, weights, len(thresholds))
        for weights in resampling.trial_weights(labels, *sides, resamples=resamples, seed=seed)
    ]
    far, frr = _rates(bins, labels, np.ones(len(labels)), len(thresholds))
    intervals = np.quantile(np.stack(rates), [0.025, 0.975], axis=0)  # (2, 2, points)
    far_ci95, frr_ci95 = (tuple(map(tuple, intervals[:, side].T.tolist())) for side in (0, 1))
    return ErrorCurve(
        tuple(thresholds.tolist()),
        tuple(far.tolist()),
        tuple(frr.tolist()),
        far_ci95,
        frr_ci95,
        targets=int(labels.sum()),
        nontargets=int((~labels).sum()),
        speakers=len(set(trial_set.speakers)),
        description=description,
    )


def _thresholds(llrs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return rising thresholds at which either rate is a round one, or one of `PER_DECADE` in each decade."""
    points = metrics.roc(llrs, labels)
    chosen = [0, len(points.far) - 1]
    for rates, count in ((points.far, int((~labels).sum())), (points.frr[::-1], int(labels.sum()))):
        wanted = np.logspace(-math.log10(count), 0, 1 + math.ceil(PER_DECADE * math.log10(max(count, 2))))
        index = np.searchsorted(rates, [*wanted, *ROUND_RATES], side="right") - 1
        chosen.extend((index if rates is points.far else len(rates) - 1 - index).tolist())
    thresholds = points.thresholds[np.unique(chosen)]
    # No trial is accepted at the next number above the highest ratio.
    thresholds[np.isinf(thresholds)] = np.nextafter(llrs.max(), np.inf)
    return np.unique(thresholds)


def _rates(bins: np.ndarray, labels: np.ndarray, weights: np.ndarray, points: int) -> np.ndarray:
    """Return the false acceptance and the false rejection rate (2, points) of weighted trials."""
    nontargets = np.bincount(bins[~labels], weights[~labels], points + 1)
    targets = np.bincount(bins[labels], weights[labels], points + 1)
    accepted = nontargets[::-1].cumsum()[::-1][1:] / nontargets.sum()
    rejected = targets.cumsum()[:-1] / targets.sum()
    return np.stack([accepted, rejected])
