"""A run resumes on other numbers of devices than it was started on, also with prototypes dealt to the devices."""

import json
import subprocess
import sys
from pathlib import Path

import cpu_devices
import pytest
import training_runs

from redimnet_jax.evaluation import plots
from redimnet_jax.training import run as training_run

pytestmark = pytest.mark.slow

# Runs every (workdir, settings, [(devices, step after which the run ends or 0)]) on some of four devices.
RUN = """
import contextlib, json, sys
import jax, numpy as np, pytest
import training_runs
from redimnet_jax import sharding
from redimnet_jax.evaluation import plots
from redimnet_jax.training import run as train
from redimnet_jax.training.run_checkpoints import TrainingCheckpoints

sharding.MIN_SHARDED_CLASSES = 1
plots.save = lambda *_: None
original = TrainingCheckpoints.save
devices = jax.devices()
assert len(devices) == 4

def resume(workdir, settings, count, last):
    def save(checkpoints, state, *rest):
        original(checkpoints, state, *rest)
        if int(state.step) == last:
            checkpoints.wait()
            raise SystemExit

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(TrainingCheckpoints, "save", save)
        patch.setattr(sharding, "mesh", lambda: jax.sharding.Mesh(np.array(devices[:count]), (sharding.AXIS,)))
        patch.setattr(jax, "device_count", lambda: count)
        train.train(training_runs.config(settings), workdir)

for workdir, settings, order in json.loads(sys.argv[1]):
    for count, last in order:
        resume(workdir, settings, count, last)
"""
SETTINGS = {"epochs": 2, "checkpoint.every_steps": 2, "projection.mrl_dims": (8,), "validation.dim": 8}
# Devices until step 2, until step 6, and until the end; no multiple of 6 classes is dealt to 4 devices.
KINDS = {"live": ({}, (4, 1, 2)), "cached": ({"cache.crops": 2}, (1, 4, 2))}


def resume_on_devices(workdirs: dict[str, Path], data: dict) -> None:
    """Train in all `workdirs` in one process with four devices."""
    runs = []
    for kind, (changes, order) in KINDS.items():
        steps = list(zip(order, (2, 6, 0), strict=True))
        runs.append([str(workdirs[kind]), data | SETTINGS | changes, steps])
    command = [sys.executable, "-c", RUN, json.dumps(runs)]
    done = subprocess.run(command, env=cpu_devices.environment(4), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_other_numbers_of_devices(tmp_path, monkeypatch):
    data = training_runs.write_data(tmp_path / "data")
    workdirs = {kind: tmp_path / kind for kind in KINDS}
    resume_on_devices(workdirs, data)
    monkeypatch.setattr(plots, "save", lambda *_: None)
    for kind, (changes, _) in KINDS.items():
        training_run.train(training_runs.config(data | SETTINGS | changes), tmp_path / f"{kind} on one")
        changing = training_runs.history(workdirs[kind])
        on_one = training_runs.history(tmp_path / f"{kind} on one")
        assert [entry["step"] for entry in changing] == [entry["step"] for entry in on_one] == [0, 4, 8]
        for ours, theirs in zip(changing[1:], on_one[1:], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
