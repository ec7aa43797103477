"""Kaldi folders as sources of training data, and of the recordings of trials."""

import pickle
from pathlib import Path

import audio_files
import numpy as np
import pytest
from refusals import refusal

from redimnet_jax.data import tfds
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.embedding import cache
from redimnet_jax.evaluation import protocol
from redimnet_jax.utterance_speakers import rule

RATE = 16000


def folder(path: Path, wav_scp: str, utt2spk: str, segments: str | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "wav.scp").write_text(wav_scp)
    (path / "utt2spk").write_text(utt2spk)
    if segments is not None:
        (path / "segments").write_text(segments)
    return path


@pytest.fixture
def recordings(tmp_path):
    """Four recordings of 3 s, whose format and folder differ."""
    audio = tmp_path / "my audio"
    for number, name in enumerate(("a.wav", "b.flac", "c.wav", "d.wav")):
        audio_files.write(audio / name, audio_files.voice(3 * RATE, seed=number))
    return audio


@pytest.fixture
def plain(tmp_path, recordings):
    names = {"s1-a": "a.wav", "s1-b": "b.flac", "s2-c": "c.wav", "s2-d": "d.wav"}
    lines = "".join(f"{name} {recordings / file}\n" for name, file in names.items())
    return folder(tmp_path / "kaldi", lines, "s1-a s1\ns1-b s1\ns2-c s2\ns2-d\ts2\n")


@pytest.fixture
def cut(tmp_path, recordings):
    return folder(
        tmp_path / "cut",
        f"ra {recordings}/a.wav\nrb {recordings}/b.flac\n",
        "s1-1 s1\ns1-2 s1\ns2-1 s2\ns2-2 s2\n",
        "s1-1 ra 0 1.0\ns2-1 ra 1.0 2.5 1\ns1-2 rb 0.25 -1\ns2-2 rb 2.0 3.4\n",
    )


def read(corpus) -> dict[str, np.ndarray]:
    return {corpus.name(i): corpus.read(i) for i in range(len(corpus))}


def test_recordings_are_utterances_of_their_speakers(plain, recordings, tmp_path):
    corpus = open_corpus(plain, cache_dir=tmp_path / "index", progress=False)
    assert corpus.speakers == ("s1", "s2")
    assert [corpus.name(i) for i in range(4)] == ["s1-a", "s1-b", "s2-c", "s2-d"]
    assert corpus.labels.tolist() == [0, 0, 1, 1] and corpus.samples.tolist() == [3 * RATE] * 4
    assert corpus.source(1) == recordings / "b.flac" and corpus.seeks(1)
    again = pickle.loads(pickle.dumps(corpus))
    np.testing.assert_array_equal(again.read(3, 100, 50), corpus.read(3, 100, 50))


def test_paths_may_be_relative(recordings, tmp_path):
    made = folder(tmp_path / "kaldi", "a ../my audio/a.wav\nc ../my audio/c.wav\n", "a s1\nc s2\n")
    assert len(open_corpus(made, cache_dir=None, progress=False)) == 2
    made = folder(tmp_path / "other" / "kaldi", "a a.wav\nc c.wav\n", "a s1\nc s2\n")
    assert len(open_corpus(made, cache_dir=None, audio_root=recordings, progress=False)) == 2
    assert "2 missing" in refusal(open_corpus, made, cache_dir=None, progress=False)


