"""What is kept out of training of every speaker, and that nothing of it is ever trained on."""

import pickle
import re

import numpy as np
import pytest
import soundfile
from fake_corpus import FakeCorpus
from refusals import refusal

from redimnet_jax.data import augment, loader, splits
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.data.crops import Crops
from redimnet_jax.data.recordings import Excerpts, Subset
from redimnet_jax.training import seen_speakers

SECOND = 16000


class Utterances(FakeCorpus):
    """Utterances with the given speakers and sessions (-1: unknown), a second each unless said otherwise."""

    def __init__(self, labels, sessions, seconds=1.0):
        super().__init__(np.broadcast_to(SECOND * np.asarray(seconds), len(labels)), speakers=max(labels) + 1)
        self.labels, self.sessions = np.array(labels, np.int32), np.array(sessions, np.int32)


def split(corpus, share=0.25, gap=0.5, seed=0):
    return splits.split(corpus, share, gap_seconds=gap, min_seconds=0.5, seed=seed)


def utterances(part):
    """The utterances of a `FakeCorpus` that a part of it holds."""
    return [int(part.read(i, 0, 1)[0]) for i in range(len(part))]


def test_whole_sessions_are_kept_out():
    corpus = Utterances(np.repeat([0, 1], 12), np.repeat(np.arange(8), 3))
    parts = split(corpus)
    assert len(parts.held_out) == 6 and parts.methods == {"session": 2} and "2 by session" in parts.description
    train, held = utterances(parts.train), utterances(parts.held_out)
    assert sorted(train + held) == list(range(24))
    sessions = [set(corpus.sessions[side].tolist()) for side in (train, held)]
    assert not sessions[0] & sessions[1] and len(sessions[1]) == 2
    for part in (parts.train, parts.held_out):
        assert part.speakers == corpus.speakers
        assert part.labels.tolist() == corpus.labels[utterances(part)].tolist()


