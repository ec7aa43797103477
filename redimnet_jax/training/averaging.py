"""Averages of weights: a moving one within the training step, and the mean of the last epochs' models."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from redimnet_jax.checkpoints import native
from redimnet_jax.models.speaker_model import SpeakerModel

Arrays = dict[str, jax.Array]

SNAPSHOTS, AVERAGED = "epochs", "averaged"


def moved(averages: Arrays, values: Arrays, decay: float, step: jax.Array) -> Arrays:
    """The exponential moving `averages` after `step` steps, of which `values` are the latest.

    The decay is min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage with `num_updates`:
    at first the average forgets quickly where it started.
    """
    share = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {name: average + share * (values[name] - average) for name, average in averages.items()}


def mean(models: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean of each array over `models`, summed in float64: what is equal in all stays to the bit."""
    first = models[0]
    return {
        name: (sum(np.asarray(model[name], np.float64) for model in models) / len(models)).astype(first[name].dtype)
        for name in first
    }


def keep_snapshot(model: SpeakerModel, workdir: Path, step: int, *, count: int, after: int) -> None:
    """Keeps `model` as that of `step`, and of the older ones the `count` newest in all that are `after` that step."""
    folder = workdir / SNAPSHOTS / str(step)
    # There already where a run was killed between this and its checkpoint.
    shutil.rmtree(folder, ignore_errors=True)
    native.save(model, folder)
    kept = [other for other in snapshots(workdir, after) if other <= step][-count:]
    for other in snapshots(workdir, -1):
        if other not in kept:
            shutil.rmtree(workdir / SNAPSHOTS / str(other))


def snapshots(workdir: Path, after: int) -> list[int]:
    """The steps of the models that are kept, increasing, later than the step `after`."""
    steps = (int(folder.name) for folder in (workdir / SNAPSHOTS).glob("[0-9]*"))
    return sorted(step for step in steps if step > after)


def mean_of_snapshots(workdir: Path, steps: Sequence[int]) -> dict[str, np.ndarray]:
    """The mean of the models kept at `steps`, by path."""
    models = (native.load(workdir / SNAPSHOTS / str(step)) for step in steps)
    return mean([jax.tree.map(np.asarray, native.flat(model.network)) for model in models])
