"""Runs on crops of several lengths, with the augmentations of the recipes: resumed to the bit."""

import pytest
import training_runs
from training_runs import config, same_runs, stop_at

from redimnet_jax.evaluation import html_report, plots
from redimnet_jax.training import preemption
from redimnet_jax.training import run as training_run

CHANGES = {
    "data.crop_seconds": (0.3, 0.5),
    "data.augment.draw.p": 0.8,
    "data.augment.draw.one_of": ("babble+low_pass", "codec", "speech"),
    "data.augment.draw.weights": (0.5, 0.3, 0.2),
    "data.augment.babble.p": 1.0,
    "data.augment.speech.p": 1.0,
    "data.augment.low_pass.p": 0.5,
    "data.augment.codec.p": 1.0,
    "data.augment.codec.codecs": ("g711-mulaw", "g722", "mp3-lo"),
    "epochs": 2,
    # Little else that does not depend on the crops.
    "projection.init": "random",
    "heads.init": "random",
    "validation.bootstrap": 1,
}


@pytest.mark.slow
def test_stopped_and_resumed_with_several_lengths(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(plots, "save", lambda *_: None)
    monkeypatch.setattr(html_report, "write", lambda *_: None)
    training_runs.compile_once(monkeypatch)
    data = training_runs.write_data(tmp_path / "data")
    training_run.train(config(data, **CHANGES), tmp_path / "whole")
    assert all(f"compiled the training step on crops of {seconds} s" in caplog.text for seconds in ("0.3", "0.5"))
    with monkeypatch.context() as patch:
        stop_at(patch, 5)  # within the second epoch
        with pytest.raises(preemption.Preempted, match="step 5"):
            training_run.train(config(data, **CHANGES), tmp_path / "stopped")
    training_run.train(config(data, **CHANGES), tmp_path / "stopped")
    same_runs(tmp_path / "whole", tmp_path / "stopped", 8)
