"""The calibration as an estimator of scikit-learn."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from redimnet_jax.adapters.sklearn import ScoreCalibration
from redimnet_jax.evaluation import calibration

# Checks of scikit-learn that fit random labels or classes that do not overlap, which have no calibration, or that
# index a second axis of scores. The tests below do the same with scores of trials.
NOT_FOR_SCORES = [
    "classifier_not_supporting_multiclass",
    "classifiers_classes",
    "classifiers_train",
    "decision_proba_consistency",
    "dict_unchanged",
    "dont_overwrite_parameters",
    "dtype_object",
    "estimator_sparse_array",
    "estimators_dtypes",
    "estimators_fit_returns_self",
    "estimators_overwrite_params",
    "estimators_pickle",
    "f_contiguous_array_estimator",
    "fit2d_1feature",
    "fit2d_1sample",
    "fit2d_predict1d",
    "fit_check_is_fitted",
    "fit_idempotent",
    "fit_score_takes_y",
    "methods_sample_order_invariance",
    "methods_subset_invariance",
    "n_features_in",
    "n_features_in_after_fitting",
    "pipeline_consistency",
    "readonly_memmap_input",
    "supervised_y_2d",
]


def expected_failures(estimator: ScoreCalibration) -> dict[str, str]:
    return {f"check_{name}": "its data are no scores that can be calibrated" for name in NOT_FOR_SCORES}


@parametrize_with_checks([ScoreCalibration()], expected_failed_checks=expected_failures)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def trials(seed: int = 0, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.4
    return rng.normal(np.where(labels, 0.5, 0.1), 0.2), labels


@pytest.mark.parametrize("p_target", [0.5, 0.05])
def test_it_is_the_calibration(p_target):
    scores, labels = trials()
    ours = calibration.fit(scores, labels, p_target)
    estimator = ScoreCalibration(p_target).fit(scores[:, None], np.where(labels, "same", "other"))
    assert estimator.calibration_ == ours
    assert np.array_equal(estimator.log_likelihood_ratio(scores), ours(scores))
    odds = estimator.decision_function(scores)
    np.testing.assert_allclose(odds - ours(scores), np.log(p_target / (1 - p_target)), atol=1e-12)
    probabilities = estimator.predict_proba(scores)
    np.testing.assert_allclose(np.log(probabilities[:, 1] / probabilities[:, 0]), odds, atol=1e-9)
    assert list(estimator.classes_) == ["other", "same"]
    assert np.array_equal(estimator.predict(scores) == "same", odds > 0)


METHODS = ("log_likelihood_ratio", "decision_function", "predict_proba", "predict")


def test_methods_depend_on_each_score_alone():
    scores, labels = trials()
    estimator = ScoreCalibration().fit(scores, labels)
    order = np.random.default_rng(1).permutation(len(scores))
    for method in METHODS:
        whole = getattr(estimator, method)(scores)
        assert np.array_equal(getattr(estimator, method)(scores[order]), whole[order])
        assert np.array_equal(
            np.concatenate([getattr(estimator, method)(scores[i : i + 1]) for i in range(5)]), whole[:5]
        )
        assert np.array_equal(getattr(estimator, method)(scores[:, None].astype(np.float32)).shape, whole.shape)


def test_fit_changes_nothing_but_what_it_learns():
    scores, labels = trials()
    scores.setflags(write=False)
    estimator = ScoreCalibration(0.2)
    before = estimator.get_params()
    assert estimator.fit(scores[:, None], labels) is estimator
    assert estimator.get_params() == before
    learned = estimator.calibration_
    for again in (estimator.fit(scores[:, None], labels), clone(estimator).fit(scores.tolist(), labels.tolist())):
        assert again.calibration_ == learned
    attributes = dict(vars(estimator))
    loaded = pickle.loads(pickle.dumps(estimator))
    for method in METHODS:
        assert np.array_equal(getattr(loaded, method)(scores), getattr(estimator, method)(scores))
    assert vars(estimator).keys() == attributes.keys()


@pytest.mark.parametrize("method", METHODS)
def test_it_must_be_fitted_first(method):
    with pytest.raises(NotFittedError):
        getattr(ScoreCalibration(), method)(np.zeros(3))


def test_cross_validation_takes_it():
    scores, labels = trials()
    assert cross_val_score(ScoreCalibration(), scores[:, None], labels, scoring="neg_log_loss").mean() > -0.5


@pytest.mark.parametrize(
    ("scores", "labels", "named"),
    [
        (np.arange(8.0), np.arange(8) > 3, "no finite calibration"),
        (-trials()[0], trials()[1], "do not rise"),
        (np.zeros((400, 2)), trials()[1], "one score a trial"),
        (trials()[0], np.arange(400), "Only binary"),
        (trials()[0], trials()[1][:-1], "inconsistent numbers of samples"),
    ],
)
def test_what_cannot_be_calibrated_is_a_value_error(scores, labels, named):
    with pytest.raises(ValueError, match=named):
        ScoreCalibration().fit(scores, labels)


def test_a_prior_beyond_its_range_is_a_value_error():
    with pytest.raises(ValueError, match="p_target is 1"):
        ScoreCalibration(1.0).fit(*trials())
