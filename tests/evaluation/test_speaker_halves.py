"""Halves of a trial list without a common speaker."""

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import trials
from redimnet_jax.data.recordings import AudioFiles
from redimnet_jax.evaluation.protocol import Enrolment, TrialSet
from redimnet_jax.evaluation.speaker_halves import halves


def files(names):
    """Audio files that are not there: only what is known of them is looked at."""
    recordings = object.__new__(AudioFiles)
    recordings._names = recordings._paths = list(names)
    recordings.samples = np.arange(len(names))
    recordings.without_signal = np.zeros(len(names), bool)
    return recordings


def trial_set(speakers=5, utterances=3):
    names = [f"s{speaker}/{i}" for speaker in range(speakers) for i in range(utterances)]
    left, right = np.triu_indices(len(names), 1)
    of = trials.Trials(
        names, left.astype(np.int32), right.astype(np.int32), left // utterances == right // utterances
    )
    return TrialSet(of, files(names), [name.split("/")[0] for name in names], "a list")


def triples(each):
    of = each.trials
    return {(of.names[a], of.names[b], bool(c)) for a, b, c in zip(of.left, of.right, of.labels, strict=True)}


@pytest.mark.parametrize("seed", range(4))
def test_halves_have_no_common_speaker_and_keep_what_trials_compare(seed):
    whole = trial_set()
    first, second, dropped = halves(whole, seed)
    assert len(set(first.speakers)) == 2 and len(set(second.speakers)) == 3
    assert not set(first.speakers) & set(second.speakers)
    assert triples(first) | triples(second) < triples(whole)
    assert dropped == 2 * 3 * 9 == len(whole.trials) - len(first.trials) - len(second.trials)
    for half in (first, second):
        assert [half.recordings.name(i) for i in range(len(half.recordings))] == half.trials.names
        assert [f"s{n // 3}" for n in half.recordings.samples] == half.speakers
        assert half.description == f"{len(half.trials)} trials of half of the speakers of a list"
    assert triples(halves(whole, seed)[0]) == triples(first)
    assert len({tuple(sorted(set(halves(whole, s)[0].speakers))) for s in range(8)}) > 1


def test_models_keep_their_recordings():
    whole = trial_set(4, 2)
    # Every name is a model of two recordings.
    members = np.repeat(np.arange(8), 2)
    recordings = files([f"{whole.trials.names[n]}-{i % 2}" for i, n in enumerate(members)])
    enrolment = Enrolment(members, np.arange(16), np.ones(8, bool))
    both = TrialSet(whole.trials, recordings, whole.speakers, "a list", enrolment=enrolment)
    for half in halves(both, 0)[:2]:
        for name, recording in zip(half.enrolment.names, half.enrolment.recordings, strict=True):
            assert half.recordings.name(recording).rsplit("-", 1)[0] == half.trials.names[name]
        assert len(half.recordings) == 8 and half.enrolment.is_model.tolist() == [True] * 4


def test_halves_without_a_class_are_refused():
    assert "half of the 2 speakers" in refusal(halves, trial_set(2), 0)
