"""A run goes on with other numbers of devices than it was started on, with prototypes dealt to them as well."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import training_runs

from redimnet_jax.evaluation import plots
from redimnet_jax.training import run as training_run

RUN = """
import json, sys
import training_runs
from redimnet_jax import class_sharding
from redimnet_jax.evaluation import plots
from redimnet_jax.training import run as train
workdir, settings, step = json.loads(sys.argv[1])
class_sharding.FEWEST = 1
plots.save = lambda *_: None
if step:
    original = train.TrainingCheckpoints.save
    def save(checkpoints, state, *rest):
        original(checkpoints, state, *rest)
        if int(state.step) == step:
            checkpoints.wait()
            raise SystemExit
    train.TrainingCheckpoints.save = save
train.train(training_runs.config(settings), workdir)
"""
SETTINGS = {"epochs": 2, "checkpoint.every_steps": 2, "projection.mrl_dims": (8,), "validation.dim": 8}
# Devices until step 2, until step 6, and until the end; no multiple of 6 classes is dealt to 4 devices.
ORDERS = {"live": (4, 1, 2), "cached": (1, 4, 2)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


def go_on(devices: int, workdir: Path, settings: dict, step: int = 0) -> None:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, "-c", RUN, json.dumps([str(workdir), settings, step])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", ORDERS)
def test_other_numbers_of_devices(kind, data, tmp_path, monkeypatch):
    settings = data | SETTINGS | ({"cache.crops": 2} if kind == "cached" else {})
    for devices, step in zip(ORDERS[kind], (2, 6, 0), strict=True):
        go_on(devices, tmp_path / "changing", settings, step)
    monkeypatch.setattr(plots, "save", lambda *_: None)
    training_run.train(training_runs.config(settings), tmp_path / "one")
    changing, one = training_runs.history(tmp_path / "changing"), training_runs.history(tmp_path / "one")
    assert [entry["step"] for entry in changing] == [entry["step"] for entry in one] == [0, 4, 8]
    for ours, theirs in zip(changing[1:], one[1:], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
