"""Seconds of a cached epoch and of the extraction before it, beside the live step, on synthetic data.

    python benchmarks/cached_training.py --device=gpu --utterances=1092009 --speakers=5994 --batch_size=256
    python benchmarks/cached_training.py --device=gpu --utterances=1092009 --speakers=5994 --batch_size=256 --whole
    python benchmarks/cached_training.py --device=cpu --utterances=4000 --speakers=200 --model=small

Features and waveforms are random and made on the device, so that no decoding is in the figures, nor the disk but with
--whole. The cached epoch is that of `training.steppers.CachedStepper`; "live" is the same step from waveforms on the
device; "extraction" is the pooled features of batches of the same crops. `predicted` is a whole run of --epochs from
these figures; with --whole it is done as well: the features of all crops, each of its own noise, are written to a
feature cache in a temporary folder (TMPDIR), read from there, and trained on for --epochs. b2 has random
weights, which cost what trained ones do. Prints JSON.
"""

import argparse
import functools
import itertools
import json
import os
import tempfile
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm, trange

from redimnet_jax import sharding
from redimnet_jax.checkpoints import pretrained
from redimnet_jax.checkpoints.open import open_model
from redimnet_jax.data.crops import Crops
from redimnet_jax.embedding.extract import PooledFeatures
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.models import config as model_config
from redimnet_jax.models import matryoshka
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel
from redimnet_jax.models.variants import VARIANTS
from redimnet_jax.training import optimizer
from redimnet_jax.training.feature_cache import FeatureCache, keep
from redimnet_jax.training.feature_source import CachedCrops, open_features
from redimnet_jax.training.partition import TrainableModel, TrainablePartition
from redimnet_jax.training.sampler import EpochSampler, choose_strata
from redimnet_jax.training.step import compile_step, initial_state, make_step
from redimnet_jax.training.steppers import CachedStepper

B2 = VARIANTS["b2"][1]


