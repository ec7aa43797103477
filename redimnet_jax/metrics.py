"""Error rates of verification scores, on the host, exact in float64.

A trial is accepted where its score is at least the threshold. Sweeping the threshold over the distinct scores gives
the operating points; trials of equal score are accepted together, so ties are one operating point. Every figure here
is a function of those points or of log-likelihood ratios; docs/reference/metrics.md defines each with its source.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from redimnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Roc:
    """Operating points from "reject all" (threshold inf) to "accept all" (the lowest score), all float64 (points,).

    `far`, the share of non-target trials accepted, rises from 0 to 1; `frr`, the share of target trials rejected,
    falls from 1 to 0.
    """

    thresholds: np.ndarray
    far: np.ndarray
    frr: np.ndarray

    def corners(self) -> "Roc":
        """Return the points at which the curve turns: the same curve, drawn with fewer points."""
        step_far, step_frr = np.diff(self.far), np.diff(self.frr)
        turns = step_far[:-1] * step_frr[1:] != step_far[1:] * step_frr[:-1]
        return self._at(np.concatenate([[True], turns, [True]]))

    def convex_hull(self) -> "Roc":
        """Return the lower convex hull of (far, frr): what mixing two thresholds at random could reach.

        Its edges are the pools of isotonic regression (pool adjacent violators; Fawcett and Niculescu-Mizil 2007).
        """
        from scipy.optimize import isotonic_regression

        target, nontarget = -np.diff(self.frr), np.diff(self.far)
        mass = target + nontarget
        pools = isotonic_regression(target / mass, weights=mass, increasing=False).blocks
        return self._at(pools)

    def eer(self) -> float:
        """Where far = frr on the line between the two operating points around it."""
        before, after, share = self._crossing()
        return float(self.far[before] + share * (self.far[after] - self.far[before]))

    def min_dcf(self, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
        """Return the least normalised detection cost of the points, between 0 and 1."""
        return float(np.min(detection_cost(self.far, self.frr, p_target, c_miss, c_fa)))

    def eer_threshold(self) -> float:
        """Return the threshold of that one of the two operating points around far = frr where they differ less.

        The lower threshold if both differ alike. It is a score of the trials, never infinite.
        """
        before, after, share = self._crossing()
        return float(self.thresholds[before if share < 0.5 else after])

    def det(self) -> tuple[np.ndarray, np.ndarray]:
        """`far` and `frr` as normal deviates, without the points where one of them is 0 or 1 (Martin et al. 1997)."""
        from scipy.special import ndtri

        inside = (self.far > 0) & (self.far < 1) & (self.frr > 0) & (self.frr < 1)
        return ndtri(self.far[inside]), ndtri(self.frr[inside])

    def _crossing(self) -> tuple[int, int, float]:
        """Return the last point with far < frr, the first without, and the share of the way at which they meet."""
        difference = self.far - self.frr
        after = int(np.argmax(difference >= 0))
        before = after - 1
        return before, after, float(difference[before] / (difference[before] - difference[after]))

    def _at(self, index: np.ndarray) -> "Roc":
        return Roc(self.thresholds[index], self.far[index], self.frr[index])


def roc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Roc:
    """All operating points of `scores` (trials,) with `labels` (trials,), 1 or True for a target trial.

    `weights` (trials,), none negative, count a trial several times or not at all. Raises UserError on no trials, NaN
    scores, one class only, labels other than 0 and 1, and lengths that differ.
    """
    scores, labels = checked(scores, labels)
    if weights is not None:
        weights = _checked_weights(weights, labels)
        counted = weights > 0
        scores, labels, weights = scores[counted], labels[counted], weights[counted]
    order = _falling_order(scores)
    falling = scores[order]
    last = np.append(falling[1:] != falling[:-1], True)
    if weights is None:
        accepted_targets, accepted = np.cumsum(labels[order])[last], np.flatnonzero(last) + 1
    else:
        weights = weights[order]
        accepted_targets, accepted = np.cumsum(weights * labels[order])[last], np.cumsum(weights)[last]
    accepted_nontargets = accepted - accepted_targets
    return Roc(
        np.concatenate([[np.inf], falling[last]]),
        np.concatenate([[0.0], accepted_nontargets / accepted_nontargets[-1]]),
        # One division of the rejected: 1 - accepted / all would round twice.
        np.concatenate([[1.0], (accepted_targets[-1] - accepted_targets) / accepted_targets[-1]]),
    )


def eer(scores: ArrayLike, labels: ArrayLike) -> float:
    """Equal error rate, a fraction: far = frr, by linear interpolation between the operating points around it.

    Constant scores give 0.5. Errors as in `roc`.
    """
    return roc(scores, labels).eer()


def eer_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the score to accept from at the EER, see `Roc.eer_threshold`; errors as in `roc`."""
    return roc(scores, labels).eer_threshold()


