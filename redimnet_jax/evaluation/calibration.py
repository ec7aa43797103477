"""Calibration: from scores to log-likelihood ratios, so that a score means something and a threshold transfers."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from redimnet_jax import files
from redimnet_jax.errors import UserError
from redimnet_jax.metrics import checked


@dataclasses.dataclass(frozen=True)
class Calibration:
    """llr = scale * score + offset, a natural logarithm; above 0 the evidence is for one speaker."""

    scale: float
    offset: float

    def __call__(self, scores: ArrayLike) -> np.ndarray:
        """Log-likelihood ratios, float64, in the shape of `scores`."""
        return self.scale * np.asarray(scores, np.float64) + self.offset


def fit(scores: ArrayLike, labels: ArrayLike, p_target: float = 0.5) -> Calibration:
    """Prior-weighted logistic regression of `labels` (trials,) on `scores` (trials,) (Brümmer and du Preez 2006).

    Target trials weigh `p_target` together and non-target trials the rest, and the prior's log odds are taken off
    again: with 0.5 the fit minimises Cllr, with another prior the cost around that operating point. There is no
    regularisation. Raises UserError on what `metrics.roc` refuses, on classes that do not overlap (the best scale
    would be infinite) and on scores that do not rise with the evidence.
    """
    from sklearn.linear_model import LogisticRegression

    scores, labels = checked(scores, labels)
    if not 0 < p_target < 1:
        raise UserError(f"p_target is {p_target} but must lie between 0 and 1, both excluded.")
    if not np.isfinite(scores).all():
        raise UserError("Some scores are infinite; calibrate scores, not log-likelihood ratios of an earlier fit.")
    lowest, highest = scores[labels].min(), scores[~labels].max()
    if lowest >= highest and scores.min() < scores.max():
        raise UserError(
            f"All {int(labels.sum())} target trials score at least {lowest:g} and all non-target trials at most "
            f"{highest:g}, so no finite calibration is best; give more or harder trials."
        )
    # Standard scores, so that one tolerance suits cosines and normalised scores alike.
    centre, spread = scores.mean(), scores.std()
    if spread == 0:
        raise UserError(f"All {len(scores)} scores are {centre:g}; constant scores cannot be calibrated.")
    weights = np.where(labels, p_target / labels.sum(), (1 - p_target) / (~labels).sum()) * len(labels)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    model.fit(((scores - centre) / spread)[:, None], labels, sample_weight=weights)
    scale = float(model.coef_[0, 0]) / spread
    if not 0 < scale < math.inf:
        raise UserError(
            f"The scores do not rise with the evidence (the best scale is {scale:g}); check the labels and the model."
        )
    prior = math.log(p_target) - math.log1p(-p_target)
    return Calibration(scale, float(model.intercept_[0]) - scale * centre - prior)


def save(calibrations: Mapping[int, Calibration], path: str | Path) -> None:
    """Writes the calibration of every dimension as JSON, whole or not at all."""
    text = {str(dim): dataclasses.asdict(calibration) for dim, calibration in calibrations.items()}
    files.write(path, json.dumps({"dims": text}, indent=2) + "\n")


def load(path: str | Path) -> dict[int, Calibration]:
    """The calibration of every dimension; raises UserError if the file is not one that `save` writes."""
    try:
        dims = files.parse_json(Path(path).read_bytes())["dims"]
        calibrations = {int(dim): Calibration(float(x["scale"]), float(x["offset"])) for dim, x in dims.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = files.first_line(error)
        raise UserError(f"{path} is not a calibration ({reason}); make one with eval.py --calibrate.") from error
    for dim, calibration in calibrations.items():
        if not (0 < calibration.scale < math.inf and math.isfinite(calibration.offset)):
            raise UserError(f"{path} has no usable calibration of dimension {dim} ({calibration}); make it anew.")
    return calibrations
