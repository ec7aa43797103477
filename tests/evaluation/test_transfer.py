"""Calibrations and thresholds that go from one trial list to another."""

import json

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import metrics, trials
from redimnet_jax.evaluation import calibration, calibration_figures, system_calibration
from redimnet_jax.evaluation.protocol import TrialSet

DIMS, SYSTEM = (4, 8), {"weights": "w", "score": "cosine"}
SPEAKERS = 12


def listed(seed, utterances=4, prefix="s"):
    """All pairs of the utterances of `SPEAKERS` speakers, with scores that overlap and durations."""
    names = [f"{prefix}{speaker}/{i}" for speaker in range(SPEAKERS) for i in range(utterances)]
    left, right = np.triu_indices(len(names), 1)
    labels = left // utterances == right // utterances
    of = trials.Trials(names, left.astype(np.int32), right.astype(np.int32), labels)
    rng = np.random.default_rng(seed)
    scores = (np.array([[0.2], [0.4]]) * labels + 0.1 * rng.normal(size=(2, len(of)))).astype(np.float32)
    return of, scores, {dim: {"duration": rng.uniform(1, 5, len(names))} for dim in DIMS}


def judged(of):
    return TrialSet(of, None, [trials.speaker_of_path(name) for name in of.names], "a list")


def fit(of, scores, sides, measures=("duration",)):
    return system_calibration.fit_system(scores, judged(of), SYSTEM, sides, measures=measures, resamples=50)


@pytest.fixture(scope="module")
def fixed():
    return fit(*listed(0))


@pytest.fixture(scope="module")
def plain():
    return fit(*listed(0), measures=())


def test_figures_are_those_of_the_other_list(plain):
    of, scores, _ = listed(1, prefix="t")
    for dim, row, fit_row in zip(DIMS, scores, listed(0)[1], strict=True):
        llrs = plain.prefixes[dim].calibration(row)
        np.testing.assert_array_equal(llrs, calibration.fit(fit_row, listed(0)[0].labels)(row))
        figures = calibration_figures.figures(
            plain.prefixes[dim], row, llrs, judged(of), (0.01, 0.05), resamples=50, seed=0
        )
        assert figures["cllr"] == metrics.cllr(llrs, of.labels) >= figures["min_cllr"]
        assert figures["min_cllr"] == pytest.approx(metrics.min_cllr(row, of.labels), rel=1e-9)
        assert figures["act_dcf"]["0.05"] == metrics.act_dcf(llrs, of.labels, p_target=0.05)
        assert figures["min_dcf_llr"]["0.05"] == metrics.min_dcf(llrs, of.labels, p_target=0.05)
        moved = figures["transferred"]
        assert moved["threshold"] == metrics.eer_threshold(fit_row, listed(0)[0].labels)
        assert (moved["far"], moved["frr"]) == metrics.error_rates(row, of.labels, moved["threshold"])
        at_far = figures["at_far"]
        assert at_far["threshold"] == plain.prefixes[dim].fitted.threshold_at_far(at_far["asked"])
        assert (at_far["far"], at_far["frr"]) == metrics.error_rates(llrs, of.labels, at_far["threshold"])
        low, high = figures["ci95"]["at_far"]["frr"]
        assert low < at_far["frr"] < high
        for name in ("cllr", "min_cllr"):
            low, high = figures["ci95"][name]
            assert low < high and low < 1.1 * figures[name] and high > 0.9 * figures[name]
        for name in ("act_dcf", "min_dcf_llr"):
            low, high = figures["ci95"][name]["0.05"]
            assert 0 <= low < figures[name]["0.05"] < 1.2 * high


def test_it_is_read_as_it_was_written(fixed, tmp_path):
    of, scores, sides = listed(1, prefix="t")
    for each in (fixed, fixed.judged_on(scores, sides, judged(of), resamples=20, seed=0)):
        path = system_calibration.save(each, tmp_path / "calibration.json")
        assert system_calibration.load(path) == each


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": "", "dims": {"x": {}}}', '{"sha256": "", "dims": [1]}'])
def test_what_is_no_calibration_is_refused(tmp_path, text):
    (tmp_path / "calibration.json").write_text(text)
    assert "calibration.json" in refusal(system_calibration.load, tmp_path / "calibration.json")
    assert "none.json" in refusal(system_calibration.load, tmp_path / "none.json")


def test_a_changed_number_does_not_match_the_checksum(fixed, tmp_path):
    path = system_calibration.save(fixed, tmp_path / "calibration.json")
    path.write_text(path.read_text().replace('"targets": 72', '"targets": 73'))
    assert "checksum" in refusal(system_calibration.load, path)