def rocch_eer(scores: ArrayLike, labels: ArrayLike) -> float:
    """EER of the ROC's convex hull, a fraction up to 0.5 (Brümmer and de Villiers 2013); errors as in `roc`."""
    return roc(scores, labels).convex_hull().eer()


def min_dcf(
    scores: ArrayLike, labels: ArrayLike, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Least normalised detection cost over all thresholds (NIST), between 0 and 1; errors as in `roc`."""
    return roc(scores, labels).min_dcf(p_target, c_miss, c_fa)


def act_dcf(
    llrs: ArrayLike, labels: ArrayLike, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Normalised detection cost of log-likelihood ratios at the Bayes threshold; errors as in `roc`.

    The threshold is log(c_fa (1 - p_target) / (c_miss p_target)); without calibration the figure means nothing.
    """
    far, frr = error_rates(llrs, labels, bayes_threshold(p_target, c_miss, c_fa))
    return float(detection_cost(far, frr, p_target, c_miss, c_fa))


def detection_cost(far, frr, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0):
    """c_miss p_target frr + c_fa (1 - p_target) far, over the cost of the better of accept all and reject all."""
    miss, false_alarm = cost_weights(p_target, c_miss, c_fa)
    return (miss * frr + false_alarm * far) / min(miss, false_alarm)


def bayes_threshold(p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Return the log-likelihood ratio from which accepting costs less on average than rejecting."""
    miss, false_alarm = cost_weights(p_target, c_miss, c_fa)
    return float(np.log(false_alarm) - np.log(miss))


def error_rates(scores: ArrayLike, labels: ArrayLike, threshold: float) -> tuple[float, float]:
    """Share of non-target trials accepted and of target trials rejected at `threshold`; errors as in `roc`."""
    scores, labels = checked(scores, labels)
    accepted = scores >= _checked_threshold(threshold)
    return float(np.mean(accepted[~labels])), float(np.mean(~accepted[labels]))


def accuracy(scores: ArrayLike, labels: ArrayLike, threshold: float) -> float:
    """Share of all trials decided rightly at `threshold`; errors as in `roc`."""
    scores, labels = checked(scores, labels)
    return float(np.mean((scores >= _checked_threshold(threshold)) == labels))


def threshold_at_far(scores: ArrayLike, labels: ArrayLike, far: float) -> float:
    """Return the lowest operating point's threshold with at most this false acceptance rate; errors as in `roc`.

    It is inf (reject all) where accepting even the highest score would be too much.
    """
    points = roc(scores, labels)
    return float(points.thresholds[np.searchsorted(points.far, _checked_rate("far", far), side="right") - 1])


def threshold_at_frr(scores: ArrayLike, labels: ArrayLike, frr: float) -> float:
    """Return the highest operating point's threshold with at most this false rejection rate; errors as in `roc`."""
    points = roc(scores, labels)
    return float(points.thresholds[np.argmax(points.frr <= _checked_rate("frr", frr))])


def cllr(llrs: ArrayLike, labels: ArrayLike) -> float:
    """Cost of log-likelihood ratios (natural logarithm), in bits (Brümmer and du Preez 2006); errors as in `roc`."""
    llrs, labels = checked(llrs, labels)
    return float((np.mean(_softplus(-llrs[labels])) + np.mean(_softplus(llrs[~labels]))) / (2 * np.log(2)))


def min_cllr(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Cllr after the best non-decreasing map from scores to log-likelihood ratios, in bits.

    The best map gives every edge of the ROC's convex hull the logarithm of its slope. `weights` and errors are
    those of `roc`.
    """
    hull = roc(scores, labels, weights).convex_hull()
    target, nontarget = -np.diff(hull.frr), np.diff(hull.far)
    # An edge of one class alone has an infinite log-likelihood ratio and costs nothing.
    mixed = (target > 0) & (nontarget > 0)
    target, nontarget = target[mixed], nontarget[mixed]
    llrs = np.log(target) - np.log(nontarget)
    return float(np.sum(target * _softplus(-llrs) + nontarget * _softplus(llrs)) / (2 * np.log(2)))


def cost_weights(p_target: float, c_miss: float, c_fa: float) -> tuple[float, float]:
    """c_miss p_target and c_fa (1 - p_target), checked."""
    if not 0 < p_target < 1:
        raise UserError(f"p_target is {p_target} but must lie between 0 and 1, both excluded.")
    if not (0 < c_miss < np.inf and 0 < c_fa < np.inf):
        raise UserError(f"c_miss is {c_miss} and c_fa is {c_fa} but costs must be positive numbers.")
    return c_miss * p_target, c_fa * (1 - p_target)


def checked(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores in float64 and labels as bool, both (trials,); raises the errors that `roc` names."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or labels.ndim != 1:
        raise UserError(f"Scores have shape {scores.shape} and labels {labels.shape} but both must be (trials,).")
    if len(scores) != len(labels):
        raise UserError(f"There are {len(scores)} scores but {len(labels)} labels; give one label a score.")
    if len(scores) == 0:
        raise UserError("There are no trials; give at least one target and one non-target trial.")
    scores = scores.astype(np.float64)
    if np.isnan(scores).any():
        raise UserError(
            f"Score {int(np.argmax(np.isnan(scores)))} of {len(scores)} is NaN; find the utterance whose embedding "
            "is not finite."
        )
    return scores, checked_labels(labels)


def checked_labels(labels: ArrayLike) -> np.ndarray:
    """Labels (trials,) as bool; raises UserError on values other than 0 and 1 and on one class only."""
    labels = np.asarray(labels)
    if labels.dtype != bool:
        wrong = (labels != 0) & (labels != 1)
        if wrong.any():
            index = int(np.argmax(wrong))
            raise UserError(
                f"Label {index} is {labels[index]} but must be 1 for a target and 0 for a non-target trial."
            )
        labels = labels.astype(bool)
    if labels.all() or not labels.any():
        only = "target" if labels.all() else "non-target"
        raise UserError(f"All {len(labels)} trials are {only} trials; error rates need both classes.")
    return labels


def _falling_order(scores: np.ndarray) -> np.ndarray:
    """Return indices of `scores` (float64, no NaN) from the highest score to the lowest.

    Scores that single precision holds are sorted as integers that have the score's bits above the index, which takes
    about a third of the time of `argsort`.
    """
    # Not the negative: of 0 it is -0, whose bits are others.
    rising = 0.0 - scores
    with np.errstate(over="ignore"):
        single = rising.astype(np.float32)
    if len(scores) >= 2**32 or not np.array_equal(single, rising):
        return np.argsort(rising)
    bits = single.view(np.int32)
    # The bits of a negative number fall as it rises.
    keys = (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64)
    # In place: a fresh array of this size takes longer to get than to fill.
    keys <<= 32
    keys |= np.arange(len(scores))
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def _checked_weights(weights: ArrayLike, labels: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights)
    if weights.shape != labels.shape or not (weights >= 0).all():
        raise UserError(f"weights has shape {weights.shape} but must be {labels.shape} numbers, none negative.")
    if not (weights[labels].any() and weights[~labels].any()):
        raise UserError("The weights leave one class only; error rates need target and non-target trials.")
    return weights


def _checked_threshold(threshold: float) -> float:
    if np.isnan(threshold):
        raise UserError("The threshold is NaN but must be a number to compare scores with.")
    return threshold


def _checked_rate(name: str, rate: float) -> float:
    if not 0 <= rate <= 1:
        raise UserError(f"{name} is {rate} but must be a fraction between 0 and 1.")
    return rate


def _softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x)) without overflow."""
    return np.logaddexp(0.0, x)
