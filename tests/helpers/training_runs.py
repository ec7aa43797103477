"""Training runs of seconds, for the tests: artificial voices, the smallest network."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import tiny

import redimnet_jax as rj
from redimnet_jax.checkpoints import native
from redimnet_jax.data.synthetic import voices
from redimnet_jax.settings import from_config_dict
from redimnet_jax.training import config as train_config
from redimnet_jax.training import trainer
from redimnet_jax.training.settings import Settings

SETTINGS = {
    "epochs": 3,
    "batch_size": 8,
    "dtype": "float32",
    "data.crop_seconds": 0.3,
    "projection.mrl_dims": tiny.DIMS,
    "projection.crops": 64,
    "optimizer.learning_rate": 1e-2,
    "validation.generated_trials": 60,
    "validation.bootstrap": 10,
    "log_every_steps": 1,
}


def write_data(folder: Path) -> dict[str, str]:
    """Voices to train on and to validate on, and a pretrained model; the settings that name them."""
    size = {"sessions": 2, "utterances": 3, "seconds": 0.6}
    voices.write_corpus(folder / "train", speakers=6, **size)
    voices.write_corpus(folder / "unseen", speakers=4, first_speaker=6, **size)
    native.save(tiny.model(), folder / "pretrained")
    return {
        "data.train": str(folder / "train"),
        "validation.tree": str(folder / "unseen"),
        "model.checkpoint": str(folder / "pretrained"),
    }


def _effective(given: dict) -> dict:
    """`SETTINGS` without those that have no effect beside the `given` ones, which would be refused."""
    settings, random = dict(SETTINGS), [given.get(f"{part}.init") == "random" for part in ("projection", "heads")]
    if all(random) or given.get("model.checkpoint", "") is None:
        settings.pop("projection.crops")
    if given.get("validation.trials"):
        settings.pop("validation.generated_trials")
    return settings


def config(data: dict[str, str], **changes):
    """The configuration of a run on `data`; changes as `data__train="..."`."""
    made = train_config.default()
    given = data | {key.replace("__", "."): value for key, value in changes.items()}
    settings = _effective(given) | given
    network = settings.pop("model.config", None)
    made.update_from_flattened_dict(settings)
    if network is not None:
        with made.unlocked():
            made.model.config = network
    return made


def settings(data: dict[str, str], **changes) -> Settings:
    """The configuration of a run on `data` as typed settings."""
    return typed(config(data, **changes))


def typed(made) -> Settings:
    """A configuration as typed settings."""
    return from_config_dict(Settings, made)


def history(workdir: Path) -> list[dict]:
    """The entries of `history.json` without what a clock measured."""
    entries = json.loads((workdir / "history.json").read_text())["history"]
    return [{k: v for k, v in entry.items() if k not in ("crops_per_second", "input_wait")} for entry in entries]


def saved(workdir: Path, step: int) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays by path, progress without what a clock measured) of a training checkpoint."""
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder / "arrays")
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        progress = checkpointer.restore(folder / "progress")
    progress.pop("sha256")
    for entry in progress["progress"]["history"]:
        entry.pop("crops_per_second", None), entry.pop("input_wait", None)
    return arrays, progress


def stop_at(monkeypatch, step: int):
    """SIGTERM while that step is on its way."""

    def compile_step(*arguments):
        compiled = original(*arguments)

        def run(state, frozen, batch):
            if int(state.step) == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return compiled(state, frozen, batch)

        return run

    original = trainer.compile_step
    monkeypatch.setattr(trainer, "compile_step", compile_step)


def compile_once(monkeypatch):
    """Let runs with the same settings share their compiled steps, one for each length of crops."""

    def compile_step(step, mesh, state, frozen, batch):
        samples = batch["waveform"].shape[1]
        if samples not in compiled:
            compiled[samples] = original(step, mesh, state, frozen, batch)
        return compiled[samples]

    compiled, original = {}, trainer.compile_step
    monkeypatch.setattr(trainer, "compile_step", compile_step)


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if a[key].dtype != b[key].dtype or a[key].tobytes() != b[key].tobytes()] == []


def same_runs(one, other, step: int) -> None:
    (arrays, progress), (theirs, their_progress) = saved(one, step), saved(other, step)
    same_bits(arrays, theirs)
    assert progress == their_progress
    assert history(one) == history(other)
    assert json.loads((one / "results.json").read_text()) == json.loads((other / "results.json").read_text())
    same_bits(*(native.flat(rj.load(workdir).network) for workdir in (one, other)))
