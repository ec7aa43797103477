"""Prototypes dealt to the devices by class: the same results as on one, nothing large goes between devices."""

import contextlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import cpu_devices
import jax
import numpy as np
import pytest
import tiny
import training_runs
from flax import nnx
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.evaluation import plots
from redimnet_jax.losses.classification import AAMSoftmax, AMSoftmax, SphereFace2, SubcenterAAM
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.models import matryoshka
from redimnet_jax.training import optimizer, preemption
from redimnet_jax.training import run as training_run
from redimnet_jax.training.feature_source import CachedCrops, open_features
from redimnet_jax.training.partition import TrainableModel, TrainablePartition
from redimnet_jax.training.sampler import EpochSampler
from redimnet_jax.training.step import compile_step, initial_state, make_step
from redimnet_jax.training.steppers import CachedStepper

# No multiple of 8, and a prototype for each is more than whatever else passes between devices.
CLASSES, BATCH, WIDTH = 1027, 16, 24
RUN = CachedStepper.run
CASES = {
    "aam": (AAMSoftmax(), (8,), {}),
    "am, one matrix": (AMSoftmax(), (4, 8), {"shared": True}),
    "subcenter, cached": (SubcenterAAM(centers=2), (8,), {"cached": True}),
    "sphereface2": (SphereFace2(), (8,), {"accumulate": 2}),
}


def mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))


def learner(criterion, dims: tuple[int, ...], *, accumulate: int = 1, shared: bool = False):
    """(split, step, new state by call)."""
    network = matryoshka.adapt(tiny.model(), dims, init="random").network
    heads = Heads(CLASSES, dims, criterion, shared=shared, rngs=nnx.Rngs(1))
    split = TrainablePartition(TrainableModel(network, heads), ("projection", "heads"))
    optimiser = optimizer.adamw(lambda step: 1e-2, weight_decay=1e-2, clip_norm=0.5)
    objective = Objective((1.0, 2.0)[: len(dims)], lambda step: 0.2, consistency=len(dims) - 1.0)
    step = make_step(split, optimiser, objective, seed=0, accumulate=accumulate, ema=0.9)
    return split, step, lambda: initial_state(split, optimiser, ema=True)