def open_backbone(name: str, dtype: str) -> SpeakerModel:
    if name == "small":
        return open_model(str(pretrained.SMALL), dtype=jnp.dtype(dtype))
    network = SpeakerNetwork(model_config.parse("redimnet", B2), dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    return SpeakerModel(network, B2, Source("random", "", "redimnet"))


def bound(utterances: int, width: int, dims: list[int], speakers: int, batch_size: int, itemsize: int) -> dict:
    """Arithmetic and memory traffic of an epoch: 8 passes over the logits, 14 over the parameters."""
    steps, embedding = utterances // batch_size, dims[-1]
    projection, heads = 2 * width * embedding, 2 * sum(dims) * speakers
    parameters = width * embedding + sum(dims) * speakers
    return {
        "steps": steps,
        "tflop": round(utterances * 3 * (projection + heads) / 1e12, 3),
        "gather_gb": round(utterances * width * (itemsize + 4) / 1e9, 3),
        "logits_gb": round(utterances * 8 * len(dims) * speakers * 4 / 1e9, 3),
        "parameters_gb": round(steps * parameters * 4 * 14 / 1e9, 3),
    }


@dataclass(frozen=True)
class Noise:
    """As much of a corpus as a feature cache asks for."""

    utterances: int
    digest: str = "noise"

    def __len__(self) -> int:
        return self.utterances


def best(work, repeats: int) -> float:
    """Seconds of `work`, the best of `repeats` after one that compiles."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), default="cpu")
    parser.add_argument("--model", choices=("b2", "small"), default="b2")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--utterances", type=int, default=20_000)
    parser.add_argument("--speakers", type=int, default=1000)
    parser.add_argument("--crops", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--extraction_batch", type=int, default=256)
    parser.add_argument("--crop_seconds", type=float, default=3.0)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128, 192, 256])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--live", action=argparse.BooleanOptionalAction, default=True, help="time the live step too")
    parser.add_argument("--whole", action="store_true", help="extract the features of all crops, then run all epochs")
    parser.add_argument("--streamed", action="store_true", help="read the features from the host's memory")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cuda,cpu" if args.device == "gpu" else args.device)

    model = open_backbone(args.model, args.dtype)
    width, dims = model.network.pool.features, args.dims
    adapted = matryoshka.adapt(model, dims, init="random")
    split = TrainablePartition(
        TrainableModel(adapted.network, Heads(args.speakers, dims, rngs=nnx.Rngs(1))), ("projection", "heads")
    )
    optimiser = optimizer.adamw(lambda step: 1e-4, weight_decay=1e-4, clip_norm=5.0)
    step = make_step(split, optimiser, Objective((1.0,) * len(dims), lambda step: 0.2), seed=0)
    mesh = sharding.mesh()
    frozen = sharding.place_state(split.arrays("frozen"), mesh)
    results = vars(args) | {"machine": f"{jax.device_count()} {jax.devices()[0].device_kind}", "width": width}
    results["load"] = os.getloadavg()[0]
    dtype = np.dtype(jnp.dtype(args.dtype))
    results["bound"] = bound(args.utterances, width, dims, args.speakers, args.batch_size, dtype.itemsize)

    rows, rng = args.crops * args.utterances, np.random.default_rng(0)
    strata = choose_strata(args.batch_size, mesh.size)
    sampler = EpochSampler(args.utterances, args.crops, args.batch_size, seed=0, strata=strata)
    # A block of noise over and over: what is in the rows costs nothing.
    block = rng.standard_normal((min(rows, 4096), width)).astype(dtype)
    features = np.resize(block, (rows, width))
    labels = rng.integers(0, args.speakers, rows).astype(np.int32)
    share = 0.0 if args.streamed else 0.9
    held = {"state": sharding.place_state(initial_state(split, optimiser), mesh), "step": 0}

    def on_devices(features, labels) -> CachedStepper:
        source = open_features(sampler, mesh, CachedCrops(features, labels), memory_share=share)
        return CachedStepper(step, mesh, source)

    def epoch(steps: CachedStepper):
        end = held["step"] + sampler.steps_per_epoch
        while held["step"] < end:
            held["state"], figures, held["step"] = steps.run(held["state"], frozen, held["step"], end)
        return figures

    start = time.perf_counter()
    steps = on_devices(features, labels)
    results["to_devices_s"] = round(time.perf_counter() - start, 3)
    cached = best(lambda: epoch(steps), args.repeats)
    steps.close()
    results["cached_epoch_s"] = round(cached, 4)
    results["cached_step_ms"] = round(1e3 * cached / sampler.steps_per_epoch, 3)
    results["cached_utterances_per_s"] = round(sampler.steps_per_epoch * args.batch_size / cached)
    results["wait_fraction"] = round(steps.wait_fraction(), 3)

    samples = round(args.crop_seconds * 16000)

    @functools.partial(jax.jit, static_argnums=1, out_shardings=sharding.by_rows(mesh))
    def batch(number: int, size: int) -> dict:
        noise, speakers = jax.random.split(jax.random.key(number))
        label = jax.random.randint(speakers, (size,), 0, args.speakers)
        return {"waveform": 0.1 * jax.random.normal(noise, (size, samples)), "label": label}

    pooled = PooledFeatures(model.network, mesh, replicated=True)
    crops = batch(0, args.extraction_batch)
    extraction = best(lambda: pooled(crops), args.repeats)
    results["extraction_crops_per_s"] = round(args.extraction_batch / extraction, 1)
    if args.live:
        audio = batch(0, args.batch_size)
        live_step = compile_step(step, mesh, held["state"], frozen, audio)

        def live():
            held["state"], figures = live_step(held["state"], frozen, audio)
            return figures

        live_s = best(live, args.repeats)
        results["live_step_ms"] = round(1e3 * live_s, 3)
        results["live_over_cached"] = round(live_s / (cached / sampler.steps_per_epoch), 1)
        results["live_run_predicted_s"] = round(args.epochs * sampler.steps_per_epoch * live_s, 1)

    def whole() -> dict[str, float]:
        """Seconds of each part of a run; compiling is in those of the epochs, but not of the extraction."""
        with tempfile.TemporaryDirectory() as folder:
            cache = FeatureCache(folder, model, Crops(Noise(args.utterances), samples, seed=0), dtype)
            times = [time.perf_counter()]
            crops = (pooled(batch(number, args.extraction_batch)) for number in itertools.count(1))
            batches = ((features, rest["label"]) for features, rest in crops)
            with tqdm(total=rows, desc="features", unit="crop") as bar, cache.writer() as writer:
                keep(cache, writer, batches, 0, rows, batch_size=args.extraction_batch, name=str, done=bar.update)
            times.append(time.perf_counter())
            steps = on_devices(cache.read_features(rows), cache.read_labels(rows))
            times.append(time.perf_counter())
            for _ in trange(args.epochs, unit="epoch"):
                figures = epoch(steps)
            jax.block_until_ready(figures)
            times.append(time.perf_counter())
            steps.close()
        parts = dict(zip(("extraction_s", "to_devices_s", "epochs_s"), np.diff(times).tolist(), strict=True))
        return parts | {"run_s": times[-1] - times[0]}

    run = rows * extraction / args.extraction_batch + args.epochs * cached
    results["predicted"] = {
        "extraction_s": round(rows * extraction / args.extraction_batch, 1),
        "run_s": round(run, 1),
    }
    if args.whole:
        del steps, features, labels
        results["whole"] = {name: round(seconds, 1) for name, seconds in whole().items()}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
