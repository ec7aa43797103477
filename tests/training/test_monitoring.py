"""The four signs of overfitting, when a lower EER is an improvement, and what the epoch table says of both."""

import itertools
import json

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import metrics
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.training import log as training_log
from redimnet_jax.training import monitoring
from redimnet_jax.trials import Trials


def history(target=(), nontarget=(), eer=(), loss=(), dim="64"):
    columns = zip(target, nontarget, eer, loss, strict=True)
    return [
        {"step": 10 * i, "epoch": i, "loss": last, "dims": {dim: {"target_mean": a, "nontarget_mean": b, "eer": c}}}
        for i, (a, b, c, last) in enumerate(columns, 1)
    ]


FALLS, RISES, FLAT = (5.0, 4.0, 3.0, 2.0, 1.0), (1.0, 2.0, 3.0, 4.0, 5.0), (2.0,) * 5
HELD = {"target_mean": True, "nontarget_mean": True, "eer": True, "loss": True}


def test_all_four_signs_are_overfitting():
    found = monitoring.overfitting_signs(history(FALLS, RISES, RISES, FALLS))
    assert found == {"64": {"epochs": [1, 5], "signs": HELD, "overfitting": True}}
    assert json.loads(json.dumps(found)) == found
    (sentence,) = monitoring.overfitting_warnings(found)
    assert sentence == (
        "dimension 64, epochs 1 to 5: overfitting: mean cosine of target trials falls, mean cosine of non-target "
        "trials rises, EER rises, training loss falls"
    )


@pytest.mark.parametrize("missing", HELD)
@pytest.mark.parametrize("instead", [FLAT, "the other way"])
def test_each_sign_is_needed_and_named(missing, instead):
    columns = {"target_mean": FALLS, "nontarget_mean": RISES, "eer": RISES, "loss": FALLS}
    columns[missing] = columns[missing][::-1] if instead == "the other way" else instead
    found = monitoring.overfitting_signs(history(*columns.values()))["64"]
    assert found["signs"] == HELD | {missing: False} and not found["overfitting"]
    (sentence,) = monitoring.overfitting_warnings({"64": found})
    assert "not overfitting" in sentence and monitoring.NAMES[missing] not in sentence


def test_training_that_goes_well_gives_no_warning():
    found = monitoring.overfitting_signs(history(RISES, FALLS, FALLS, FALLS))
    assert found["64"]["signs"] == HELD | {"target_mean": False, "nontarget_mean": False, "eer": False}
    assert monitoring.overfitting_warnings(found) == []


def test_only_the_last_five_validations_count():
    before = history(*[(0.0,) * 20] * 4)
    found = monitoring.overfitting_signs(before + history(FALLS, RISES, RISES, FALLS))
    assert found["64"]["overfitting"] and found["64"]["epochs"] == [1, 5]


def test_one_pair_of_ten_may_disagree():
    # By chance alone one order in 24 does: 5 of the 120 of five values, 1 of the 24 of four.
    for size, agreeing in ((5, 5), (4, 1)):
        orders = itertools.permutations(range(size))
        found = [
            monitoring.overfitting_signs(history(FLAT[:size], FLAT[:size], order, FLAT[:size]))["64"]["signs"]["eer"]
            for order in orders
        ]
        assert sum(found) == agreeing


def test_entries_without_loss_or_validation_do_not_count():
    entries = history(FALLS, RISES, RISES, FALLS)
    start = {key: value for key, value in entries[0].items() if key != "loss"}
    skipped = {key: value for key, value in entries[0].items() if key != "dims"}
    assert monitoring.overfitting_signs([start, skipped, *entries[:3]]) == {}
    assert monitoring.overfitting_signs([start, entries[0], skipped, *entries[1:]])["64"]["overfitting"]


def test_a_dimension_that_is_new_is_left_out():
    entries = history(FALLS, RISES, RISES, FALLS)
    entries[-1]["dims"]["128"] = entries[-1]["dims"]["64"]
    assert monitoring.overfitting_signs(entries).keys() == {"64"}


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
    found = monitoring.improvement(good, poor, validation, resamples=50, seed=0)
    assert found["difference"] == pytest.approx(metrics.eer(good, labels) - metrics.eer(poor, labels), abs=1e-6)
    assert found["beyond_noise"] and found["ci95"][0] <= found["difference"] <= found["ci95"][1] < 0
    # A little of the good is a little better, which these few speakers cannot show.
    slight = poor + np.random.default_rng(1).normal(size=len(labels)) * 0.3
    same = monitoring.improvement(slight, poor, validation, resamples=50, seed=0)
    assert not same["beyond_noise"] and same["ci95"][1] >= 0
    worse = monitoring.improvement(poor, good, validation, resamples=50, seed=0)
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
    rule = {"beyond_noise": beyond_noise, "min_improvement": least, "significant": significant}
    assert monitoring.is_improvement(eer, 0.10, **rule) is wanted


def test_scores_are_kept_by_step(tmp_path):
    for step in (4, 8):
        monitoring.keep_scores(tmp_path, step, np.full((2, 5), step, np.float32))
    assert monitoring.read_scores(tmp_path, 4).tolist() == [[4.0] * 5] * 2
    (tmp_path / "scores" / "8.npz").write_bytes(b"PK damaged")
    for step in (8, 12):
        assert f"{step}.npz" in refusal(monitoring.read_scores, tmp_path, step)


def test_the_table_says_what_is_within_noise(tmp_path, caplog):
    log = training_log.TrainingLog(tmp_path, (4,))
    figures = {"eer": 0.1, "eer_ci95": [0.05, 0.2], "accuracy": 0.9, "target_mean": 0.5, "nontarget_mean": 0.1}
    entry = {"step": 4, "epoch": 1, "loss": 1.0, "dims": {"4": figures}}
    for changes in ({}, {"improvement": {"beyond_noise": False}}, {"improvement": {"beyond_noise": True}}):
        log.epoch(entry | changes, True)
    log.epoch(entry, False)
    log.close()
    _, first, noise, beyond, none = caplog.messages
    assert first.endswith("]  best") and noise.endswith("  best (within noise)")
    assert beyond.endswith("]  best") and none.endswith("]")
