"""What the experiments with projections on a frozen backbone share: flags, crops, their features, judging, tables."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

import redimnet_jax as rj
from redimnet_jax import files, sharding
from redimnet_jax.checkpoints import pretrained
from redimnet_jax.data import loader
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.data.crops import Crops
from redimnet_jax.embedding.extract import PooledFeatures, pool_recordings
from redimnet_jax.evaluation import confidence, plots, protocol, report
from redimnet_jax.evaluation import results as evaluation_results
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.losses.heads import Heads
from redimnet_jax.models import matryoshka
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.training import optimizer
from redimnet_jax.training.partition import TrainableModel, TrainablePartition
from redimnet_jax.training.step import Step, TrainState, initial_state

DIMS = (64, 128, 192, 256)


def arguments(description: str, *more: Callable[[argparse.ArgumentParser], object]) -> argparse.Namespace:
    """The flags of the experiment; `more` change or add some."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter, conflict_handler="resolve"
    )
    parser.add_argument("--checkpoint", default=str(pretrained.LIBRISPEECH))
    parser.add_argument("--train", required=True, help="training speech, as train.py reads it")
    parser.add_argument("--trials", required=True)
    parser.add_argument("--audio_root", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=8, help="crops an utterance")
    parser.add_argument("--crop_seconds", type=float, default=2.0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--allow_shared_speakers",
        action="store_true",
        help="names that are in the training and in the trials are different people, as numbers of two corpora are",
    )
    for change in more:
        change(parser)
    return parser.parse_args()


def open_all(args: argparse.Namespace) -> tuple[SpeakerModel, TrialSet, np.ndarray, np.ndarray]:
    """(model, trials, waveforms (crops, samples) and labels (crops,) of an epoch of training)."""
    model, judged = rj.load(args.checkpoint), protocol.from_list(args.trials, args.audio_root)
    return model, judged, *training_crops(args, [judged], args.crop_seconds)


