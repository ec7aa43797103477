"""Speed and memory of training on one device and on several of one host, on synthetic data.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --devices 1 2 --programs full cached --cached_batches 256 4096 --json=scaling.json

Programs are the library's own:

    full          the step of the whole network, from audio
    projection    the step of projection and heads alone, from audio
    extraction    pooled features of audio, by which a feature cache is made
    cached        steps of projection and heads on cached features, 100 in a dispatch

`--batch` is of one device, so these steps have more utterances on more devices; `--cached_batches` are whole
batches, which the devices share. "efficiency" is the speed over that of one device and over the number of devices,
"gib" what a program needs on a device besides its arguments, "exchanges" the operations of a step that communicate.
A time is the median of --repeat measurements, of 20 calls each, after which training waits for the devices too
(`log_every_steps`), or of 200 cached steps. Features, audio and weights are random and lie on the devices: neither
reading nor decoding is in the figures.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.embedding.extract import pooling_program
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.models import config as model_config
from redimnet_jax.models import matryoshka
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel
from redimnet_jax.models.variants import VARIANTS
from redimnet_jax.training import optimizer
from redimnet_jax.training.feature_source import CachedCrops, open_features
from redimnet_jax.training.partition import TrainableModel, TrainablePartition
from redimnet_jax.training.sampler import EpochSampler, choose_strata
from redimnet_jax.training.step import compile_step, initial_state, make_step
from redimnet_jax.training.steppers import CachedStepper

PROGRAMS = ("full", "projection", "extraction", "cached")
PARTS = {"full": ("backbone", "projection", "heads"), "projection": ("projection", "heads")}
DIMS = (64, 128, 192, 256)
COLUMNS = ("program", "batch", "devices", "ms", "utterances_per_s", "efficiency", "gib", "exchanges", "compile_s")
EXCHANGE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
CALLS = 20
CACHED_STEPS = 200


class Measured(NamedTuple):
    """`call` begins `steps` steps and returns what to wait for; `program` is what it runs."""

    call: Callable[[], Any]
    program: Any
    steps: int
    compile_s: float


class Bench:
    """The programs of one network on the first `devices` devices."""

    def __init__(self, args: argparse.Namespace, devices: int):
        self.args = args
        self.mesh = Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))
        family, config = VARIANTS[args.variant]
        network = SpeakerNetwork(model_config.parse(family, config), dtype=args.dtype, rngs=nnx.Rngs(0))
        network.backbone.remat = args.remat
        model = SpeakerModel(network, config, Source("random", "", family))
        self.network = matryoshka.adapt(model, DIMS, init="random").network

    def learner(self, *parts: str) -> tuple[Callable, Any, Any]:
        """Return (step, state, frozen) where `parts` train."""
        heads = Heads(self.args.speakers, DIMS, rngs=nnx.Rngs(1))
        partition = TrainablePartition(TrainableModel(self.network, heads), parts)
        adamw = optimizer.adamw(lambda step: 1e-4, weight_decay=1e-4, clip_norm=5.0)
        step = make_step(partition, adamw, Objective((1.0,) * len(DIMS), lambda step: 0.2), seed=0)
        return step, *sharding.place_state((initial_state(partition, adamw), partition.arrays("frozen")), self.mesh)

    def audio(self) -> dict[str, jax.Array]:
        """Return a batch of noise, by rows on the devices."""
        size = self.args.batch * self.mesh.size
        shape = size, round(16000 * self.args.seconds)

        def make() -> dict[str, jax.Array]:
            noise, speakers = jax.random.split(jax.random.key(0))
            label = jax.random.randint(speakers, (size,), 0, self.args.speakers)
            return {"waveform": 0.1 * jax.random.normal(noise, shape), "label": label}

        return jax.jit(make, out_shardings=sharding.by_rows(self.mesh))()

    def live(self, name: str) -> Measured:
        """Return the step "full" or "projection" from audio."""
        step, state, frozen = self.learner(*PARTS[name])
        audio = self.audio()
        start = time.perf_counter()
        program = compile_step(step, self.mesh, state, frozen, audio)
        seconds = time.perf_counter() - start
        held = [state]

        def call() -> Any:
            held[0], figures = program(held[0], frozen, audio)
            return figures

        return Measured(call, program, 1, seconds)

    def extraction(self) -> Measured:
        """Return the program for pooled features."""
        graph, state = nnx.split(self.network)
        leaves, structure = jax.tree.flatten(state)
        leaves = sharding.replicate(leaves, self.mesh)
        batch = {"waveform": self.audio()["waveform"]}
        pooling: Any = pooling_program(graph, structure, self.mesh, sharding.replicated(self.mesh), tpu_effort=0.0)
        start = time.perf_counter()
        program = pooling.lower(leaves, batch).compile()
        return Measured(lambda: program(leaves, batch), program, 1, time.perf_counter() - start)

    def cached(self, batch: int) -> Measured:
        """Return steps of `batch` utterances on features in the devices' memory."""
        step, state, frozen = self.learner(*PARTS["projection"])
        width, rng = self.network.pool.features, np.random.default_rng(0)
        utterances = CACHED_STEPS * batch
        noise = rng.standard_normal((4096, width)).astype(jnp.dtype(self.args.dtype))
        labels = rng.integers(0, self.args.speakers, utterances).astype(np.int32)
        sampler = EpochSampler(utterances, 1, batch, seed=0, strata=choose_strata(batch, self.mesh.size))
        crops = CachedCrops(np.resize(noise, (utterances, width)), labels)
        source = open_features(sampler, self.mesh, crops, memory_share=0.9)
        stepper = CachedStepper(step, self.mesh, source)
        held = {"state": state, "step": 0}

        def call() -> Any:
            end = held["step"] + CACHED_STEPS
            figures = None
            while held["step"] < end:
                held["state"], figures, held["step"] = stepper.run(held["state"], frozen, held["step"], end)
            return figures

        start = time.perf_counter()
        jax.block_until_ready(call())
        return Measured(call, stepper._compiled, CACHED_STEPS, time.perf_counter() - start)


