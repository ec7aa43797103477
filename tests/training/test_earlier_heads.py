"""Heads that start at the prototypes of an earlier run: by the names of the classes, and what does not fit."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import training_runs
from flax import nnx
from refusals import refusal
from training_runs import config

from redimnet_jax.evaluation import html_report, plots
from redimnet_jax.losses.classification import AAMSoftmax, SphereFace2, SubcenterAAM
from redimnet_jax.losses.heads import Heads
from redimnet_jax.training import earlier_heads, saved_run
from redimnet_jax.training import run as training_run
from redimnet_jax.training.saved_run import SavedRun

SPEAKERS = ["anna", "bert", "carl"]
WITH_SPEEDS = [*SPEAKERS, *(f"{name}@{speed}" for speed in (0.9, 1.1) for name in SPEAKERS)]


def heads(classes: int, dims=(4, 8), criterion=None, seed: int = 0, **options) -> Heads:
    made = Heads(classes, dims, criterion or SphereFace2(), rngs=nnx.Rngs(seed), **options)
    for parameters in made.parameters:
        if "bias" in parameters:
            parameters["bias"].set_value(np.float32(1.5 + seed))
    return made


def give(monkeypatch, earlier: Heads, names=WITH_SPEEDS) -> None:
    run = SavedRun(1, None, names, None, earlier)
    monkeypatch.setattr(earlier_heads, "open_run", lambda workdir: run)


@pytest.mark.parametrize(("shared_before", "shared"), [(False, False), (True, True), (True, False), (False, True)])
def test_rows_are_those_of_the_names(monkeypatch, shared_before, shared):
    earlier = heads(9, dims=(4, 6, 8), shared=shared_before)
    give(monkeypatch, earlier)
    # In another order, and without one of the speakers.
    own = heads(2, seed=1, shared=shared)
    assert earlier_heads.take_over(own, ["carl", "anna"], "runs/earlier") == 9
    for index, dim in enumerate(own.dims):
        theirs = earlier.of(2 if shared else earlier.dims.index(dim))
        taken = own.of(index)
        np.testing.assert_array_equal(taken["prototypes"], theirs["prototypes"][np.array([2, 0]), :dim])
        assert taken["bias"] == 1.5


def test_speeds_are_classes_of_their_own(monkeypatch):
    earlier = heads(9)
    give(monkeypatch, earlier)
    own = heads(2, seed=1)
    earlier_heads.take_over(own, ["bert@1.1", "bert"], "runs/earlier")
    np.testing.assert_array_equal(own.of(0)["prototypes"], earlier.of(0)["prototypes"][np.array([7, 1])])


def test_a_bias_that_the_earlier_run_lacks_stays(monkeypatch):
    give(monkeypatch, heads(9, criterion=AAMSoftmax()))
    own = heads(3, seed=1)
    earlier_heads.take_over(own, SPEAKERS, "runs/earlier")
    assert own.of(0)["bias"] == 2.5


def test_a_speaker_that_the_earlier_run_lacks_is_named(monkeypatch):
    give(monkeypatch, heads(9))
    text = refusal(earlier_heads.take_over, heads(3), ["anna", "dora", "emil"], "runs/earlier")
    assert all(word in text for word in ("runs/earlier", "2 of the 3", "dora", "heads.init"))


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (heads(3, dims=(4, 12)), ["12 dimensions", "4, 8"]),
        (heads(3, criterion=SubcenterAAM()), ["prototypes", "(3, 4)", "(3, 3, 4)"]),
    ],
)
def test_other_heads_are_refused(monkeypatch, own, words):
    give(monkeypatch, heads(9))
    text = refusal(earlier_heads.take_over, own, SPEAKERS, "runs/earlier")
    assert all(word in text for word in ("runs/earlier", *words)), text


@pytest.mark.slow
def test_large_margin_after_a_run_with_speeds(tmp_path, monkeypatch):
    """The second run has fewer speakers, and hardly moves: its prototypes are the rows of those."""
    monkeypatch.setattr(plots, "save", lambda *_: None)
    monkeypatch.setattr(html_report, "write", lambda *_: None)
    data = training_runs.write_data(tmp_path / "data")
    speeds = {"data.augment.speed.factors": (1.0, 0.9), "epochs": 1}
    training_run.train(config(data, **speeds), tmp_path / "first")
    first = saved_run.open_run(tmp_path / "first")
    folders = sorted(path for path in Path(data["data.train"]).iterdir() if path.is_dir())
    names = [folder.name for folder in folders]
    assert first.speakers == names + [f"{name}@0.9" for name in names]
    shutil.rmtree(folders[0])
    still = {"optimizer.learning_rate": 1e-12, "optimizer.final_learning_rate": 0.0, "epochs": 1}
    start = {
        "model.checkpoint": str(tmp_path / "first"),
        "projection.init": "keep",
        "projection.crops": 20_000,
        "heads.init": "run",
        "heads.run": str(tmp_path / "first"),
    }
    training_run.train(config(data | start, **still), tmp_path / "second")
    second = saved_run.open_run(tmp_path / "second")
    assert second.speakers == names[1:]
    for index in range(len(tiny.DIMS)):
        expected = first.heads.of(index)["prototypes"][1 : len(names)]
        np.testing.assert_array_equal(second.heads.of(index)["prototypes"], expected)
    absent = dataclasses.replace(training_runs.settings(data | start), epochs=2)
    absent = dataclasses.replace(absent, heads=dataclasses.replace(absent.heads, run=str(tmp_path / "data")))
    assert "no training checkpoint" in refusal(training_run.train, absent, tmp_path / "third")
