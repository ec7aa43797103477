"""Calibration against scores whose log-likelihood ratio is known."""

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import metrics
from redimnet_jax.evaluation import calibration


def normal_scores(count=40_000, targets=0.5, seed=0):
    """Scores 0.2 + N(+-d/2, 1) * 0.1: their log-likelihood ratio is (score - 0.2) * d / 0.1."""
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < targets
    return 0.2 + 0.1 * (rng.standard_normal(count) + np.where(labels, 1.0, -1.0)), labels


@pytest.mark.slow
@pytest.mark.parametrize("targets, p_target", [(0.5, 0.5), (0.1, 0.5), (0.1, 0.05)])
def test_finds_the_log_likelihood_ratio(targets, p_target):
    fitted = calibration.fit(*normal_scores(targets=targets), p_target)
    assert fitted.scale == pytest.approx(20, rel=0.05)
    assert -fitted.offset / fitted.scale == pytest.approx(0.2, abs=0.01)


def test_minimises_cllr():
    scores, labels = normal_scores(2000, 0.3, seed=1)
    fitted = calibration.fit(scores, labels)
    best = metrics.cllr(fitted(scores), labels)
    assert metrics.min_cllr(scores, labels) <= best < 1
    for scale, offset in ((1.02, 0), (0.98, 0), (1, 0.05), (1, -0.05)):
        other = calibration.Calibration(fitted.scale * scale, fitted.offset + offset)
        assert metrics.cllr(other(scores), labels) > best


def test_calibrated_scores_have_the_cost_they_could_have():
    fitted = calibration.fit(*normal_scores(seed=2))
    scores, labels = normal_scores(seed=3)
    llrs = fitted(scores)
    assert metrics.act_dcf(llrs, labels, 0.1) == pytest.approx(metrics.min_dcf(llrs, labels, 0.1), abs=0.02)
    assert metrics.eer(llrs, labels) == metrics.eer(scores, labels)


def test_what_cannot_be_calibrated():
    scores, labels = normal_scores(200)
    assert "do not rise" in refusal(calibration.fit, -scores, labels)
    assert "no finite calibration" in refusal(calibration.fit, labels * 1.0, labels)
    assert "constant" in refusal(calibration.fit, np.ones(4), np.array([1, 0, 1, 0]))
    assert "All 200 trials" in refusal(calibration.fit, scores, np.ones(200))
    assert "p_target" in refusal(calibration.fit, scores, labels, 1.0)
    assert "infinite" in refusal(calibration.fit, np.append(scores, np.inf), np.append(labels, True))


def measured(count=3000, seed=0):
    """Scores that fall by 0.3 a doubling of the shorter side, and the durations (2, trials)."""
    scores, labels = normal_scores(count, 0.3, seed)
    durations = np.sort(np.exp2(np.random.default_rng(seed + 100).uniform(0, 4, (2, count))), axis=0)
    return scores - 0.3 * np.log2(durations[0]), labels, {"duration": durations}


def test_quality_measures_take_back_what_they_did_to_the_scores():
    scores, labels, measures = measured()
    plain = calibration.fit(scores, labels)
    fitted = calibration.fit(scores, labels, measures=measures, speakers=1000)
    lower, higher = fitted.weights["duration"]
    assert lower == pytest.approx(0.3 / np.log(2) * fitted.scale, rel=0.05)
    assert abs(higher) < 0.05 * lower and fitted.scale == pytest.approx(20, rel=0.1)
    assert metrics.cllr(fitted(scores, measures), labels) < 0.6 * metrics.cllr(plain(scores), labels)


def test_few_speakers_give_small_weights_and_leave_the_scale_as_it_is():
    scores, labels, measures = measured(400)
    weights = [calibration.fit(scores, labels, measures=measures, speakers=n).weights["duration"][0] for n in (1, 50)]
    assert 0 < weights[0] < weights[1]
    constant = {"duration": np.ones((2, 400))}
    with_it = calibration.fit(scores, labels, measures=constant, speakers=1)
    plain = calibration.fit(scores, labels)
    assert with_it.scale == pytest.approx(plain.scale, rel=1e-3) and with_it.weights["duration"] == (0, 0)


def test_scores_that_a_measure_separates_have_finite_weights():
    rng = np.random.default_rng(0)
    labels = np.arange(60) < 30
    scores = rng.normal(0, 1, 60) + labels
    durations = np.where(labels, 4.0, 2.0) + np.zeros((2, 1))
    fitted = calibration.fit(scores, labels, measures={"duration": durations}, speakers=5)
    assert np.abs(fitted.weights["duration"]).max() < 100


def test_a_trial_has_one_ratio_whatever_the_others_are():
    scores, labels, measures = measured(501)
    fitted = calibration.fit(scores, labels, measures=measures, speakers=9)
    together = fitted(scores, measures)
    for i in range(0, 501, 50):
        alone = fitted(scores[i : i + 1], {"duration": measures["duration"][:, i : i + 1]})
        assert alone[0] == together[i]
    assert "duration" in refusal(fitted, scores)
