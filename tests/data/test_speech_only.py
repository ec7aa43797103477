"""Recordings cut to their speech: every stretch of it, what is left out and counted, and the cache."""

import numpy as np
import pytest
import soundfile
from refusals import refusal

from redimnet_jax.data import speech, speech_only
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.data.recordings import select
from redimnet_jax.data.speech_only import Speech, SpeechOnly
from redimnet_jax.data.synthetic import voices
from redimnet_jax.embedding import cache
from redimnet_jax.errors import UserError

SEGMENTS = np.array([[100, 400], [1000, 1001], [2000, 2600], [0, 50]])


class Recordings:
    """Three recordings of counting samples; the second holds no speech, the third cannot be read when `broken`."""

    samples = np.array([3000, 3000, 3000])
    broken = False

    def __len__(self):
        return 3

    def name(self, index):
        return f"r{index}"

    def read(self, index, start=0, samples=None):
        if self.broken and index == 2:
            raise UserError("r2 is torn; restore it.")
        return np.arange(3000, dtype=np.float32)[start : None if samples is None else start + samples]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three speakers of two utterances; a third one of the last is noise."""
    folder = tmp_path_factory.mktemp("tree")
    voices.write_corpus(folder / "tree", speakers=3, sessions=1, utterances=2, seconds=1.5)
    noise = 0.1 * np.random.default_rng(0).normal(size=24000)
    last = sorted(path for path in (folder / "tree").iterdir() if path.is_dir())[-1]
    soundfile.write(last / "noise.wav", noise, 16000)
    return folder / "tree"


@pytest.fixture
def corpus(tree, tmp_path):
    return open_corpus(tree, cache_dir=tmp_path / "index", progress=False)


def test_every_stretch_is_a_slice_of_the_speech():
    found = Speech(SEGMENTS, np.array([0, 3, 3, 4]), {})
    assert found.samples.tolist() == [901, 0, 50]
    cut = SpeechOnly(Recordings(), found)
    whole = np.concatenate([np.arange(*segment) for segment in SEGMENTS[:3]])
    for start, samples in [
        (0, None),
        (0, 901),
        (5, 290),
        (299, 3),
        (300, 1),
        (301, 600),
        (890, 100),
        (901, 5),
        (0, 0),
    ]:
        expected = whole[start : None if samples is None else start + samples]
        np.testing.assert_array_equal(cut.read(0, start, samples), expected)
    assert cut.read(1).shape == (0,) and cut.read(1).dtype == np.float32
    assert cut.read(2, 10, 5).tolist() == [10, 11, 12, 13, 14]
    with pytest.raises(ValueError, match="negative"):
        cut.read(0, -1)


def test_too_little_speech_is_refused_with_what_was_found():
    recordings = Recordings()
    found = Speech(SEGMENTS, np.array([0, 3, 3, 4]), {})
    assert refusal(speech_only.require_speech, recordings, found, 0.05) == (
        "2 of 3 recordings have less than 0.05 s of speech: 'r1' (0.00 s), 'r2' (0.00 s); leave them out, or lower "
        "min_speech."
    )
    assert "3 of 3 recordings have less than 0.5 s" in refusal(speech_only.require_speech, recordings, found)


def test_what_cannot_be_read_is_named():
    recordings = Recordings()
    recordings.broken = True
    found = speech_only.find_speech(recordings, progress=False)
    assert found.unreadable == {2: "r2 is torn; restore it."}
    message = refusal(speech_only.require_speech, recordings, found)
    assert message == "r2 cannot be searched for speech: r2 is torn; restore it."


def test_a_corpus_leaves_out_what_is_no_speech(corpus, tmp_path):
    cut = speech_only.speech_corpus(corpus, tmp_path, max_bad=0.2, progress=False)
    assert len(corpus) == 7 and len(cut) == 6 and len(cut.speakers) == 3
    assert cut.digest != corpus.digest
    (listing,) = tmp_path.glob("speech-*.bad.txt")
    name, reason = listing.read_text().strip().split("\t")
    assert name.endswith("noise.wav") and reason == "0.00 s of speech, less than 0.5 s"
    for index in range(len(cut)):
        whole = corpus.read([corpus.name(i) for i in range(len(corpus))].index(cut.name(index)))
        np.testing.assert_array_equal(cut.read(index), speech.only_speech(whole))
        assert cut.samples[index] == len(cut.read(index))
    assert "because it is almost without speech" in refusal(select, cut, [name])


def test_too_many_without_speech_are_refused(corpus, tmp_path):
    message = refusal(speech_only.speech_corpus, corpus, tmp_path, progress=False)
    assert message.startswith("1 of 7 utterances have less than 0.5 s of speech, more than max_bad 0.01 allows: ")


def test_the_search_is_done_once_and_damage_is_refused(corpus, tmp_path, monkeypatch):
    first = speech_only.speech_corpus(corpus, tmp_path, max_bad=0.2, progress=False)
    monkeypatch.setattr(speech_only, "find_speech", None)
    again = speech_only.speech_corpus(corpus, tmp_path, max_bad=0.2, progress=False)
    assert again.digest == first.digest
    (path,) = tmp_path.glob("speech-*.npz")
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    message = refusal(speech_only.speech_corpus, corpus, tmp_path, max_bad=0.2, progress=False)
    assert message == (
        f"{path} is damaged (it does not match its checksum); remove the file to search for speech again."
    )


def test_cached_features_tell_speech_and_whole_recordings_apart(corpus):
    whole = np.array([[0, corpus.samples[0]]] * len(corpus))
    offsets = np.arange(len(corpus) + 1)
    keys = {cache.identity(corpus, 0)}
    keys |= {cache.identity(SpeechOnly(corpus, Speech(whole + shift, offsets, {})), 0) for shift in (0, 1)}
    assert len(keys) == 3
