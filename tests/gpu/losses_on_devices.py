"""Train a small network for some steps, and print what the training says: the same on any devices.

    python tests/gpu/losses_on_devices.py --devices=2
    python tests/gpu/losses_on_devices.py --processes=2 --process_id=0 --coordinator=localhost:12345   # and 1

Prints {"live": figures of every step from audio, of the whole network, "cached": the same of steps of projection and
heads on features} as JSON. With several processes each has one device. `--seed` chooses the audio, the features and
the labels.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import tiny

from redimnet_jax import sharding
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.models import matryoshka
from redimnet_jax.training.feature_source import CachedCrops, open_features
from redimnet_jax.training.partition import TrainableModel, TrainablePartition
from redimnet_jax.training.sampler import EpochSampler
from redimnet_jax.training.step import compile_step, initial_state, make_step
from redimnet_jax.training.steppers import CachedStepper

# Enough classes that several devices share the prototypes, and an odd number of them.
CLASSES = 1027
BATCH = 32
STEPS = 4
# Ten times this rate multiplies differences by up to sixty in a step: where the audio differs by one unit in the last
# place, losses then differ by 1e-4 after four steps, on one device.
LEARNING_RATE = 1e-3


def learner(mesh: Mesh, *parts: str):
    """Return (step, state, frozen, width of the pooled features)."""
    network = matryoshka.adapt(tiny.model(block_2d_type="convnext_like"), tiny.DIMS, init="random").network
    partition = TrainablePartition(TrainableModel(network, Heads(CLASSES, tiny.DIMS, rngs=nnx.Rngs(1))), parts)
    sgd = optax.sgd(LEARNING_RATE)
    step = make_step(partition, sgd, Objective((1.0,) * len(tiny.DIMS), lambda step: 0.2), seed=0)
    placed = sharding.place_state((initial_state(partition, sgd), partition.arrays("frozen")), mesh)
    return step, *placed, network.pool.features


def live(mesh: Mesh, seed: int) -> dict[str, list]:
    """Return the figures of every step from audio; each process passes its own rows."""
    step, state, frozen, _ = learner(mesh, "backbone", "projection", "heads")
    found = []
    program = None
    for number in range(STEPS):
        batch = tiny.batch(BATCH, classes=CLASSES, seed=seed + number)
        mine = {name: np.split(array, jax.process_count())[jax.process_index()] for name, array in batch.items()}
        rows = sharding.shard_rows(mine, mesh)
        program = program or compile_step(step, mesh, state, frozen, rows)
        state, figures = program(state, frozen, rows)
        found.append(jax.device_get(figures))
    return {name: [np.asarray(each[name]).tolist() for each in found] for name in found[0]}


def cached(mesh: Mesh, seed: int) -> dict[str, list]:
    """Return the figures of every step on features."""
    step, state, frozen, width = learner(mesh, "projection", "heads")
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((STEPS * BATCH, width)).astype(np.float32)
    crops = CachedCrops(features, rng.integers(0, CLASSES, len(features)).astype(np.int32))
    sampler = EpochSampler(len(features), 1, BATCH, seed=0, strata=2)
    stepper = CachedStepper(step, mesh, open_features(sampler, mesh, crops, max_steps=STEPS))
    _, figures, reached = stepper.run(state, frozen, 0, STEPS)
    assert reached == STEPS
    return {name: np.asarray(values).tolist() for name, values in jax.device_get(figures).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process_id", type=int, default=0)
    parser.add_argument("--coordinator")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.processes > 1:
        of_process = None if jax.config.jax_platforms == "cpu" else [args.process_id]
        jax.distributed.initialize(args.coordinator, args.processes, args.process_id, local_device_ids=of_process)
    devices = jax.devices()[: args.devices * args.processes]
    assert len(devices) == args.devices * args.processes
    mesh = Mesh(np.array(devices), (sharding.AXIS,))
    print(json.dumps({"live": live(mesh, args.seed), "cached": cached(mesh, args.seed)}))


if __name__ == "__main__":
    main()
