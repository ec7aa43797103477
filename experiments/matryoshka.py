"""Every option of the Matryoshka loss after equal training: EER from 8 dimensions on, and whether it differs.

    python experiments/matryoshka.py --train=TREE --trials one.txt two.txt --audio_root ONE TWO --output=matryoshka

Corpora that number their speakers alike need `--allow_shared_speakers`.

A projection for the dimensions 8 to 256 is trained on the frozen backbone of `--checkpoint`, by default the small one
of the package, with one option after another. All get the same crops in the same order, the same steps and the same
learning rate, but for those that say otherwise. Each is compared with the baseline, or with the system that differs
from it in that option alone, on the same resamples of the speakers of every trial list; the baseline with other seeds
shows what chance does. The figures are of the last step;
nothing is chosen by the trials. Writes `results.json`, `results.md` and a plot for every list.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from frozen_backbone import Judge, Projection, adamw, arguments, pooled_crops, training_crops

import redimnet_jax as rj
from redimnet_jax import files
from redimnet_jax.embedding.cache import backbone_digest
from redimnet_jax.embedding.extract import pool_recordings
from redimnet_jax.evaluation import plots, protocol, report
from redimnet_jax.losses.classification import AAMSoftmax
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.losses.prefixes import Durations, gradient_factors
from redimnet_jax.training import optimizer
from redimnet_jax.training.step import Step, make_step

DIMS = (8, 16, 32, 64, 128, 192, 256)
EQUAL = (1.0,) * len(DIMS)
SECONDS = (1.0, 2.0, 4.0)
# The narrowest prefixes are bound to the shortest crops.
DURATIONS = (1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0)


@dataclasses.dataclass(frozen=True)
class System:
    """What is trained in place of the baseline."""

    dims: tuple[int, ...] = DIMS
    weights: tuple[float, ...] = EQUAL
    margins: tuple[float, ...] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    sgd: bool = False
    seed: int = 0
    # The system that this one is compared with.
    against: str | None = None


SCALED = {"gradient_factors": gradient_factors(DIMS, EQUAL)}
SYSTEMS = {
    "equal weights (baseline)": System(),
    "baseline, other seed": System(seed=1),
    "baseline, third seed": System(seed=2),
    "64 to 256 alone": System(dims=DIMS[3:], weights=EQUAL[3:]),
    "weights 4 to 1": System(weights=(4.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0)),
    "weights 1 to 4": System(weights=(1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 4.0)),
    "margins 0.05 to 0.3": System(margins=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.3)),
    "margins 0.3 to 0.05": System(margins=(0.3, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)),
    "scaled gradients": System(options=SCALED),
    "SGD": System(sgd=True),
    "SGD, scaled gradients": System(sgd=True, options=SCALED, against="SGD"),
    "2 sampled prefixes": System(options={"sampled": 2}),
    "4 sampled prefixes": System(options={"sampled": 4}),
    "crops of 1, 2, 4 s": System(seconds=SECONDS),
    "durations, sharpness 1": System(
        seconds=SECONDS, options={"durations": Durations(DURATIONS, 1.0)}, against="crops of 1, 2, 4 s"
    ),
    "durations, sharpness 4": System(
        seconds=SECONDS, options={"durations": Durations(DURATIONS, 4.0)}, against="crops of 1, 2, 4 s"
    ),
}

# Pooled features (crops, width) by the length of the crops in seconds.
Features = Mapping[float, np.ndarray]


def trained(system: System, model: rj.SpeakerModel, features: Features, labels: np.ndarray, args) -> rj.SpeakerModel:
    margin: Any = 0.2 if system.margins is None else system.margins
    rngs = nnx.Rngs(args.seed + system.seed + 1)
    heads = Heads(int(labels.max()) + 1, system.dims, AAMSoftmax(), margins=system.margins, rngs=rngs)
    steps = args.epochs * (len(labels) // args.batch_size)
    optimiser = adamw(args, steps)
    if system.sgd:
        rate = optimizer.schedule(args.sgd_learning_rate, steps, steps // 40, 1e-6)
        optimiser = optimizer.sgd(rate, momentum=0.9, nesterov=True, weight_decay=1e-4, clip_norm=5.0)
    projection = Projection(model, heads, features[args.crop_seconds], labels, optimiser, init=args.init)
    seed = args.seed + system.seed

    def step(seconds: float) -> Step:
        objective = Objective(system.weights, lambda _: margin, crop_seconds=seconds, **system.options)
        return jax.jit(make_step(projection.partition, optimiser, objective, seed=seed), donate_argnums=0)

    steps_by_length = {seconds: step(seconds) for seconds in system.seconds or (args.crop_seconds,)}

    def batches() -> Iterator[tuple[Step, np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(seed)
        lengths = itertools.cycle(steps_by_length.items())
        for _ in range(args.epochs):
            order = rng.permutation(len(labels))
            for i in range(0, len(labels) - args.batch_size + 1, args.batch_size):
                rows = order[i : i + args.batch_size]
                seconds, compiled = next(lengths)
                yield compiled, features[seconds][rows], labels[rows]

    projection.train(batches())
    return projection.model()


def flags(parser: argparse.ArgumentParser) -> None:
    for name in ("--trials", "--audio_root"):
        parser.add_argument(name, nargs="+", required=True)
    parser.add_argument("--init", default="lossless", choices=("lossless", "random"))
    parser.add_argument("--sgd_learning_rate", type=float, default=1e-2)


def main() -> None:
    args = arguments(__doc__, flags)
    model = rj.load(args.checkpoint)
    judges = [
        Judge(protocol.from_list(*each), args.seed, DIMS) for each in zip(args.trials, args.audio_root, strict=True)
    ]
    recordings = [pool_recordings(model, judge.judged.recordings) for judge in judges]
    features, labels = {}, np.zeros(0)
    for seconds in sorted({args.crop_seconds, *SECONDS}):
        waveforms, labels = training_crops(args, [judge.judged for judge in judges], seconds)
        features[seconds] = pooled_crops(model.network, waveforms)
    for name, system in SYSTEMS.items():
        found = trained(system, model, features, labels, args)
        for judge, pooled in zip(judges, recordings, strict=True):
            judge(name, found, pooled, system.against)
    settings = {key: str(value) for key, value in vars(args).items()} | {"backbone": backbone_digest(model)}
    systems = {trials: judge.results for trials, judge in zip(args.trials, judges, strict=True)}
    report.write_json(args.output / "results.json", {"settings": settings, "systems": systems})
    files.write(args.output / "results.md", "\n".join(judge.table().markdown() for judge in judges))
    for number, judge in enumerate(judges):
        plots.save(plots.eer_by_dimension(judge.results), args.output / f"eer_{number}.png")
        print(judge.table().text())


if __name__ == "__main__":
    main()
