"""Groups of trials by duration and by columns of a table, and their figures."""

import types

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import metrics, trials
from redimnet_jax.evaluation import confidence, subgroups
from redimnet_jax.evaluation.metadata import Metadata
from redimnet_jax.evaluation.protocol import TrialSet

SPEAKERS = "abcdef"


def make_trial_set():
    names = [f"{speaker}/{i}" for speaker in SPEAKERS for i in range(4)]
    pairs = [(x, y) for i, x in enumerate(names) for y in names[:i]]
    listed = trials.from_pairs([x for x, _ in pairs], [y for _, y in pairs], [x[0] == y[0] for x, y in pairs])
    samples = {name: 16000 * (1 + int(name[2])) for name in names}
    recordings = types.SimpleNamespace(samples=np.array([samples[name] for name in listed.names]))
    return TrialSet(listed, recordings, [name[0] for name in listed.names], "a list")


@pytest.fixture
def trial_set():
    return make_trial_set()


def table(**columns):
    return Metadata("facts.tsv", "speaker", {k: dict(zip(SPEAKERS, v, strict=True)) for k, v in columns.items()})


def test_a_trial_is_in_the_group_of_both_its_speakers(trial_set):
    (found,) = subgroups.groupings(trial_set, table(sex="ffmmmm"), None, {})
    assert (found.name, found.labels) == ("sex", ("f", "m"))
    sides = [
        ["ffmmmm"[SPEAKERS.index(trial_set.speakers[i])] for i in side]
        for side in (trial_set.trials.left, trial_set.trials.right)
    ]
    for group, left, right in zip(found.groups, *sides, strict=True):
        assert group == (-1 if left != right else "fm".index(left))


def test_numbers_are_cut_at_edges_and_few_of_them_are_not(trial_set):
    ages = ["5", "10", "20", "30", "", "50"]
    (found,) = subgroups.groupings(trial_set, table(age=ages), None, {"age": (10, 30)})
    assert found.labels == ("below 10", "10 to 30", "30 or more")
    by_speaker = dict(zip(SPEAKERS, (0, 1, 1, 2, -1, 2), strict=True))
    for trial in np.flatnonzero(trial_set.trials.labels):
        speaker = trial_set.speakers[trial_set.trials.left[trial]]
        assert found.groups[trial] == by_speaker[speaker]
    (found,) = subgroups.groupings(trial_set, table(age=ages), None, {})
    assert found.labels == ("5", "10", "20", "30", "50")  # Numbers in their order, not that of text.


def test_durations_are_those_of_the_shorter_side(trial_set):
    (found,) = subgroups.groupings(trial_set, None, ["duration"], {"duration": (2, 3)})
    assert found.labels == ("below 2 s", "2 to 3 s", "3 s or more")
    names = trial_set.trials.names
    for group, left, right in zip(found.groups, trial_set.trials.left, trial_set.trials.right, strict=True):
        assert group == min(2, int(names[left][2]), int(names[right][2]))
    (quartiles,) = subgroups.groupings(trial_set, None, ["duration"], {})
    assert len(quartiles.labels) == 3


def test_a_name_without_a_value_is_said(trial_set, caplog):
    subgroups.groupings(trial_set, table(sex=["f", "f", "m", "m", "", ""]), None, {})
    assert "no sex for 2 of 6 speakers" in caplog.text


@pytest.mark.parametrize(
    ("columns", "by", "edges", "said"),
    [
        ({"sex": "ffffff"}, None, {}, "has the one value 'f'"),
        ({"sex": "ffffff"}, ["age"], {}, "by has 'age' but the columns are duration, speech, sex"),
        ({"sex": "ffmmmm"}, None, {"sex": (1,)}, "are not all numbers"),
        ({"sex": "ffmmmm"}, None, {"age": (1,)}, "edges has 'age'"),
        ({"sex": "ffmmmm", "age": "123456"}, ["sex"], {"age": (3,)}, "which by leaves out"),
        ({"sex": [""] * 6}, None, {}, "has 0 values"),
    ],
)
def test_columns_that_make_no_groups_are_refused(columns, by, edges, said, trial_set):
    assert said in refusal(subgroups.groupings, trial_set, table(**columns), by, edges)


@pytest.mark.slow
def test_figures_of_a_group_are_those_of_its_trials():
    trial_set = make_trial_set()
    labels = trial_set.trials.labels
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(2, len(labels))) + 1.5 * labels).astype(np.float32)
    (grouping,) = subgroups.groupings(trial_set, table(kind="xxxxxy"), None, {})
    found = subgroups.figures(scores, trial_set, (4, 8), (0.5, 0.7), grouping, resamples=50, seed=0)
    inside = grouping.groups == 0
    group = found["groups"]["x"]
    assert found["outside"] == 5 * 16 and group["trials"] == inside.sum() and group["speakers"] == 5
    assert group["small"] and group["target_trials"] == labels[inside].sum()
    for row, (dim, threshold) in enumerate(((4, 0.5), (8, 0.7))):
        entry = group["dims"][str(dim)]
        assert entry["eer"] == metrics.eer(scores[row][inside], labels[inside])
        assert (entry["far"], entry["frr"]) == metrics.error_rates(scores[row][inside], labels[inside], threshold)
        low, high = entry["eer_ci95"]
        assert low <= entry["eer"] <= high
    # A group of one speaker has no non-target trials.
    assert found["groups"]["y"]["dims"]["4"] == {"eer": None, "eer_ci95": None, "far": None, "frr": None}
    rows = subgroups.table("kind", found).rows
    assert [row[:3] for row in rows[2:]] == [["y", "4", "–"], ["y", "8", "–"]]


@pytest.mark.slow
def test_resamples_within_all_trials_are_those_of_the_list():
    trial_set = make_trial_set()
    labels, speakers = trial_set.trials.labels, trial_set.speaker_numbers()
    scores = (np.random.default_rng(0).normal(size=len(labels)) + labels).astype(np.float32)
    every = np.ones(len(labels), bool)
    found = confidence.bootstrap_within(scores, labels, *speakers, every, resamples=50)
    np.testing.assert_array_equal(found, confidence.bootstrap(scores, labels, *speakers, resamples=50).eer)
    # Of two speakers of six most resamples have at most one.
    pair = np.isin(speakers[0], [0, 1]) & np.isin(speakers[1], [0, 1])
    assert confidence.bootstrap_within(scores, labels, *speakers, pair, resamples=50) is None