def test_segments_are_parts_of_recordings(cut, recordings, tmp_path):
    corpus = open_corpus(cut, cache_dir=tmp_path / "index", progress=False)
    a, b = (audio_files.voice(3 * RATE, seed=seed) for seed in (0, 1))
    expected = {"s1-1": a[:RATE], "s1-2": b[RATE // 4 :], "s2-1": a[RATE : 5 * RATE // 2], "s2-2": b[2 * RATE :]}
    found = read(corpus)
    assert found.keys() == expected.keys()
    for name, waveform in expected.items():
        np.testing.assert_allclose(found[name], waveform, atol=1 / 32767)
    assert corpus.samples.tolist() == [len(expected[corpus.name(i)]) for i in range(4)]
    np.testing.assert_array_equal(corpus.read(2, 1000, 500), found["s2-1"][1000:1500])
    # Every reading cuts the segment anew.
    assert not any(corpus.seeks(i) for i in range(4))


def test_segments_of_a_recording_have_different_keys_in_a_cache(recordings, tmp_path):
    made = folder(tmp_path / "k", f"ra {recordings}/a.wav\n", "x s1\ny s2\n", "x ra 0 1\ny ra 1 2\n")
    corpus = open_corpus(made, cache_dir=None, progress=False)
    assert cache.identity(corpus, 0) == cache.identity(corpus, 0) != cache.identity(corpus, 1)


def test_a_data_set_has_the_same_segments(cut, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    source = tfds.build(str(cut), tmp_path / "tfds", "cut", cache_dir=None, progress=False)
    records = open_corpus(source, cache_dir=None, data_dir=tmp_path / "tfds", progress=False)
    corpus = open_corpus(cut, cache_dir=None, progress=False)
    assert records.digest == corpus.digest
    for name, waveform in read(records).items():
        np.testing.assert_array_equal(waveform, read(corpus)[name])


def test_an_index_follows_its_lists(plain, tmp_path):
    first = open_corpus(plain, cache_dir=tmp_path / "index", progress=False)
    (plain / "utt2spk").write_text("s1-a s1\ns1-b s1\ns2-c s3\ns2-d s3\n")
    second = open_corpus(plain, cache_dir=tmp_path / "index", progress=False)
    assert first.speakers == ("s1", "s2") and second.speakers == ("s1", "s3")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a sox in.wav -t wav - |", "is a command"),
        ("a | touch x", "is a command"),
        ("a /data/raw.ark:17", "is no audio file"),
        ("a feats.ARK", "is no audio file"),
        ("a -", "is no audio file"),
        ("a", "must be `recording path`"),
        ("a x.wav\na y.wav", "Line 2 of"),
    ],
)
def test_what_is_no_file_is_refused(line, told, tmp_path):
    made = folder(tmp_path / "kaldi", f"{line}\n", "a s1\n")
    assert told in refusal(open_corpus, made, cache_dir=None, progress=False)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("x r 1.0", "must be `utterance recording start end`"),
        ("x r 2.0 1.0", "must be `utterance recording start end`"),
        ("x r nan 1.0", "must be `utterance recording start end`"),
        ("x r -1 2", "must be `utterance recording start end`"),
        ("x other 0 1", "names the recording 'other', which wav.scp lacks"),
        ("x r 0 1\nx r 1 2", "a second time"),
    ],
)
def test_wrong_segments_are_refused(line, told, recordings, tmp_path):
    made = folder(tmp_path / "kaldi", f"r {recordings}/a.wav\n", "x s1\n", f"{line}\n")
    assert told in refusal(open_corpus, made, cache_dir=None, progress=False)


def test_segments_behind_their_recording_are_counted(recordings, tmp_path):
    lines = "".join(f"s{i} r 0 {1 + i / 10}\n" for i in range(9)) + "late r 2 3.6\nbehind r 5 6\n"
    speakers = "".join(f"s{i} s1\n" for i in range(9)) + "late s2\nbehind s2\n"
    made = folder(tmp_path / "kaldi", f"r {recordings}/a.wav\n", speakers, lines)
    told = refusal(open_corpus, made, cache_dir=None, progress=False)
    assert "3 of 12" in told and "2 unreadable such as late" in told
    corpus = open_corpus(made, cache_dir=None, max_bad=0.5, progress=False)
    assert corpus.left_out("late") == "unreadable" and len(corpus) == 9


def test_lists_have_to_agree(recordings, tmp_path):
    made = folder(tmp_path / "kaldi", f"a {recordings}/a.wav\nc {recordings}/c.wav\n", "a s1\n")
    assert "has no speaker of 'c'" in refusal(open_corpus, made, cache_dir=None, progress=False)
    (made / "utt2spk").write_text("a s1\nc s2\nd s2\n")
    assert "1 missing such as d" in refusal(open_corpus, made, cache_dir=None, progress=False)
    (made / "utt2spk").unlink()
    assert "utt2spk cannot be read" in refusal(open_corpus, made, cache_dir=None, progress=False)


def test_trials_by_utterance(plain, cut, tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text("s1-a s1-b target\ns1-a s2-c nontarget\ns2-c s2-1 target\n")
    trial_set = protocol.from_list(path, [plain, cut])
    assert trial_set.speakers == ["s1", "s2", "s1", "s2"]
    assert [trial_set.recordings.name(i) for i in range(4)] == trial_set.trials.names
    lengths = dict(zip(trial_set.trials.names, trial_set.recordings.samples.tolist(), strict=True))
    assert lengths == {"s1-a": 3 * RATE, "s1-b": 3 * RATE, "s2-c": 3 * RATE, "s2-1": 3 * RATE // 2}
    protocol.check(trial_set)


def test_trials_of_other_utterances_are_refused(plain, recordings, tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text("s1-a other target\ns1-a s2-c nontarget\n")
    assert "1 of 3 recordings of the trials are not in the corpus, the first 'other'" in refusal(
        protocol.from_list, path, plain
    )
    assert "give Kaldi folders alone" in refusal(protocol.from_list, path, [plain, recordings])
    path.write_text("s1-a s1-b target\ns1-a s2-c nontarget\n")
    assert "speaker_pattern has no effect" in refusal(
        protocol.from_list, path, plain, speaker_rule=rule(pattern="(s[0-9])")
    )
    copy = folder(tmp_path / "copy", f"s1-a {recordings}/a.wav\n", "s1-a s1\n")
    assert "of another folder" in refusal(protocol.from_list, path, [plain, copy])