def pooled(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((rows, WIDTH), np.float32)
    return {"pooled": features, "label": rng.integers(0, CLASSES, rows).astype(np.int32)}


def largest_passed(program: str) -> int:
    """Elements of the largest array that goes between devices."""
    passed = re.findall(r"= (.*?) (?:all-|collective-|reduce-scatter)[a-z-]*\(", program)
    shapes = [shape for found in passed for shape in re.findall(r"\w+\[([\d,]*)\]", found)]
    assert shapes
    return max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


def exact(split: TrainablePartition, tree):
    return jax.tree.map(np.array, split.without_padding(sharding.gather(tree)))


def after_steps(made, devices: int, *, cached: bool = False) -> dict[str, np.ndarray]:
    """Figures of four steps, the optimizer's arrays after the first of them, and all other arrays after the last.

    All are of the same batch, so that soon some of it are classified right.
    """
    (split, step, new_state), on, batch = made, mesh(devices), pooled(BATCH)
    state, frozen = sharding.place_state((new_state(), split.arrays("frozen")), on)
    sharded = [x for x in jax.tree.leaves(state) if not x.is_fully_replicated]
    if devices > 1:
        prototypes = [name for name in split.names["params"] if name.endswith(".prototypes")]
        # The parameters, two moments and the average of each.
        assert len(sharded) == 4 * len(prototypes) > 0
        assert {x.addressable_data(0).shape[0] for x in sharded} == {-(-CLASSES // devices)}
    if cached:
        sampler, crops = EpochSampler(BATCH, 1, BATCH, seed=0, strata=8), CachedCrops(*batch.values())
        steps = CachedStepper(step, on, open_features(sampler, on, crops, max_steps=1))
        state, figures, _ = steps.run(state, frozen, 0, 1)
        program = steps._compiled
    else:
        batch = sharding.shard_rows(batch, on)
        program = compile_step(step, on, state, frozen, batch)
        state, figures = program(state, frozen, batch)
    assert devices == 1 or largest_passed(program.as_text()) < CLASSES
    leaves = jax.tree_util.tree_leaves_with_path(exact(split, state.opt))
    found = {f"0 optimizer {jax.tree_util.keystr(path)}": x for path, x in leaves}
    for number in range(4):
        found |= {f"{number} {name}": np.array(value) for name, value in figures.items()}
        if number < 3:
            state, figures = (
                steps.run(state, frozen, number + 1, number + 2)[:2] if cached else program(state, frozen, batch)
            )
    for x in jax.tree.leaves(state):
        if not x.is_fully_replicated:
            assert not np.asarray(x)[CLASSES:].any()
    assert np.max(figures["accuracies"]) > 0
    averages = {f"average of {name}": x for name, x in exact(split, state.ema).items()}
    return found | averages | exact(split, state.params | state.stats)


def agree(one: dict[str, np.ndarray], many: dict[str, np.ndarray]) -> None:
    """To float32 rounding, in the first step, whose figures and moments of gradients begin with "0 ".

    Adam makes it larger where a gradient is almost zero.
    """
    assert one.keys() == many.keys()
    for name, wanted in one.items():
        tolerance = 2e-5 if name.startswith("0 ") else 2e-3
        difference = np.abs(wanted - many[name]).max() / max(np.abs(wanted).max(), 1e-9)
        assert difference < tolerance, (name, difference)


@pytest.mark.slow
def test_many_devices_agree_with_one(tmp_path):
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    cpu_devices.run(
        __file__,
        tmp_path,
        devices=8,
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )


def steps_agree() -> None:
    for name, (criterion, dims, options) in CASES.items():
        print(name)
        cached = options.pop("cached", False)
        made = learner(criterion, dims, **options)
        agree(*(after_steps(made, devices, cached=cached) for devices in (1, 8)))


def stopped_run(*arguments):
    """`CachedStepper.run`, during which a SIGTERM comes."""
    os.kill(os.getpid(), signal.SIGTERM)
    return RUN(*arguments)


def runs_go_on(folder: Path) -> None:
    """A run of 6 speakers on 4 devices, of which one has no class, on 1, and on one after the other."""
    changes = {"epochs": 1, "checkpoint.every_steps": 2, "cache.crops": 2, "cache.folder": str(folder / "cache")}
    data = training_runs.write_data(folder) | changes | {"projection.mrl_dims": (8,), "loss.name": "sphereface2"}

    def run(name: str, devices: int, stop: bool = False) -> Path:
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(*[preemption.Preempted] * stop):
            patch.setattr(sharding, "MIN_SHARDED_CLASSES", 2)
            patch.setattr(sharding, "mesh", lambda: mesh(devices))
            patch.setattr(plots, "save", lambda *_: None)
            if stop:
                patch.setattr(CachedStepper, "run", stopped_run)
            training_run.train(training_runs.config(data), folder / name)
        assert (folder / name / "results.json").exists() != stop
        return folder / name

    def arrays(name: str) -> dict[str, np.ndarray]:
        found = training_runs.saved(folder / name, 4)[0]
        assert {x.shape for key, x in found.items() if "prototypes" in key} == {(6, 8)}
        return {key: x for key, x in found.items() if "frozen" not in key}

    run("whole", 4)
    shutil.copytree(run("on four", 4, stop=True), folder / "then one")
    run("on four", 4)
    run("then one", 1)
    run("then four", 1, stop=True)
    run("then four", 4)
    training_runs.same_bits(arrays("whole"), arrays("on four"))
    for name in ("then one", "then four"):
        agree(arrays("whole"), arrays(name))


if __name__ == "__main__":
    steps_agree()
    runs_go_on(Path(sys.argv[1]))
