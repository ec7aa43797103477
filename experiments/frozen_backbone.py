"""What the experiments with projections on a frozen backbone share: flags, crops, their features, judging, tables."""

import argparse
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
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import SpeakerModel

DIMS = (64, 128, 192, 256)


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", default=str(pretrained.SMALL))
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
    return parser.parse_args()


def open_all(args: argparse.Namespace) -> tuple[SpeakerModel, TrialSet, np.ndarray, np.ndarray]:
    """(model, trials, waveforms (crops, samples) and labels (crops,) of an epoch of training)."""
    model, judged = rj.load(args.checkpoint), protocol.from_list(args.trials, args.audio_root)
    corpus = open_corpus(args.train, cache_dir=args.output / "index")
    protocol.check(judged, corpus.speakers, allow_shared=False)
    crops = Crops(corpus, round(args.crop_seconds * 16000), args.seed)
    batches = loader.train_batches(crops, 1, crops_per_utterance=args.crops)
    found = [next(batches) for _ in range(args.crops * len(corpus))]
    batches.close()
    waveforms, labels = (np.concatenate([batch[name] for batch in found]) for name in ("waveform", "label"))
    return model, judged, waveforms, labels


def pooled_crops(network: SpeakerNetwork, waveforms: np.ndarray, size: int = 64) -> np.ndarray:
    """Pooled features (crops, width) of the crops, in eval mode."""
    pooled = PooledFeatures(network, Mesh(np.array(jax.devices()[:1]), (sharding.AXIS,)))
    blocks = (waveforms[i : i + size] for i in range(0, len(waveforms), size))
    return np.concatenate([pooled({"waveform": block})[0] for block in blocks])


class Judge:
    """Results of one system after another, each compared with the first on the same resamples of speakers."""

    def __init__(self, judged: TrialSet, seed: int):
        self.judged, self.seed, self.results, self.first = judged, seed, {}, None

    def __call__(self, name: str, model: SpeakerModel, pooled: np.ndarray | None = None) -> None:
        """`pooled` are the recordings' features, where they are known already."""
        pooled = pool_recordings(model, self.judged.recordings) if pooled is None else pooled
        found, scores, _ = evaluation_results.evaluate(
            model, pooled, self.judged, DIMS, bootstrap=1000, seed=self.seed
        )
        self.first = scores if self.first is None else self.first
        sides, labels = self.judged.speaker_numbers(), self.judged.trials.labels
        compared = confidence.compare(self.first, scores, labels, *sides, resamples=1000, seed=self.seed)
        for index, dim in enumerate(map(str, DIMS)):
            found["dims"][dim]["beyond_first"] = {
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
        """EER % with its interval at every dimension; * where it differs from the first system's."""
        rows = []
        for name, each in self.results.items():
            cells = [name]
            for dim in map(str, DIMS):
                entry = each["dims"][dim]
                low, high = (100 * bound for bound in entry["eer_ci95"])
                star = "*" * entry["beyond_first"]["differs"]
                cells.append(f"{100 * entry['eer']:.2f}{star} [{low:.2f}, {high:.2f}]")
            rows.append(cells)
        return report.Table("EER % [95 %]", ("system", *map(str, DIMS)), rows)
