"""Calibration: from scores, and quality measures of the two sides, to log-likelihood ratios."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from redimnet_jax import metrics, optional
from redimnet_jax.errors import ArgumentError, UserError
from redimnet_jax.evaluation.quality_measures import Pairs, feature

# The penalty on the squares of the measures' weights, in units of one speaker's share of the trials. It keeps
# weights finite and small where speakers are few, and does nothing to the weight of the score.
PENALTY = 0.1

_FREE = 1e3  # A column that is multiplied by this needs so small a weight that the penalty does not matter.


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The map llr = scale * score + offset to natural logarithms; above 0 the evidence is for one speaker.

    `weights` has for every quality measure what is added for the lower and for the higher side of a trial, each a
    factor of `quality_measures.feature`.
    """

    scale: float
    offset: float
    weights: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def __call__(self, scores: ArrayLike, measures: Pairs | None = None) -> np.ndarray:
        """Return log-likelihood ratios, float64, of `scores` (trials,) and of the `measures` that have weights.

        A trial has the same ratio, to the bit, whatever the others are.
        """
        llrs = self.scale * np.asarray(scores, np.float64) + self.offset
        for name, weights in self.weights.items():
            if measures is None or name not in measures:
                raise ArgumentError(f"The calibration needs the quality measure {name} in `measures`; give it.")
            for weight, values in zip(weights, measures[name], strict=True):
                llrs = llrs + weight * feature(name, values)
        return llrs


def fit(
    scores: ArrayLike,
    labels: ArrayLike,
    p_target: float = 0.5,
    measures: Pairs | None = None,
    speakers: int = 1,
) -> Calibration:
    """Return the prior-weighted logistic regression of `labels` on `scores`, (trials,) each, and on `measures`.

    The method is that of Brümmer and du Preez (2006). Target trials have the weight `p_target` together and
    non-target trials the rest, and the prior's log odds are subtracted again: with 0.5 the fit minimises Cllr, with
    another prior the cost around that operating point. There is no regularisation but of the measures' weights: see
    `PENALTY`, for which `speakers` is the number of speakers of the trials.
    Raise UserError for what `metrics.roc` refuses, for classes that do not overlap (the best scale would be infinite)
    and for scores that do not rise with the evidence.
    """
    optional.require("report")
    from sklearn.linear_model import LogisticRegression

    scores, labels = metrics.checked(scores, labels)
    _check_calibratable(scores, labels, p_target)
    measures = measures or {}
    columns = [scores, *(feature(name, side) for name, sides in measures.items() for side in sides)]
    # Standard scores, so that one tolerance suits cosines and normalised scores alike.
    centres = np.array([column.mean() for column in columns])
    spreads = np.array([column.std() or 1.0 for column in columns])
    inverse_penalty = np.inf
    if measures:
        spreads[0] /= _FREE
        inverse_penalty = speakers / (PENALTY * len(labels))
    weights = np.where(labels, p_target / labels.sum(), (1 - p_target) / (~labels).sum()) * len(labels)
    model = LogisticRegression(C=inverse_penalty, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    model.fit((np.stack(columns, axis=1) - centres) / spreads, labels, sample_weight=weights)
    scale, *others = (model.coef_[0] / spreads).tolist()
    if not 0 < scale < math.inf:
        raise UserError(
            f"The scores do not rise with the evidence (the best scale is {scale:g}); check the labels and the model."
        )
    prior = math.log(p_target) - math.log1p(-p_target)
    offset = float(np.asarray(model.intercept_)[0]) - float(np.dot([scale, *others], centres)) - prior
    sides = dict(zip(measures, zip(others[::2], others[1::2], strict=True), strict=True))
    return Calibration(scale, offset, sides)


def _check_calibratable(scores: np.ndarray, labels: np.ndarray, p_target: float) -> None:
    """Raise UserError when the logistic regression of `labels` on `scores` has no finite solution."""
    if not 0 < p_target < 1:
        raise ArgumentError(f"`p_target` is {p_target} but must lie between 0 and 1, both excluded.")
    if not np.isfinite(scores).all():
        raise UserError("Some scores are infinite; calibrate scores, not log-likelihood ratios of an earlier fit.")
    lowest = scores[labels].min()
    highest = scores[~labels].max()
    if lowest >= highest and scores.min() < scores.max():
        raise UserError(
            f"All {int(labels.sum())} target trials score at least {lowest:g} and all non-target trials at most "
            f"{highest:g}, so no finite calibration is best; give more or harder trials."
        )
    if scores.std() == 0:
        raise UserError(f"All {len(scores)} scores are {scores.mean():g}; constant scores cannot be calibrated.")
