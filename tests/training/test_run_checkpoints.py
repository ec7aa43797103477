"""Checkpoints of a run: snapshots whatever the disk does, damage that is found, obstacles that are named."""

import copy
import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from refusals import refusal

import redimnet_jax as rj
from redimnet_jax.checkpoints import native
from redimnet_jax.models.speaker_model import Source, SpeakerModel
from redimnet_jax.training import run_checkpoints as training_checkpoints
from redimnet_jax.training.run_checkpoints import TrainingCheckpoints, save_best
from redimnet_jax.training.step import TrainState


def state(step: int, fill: float = 1.0) -> tuple[TrainState, dict]:
    params = {"a.kernel": jnp.full((50, 3), fill), "b.bias": jnp.arange(4.0)}
    optimizer = ({"mu": params, "count": jnp.asarray(step, jnp.int32)}, None)
    return TrainState(jnp.asarray(step, jnp.int32), params, {}, optimizer), {"c": jnp.ones((2, 2), jnp.bfloat16)}


def progress(step: int, history: int = 1) -> dict:
    entries = {"config": {"lr": 0.1}, "speakers": ["a", "b"], "model": {}, "batches": {"step": step}}
    return entries | {"progress": {"history": [{"step": n, "loss": 0.1 + n} for n in range(history)]}}


@pytest.fixture
def checkpoints(tmp_path):
    made = TrainingCheckpoints(tmp_path, keep=2)
    yield made
    made.close()


def test_a_checkpoint_is_of_the_moment_of_its_save(checkpoints, monkeypatch):
    """The disk waits until everything that was saved has changed."""
    changed, original = threading.Event(), TrainingCheckpoints._write

    def write(*arguments):
        assert changed.wait(60)
        original(*arguments)

    monkeypatch.setattr(TrainingCheckpoints, "_write", write)
    (before, frozen), live = state(3), progress(3)
    wanted, arrays = copy.deepcopy(live), jax.tree.map(np.array, before)
    checkpoints.save(before, frozen, live, None)
    live["progress"]["history"].append({"step": 9})
    live["batches"]["step"] = 10
    live["progress"]["history"][0]["loss"] = 7.0
    # As a training step does with what it is given.
    jax.tree.map(lambda x: x.delete(), before.params)
    changed.set()
    checkpoints.wait()
    assert checkpoints.read_progress() == wanted
    restored, _ = checkpoints.restore(*state(0, 0.0))
    jax.tree.map(np.testing.assert_array_equal, restored, arrays)


def test_what_is_kept(checkpoints):
    for step in (2, 4, 6, 8):
        checkpoints.save(*state(step), progress(step), 2)
    checkpoints.wait()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["2", "6", "8"]
    # Again for a step that is there.
    checkpoints.save(*state(8), progress(8, 5), 6)
    checkpoints.wait()
    assert len(checkpoints.read_progress()["progress"]["history"]) == 5
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["6", "8"]


def test_leftovers_of_killed_runs(checkpoints, tmp_path):
    for step in (2, 4):
        checkpoints.save(*state(step), progress(step), None)
    checkpoints.wait()
    folder = checkpoints.folder
    (folder / "4").rename(folder / ".4.replaced")
    for name in (".6.part", ".1.removed", "8.orbax-checkpoint-tmp"):
        (folder / name).mkdir()
    again = TrainingCheckpoints(tmp_path, keep=2)
    assert again.latest() == 4 and again.read_progress() == progress(4)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]
    (folder / ".4.replaced").mkdir()
    assert TrainingCheckpoints(tmp_path, keep=2).latest() == 4 and not (folder / ".4.replaced").exists()


def test_every_file_with_a_flipped_bit_is_found_or_gives_the_same(checkpoints):
    before, frozen = state(3)
    checkpoints.save(before, frozen, progress(3), None)
    checkpoints.wait()
    found = 0
    for path in sorted(checkpoints.folder.rglob("*")):
        if not path.is_file():
            continue
        whole = path.read_bytes()
        for place in {0, len(whole) // 3, len(whole) // 2, len(whole) - 2}:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            try:
                assert checkpoints.read_progress() == progress(3)
                restored = checkpoints.restore(*state(0, 0.0))
            except rj.UserError as error:
                found += 1
                assert "checkpoints/3 " in str(error) and "damaged" in str(error)
            else:
                jax.tree.map(np.testing.assert_array_equal, restored, (before, frozen))
        path.write_bytes(whole)
    assert found >= 8


def test_arrays_that_are_read_otherwise_than_they_were_saved(checkpoints, monkeypatch):
    checkpoints.save(*state(3), progress(3), None)
    checkpoints.wait()
    original = training_checkpoints._array_checksums
    monkeypatch.setattr(
        training_checkpoints,
        "_array_checksums",
        lambda tree: original(tree | {"params": {k: v + 1e-3 for k, v in tree["params"].items()}}),
    )
    assert "arrays do not match" in refusal(checkpoints.restore, *state(0))


def test_a_checkpoint_without_checksums_of_an_earlier_version(checkpoints):
    checkpoints.save(*state(3), progress(3), None)
    checkpoints.wait()
    path = checkpoints.folder / "3" / "progress" / "metadata"
    path.write_text(json.dumps(progress(3)))
    assert checkpoints.read_progress() == progress(3)
    checkpoints.restore(*state(0))


def test_what_is_no_damage_is_not_called_so(checkpoints, monkeypatch):
    checkpoints.save(*state(3), progress(3), None)
    checkpoints.wait()
    other, frozen = state(3)
    other.params = {"a.kernel": jnp.ones((7, 3)), "b.bias": jnp.arange(4.0)}
    told = refusal(checkpoints.restore, other, frozen)
    assert "params/a.kernel is (50, 3) there and (7, 3) here" in told and "damaged" not in told

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(training_checkpoints.Path, "read_text", denied)
        told = refusal(checkpoints.read_progress)
    assert "Permission denied" in told and "damaged" not in told

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_checkpoints.files, "write", full)
    checkpoints.save(*state(4), progress(4), None)
    told = refusal(checkpoints.wait)
    assert "No space left" in told and "free some space" in told
    assert [path.name for path in checkpoints.folder.iterdir()] == ["3"]


def test_no_room_is_said_before_anything_is_written(checkpoints, monkeypatch, capfd):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(native.shutil, "disk_usage", lambda _: usage)
    checkpoints.save(*state(4), progress(4), None)
    assert "no room" in refusal(checkpoints.wait)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_the_best_model_is_loaded_while_it_is_replaced(tmp_path):
    """Every load gives one of the models, and nothing is left but the last one."""
    made, names = tiny.model(), ("a.pt", "b.pt")
    models = [SpeakerModel(made.network, made.model_config, Source(name, "", "redimnet")) for name in names]
    save_best(models[0], tmp_path, 0)
    stop, errors, loads = threading.Event(), [], []

    def read():
        try:
            while not stop.is_set():
                loads.append(rj.load(tmp_path).source.file)
        except Exception as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    begin, step = time.monotonic(), 0
    while (time.monotonic() - begin < 3 or len(loads) < 10) and not errors:
        step += 1
        save_best(models[step % 2], tmp_path, step)
    stop.set()
    for reader in readers:
        reader.join()
    assert not errors and set(loads) == set(names)
    save_best(models[0], tmp_path, step + 1)
    assert {path.name for path in tmp_path.iterdir()} == {"best", f"best-{step + 1}"}