def test_limits_are_those_of_the_fitting_trials(fixed, plain):
    durations = listed(0)[2][4]["duration"]
    assert fixed.prefixes[4].limits == plain.prefixes[4].limits == {"duration": (durations.min(), durations.max())}
    prefix = plain.prefixes[4]

    def reason(low, high):
        return prefix.reason_outside({"duration": np.array([[low], [high]])})

    assert reason(durations.min(), durations.max()) is None and reason(2.0, 3.0) is None
    assert "duration of 0.50 s is outside" in reason(0.5, 3.0) and "duration of 9.00 s" in reason(2.0, 9.0)
    outside = prefix.outside({"duration": np.array([[0.5, 2.0, 2.0], [3.0, 9.0, 3.0]])})
    assert outside.tolist() == [True, True, False]


def test_error_rates_are_those_of_the_judging_trials(fixed):
    of, scores, sides = listed(1, prefix="t")
    curve = fixed.judged_on(scores, sides, judged(of), resamples=50, seed=0).prefixes[8].curve
    assert curve is not fixed.prefixes[8].fitted and curve.description == "a list"
    measures = system_calibration.pairs_of(sides[8], judged(of), ["duration"])
    llrs = fixed.prefixes[8].calibration(scores[1], measures)
    for threshold in (*curve.thresholds[::10], -100.0, 100.0):
        rates = curve.at(threshold)
        assert (rates.far, rates.frr) == pytest.approx(metrics.error_rates(llrs, of.labels, threshold), abs=1e-12)
        assert rates.far_ci95[0] <= rates.far_ci95[1] and rates.frr_ci95[0] <= rates.frr_ci95[1]
    shared = fixed.judged_on(*listed(1)[1:], judged(listed(1)[0]), resamples=20, seed=0)
    assert "12 of whose speakers it was fitted on" in shared.prefixes[4].curve.description


@pytest.mark.parametrize("far", [0.5, 0.1, 0.05, 0.01])
def test_the_threshold_of_a_rate_has_at_most_that_rate(fixed, far):
    of, scores, sides = listed(0)
    prefix = fixed.prefixes[4]
    threshold = prefix.fitted.threshold_at_far(far)
    llrs = prefix.calibration(scores[0], system_calibration.pairs_of(sides[4], judged(of), ["duration"]))
    assert threshold == metrics.threshold_at_far(llrs, of.labels, far)
    for wrong in (0.0, 1.0, float("nan"), 1e-6):
        assert "far" in refusal(prefix.fitted.threshold_at_far, wrong)


def test_it_is_of_use_only_for_the_same_system_and_other_trials(fixed):
    same, other = listed(0)[0], listed(1, prefix="t")[0]
    assert fixed.reason_against(SYSTEM, DIMS, other) is None
    assert "other score, windows" in fixed.reason_against(SYSTEM | {"score": "as-norm", "windows": 1}, DIMS, other)
    assert "no dimension 16" in fixed.reason_against(SYSTEM, (4, 16), other)
    turned = trials.Trials(same.names, same.right[::-1], same.left[::-1], same.labels[::-1])
    for each in (same, turned):
        assert "these very trials" in fixed.reason_against(SYSTEM, DIMS, each)


@pytest.mark.parametrize("key", ["system", "trials", "threshold", "fitted", "limits", "sha256"])
def test_files_that_lack_something_are_refused(key, fixed, tmp_path):
    path = system_calibration.save(fixed, tmp_path / "calibration.json")
    content = json.loads(path.read_text())
    (content["dims"]["4"] if key in content["dims"]["4"] else content).pop(key)
    path.write_text(json.dumps(content))
    assert key in refusal(system_calibration.load, path)


def test_what_cannot_be_fit_names_the_list():
    of, scores, sides = listed(0)
    assert "a list" in refusal(fit, of, -scores, sides)


def test_shared_speakers_are_counted_and_said(plain):
    of, scores, _ = listed(1)
    assert plain.shared_speakers(judged(of)) == SPEAKERS
    assert plain.shared_speakers(judged(listed(1, prefix="t")[0])) == 0
    figures = {}
    for dim, row in zip(DIMS, scores, strict=True):
        prefix = plain.prefixes[dim]
        llrs = prefix.calibration(row)
        figures[str(dim)] = calibration_figures.figures(
            prefix, row, llrs, judged(of), (0.01, 0.05), resamples=20, seed=0
        )
    source = {"trials": "a list", "measures": ["duration"], "shared_speakers": 1, "outside": 2}
    table = calibration_figures.table({"dims": figures, "calibration": source})
    assert table.title.startswith(
        "Calibrated on a list with duration, 1 of whose speakers are evaluated too; 2 trials"
    )
    assert [row[0] for row in table.rows] == ["4", "8"]
    source |= {"measures": [], "shared_speakers": 0, "outside": 0}
    assert calibration_figures.table({"dims": figures, "calibration": source}).title == "Calibrated on a list"
