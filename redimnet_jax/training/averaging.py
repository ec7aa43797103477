"""Averages of weights: a moving one within the training step, and the mean of the last epochs' models."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from redimnet_jax import files
from redimnet_jax.checkpoints import native
from redimnet_jax.models.speaker_model import SpeakerModel

Arrays = dict[str, jax.Array]

# Folders of the workdir: the models of the last epochs, and their mean.
SNAPSHOTS = "epochs"
AVERAGED = "averaged"


def moved(averages: Arrays, values: Arrays, decay: float, step: jax.Array) -> Arrays:
    """Return the exponential moving averages after `step` steps, from those before and the latest `values`.

    The decay is min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage with `num_updates`:
    at first the average forgets quickly where it started.
    """
    share = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {name: average + share * (values[name] - average) for name, average in averages.items()}


def mean(models: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of each array over `models`, summed in float64, so that what is equal in all keeps its bits."""

    def averaged(name: str) -> np.ndarray:
        total = sum(np.asarray(model[name], np.float64) for model in models)
        return np.asarray(total / len(models)).astype(models[0][name].dtype)

    return {name: averaged(name) for name in models[0]}


def keep_snapshot(model: SpeakerModel, workdir: Path, step: int, *, count: int, after: int) -> None:
    """Write `model` as that of `step`, and keep only the `count` newest ones that are later than step `after`."""
    folder = workdir / SNAPSHOTS / str(step)
    # The folder exists if a run was killed between this and its checkpoint.
    files.remove_folder(folder)
    native.save(model, folder)
    kept = [other for other in snapshots(workdir, after) if other <= step][-count:]
    for other in snapshots(workdir, -1):
        if other not in kept:
            files.remove_folder(workdir / SNAPSHOTS / str(other))


def snapshots(workdir: Path, after: int) -> list[int]:
    """Return the steps of the models that are kept and later than the step `after`, in increasing order."""
    steps = (int(folder.name) for folder in (workdir / SNAPSHOTS).glob("[0-9]*"))
    return sorted(step for step in steps if step > after)


def mean_of_snapshots(workdir: Path, steps: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the mean of the models that were kept at `steps`, by path."""
    models = (native.load(workdir / SNAPSHOTS / str(step)) for step in steps)
    return mean([jax.tree.map(np.asarray, native.flat(model.network)) for model in models])
