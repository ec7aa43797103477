"""Models of several utterances: the list, and the means that trials compare."""

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import files
from redimnet_jax.data import audio
from redimnet_jax.evaluation import protocol
from redimnet_jax.evaluation import results as evaluation_results
from redimnet_jax.numerics import unit

TRIALS = "1 m s/3.wav\n0 m t/1.wav\n0 s/3.wav t/1.wav\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("s/1.wav", "s/2.wav", "s/3.wav", "t/1.wav"):
        files.write(tmp_path / name, "")
    monkeypatch.setattr(audio, "inspect", lambda source: audio.Inspection(8000, 1.0))
    files.write(tmp_path / "trials.txt", TRIALS)
    return tmp_path


@pytest.mark.parametrize("crops", [1, 3])
def test_scores_are_of_the_mean_of_unit_embeddings(crops, folder):
    judged = protocol.from_list(folder / "trials.txt", models={"m": ["s/1.wav", "s/2.wav"]})
    assert judged.speakers == ["s", "s", "t"] and len(judged.recordings) == 4
    number = {judged.recordings.name(i): i for i in range(4)}
    embeddings = np.random.default_rng(0).normal(size=(4, crops, 6)).astype(np.float32)
    scores = evaluation_results.cosine_scores(embeddings, judged, (4, 6))
    for dim, row in zip((4, 6), scores, strict=True):
        units = {name: np.asarray(unit(embeddings[i, :, :dim])) for name, i in number.items()}
        model = np.concatenate([units["s/1.wav"], units["s/2.wav"]]).mean(axis=0)
        model /= np.linalg.norm(model)
        tests = [(units[name] @ model).mean() for name in ("s/3.wav", "t/1.wav")]
        pairs = (units["s/3.wav"] @ units["t/1.wav"].T).mean()
        np.testing.assert_allclose(row, [*tests, pairs], atol=2e-6)


def test_the_list(tmp_path):
    files.write(tmp_path / "list", "m a.wav b.wav\n\nn\tc d.wav\n")
    assert protocol.read_models(tmp_path / "list") == {"m": ["a.wav", "b.wav"], "n": ["c d.wav"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("m a\nn\n", "Line 2 "),
        ("m a a\n", "an utterance twice"),
        ("m a\nm b\n", "repeats the model 'm'"),
    ],
)
def test_lists_that_are_none(text, said, tmp_path):
    files.write(tmp_path / "list", text)
    assert said in refusal(protocol.read_models, tmp_path / "list")


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"x": ["s/1.wav"]}, "No trial"),
        ({"m": ["s/1.wav", "t/1.wav"]}, "utterances of 's' and 't'"),
        ({"m": ["s/1.wav", "s/3.wav"]}, "'s/3.wav' is in both"),
        ({"m": ["s/none.wav"]}, "s/none.wav"),
    ],
)
def test_models_that_do_not_fit_the_trials(models, said, folder):
    assert said in refusal(protocol.from_list, folder / "trials.txt", models=models)
