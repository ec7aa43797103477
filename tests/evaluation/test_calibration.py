"""Calibration against scores whose log-likelihood ratio is known."""

import json

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


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"dims": {"64": {"scale": 1}}}',
        '{"dims": {"x": {"scale": 1, "offset": 0}}}',
        '{"dims": {"64": {"scale": -1, "offset": 0}}}',
        '{"dims": {"64": {"scale": 1, "offset": NaN}}}',
        json.dumps({"dims": [1]}),
    ],
)
def test_damaged_file(tmp_path, text):
    (tmp_path / "calibration.json").write_text(text)
    assert "calibration.json" in refusal(calibration.load, tmp_path / "calibration.json")


def test_what_cannot_be_calibrated(tmp_path):
    scores, labels = normal_scores(200)
    assert "do not rise" in refusal(calibration.fit, -scores, labels)
    assert "no finite calibration" in refusal(calibration.fit, labels * 1.0, labels)
    assert "constant" in refusal(calibration.fit, np.ones(4), np.array([1, 0, 1, 0]))
    assert "All 200 trials" in refusal(calibration.fit, scores, np.ones(200))
    assert "p_target" in refusal(calibration.fit, scores, labels, 1.0)
    assert "infinite" in refusal(calibration.fit, np.append(scores, np.inf), np.append(labels, True))
    assert "none.json" in refusal(calibration.load, tmp_path / "none.json")
