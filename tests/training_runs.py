"""Training runs of seconds, for the tests: artificial voices, the smallest network."""

import json
from pathlib import Path

import numpy as np
import tiny

from redimnet_jax import checkpoint, synthesis, train_config

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
    synthesis.write_corpus(folder / "train", speakers=6, **size)
    synthesis.write_corpus(folder / "unseen", speakers=4, first_speaker=6, **size)
    checkpoint.save(tiny.model(), folder / "pretrained")
    return {
        "data.train": str(folder / "train"),
        "validation.tree": str(folder / "unseen"),
        "model.checkpoint": str(folder / "pretrained"),
    }


def config(data: dict[str, str], **changes):
    """The configuration of a run on `data`; changes as `data__train="..."`."""
    made = train_config.default()
    settings = SETTINGS | data | {key.replace("__", "."): value for key, value in changes.items()}
    network = settings.pop("model.config", None)
    made.update_from_flattened_dict(settings)
    if network is not None:
        with made.unlocked():
            made.model.config = network
    return made


def history(workdir: Path) -> list[dict]:
    """The entries of `history.json` without what a clock measured."""
    entries = json.loads((workdir / "history.json").read_text())["history"]
    return [{k: v for k, v in entry.items() if k not in ("crops_per_second", "input_wait")} for entry in entries]


def saved(workdir: Path, step: int) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays by path, progress without what a clock measured) of a training checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder / "arrays")
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        progress = checkpointer.restore(folder / "progress")
    for entry in progress["progress"]["history"]:
        entry.pop("crops_per_second", None), entry.pop("input_wait", None)
    return arrays, progress