def ms_per_step(measured: Measured, repeat: int) -> float:
    """Return the median time of a step after a warm-up."""
    calls = 1 if measured.steps > 1 else CALLS
    times = []
    for turn in range(repeat + 1):
        start = time.perf_counter()
        for _ in range(calls):
            result = measured.call()
        jax.block_until_ready(result)
        if turn:
            times.append((time.perf_counter() - start) / calls / measured.steps)
    return 1e3 * statistics.median(times)


def row(bench: Bench, name: str, batch: int) -> dict[str, Any]:
    """Measure one program; `batch` is of all devices."""
    if name == "cached":
        measured = bench.cached(batch)
    else:
        measured = bench.extraction() if name == "extraction" else bench.live(name)
    ms = ms_per_step(measured, bench.args.repeat)
    text = measured.program.as_text()
    exchanges = [found[1] for found in EXCHANGE.finditer(text)]
    return {
        "program": name,
        "batch": batch,
        "devices": bench.mesh.size,
        "ms": round(ms, 3),
        "utterances_per_s": round(1e3 * batch / ms),
        "gib": round(measured.program.memory_analysis().temp_size_in_bytes / 2**30, 2),
        "exchanges": len(exchanges),
        "kinds": {kind: exchanges.count(kind) for kind in sorted(set(exchanges))},
        "compile_s": round(measured.compile_s, 1),
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of all programs and numbers of devices."""
    rows: list[dict[str, Any]] = []
    for name in args.programs:
        for batch in args.cached_batches if name == "cached" else [args.batch]:
            alone = None
            for devices in args.devices:
                bench = Bench(args, devices)
                found = row(bench, name, batch if name == "cached" else batch * devices)
                rate = found["utterances_per_s"]
                alone = rate if devices == 1 else alone
                if alone:
                    found["efficiency"] = round(rate / alone / devices, 3)
                rows.append(found)
                print(line(found), flush=True)
    return rows


def line(found: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    return f"| {' | '.join(str(found.get(column, '')) for column in COLUMNS)} |"


def main() -> None:
    found = jax.devices()
    counts = sorted({min(2**i, len(found)) for i in range(len(found).bit_length() + 1)})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--devices", type=int, nargs="+", default=counts, help="numbers of devices (default: %(default)s)"
    )
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--variant", default="b2", choices=VARIANTS)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--remat", action="store_true", help="the full step with config.remat")
    parser.add_argument("--batch", type=int, default=256, help="utterances a device")
    parser.add_argument("--cached_batches", type=int, nargs="+", default=[256, 1024, 4096], help="utterances in all")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--speakers", type=int, default=5994)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--json", type=Path, help="file for the same as JSON")
    args = parser.parse_args()
    if max(args.devices) > len(found):
        parser.error(f"--devices is {max(args.devices)} but this machine has {len(found)}")
    machine = f"{len(found)} x {found[0].device_kind}, JAX {jax.__version__}"
    title = f"{machine}, {args.variant}, {args.seconds:g} s, {args.dtype}"
    print(f"{title}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    rows = measure(args)
    if args.json is not None:
        args.json.write_text(json.dumps({"title": title, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
