"""What a run may be judged by, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from refusals import refusal

from redimnet_jax import files, trials
from redimnet_jax.data import splits
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.data.recordings import Subset
from redimnet_jax.evaluation import protocol
from redimnet_jax.training import config as train_config


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    for speaker in "abcd":
        for utterance in range(3):
            path = root / speaker / f"{utterance}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, rng.normal(0, 0.1, 9000 + 100 * utterance), 16000)
    return root


@pytest.fixture(scope="module")
def corpus(tree):
    return open_corpus(tree, cache_dir=None, progress=False)


def listed(tree, *lines):
    return files.write(tree / "list.txt", "".join(f"{line}\n" for line in lines))


def test_a_list_of_files(tree):
    judged = protocol.from_list(listed(tree, "1 a/0.wav a/1.wav", "0 a/0.wav b/2.wav"))
    assert judged.speakers == ["a", "a", "b"]
    assert judged.recordings.samples.tolist() == [9000, 9100, 9200]
    signal, _ = soundfile.read(tree / "b" / "2.wav", dtype="float32")
    np.testing.assert_array_equal(judged.recordings.read(2, 10, 50), signal[10:60])


def test_a_list_of_a_corpus(tree, corpus):
    path = listed(tree, "1 c/0.wav c/1.wav", "0 a/0.wav b/2.wav")
    from_files, from_corpus = protocol.from_list(path), protocol.from_list(path, corpus=corpus)
    assert from_corpus.speakers == from_files.speakers
    for index in range(len(from_files.recordings)):
        assert from_corpus.recordings.name(index) == from_files.recordings.name(index)
        np.testing.assert_array_equal(from_corpus.recordings.read(index), from_files.recordings.read(index))


def test_recordings_without_signal_are_named_with_the_number_of_their_trials(tree, caplog):
    soundfile.write(tree / "c" / "silent.wav", np.zeros(9000), 16000)
    path = listed(tree, "1 c/0.wav c/silent.wav", "0 a/0.wav b/2.wav", "0 a/0.wav c/silent.wav")
    judged = protocol.from_list(path)
    assert protocol.find_no_signal(judged) == {"recordings": ["c/silent.wav"], "trials": 2}
    protocol.warn_of_no_signal(judged)
    assert "1 of 4 recordings" in caplog.text and "2 trials" in caplog.text and "c/silent.wav" in caplog.text
    path = listed(tree, "1 model c/0.wav", "0 model b/2.wav", "1 a/0.wav a/1.wav")
    judged = protocol.from_list(path, models={"model": ["c/1.wav", "c/silent.wav"]})
    assert protocol.find_no_signal(judged) == {"recordings": ["c/silent.wav"], "trials": 2}
    (tree / "c" / "silent.wav").unlink()
    assert protocol.find_no_signal(protocol.from_list(listed(tree, "1 a/0.wav a/1.wav"))) is None


def test_a_missing_file_is_named(tree, corpus):
    path = listed(tree, "1 a/0.wav a/9.wav", "0 a/0.wav b/2.wav")
    assert "a/9.wav" in refusal(protocol.from_list, path)
    assert "a/9.wav" in refusal(protocol.from_list, path, corpus=corpus)


def test_trials_made_of_a_corpus_are_balanced_and_as_many_as_there_are(corpus):
    judged = protocol.from_corpus(corpus, count=10_000, seed=0)
    assert len(judged.trials) == 24 and judged.trials.labels.sum() == 12
    same = [
        judged.speakers[a] == judged.speakers[b] for a, b in zip(judged.trials.left, judged.trials.right, strict=True)
    ]
    assert same == judged.trials.labels.tolist()


def test_one_utterance_a_speaker_makes_no_target_trials(corpus):
    single = Subset(corpus, np.array([0, 3, 6]))
    assert "no target trials" in refusal(protocol.from_corpus, single, count=10, seed=0)


def test_training_speakers_among_the_trials_are_refused_unless_allowed(tree):
    judged = protocol.from_list(listed(tree, "1 a/0.wav a/1.wav", "0 a/0.wav b/2.wav"))
    protocol.check(judged, {"c", "d"}, allow_shared=False)
    assert "'b'" in refusal(protocol.check, judged, {"b", "c"}, allow_shared=False)
    assert "allow_shared_speakers" in refusal(protocol.check, judged, {"b", "c"}, allow_shared=False)
    protocol.check(judged, {"b", "c"}, allow_shared=True)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["1 a/0.wav a/1.wav"], "both classes"),
        (["1 a/0.wav a/0.wav", "0 a/0.wav b/0.wav"], "itself"),
        (["1 a/0.wav b/1.wav", "0 a/0.wav b/0.wav"], "at odds"),
        (["1 a/0.wav a/1.wav", "1 a/1.wav a/0.wav", "0 a/0.wav b/0.wav"], "repeat"),
    ],
)
def test_lists_that_cannot_judge_are_refused(lines, said, tree):
    assert said in refusal(protocol.check, protocol.from_list(listed(tree, *lines)), (), allow_shared=True)


def test_held_out_speakers_are_in_no_other_part(corpus):
    kept, held = splits.hold_out(corpus, 0.25, seed=3)
    assert len(held.speakers) == 2 and set(kept.speakers) | set(held.speakers) == set(corpus.speakers)
    assert not set(kept.speakers) & set(held.speakers)
    assert len(kept) == len(held) == 6 and kept.digest != held.digest
    for part in (kept, held):
        for index, label in enumerate(part.labels):
            assert trials.speaker_of_path(part.name(index)) == part.speakers[label]
    assert splits.hold_out(corpus, 0.25, seed=3)[1].speakers == held.speakers


def test_audio_roots_are_a_setting_of_text_or_several():
    config = train_config.default()
    for roots in ("/a", "/a,/b"):
        config.validation.audio_root = roots
        wanted = [Path("/a"), Path("/b")][: 1 + (roots != "/a")]
        assert protocol.audio_roots(config.validation.audio_root, "list") == wanted


def test_repeated_trials_count_where_they_are_allowed(tree):
    judged = protocol.from_list(listed(tree, "1 a/0.wav a/1.wav", "0 a/0.wav b/2.wav", "1 a/1.wav a/0.wav"))
    assert "1 of 3 trials repeat an earlier pair" in refusal(protocol.check, judged)
    protocol.check(judged, allow_repeated=True)
    assert len(judged.trials) == 3