def training_crops(
    args: argparse.Namespace, judged: Sequence[TrialSet], seconds: float, *, in_order: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Waveforms (crops, samples) and labels (crops,) of an epoch, whose speakers are none of the trials'.

    With `in_order` crop r is of utterance r % utterances.
    """
    corpus = open_corpus(args.train, cache_dir=args.output / "index")
    for each in judged:
        protocol.check(each, corpus.speakers, allow_shared=args.allow_shared_speakers)
    crops = Crops(corpus, round(seconds * 16000), args.seed)
    if in_order:
        batches = loader.crops_in_order(crops, 1)
    else:
        batches = loader.train_batches(crops, 1, crops_per_utterance=args.crops)
    found = [next(batches) for _ in range(args.crops * len(corpus))]
    batches.close()
    waveforms, labels = (np.concatenate([batch[name] for batch in found]) for name in ("waveform", "label"))
    return waveforms, labels


def pooled_crops(network: SpeakerNetwork, waveforms: np.ndarray, size: int = 64) -> np.ndarray:
    """Pooled features (crops, width) of the crops, in eval mode."""
    pooled = PooledFeatures(network, Mesh(np.array(jax.devices()[:1]), (sharding.AXIS,)))
    blocks = (waveforms[i : i + size] for i in range(0, len(waveforms), size))
    return np.concatenate([pooled({"waveform": block})[0] for block in blocks])


class Projection:
    """A projection and heads on the frozen backbone of `model`, which train by the package's own step.

    With `init` "lossless" they start as `train.py` lets them: prototypes are the means of `pooled` (crops, width)
    with `labels`. With "random" nothing is learnt at the start.
    """

    def __init__(
        self, model: SpeakerModel, heads: Heads, pooled: np.ndarray, labels: np.ndarray, optimiser, *, init: str
    ):
        self._source = model
        self._adapted = matryoshka.adapt(model, heads.dims, pooled, labels, init=init)
        if init != "random":
            heads.start_at_means(np.asarray(self._adapted.network.embed(pooled)), labels)
        self.partition = TrainablePartition(TrainableModel(self._adapted.network, heads), ("projection", "heads"))
        self.optimiser = optimiser
        self.state: TrainState = initial_state(self.partition, optimiser)
        self.frozen = self.partition.arrays("frozen")

    def train(self, batches: Iterator[tuple[Step, np.ndarray, np.ndarray]]) -> None:
        """One step after another, each with its compiled step, pooled features and labels."""
        for step, pooled, labels in batches:
            self.state, figures = step(self.state, self.frozen, {"pooled": pooled, "label": labels})
        print(f"  last loss {float(figures['loss']):.3f}", flush=True)

    def trained(self) -> TrainableModel:
        """Network and heads as they are."""
        return self.partition.merge(self.state.params, self.state.stats, self.frozen)

    def model(self) -> SpeakerModel:
        """The speaker model as it is."""
        return SpeakerModel(self.trained().network, self._adapted.model_config, self._adapted.source)


def adamw(args: argparse.Namespace, steps: int):
    rate = optimizer.schedule(args.learning_rate, steps, steps // 40, 1e-6)
    return optimizer.adamw(rate, weight_decay=1e-4, clip_norm=5.0)


class Judge:
    """Results of one system after another, each compared with an earlier one on the same resamples of speakers."""

    def __init__(self, judged: TrialSet, seed: int, dims: Sequence[int] = DIMS):
        self.judged, self.seed, self.dims = judged, seed, dims
        self.results: dict[str, dict] = {}
        self.scores: dict[str, np.ndarray] = {}

    def __call__(
        self, name: str, model: SpeakerModel, pooled: np.ndarray | None = None, against: str | None = None
    ) -> None:
        """Judge a system; by default it is compared with the first one.

        `pooled` are the recordings' features, where they are known already.
        """
        pooled = pool_recordings(model, self.judged.recordings) if pooled is None else pooled
        found, scores, _ = evaluation_results.evaluate(
            model, pooled, self.judged, self.dims, bootstrap=1000, seed=self.seed
        )
        self.scores[name] = scores
        against = against or next(iter(self.scores))
        sides, labels = self.judged.speaker_numbers(), self.judged.trials.labels
        compared = confidence.compare(self.scores[against], scores, labels, *sides, resamples=1000, seed=self.seed)
        for index, dim in enumerate(map(str, self.dims)):
            found["dims"][dim]["beyond"] = {
                "other": against,
                "eer": float(compared.difference[index]),
                "ci95": compared.interval[index].tolist(),
                "p_value": float(compared.p_value[index]),
                "differs": bool(compared.differs[index]),
            }
        self.results[name] = found
        print(name, *(f"{dim}: {100 * entry['eer']:.2f}" for dim, entry in found["dims"].items()), flush=True)

    def write(self, args: argparse.Namespace, plot: str) -> None:
        """`results.json`, `results.md` and the plot in the folder `args.output`."""
        rows = self.table()
        settings = {key: str(value) for key, value in vars(args).items()}
        report.write_json(args.output / "results.json", {"settings": settings, "systems": self.results})
        files.write(args.output / "results.md", rows.markdown())
        plots.save(plots.eer_by_dimension(self.results), args.output / plot)
        print(rows.text())

    def table(self) -> report.Table:
        """EER % with its interval at every dimension; * where it differs from the system that it is compared with."""
        rows = []
        for name, each in self.results.items():
            cells = [name]
            for dim in map(str, self.dims):
                entry = each["dims"][dim]
                low, high = (100 * bound for bound in entry["eer_ci95"])
                star = "*" * entry["beyond"]["differs"]
                cells.append(f"{100 * entry['eer']:.2f}{star} [{low:.2f}, {high:.2f}]")
            rows.append(cells)
        return report.Table("EER % [95 %]", ("system", *map(str, self.dims)), rows)
