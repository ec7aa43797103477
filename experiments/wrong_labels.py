"""Planted wrong labels: EER of a projection that trains with them, and what options of the training make of them.

    python experiments/wrong_labels.py --train=TREE --trials=trials.txt --audio_root=UNSEEN --output=wrong_labels

Of every `--shares` of the training utterances the label becomes that of another random speaker. A projection on the
frozen backbone of `--checkpoint` is trained on all, with one way of dealing with doubtful examples after another; the
first system has no wrong labels. All get the same crops in the same order, the same steps and the same optimizer.
AAM-Softmax on wrong labels is compared with the first system, and every other one with it. The figures are of the
last step. The precision is the share of planted labels among the examples of the last epoch that weigh nothing, the
recall the share of the planted ones that do, by the network before that epoch. Writes `results.json` and
`results.md`.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from frozen_backbone import DIMS, Judge, Projection, adamw, arguments, pooled_crops, training_crops

import redimnet_jax as rj
from redimnet_jax import files
from redimnet_jax.embedding.cache import backbone_digest
from redimnet_jax.embedding.extract import pool_recordings
from redimnet_jax.evaluation import protocol, report
from redimnet_jax.losses.classification import AAMSoftmax, Classification, SubcenterAAM
from redimnet_jax.losses.doubt import Doubt
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.training.step import Step, make_step


@dataclasses.dataclass(frozen=True)
class System:
    """A loss, and what it makes of doubtful examples; None trains on all alike."""

    criterion: Classification
    doubt: Doubt | None = None


def systems(share: float) -> dict[str, System]:
    """What is trained with that share of wrong labels."""
    three = SubcenterAAM(centers=3)
    return {
        "AAM-Softmax": System(AAMSoftmax()),
        "trimmed by the share planted": System(AAMSoftmax(), Doubt(trim=share)),
        "trimmed by half of it": System(AAMSoftmax(), Doubt(trim=share / 2)),
        "trimmed by twice": System(AAMSoftmax(), Doubt(trim=2 * share)),
        "3 sub-centers": System(three),
        "3 sub-centers, minor ones left out": System(three, Doubt(minor_weight=0.0)),
        "3 sub-centers, trimmed": System(three, Doubt(trim=share)),
    }


def planted(labels: np.ndarray, utterances: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, whether each is wrong) of crops in order, when that share of the utterances gets another speaker."""
    rng, speakers = np.random.default_rng(seed), int(labels.max()) + 1
    moved = np.zeros(utterances, labels.dtype)
    chosen = rng.choice(utterances, round(share * utterances), replace=False)
    moved[chosen] = rng.integers(1, speakers, len(chosen))
    moved = np.tile(moved, len(labels) // utterances)
    return (labels + moved) % speakers, moved > 0


class Experiment:
    """Training on `pooled` crops (crops, width)."""

    def __init__(self, model: rj.SpeakerModel, pooled: np.ndarray, args: argparse.Namespace):
        self.model, self.pooled, self.args = model, pooled, args
        self.epoch_steps = len(pooled) // args.batch_size

    def batches(self) -> Iterator[np.ndarray]:
        """The rows of one batch after another."""
        rng, size = np.random.default_rng(self.args.seed), self.args.batch_size
        for _ in range(self.args.epochs):
            order = rng.permutation(len(self.pooled))
            yield from order[: self.epoch_steps * size].reshape(-1, size)

    def train(self, system: System, labels: np.ndarray) -> tuple[rj.SpeakerModel, np.ndarray, np.ndarray]:
        """(model, rows of the last epoch, their weights)."""
        heads = Heads(int(labels.max()) + 1, DIMS, system.criterion, rngs=nnx.Rngs(self.args.seed + 1))
        optimiser = adamw(self.args, self.args.epochs * self.epoch_steps)
        projection = Projection(self.model, heads, self.pooled, labels, optimiser, init="lossless")
        objective = Objective(
            (1.0,) * len(DIMS),
            lambda _: system.criterion.margin,
            doubt=system.doubt,
            doubt_from=self.args.from_epoch * self.epoch_steps,
        )
        made = make_step(projection.partition, optimiser, objective, seed=self.args.seed)
        step: Step = jax.jit(made, donate_argnums=0)
        batches = list(self.batches())
        last = batches[-self.epoch_steps :]
        projection.train((step, self.pooled[rows], labels[rows]) for rows in batches[: -self.epoch_steps])
        # What the last epoch leaves out, by the network before it.
        weights = self._weights(projection, system, labels, last)
        projection.train((step, self.pooled[rows], labels[rows]) for rows in last)
        return projection.model(), np.concatenate(last), weights

    def _weights(
        self, projection: Projection, system: System, labels: np.ndarray, batches: list[np.ndarray]
    ) -> np.ndarray:
        if system.doubt is None:
            return np.ones(sum(map(len, batches)), np.float32)
        doubt, (graph, state) = system.doubt, nnx.split(projection.trained())

        @jax.jit
        def of_batch(state: Any, pooled: jax.Array, labels: jax.Array) -> jax.Array:
            model = nnx.merge(graph, state, copy=True)
            embedding, heads = model.network.embed(pooled, train=True), model.heads
            of_rows, _ = heads.losses_of_rows(embedding, labels)
            return heads.weights_of_examples(of_rows, embedding, labels, jnp.ones(len(DIMS)), doubt)

        return np.concatenate([of_batch(state, self.pooled[rows], labels[rows]) for rows in batches])


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2], help="of wrong labels")
    parser.add_argument("--from_epoch", type=int, default=3, help="the first epoch with doubtful examples")
    parser.set_defaults(crops=2)


def main() -> None:
    args = arguments(__doc__, flags)
    model, judged = rj.load(args.checkpoint), protocol.from_list(args.trials, args.audio_root)
    waveforms, labels = training_crops(args, [judged], args.crop_seconds, in_order=True)
    pooled, recordings = pooled_crops(model.network, waveforms), pool_recordings(model, judged.recordings)
    experiment, judge = Experiment(model, pooled, args), Judge(judged, args.seed)
    judge("no wrong labels", experiment.train(System(AAMSoftmax()), labels)[0], recordings)
    found: dict[str, dict[str, float]] = {}
    for share in args.shares:
        given, wrong = planted(labels, len(labels) // args.crops, share, args.seed)
        for name, system in systems(share).items():
            trained, rows, weights = experiment.train(system, given)
            out, is_wrong = weights == 0, wrong[rows]
            key = f"{share:.0%} wrong: {name}"
            found[key] = {
                "left_out": float(out.mean()),
                "precision": float(is_wrong[out].mean()) if out.any() else 0.0,
                "recall": float(out[is_wrong].mean()),
            }
            # The first system of a share knows of no doubt.
            against = f"{share:.0%} wrong: {next(iter(systems(share)))}"
            judge(key, trained, recordings, None if key == against else against)
            print(" ", *(f"{figure} {value:.1%}" for figure, value in found[key].items()), flush=True)
    settings = {key: str(value) for key, value in vars(args).items()} | {"backbone": backbone_digest(model)}
    report.write_json(
        args.output / "results.json", {"settings": settings, "systems": judge.results, "left_out": found}
    )
    rows = [[name, *(f"{100 * value:.1f}" for value in entry.values())] for name, entry in found.items()]
    tables = [judge.table(), report.Table("Left out %", ("system", "left out", "precision", "recall"), rows)]
    files.write(args.output / "results.md", "\n".join(table.markdown() for table in tables))
    print("\n".join(table.text() for table in tables))


if __name__ == "__main__":
    main()
