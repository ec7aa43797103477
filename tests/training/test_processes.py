"""`train.py` as two processes, on cached features: stopped by SIGTERM, resumed, and the same as one process.

REDIMNET_JAX_TEST_PROCESSES=4 makes them four, which takes half as much processor time again.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import training_runs

import redimnet_jax as rj
from redimnet_jax import row_store
from redimnet_jax.evaluation import plots
from redimnet_jax.training import data as training_data
from redimnet_jax.training import run as training_run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

PROCESSES = int(os.environ.get("REDIMNET_JAX_TEST_PROCESSES", "2"))
EPOCHS = 6
LAST = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """35 recordings to train on, which make 70 crops in batches of 24, and 23 to validate on: no number is even."""
    made = training_runs.write_data(tmp_path_factory.mktemp("data"))
    for tree in ("data.train", "validation.tree"):
        max(Path(made[tree]).glob("*/*/*.wav")).unlink()
    return made | {"data.max_bad": 0.03, "cache.batch_size": 24}


def spoil(made: dict) -> None:
    """Makes one of the recordings NaN nearly throughout, so that it is replaced."""
    path = sorted(Path(made["data.train"]).glob("*/*/*.wav"))[5]
    waveform, rate = soundfile.read(path, dtype="float32")
    waveform[:-800] = np.nan
    soundfile.write(path, waveform, rate, subtype="FLOAT")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(settings: dict, workdir: Path) -> list[subprocess.Popen]:
    port = free_port()
    command = [sys.executable, "-u", "train.py", "--config=configs/projection_only.py", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    command += [f"--coordinator=localhost:{port}", f"--processes={PROCESSES}", "--join_seconds=240"]
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen([*command, f"--process_id={index}"], cwd=ROOT, env=environment, **pipes)
        for index in range(PROCESSES)
    ]


def wait_for(path: Path, seconds: float = 240.0) -> None:
    limit = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.02)


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """The output of all, which end well."""
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * PROCESSES, outputs
    return outputs


def fails_at(call: int, original):
    """`original`, which ends the run in place of that call."""
    calls = itertools.count(1)

    def failing(*arguments, **options):
        if next(calls) == call:
            raise SystemExit
        return original(*arguments, **options)

    return failing


def stop_after(monkeypatch, step: int) -> None:
    """Ends the run as soon as the checkpoint of `step` is on disk."""
    original = training_run.TrainingCheckpoints.save

    def save(checkpoints, state, *rest):
        original(checkpoints, state, *rest)
        if int(state.step) == step:
            checkpoints.wait()
            raise SystemExit

    monkeypatch.setattr(training_run.TrainingCheckpoints, "save", save)


@pytest.mark.slow
def test_processes_stop_resume_and_agree_with_one(data, tmp_path, monkeypatch):
    settings = training_runs.SETTINGS | data | {"epochs": EPOCHS, "checkpoint.keep": 20, "cache.batch_size": 12}
    workdir = tmp_path / "two"
    for folder in (workdir, tmp_path / "one"):  # The index finds what is bad already.
        training_data.open_data(training_runs.settings(data), folder)
    spoil(data)
    of_one = training_runs.config(data, epochs=EPOCHS, cache__crops=2, cache__batch_size=12, checkpoint__keep=20)
    # Several processes go on with the features that one began.
    with monkeypatch.context() as patch:
        patch.setattr(row_store.Appender, "append", fails_at(3, row_store.Appender.append))
        with pytest.raises(SystemExit):
            training_run.train(of_one, workdir)
    processes = start(settings, workdir)
    try:
        wait_for(workdir / "checkpoints" / "4")
    except AssertionError:
        for process in processes:
            process.kill()
        raise
    # To a process that neither prints nor writes.
    processes[-1].send_signal(signal.SIGTERM)
    outputs = finish(processes)
    assert "features of 46 crops," in outputs[0]
    for output in outputs:
        assert "Stopped at step" in output
    stopped = max(int(folder.name) for folder in (workdir / "checkpoints").iterdir())
    assert 4 <= stopped < LAST and not (workdir / "results.json").exists()
    assert any((workdir / "compiled").iterdir())

    # One process goes on, and several again.
    monkeypatch.setattr(plots, "save", lambda *_: None)
    further = min(4 * (stopped // 4 + 1), LAST - 4)
    with monkeypatch.context() as patch:
        stop_after(patch, further)
        with pytest.raises(SystemExit):
            training_run.train(of_one, workdir)
    first, *others = finish(start(settings, workdir))
    assert f"resumed at step {further}" in first and not any("resumed" in other for other in others)
    assert {4, 8, stopped, further, LAST} <= {int(folder.name) for folder in (workdir / "checkpoints").iterdir()}
    assert len(list(workdir.glob("best-*/"))) == 1 and not list(workdir.glob(".*"))
    assert rj.load(workdir).mrl_dims == tiny.DIMS

    (line,) = (workdir / "unreadable.txt").read_text().splitlines()
    assert line.endswith("holds samples that are not finite; replace or remove it")

    training_run.train(of_one, tmp_path / "one")
    ours, theirs = [path.read_bytes() for path in sorted(tmp_path.glob("*/features/features-*/labels"))]
    assert len(ours) == 70 * 4 and ours == theirs
    ours, theirs = [np.fromfile(path, "<f4") for path in sorted(tmp_path.glob("*/features/features-*/features"))]
    # The batches are divided otherwise, and so rounded.
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    two, one = training_runs.history(workdir), training_runs.history(tmp_path / "one")
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one] == list(range(0, LAST + 1, 4))
    for ours, theirs in zip(two, one, strict=True):
        assert ours.get("loss", 0.0) == pytest.approx(theirs.get("loss", 0.0), rel=1e-5)
        for dim in map(str, tiny.DIMS):
            # A rounding may swap two of the 30 trials of a kind.
            assert ours["dims"][dim]["eer"] == pytest.approx(theirs["dims"][dim]["eer"], abs=1 / 30)
            assert ours["dims"][dim]["target_mean"] == pytest.approx(theirs["dims"][dim]["target_mean"], abs=1e-5)