@pytest.mark.parametrize(("share", "held"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_at_least_one_recording_on_either_side(share, held):
    parts = split(Utterances([0] * 4 + [1] * 4, [-1] * 8), share)
    assert np.bincount(parts.held_out.labels).tolist() == [held, held] and parts.methods == {"utterance": 2}
    assert "2 by utterance (sessions unknown)" in parts.description


def test_the_seed_decides():
    corpus = Utterances([0] * 40, np.arange(40))
    held = [utterances(split(corpus, seed=seed).held_out) for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_one_recording_is_split_in_time_with_a_gap():
    parts = split(Utterances([0, 1], [0, -1], seconds=[4.0, 8.0]))
    assert (
        parts.methods == {"time": 2}
        and "2 in time, one recording on both sides of a gap of 0.5 s" in parts.description
    )
    assert parts.train.samples.tolist() == [2.5 * SECOND, 5.5 * SECOND]
    assert parts.held_out.samples.tolist() == [1 * SECOND, 2 * SECOND]
    for i, end in enumerate((4, 8)):
        whole = i + np.arange(end * SECOND, dtype=np.float32) * np.float32(2.0**-14)
        np.testing.assert_array_equal(parts.train.read(i), whole[: len(parts.train.read(i))])
        np.testing.assert_array_equal(parts.held_out.read(i), whole[-len(parts.held_out.read(i)) :])


def test_utterances_of_one_session_follow_one_another():
    """Of four seconds the last one is kept out; what the gap leaves of the third utterance is too short to train."""
    parts = split(Utterances([0] * 4 + [1] * 2, [7] * 4 + [-1, -1], seconds=1.0), gap=0.75)
    assert parts.methods == {"time": 1, "utterance": 1}
    first = slice(None, -1)
    assert utterances(parts.train)[first] == [0, 1] and utterances(parts.held_out)[first] == [3]


def test_who_has_too_little_trains_on_everything():
    parts = split(Utterances([0, 1], [0, 1], seconds=[4.0, 1.0]))
    assert parts.methods == {"time": 1, "none": 1} and "1 not at all, having too little" in parts.description
    assert parts.train.samples.tolist() == [2.5 * SECOND, SECOND] and parts.held_out.speakers == ("id0",)
    message = refusal(split, Utterances([0, 1], [0, 1], seconds=1.0))
    assert message.startswith("share=0.25 keeps out nothing") and "set share to 0.5" in message
    # What the message says helps.
    (gap,) = re.findall(r"gap_seconds to ([\d.]+)", message)
    assert split(Utterances([0, 1], [0, 1], seconds=1.0), share=0.5, gap=float(gap)).methods == {"time": 2}
    long = Utterances([0, 1], [0, 1], seconds=6.0)
    message = refusal(split, long, share=0.01)
    (share,) = re.findall(r"set share to ([\d.]+)", message)
    assert split(long, share=float(share)).methods == {"time": 2}
    assert "set share to 0 and rely" in refusal(split, Utterances([0, 1], [0, 1], seconds=0.9))


def test_crops_never_reach_what_is_kept_out():
    """Neither at another speed, whose crops are longer, nor in worker processes, to which the corpus is pickled."""
    corpus = Utterances([0, 1, 2], [0, 1, 2], seconds=4.0)
    train = pickle.loads(pickle.dumps(split(corpus).train))

    class Unchanged(augment.Speed):
        """Takes the samples of another speed, and leaves them as they are."""

        def change(self, waveform, choice):
            return waveform

    for speed in (None, Unchanged(factors=(1.0, 1.5), new_speakers=False)):
        for seconds in (2, 6):
            crops = Crops(train, seconds * SECOND, 0, speed=speed)
            drawn = [crops.example(i, np.random.default_rng(i))["waveform"] for i in range(60)]
            # A sample of `FakeCorpus` tells where it is.
            places = np.concatenate([(x - np.floor(x[0])) * 2.0**14 for x in drawn])
            assert 2.4 * SECOND < places.max() < 2.5 * SECOND
    made = next(loader.train_batches(Crops(train, SECOND, 0), 3))
    assert sorted(made["label"]) == [0, 1, 2]


def test_excerpts_give_nothing_but_their_span(tmp_path):
    signal = np.random.default_rng(0).normal(0, 0.1, 2000).astype(np.float32)
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "1.wav", signal, 16000, subtype="FLOAT")
    corpus = open_corpus(tmp_path, cache_dir=None, min_seconds=0.1, progress=False)
    excerpt = Excerpts(corpus, np.array([0]), np.array([[300, 1000]]))
    assert excerpt.samples.tolist() == [700] and excerpt.name(0) == "a/1.wav"
    for start, samples in ((0, None), (100, None), (0, 50), (650, 100), (900, 10)):
        stop = None if samples is None else start + samples
        np.testing.assert_array_equal(excerpt.read(0, start, samples), signal[300:1000][start:stop])
    for start, samples in ((-1, None), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            excerpt.read(0, start, samples)
    # What caches know audio by would be that of the whole utterance.
    with pytest.raises(ValueError, match="excerpt"):
        excerpt.source(0)
    others = [Subset(corpus, np.array([0])), Excerpts(corpus, np.array([0]), np.array([[300, 1001]]))]
    assert len({part.digest for part in (corpus, excerpt, *others)}) == 4


def seen(held, training, max_recordings=100, **options):
    return seen_speakers.seen_speakers(
        held, training, max_recordings=max_recordings, seed=0, description="all", **options
    )


def test_classes_are_those_of_training_at_the_unchanged_speed():
    corpus = Utterances([0, 1, 1, 2, 2], [0, 1, 2, 3, 4])
    parts = split(corpus)
    assert parts.held_out.speakers == ("id1", "id2")
    assert seen(parts.held_out, parts.train).labels.tolist() == [1, 2]
    for new, first in ((True, 3), (False, 0)):
        speed = augment.Speed(factors=(0.9, 1.0), new_speakers=new)
        assert seen(parts.held_out, parts.train, speed=speed).labels.tolist() == [first + 1, first + 2]
    message = refusal(seen, parts.held_out, parts.train, speed=augment.Speed(factors=(0.9, 1.1)))
    assert "data.augment.speed.factors" in message


def test_a_bounded_number_is_judged():
    parts = split(Utterances(np.repeat([0, 1], 50), np.arange(100)))
    few = seen(parts.held_out, parts.train, max_recordings=7)
    assert len(few.recordings) == len(few.labels) == 7 and few.description == "7 of all"
    assert few.labels.tolist() == [corpus_label(parts, few.recordings.name(i)) for i in range(7)]
    assert len({few.recordings.name(i) for i in range(7)}) == 7
    again = seen(parts.held_out, parts.train, max_recordings=7)
    assert [again.recordings.name(i) for i in range(7)] == [few.recordings.name(i) for i in range(7)]


def corpus_label(parts, name) -> int:
    return parts.train.speakers.index(name.split("/")[0])


def test_other_speakers_are_refused_with_the_reason_and_the_way_out():
    training, held = Utterances([0, 1], [0, 1]), Utterances([0, 1, 2], [0, 1, 2])
    message = refusal(seen, held, training)
    assert "'id2'" in message and "no prototype" in message and "classification.share" in message


def test_what_trains_is_refused():
    corpus = Utterances([0, 0, 1, 1], [0, 1, 2, 3])
    seen_speakers.check_apart(Subset(corpus, np.array([0, 2])), Subset(corpus, np.array([1, 3])))
    message = refusal(seen_speakers.check_apart, corpus, Subset(corpus, np.array([1, 3])))
    assert "2 utterances that also train, such as id0/1.wav" in message
