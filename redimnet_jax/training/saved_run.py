"""Opening the model and heads of a training checkpoint, for whoever analyses a run."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from redimnet_jax import addresses, buckets
from redimnet_jax.errors import UserError
from redimnet_jax.losses.heads import Heads
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.settings import from_config_dict
from redimnet_jax.training.partition import TrainableModel
from redimnet_jax.training.run_checkpoints import FOLDER, ModelDescription, read_checkpoint
from redimnet_jax.training.settings import Settings


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run as it was after `step` steps; `speakers` are the names of the classes of the heads."""

    step: int
    settings: Settings
    speakers: list[str]
    model: SpeakerModel
    heads: Heads


def saved_steps(workdir: str | Path) -> list[int]:
    """Return the steps of the training checkpoints in `workdir`, in increasing order."""
    folder = _checkpoints(workdir)
    return sorted(int(path.name) for path in folder.glob("[0-9]*")) if folder.is_dir() else []


def _checkpoints(workdir: str | Path) -> Path:
    """Return the folder of the training checkpoints of a workdir, which may be at an address."""
    folder = Path(workdir) / FOLDER
    return buckets.staged(folder) if addresses.is_folder(folder) else addresses.absolute(folder)


def require_step(workdir: str | Path, step: int | None = None) -> int:
    """Return `step`, by default that of the newest training checkpoint in `workdir`; raise UserError without it."""
    steps = saved_steps(workdir)
    if not steps or (step is not None and step not in steps):
        which = "no training checkpoint" if step is None else f"no training checkpoint of step {step}"
        raise UserError(f"{workdir} has {which}; give the workdir of a run, and a step of its checkpoints.")
    return steps[-1] if step is None else step


def open_run(workdir: str | Path, step: int | None = None, *, averaged: bool = True) -> SavedRun:
    """Return the model and heads of the training checkpoint of `step`, by default the newest one, in `workdir`.

    With `averaged` they have the moving averages of the weights where the run had any, as they were validated.
    Raise UserError when there is no such checkpoint, or when it is damaged.
    """
    step = require_step(workdir, step)
    progress, tree = read_checkpoint(_checkpoints(workdir) / str(step))
    arrays = tree["params"] | tree["stats"] | tree["frozen"]
    if averaged:
        arrays |= tree.get("ema") or {}
    settings = from_config_dict(Settings, progress["config"])
    model = ModelDescription.from_json(progress["model"]).empty_model(jnp.dtype(settings.dtype))
    heads = Heads(
        len(progress["speakers"]),
        settings.projection.mrl_dims,
        settings.chosen_loss,
        shared=settings.heads.shared,
        margins=settings.loss.margins,
        rngs=nnx.Rngs(0),
    )
    variables = nnx.state(TrainableModel(model.network, heads))
    for path, variable in nnx.to_flat_state(variables):
        variable.set_value(jnp.asarray(arrays[".".join(map(str, path))]))
    nnx.update(TrainableModel(model.network, heads), variables)
    return SavedRun(step, settings, progress["speakers"], model, heads)
