"""Calibrations and thresholds that go from one trial list to another."""

import json

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import metrics, trials
from redimnet_jax.evaluation import calibration
from redimnet_jax.evaluation.protocol import TrialSet

DIMS, SYSTEM = (4, 8), {"weights": "w", "score": "cosine"}


def listed(seed, count=400):
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.5
    of = trials.from_pairs([f"s/{i}" for i in range(count)], [f"t{seed}/{i}" for i in range(count)], labels)
    return of, (np.array([[0.2], [0.4]]) * labels + 0.1 * rng.normal(size=(2, count))).astype(np.float32)


def judged(of):
    return TrialSet(of, None, [trials.speaker_of_path(name) for name in of.names], "a list")


@pytest.fixture(scope="module")
def fixed():
    of, scores = listed(0)
    return calibration.fit_system(scores, judged(of), DIMS, SYSTEM)


def test_figures_are_those_of_the_other_list(fixed):
    of, scores = listed(1)
    for dim, row, fit_row in zip(DIMS, scores, listed(0)[1], strict=True):
        figures = fixed.figures(dim, row, of.labels, (0.01, 0.05))
        llrs = calibration.fit(fit_row, listed(0)[0].labels)(row)
        assert figures["cllr"] == metrics.cllr(llrs, of.labels) >= figures["min_cllr"]
        assert figures["min_cllr"] == metrics.min_cllr(row, of.labels)
        assert figures["act_dcf"]["0.05"] == metrics.act_dcf(llrs, of.labels, p_target=0.05)
        moved = figures["transferred"]
        assert moved["threshold"] == metrics.eer_threshold(fit_row, listed(0)[0].labels)
        assert (moved["far"], moved["frr"]) == metrics.error_rates(row, of.labels, moved["threshold"])


def test_it_is_read_as_it_was_written(fixed, tmp_path):
    path = calibration.save(fixed, tmp_path / "calibration.json")
    assert calibration.load(path) == fixed


def test_it_is_of_use_only_for_the_same_system_and_other_trials(fixed):
    same, other = listed(0)[0], listed(1)[0]
    assert fixed.reason_against(SYSTEM, DIMS, other) is None
    assert "other score, windows" in fixed.reason_against(SYSTEM | {"score": "as-norm", "windows": 1}, DIMS, other)
    assert "no dimension 16" in fixed.reason_against(SYSTEM, (4, 16), other)
    turned = trials.Trials(same.names, same.right[::-1], same.left[::-1], same.labels[::-1])
    for each in (same, turned):
        assert "these very trials" in fixed.reason_against(SYSTEM, DIMS, each)


@pytest.mark.parametrize("key", ["system", "trials", "threshold"])
def test_files_that_lack_something_are_refused(key, fixed, tmp_path):
    path = calibration.save(fixed, tmp_path / "calibration.json")
    content = json.loads(path.read_text())
    (content["dims"]["4"] if key == "threshold" else content).pop(key)
    path.write_text(json.dumps(content))
    assert key in refusal(calibration.load, path)


def test_what_cannot_be_fit_names_the_list(fixed):
    of, scores = listed(0)
    assert "a list" in refusal(calibration.fit_system, -scores, judged(of), DIMS, SYSTEM)


def test_shared_speakers_are_counted_and_said(fixed):
    of, scores = listed(1)
    assert fixed.shared_speakers(judged(of)) == 1  # "s" is in both, "t0" and "t1" are not
    for shared, said in ((1, "a list, 1 of whose speakers are evaluated too"), (0, "a list")):
        figures = {
            str(d): fixed.figures(d, row, of.labels, (0.01, 0.05)) for d, row in zip(DIMS, scores, strict=True)
        }
        table = calibration.table({"dims": figures, "calibration": {"trials": "a list", "shared_speakers": shared}})
        assert table.title == f"Calibrated on {said}" and [row[0] for row in table.rows] == ["4", "8"]
