"""Training on the speech of recordings alone: the corpus, the validation, and what resumes."""

import numpy as np
import pytest
import soundfile
import training_runs
from refusals import refusal

from redimnet_jax.data import speech
from redimnet_jax.data.synthetic import voices
from redimnet_jax.training import data as training_data


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Voices of three speakers to train on and two to validate, each recording with two seconds of silence before."""
    folder = tmp_path_factory.mktemp("data")
    for name, first, speakers in (("train", 0, 3), ("unseen", 3, 2)):
        for speaker in range(first, first + speakers):
            for number in range(2):
                path = folder / name / f"s{speaker}" / f"{number}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                spoken = voices.synthesize(speaker, 0, number, 1.5)
                soundfile.write(path, np.concatenate([np.zeros(32000), spoken]), 16000)
    (folder / "trials.txt").write_text("1 s3/0.wav s3/1.wav\n0 s3/0.wav s4/0.wav\n")
    return folder


def opened(folders, workdir, digests=None, **changes):
    wanted = {"data__train": str(folders / "train"), "validation__trials": str(folders / "trials.txt")}
    wanted |= {"validation__audio_root": str(folders / "unseen"), "data__speech_only": True}
    return training_data.open_data(training_runs.settings({}, **(wanted | changes)), workdir, digests)


def test_corpus_and_validation_are_cut(folders, tmp_path):
    data = opened(folders, tmp_path)
    whole = opened(folders, tmp_path, data__speech_only=False)
    assert data.corpus.digest != whole.corpus.digest and data.digests == whole.digests
    for cut, all_of_it in ((data.corpus, whole.corpus), (data.validation.recordings, whole.validation.recordings)):
        assert len(cut) == len(all_of_it) > 1
        assert (cut.samples < 2 * 16000).all() and (all_of_it.samples == 3.5 * 16000).all()
        np.testing.assert_array_equal(cut.read(1), speech.only_speech(all_of_it.read(1)))


def test_a_run_that_resumes_finds_the_same(folders, tmp_path):
    first = opened(folders, tmp_path)
    again = opened(folders, tmp_path, first.digests)
    assert again.corpus.digest == first.corpus.digest


def test_too_little_speech_is_refused_by_the_names_of_the_settings(folders, tmp_path):
    text = refusal(opened, folders, tmp_path, data__min_speech=2.0)
    assert text.startswith("3 of 3 recordings have less than 2 s of speech: 's3/0.wav' (")
    assert text.endswith("; leave them out, or lower data.min_speech.")
    held_out = {"validation__trials": None, "validation__audio_root": None, "validation__holdout": 0.4}
    text = refusal(opened, folders, tmp_path, data__min_speech=2.0, **held_out)
    assert text.startswith("6 of 6 utterances have less than 2 s of speech, more than data.max_bad 0.01 allows: ")
    assert text.endswith("remove them, or raise data.max_bad or lower data.min_speech.")
