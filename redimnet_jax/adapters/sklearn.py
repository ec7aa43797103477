"""The calibration of scores as an estimator of scikit-learn, for its pipelines, cross-validation and plots."""

# scikit-learn's functions take other arguments than their defaults tell.
# pyright: reportArgumentType=false

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import calibration

_CHECKS: dict[str, Any] = {"ensure_2d": False, "dtype": np.float64}


class ScoreCalibration(ClassifierMixin, BaseEstimator):
    """A classifier of trials by their scores: the logistic regression of `evaluation.calibration`.

    p_target: the prior of target trials, for which it is fitted and which `predict` and `predict_proba` assume.
    Scores are (trials,), or one column of (trials, 1). Of the two labels, the greater in order is that of targets.
    After `fit`, `calibration_` is the map from scores to log-likelihood ratios.
    """

    def __init__(self, p_target: float = 0.5):
        self.p_target = p_target

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> "ScoreCalibration":  # noqa: N803
        """Fit to scores `X` and labels `y` (trials,), and return itself.

        Raises ValueError for what scikit-learn refuses, and, as one too, for scores that cannot be calibrated.
        """
        values, labels = validate_data(self, X, y, ensure_min_samples=2, **_CHECKS)
        scores = _column(values)
        check_classification_targets(labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        if len(self.classes_) != 2:
            kind = "one class" if len(self.classes_) == 1 else type_of_target(labels)
            # In the words that scikit-learn's checks ask for.
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        try:
            self.calibration_ = calibration.fit(scores, targets.astype(bool), self.p_target)
        except UserError as error:
            raise ValueError(str(error)) from error
        return self

    def log_likelihood_ratio(self, X: ArrayLike) -> np.ndarray:  # noqa: N803
        """Return natural logarithms of likelihood ratios, float64 (trials,), which no prior is part of."""
        check_is_fitted(self)
        return self.calibration_(_column(validate_data(self, X, reset=False, **_CHECKS)))

    def decision_function(self, X: ArrayLike) -> np.ndarray:  # noqa: N803
        """Return the log odds of a target trial under the prior, float64 (trials,)."""
        return self.log_likelihood_ratio(X) + np.log(self.p_target) - np.log1p(-self.p_target)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:  # noqa: N803
        """Return the probabilities (trials, 2) of the two `classes_` under the prior."""
        target = expit(self.decision_function(X))
        return np.stack([1 - target, target], axis=1)

    def predict(self, X: ArrayLike) -> np.ndarray:  # noqa: N803
        """Return the more probable of the `classes_` (trials,)."""
        accepted = self.decision_function(X) > 0
        return self.classes_[accepted.astype(int)]


def _column(values: np.ndarray) -> np.ndarray:
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"X has the shape {values.shape} but must be one score a trial: (trials,) or (trials, 1).")
    return values
