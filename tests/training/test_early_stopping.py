"""When a lower EER counts as an improvement, and what the epoch table says of it."""

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import metrics
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.training import early_stopping
from redimnet_jax.training import log as training_log
from redimnet_jax.trials import Trials

SPEAKERS, EACH = 12, 3


@pytest.fixture(scope="module")
def judged():
    """(validation of all pairs, scores that tell its trials apart poorly)."""
    names = [f"s{speaker:02}/{take}.wav" for speaker in range(SPEAKERS) for take in range(EACH)]
    speakers = [name.split("/")[0] for name in names]
    left, right = np.triu_indices(len(names), 1)
    labels = np.array([speakers[a] == speakers[b] for a, b in zip(left, right, strict=True)])
    validation = TrialSet(Trials(names, left, right, labels), None, speakers, "all pairs")
    return validation, labels + np.random.default_rng(0).normal(size=len(labels))


def test_a_difference_and_its_interval(judged):
    validation, poor = judged
    labels = validation.trials.labels
    good = poor + 2.0 * labels
    found = early_stopping.improvement(good, poor, validation, resamples=50, seed=0)
    assert found["difference"] == pytest.approx(metrics.eer(good, labels) - metrics.eer(poor, labels), abs=1e-6)
    assert found["beyond_noise"] and found["ci95"][0] <= found["difference"] <= found["ci95"][1] < 0
    # A little of the good is a little better, which these few speakers cannot show.
    slight = poor + np.random.default_rng(1).normal(size=len(labels)) * 0.3
    same = early_stopping.improvement(slight, poor, validation, resamples=50, seed=0)
    assert not same["beyond_noise"] and same["ci95"][1] >= 0
    worse = early_stopping.improvement(poor, good, validation, resamples=50, seed=0)
    assert not worse["beyond_noise"] and worse["difference"] > 0


@pytest.mark.parametrize(
    ("eer", "beyond_noise", "least", "significant", "wanted"),
    [
        (0.09, False, 0.0, False, True),
        (0.09, False, 0.02, False, False),
        (0.07, False, 0.02, False, True),
        (0.07, False, 0.0, True, False),
        (0.07, True, 0.0, True, True),
        (0.07, True, 0.05, True, False),
        (0.10, True, 0.0, False, False),
    ],
)
def test_what_counts(eer, beyond_noise, least, significant, wanted):
    of = {"beyond_noise": beyond_noise}
    assert early_stopping.counts(of, eer, 0.10, min_improvement=least, significant=significant) is wanted


def test_scores_are_kept_by_step(tmp_path):
    for step in (4, 8):
        early_stopping.keep_scores(tmp_path, step, np.full((2, 5), step, np.float32))
    assert early_stopping.read_scores(tmp_path, 4).tolist() == [[4.0] * 5] * 2
    (tmp_path / "scores" / "8.npz").write_bytes(b"PK damaged")
    for step in (8, 12):
        assert f"{step}.npz" in refusal(early_stopping.read_scores, tmp_path, step)


def test_the_table_says_what_is_within_noise(tmp_path, capsys):
    log = training_log.TrainingLog(tmp_path, (4,))
    figures = {"eer": 0.1, "eer_ci95": [0.05, 0.2], "accuracy": 0.9, "target_mean": 0.5, "nontarget_mean": 0.1}
    entry = {"step": 4, "epoch": 1, "loss": 1.0, "dims": {"4": figures}}
    for changes in ({}, {"improvement": {"beyond_noise": False}}, {"improvement": {"beyond_noise": True}}):
        log.epoch(entry | changes, True)
    log.epoch(entry, False)
    log.close()
    _, first, noise, beyond, none = capsys.readouterr().out.splitlines()
    assert first.endswith("]  best") and noise.endswith("  best (within noise)")
    assert beyond.endswith("]  best") and none.endswith("]")
