"""Batches of P speakers with K crops each: who is in them, of which utterances, and nothing else changes them."""

import json
from collections import Counter

import numpy as np
import pytest
from fake_corpus import FakeCorpus
from refusals import refusal
from training_batches import train_batches

from redimnet_jax.data.augment import GaussianNoise, Speed

CROP, SPEAKERS = 50, 5
LENGTHS = [60, 100, 101, 250, 400, 1000, 5000, 70, 80, 90, 100, 110]  # two or three utterances a speaker
OPTIONS = {"batch_size": 6, "crop": CROP, "seed": 3, "crops_per_speaker": 3}


def corpus() -> FakeCorpus:
    return FakeCorpus(LENGTHS, SPEAKERS)


def take(count: int, of=None, state=None, **options) -> list[dict]:
    iterator = train_batches(of or corpus(), **OPTIONS | options)
    if state:
        iterator.set_state(state)
    taken = [{key: np.array(value) for key, value in next(iterator).items()} for _ in range(count)]
    iterator.close()
    return taken


def same(left: list[dict], right: list[dict]) -> bool:
    return all(
        np.array_equal(a[key], b[key]) for a, b in zip(left, right, strict=True) for key in ("waveform", "label")
    )


def test_speakers_and_their_utterances():
    """Two speakers a batch, three crops each, of different utterances as far as there are."""
    seen, rounds = Counter(), []
    for number, batch in enumerate(take(40)):
        assert batch["waveform"].shape == (6, CROP) and batch["waveform"].dtype == np.float32
        assert batch["label"].shape == (6,) and batch["label"].dtype == np.int32
        speakers = batch["label"].reshape(2, 3)
        assert (speakers == speakers[:, :1]).all() and speakers[0, 0] != speakers[1, 0]
        utterances = batch["waveform"][:, 0].astype(int).reshape(2, 3)
        np.testing.assert_array_equal(utterances % SPEAKERS, speakers)
        for speaker, row in zip(speakers[:, 0], utterances, strict=True):
            assert len(set(row)) == min(3, np.sum(corpus().labels == speaker))
            seen.update(row.tolist())
        if number % 2 == 0:
            rounds.append(set())
        # Nobody twice in a round, of which the speaker left over is dropped.
        assert not rounds[-1] & set(speakers[:, 0].tolist())
        rounds[-1] |= set(speakers[:, 0].tolist())
    assert set(seen) == set(range(len(LENGTHS)))
    assert len({frozenset(group) for group in rounds}) > 3


def test_neither_processes_nor_threads_change_the_stream():
    options = {"steps": (GaussianNoise(p=0.5),), "batch_size": 12}
    whole = take(5, **options)
    parts = [take(5, process_index=index, process_count=2, **options) for index in range(2)]
    for step, batch in enumerate(whole):
        for key in batch:
            groups = batch[key].reshape(4, 3, -1)
            for index in range(2):
                np.testing.assert_array_equal(groups[index::2], parts[index][step][key].reshape(2, 3, -1))
    assert same(whole, take(5, threads=1, **options))
    assert not same(whole, take(5, **options | {"seed": 4}))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_is_exact(workers):
    """In the middle of a round, in another iterator."""
    expected = take(9)
    iterator = train_batches(corpus(), **OPTIONS)
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    iterator.close()
    assert same(expected[3:], take(6, state=state, workers=workers))
    assert "crops_per_speaker" in refusal(
        train_batches(corpus(), **OPTIONS | {"crops_per_speaker": 2}).set_state, state
    )


def test_other_speeds():
    """As new speakers a group has one speed and its class; otherwise each crop has its own."""
    labels = np.concatenate([batch["label"] for batch in take(40, speed=Speed(factors=(1.0, 0.5)))]).reshape(-1, 3)
    assert (labels == labels[:, :1]).all() and set(labels[:, 0]) == set(range(2 * SPEAKERS))
    batches = take(20, FakeCorpus([5000] * 10, SPEAKERS), speed=Speed(factors=(1.0, 0.5), new_speakers=False))
    # An utterance that is played as it is rises evenly.
    uneven = np.concatenate([np.abs(np.diff(batch["waveform"]) * 2**14 - 1).max(1) for batch in batches])
    same_speed = (uneven < 0.1).reshape(-1, 3)
    assert max(np.concatenate([batch["label"] for batch in batches])) < SPEAKERS
    assert 10 < same_speed.sum() < 110 and (same_speed != same_speed[:, :1]).any()


def test_speakers_with_a_single_utterance():
    few = FakeCorpus(LENGTHS[:8], SPEAKERS)
    told = refusal(train_batches, few, **OPTIONS)
    assert "2 of 5 speakers have one utterance" in told and "id3" in told and "data.one_utterance" in told
    for batch in take(10, few, one_utterance=True):
        for speaker, row in zip(batch["label"][::3], batch["waveform"][:, 0].astype(int).reshape(2, 3), strict=True):
            assert len(set(row)) == (1 if speaker > 2 else 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 7}, ["7", "multiple of 3"]),
        ({"batch_size": 6, "process_count": 6}, ["multiple of 18", "6 process"]),
        ({"batch_size": 12, "crops_per_speaker": 2}, ["6 speakers", "has 5"]),
        ({"crops_per_speaker": 0}, ["crops_per_speaker"]),
    ],
)
def test_impossible_numbers(options, words):
    text = refusal(train_batches, corpus(), **OPTIONS | options)
    assert all(word in text for word in words), text
