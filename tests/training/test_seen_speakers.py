"""Loss and accuracy of held-out recordings, in blocks and crops, and of a whole run beside its EER."""

import json

import numpy as np
import pytest
import training_runs
from flax import nnx
from refusals import refusal

from redimnet_jax.evaluation import plots
from redimnet_jax.losses.heads import Heads
from redimnet_jax.training import config as train_config
from redimnet_jax.training import run as training_run
from redimnet_jax.training import seen_speakers, validator


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
def test_figures_are_those_of_the_heads_over_all_rows(monkeypatch):
    rng = np.random.default_rng(0)
    heads = Heads(5, (4, 8), rngs=nnx.Rngs(0))
    embeddings, labels = rng.normal(size=(7, 3, 8)).astype(np.float32), rng.integers(0, 5, 7)
    options = {"weights": (1.0, 3.0), "margin": 0.3}
    loss, each = heads.loss(embeddings.reshape(21, 8), np.repeat(labels, 3), **options)
    monkeypatch.setattr(seen_speakers, "BLOCK", 8)
    found = seen_speakers.figures(heads, embeddings, labels, **options)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert list(found["losses"]) == list(found["accuracies"]) == ["4", "8"]
    np.testing.assert_allclose(list(found["losses"].values()), each["loss"], rtol=1e-5)
    np.testing.assert_allclose(list(found["accuracies"].values()), each["accuracy"], rtol=1e-5)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.slow
def test_a_run_gives_loss_and_accuracy_beside_eer(data, tmp_path, monkeypatch, caplog):
    """Random heads learn the training speakers, so their other session is classified better at the end."""
    shown = []
    monkeypatch.setattr(plots, "save", lambda figure, path: shown.append((path.name, figure)))
    wanted = training_runs.config(data, heads__init="random", classification__share=0.5, batch_size=6, epochs=2)
    pooled = []
    original = validator.pool_recordings
    monkeypatch.setattr(
        validator,
        "pool_recordings",
        lambda *a, **options: pooled.append(options["progress"]) or original(*a, **options),
    )
    training_run.train(wanted, tmp_path)
    # Once, since the backbone is frozen.
    assert sorted(pooled) == ["seen speakers", "validation"]
    out = caplog.text
    assert "18 utterances of 6 speakers" in out and "18 utterances kept out of training" in out
    assert "6 by session" in out and "seen speakers:" in out
    entries = training_runs.history(tmp_path)
    first, last = (entry["classification"] for entry in (entries[0], entries[-1]))
    assert list(first["losses"]) == list(first["accuracies"]) == ["4", "8", "12"]
    assert last["loss"] < first["loss"] and last["loss"] == pytest.approx(np.mean(list(last["losses"].values())))
    assert f"{last['loss']:.3f}" in out and f"{last['losses']['8']:.3f}, {100 * last['accuracies']['8']:.1f}" in out
    assert all("eer" in entry["dims"]["12"] for entry in entries)
    _, lower = dict(shown)["training.png"].axes
    trained, known = (line.get_ydata() for line in lower.lines)
    np.testing.assert_allclose(trained, [entry["loss"] for entry in entries[1:]])
    np.testing.assert_allclose(known, [entry["classification"]["loss"] for entry in entries])


def test_a_source_of_other_recordings(data, tmp_path):
    """A tree of its own in place of a share: those of the same speakers are taken, others and what trains refused."""
    from redimnet_jax.training import data as training_data

    wanted = training_runs.settings(data, classification__source=data["validation.tree"])
    message = refusal(training_data.open_data, wanted, tmp_path)
    assert "no prototype" in message and "EER" in message and "classification.share=0.1" in message
    wanted = training_runs.settings(data, classification__source=data["data.train"])
    assert "also train" in refusal(training_data.open_data, wanted, tmp_path)
    listed = {name: tmp_path / f"{name}.txt" for name in ("train", "seen")}
    for name, path in listed.items():
        root = training_data.Path(data["data.train"])
        audio = sorted(path for path in root.rglob("*.wav") if (path.stem == "utterance002") == (name == "seen"))
        path.write_text("".join(f"{each} {each.relative_to(root).parts[0]}\n" for each in audio))
    wanted = training_runs.settings(
        data, data__train=str(listed["train"]), classification__source=str(listed["seen"])
    )
    opened = training_data.open_data(wanted, tmp_path)
    assert len(opened.seen.recordings) == 12 and len(opened.corpus) == 24
    assert np.bincount(opened.seen.labels).tolist() == [2] * 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"classification__share": 1.0}, "classification.share"),
        ({"classification__gap_seconds": -1.0}, "classification.gap_seconds"),
        ({"classification__max_recordings": 0}, "classification.max_recordings"),
        ({"classification__share": 0.1, "classification__source": "x"}, "classification.source"),
        (
            {"classification__share": 0.1, "loss__name": "triplet", "data__crops_per_speaker": 2},
            "classification.share",
        ),
    ],
)
def test_settings_that_cannot_be(changes, told, data):
    assert told in refusal(train_config.check, training_runs.config(data, **changes), 1)
