"""Whole runs on cached features: to the end, stopped and resumed, with a second stage on audio, refused."""

import json
import os
import signal

import numpy as np
import pytest
import training_runs
from refusals import refusal
from training_runs import config, history, saved

from redimnet_jax import row_store
from redimnet_jax.data import loader
from redimnet_jax.evaluation import html_report, plots
from redimnet_jax.training import preemption
from redimnet_jax.training import run as training_run
from redimnet_jax.training.steppers import CachedStepper

# They depend on the step, and must not on where a run was stopped.
BY_STEP = {
    "loss__sampled_prefixes": 2,
    "loss__scale_gradients": True,
    "loss__margins": (0.1, 0.2, 0.3),
    "loss__durations": (0.1, 0.3, 0.6),
    "loss__doubtful__trim": 0.2,
}
CACHED = {"cache__crops": 2, "cache__batch_size": 6, "checkpoint__every_steps": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(plots, "save", lambda *_: None)
    monkeypatch.setattr(html_report, "write", lambda *_: None)


def stop_while(monkeypatch, owner, name: str, call: int) -> None:
    """SIGTERM when `owner.name` is called for that time."""
    original, calls = getattr(owner, name), []

    def stopping(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, stopping)


def another_process_stops_while(monkeypatch, owner, name: str, call: int) -> None:
    """Several processes agree on a stop from that call of `owner.name` on, which this one was not asked for."""
    original, calls = getattr(owner, name), []

    def counting(*arguments, **options):
        calls.append(name)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counting)
    monkeypatch.setattr(preemption.StopRequest, "requested_anywhere", lambda request: len(calls) >= call)


@pytest.mark.slow
def test_stopped_and_resumed(data, tmp_path, monkeypatch, caplog):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    training_run.train(config(data, **CACHED, **BY_STEP), whole)
    entries = history(whole)
    assert [entry["step"] for entry in entries] == [0, 4, 8, 12] and entries[-1]["loss"] < entries[1]["loss"]
    shown = caplog.text
    assert "features of 72 crops," in shown and "in the devices' memory" in shown and "lossless start" in shown
    # No crop is made in the epochs, and an interrupted run goes on within an epoch with the features that it has.
    for stop, call in ((another_process_stops_while, 2), (stop_while, 3)):
        with monkeypatch.context() as patch:
            stop(patch, row_store.Appender, "append", call)
            with pytest.raises(preemption.Preempted, match="caching features"):
                training_run.train(config(data, **CACHED, **BY_STEP), stopped)
    with monkeypatch.context() as patch:
        stop_while(patch, CachedStepper, "run", 3)
        with pytest.raises(preemption.Preempted, match="step 6"):
            training_run.train(config(data, **CACHED, **BY_STEP), stopped)
    shown = caplog.text
    assert "features of 42 crops," in shown
    monkeypatch.setattr(loader, "crops_in_order", None)
    training_run.train(config(data, **CACHED, **BY_STEP), stopped)
    assert "resumed at step 6" in caplog.text
    (arrays, progress), (theirs, their_progress) = saved(whole, 12), saved(stopped, 12)
    assert [name for name in arrays if arrays[name].tobytes() != theirs[name].tobytes()] == []
    assert {**progress, "config": None} == {**their_progress, "config": None}
    assert history(stopped) == entries
    results = [json.loads((workdir / "results.json").read_text()) for workdir in (whole, stopped)]
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_second_stage_on_audio(data, tmp_path, caplog):
    """The features may lie in a folder that runs share, and are read from its files where memory is too small."""
    changes = CACHED | {"cache__folder": str(tmp_path / "shared"), "epochs": 2, "stage2__epoch": 1}
    changes["cache__memory_share"] = 0.0
    training_run.train(config(data, **changes, projection__mrl_dims=(8,)), tmp_path / "run")
    assert (tmp_path / "shared").is_dir() and not (tmp_path / "run" / "features").exists()
    assert "are read from" in caplog.text
    entries = history(tmp_path / "run")
    assert [entry["stage"] for entry in entries] == [1, 1, 2]
    assert np.isfinite(entries[-1]["loss"])


def test_refused(data, tmp_path):
    def told(**changes) -> str:
        return refusal(training_run.train, config(data, **CACHED | changes), tmp_path)

    assert "cache.crops" in told(parts=("backbone", "projection", "heads"))
    assert "crops_per_utterance" in told(data__crops_per_utterance=3)
    assert "cache.batch_size" in told(cache__batch_size=0)
    assert "cache.memory_share" in told(cache__memory_share=2.0)
