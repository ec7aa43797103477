"""The validation loss that means nothing, beside the one that means something and the EER, over the epochs of a run.

    python train.py --config=configs/two_stage.py --workdir=RUN --config.checkpoint.keep=1000 \\
        --config.classification.share=0.3 --config.projection.init=random --config.heads.init=random ...
    python experiments/invalid_validation.py --run=RUN --trials=trials.txt --audio_root=UNSEEN --output=invalid

The run is an ordinary one that kept the checkpoint of every epoch. For each of them this computes what a trainer that
mistakes unseen speakers for training speakers would call the validation loss: the heads' loss on recordings of unseen
speakers, each of whom is given the prototype of some training speaker at random. The mean over `--mappings` random
mappings is shown, and how far single ones lie apart. The valid loss (held-out recordings of the training speakers),
the training loss and the EER of the unseen speakers are those of the run. Writes `results.json`, `results.md` and
`invalid.png`.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

from redimnet_jax import files
from redimnet_jax.embedding.extract import embed_pooled, pool_recordings
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.evaluation import plots, protocol, report
from redimnet_jax.losses.heads import Heads
from redimnet_jax.training.saved_run import open_run, saved_steps


def invalid_losses(heads: Heads, embeddings, speakers, mappings: int, seed: int) -> np.ndarray:
    """Loss (mappings, dims) of unseen `speakers` (recordings,), numbers, as random training speakers."""
    graph, state = nnx.split(heads)

    @jax.jit
    def losses(state, embeddings, labels):
        _, figures = nnx.merge(graph, state).loss(embeddings, labels, weights=(1.0,) * len(heads.dims))
        return figures["loss"]

    rng, found = np.random.default_rng(seed), []
    for _ in range(mappings):
        classes = rng.permutation(heads.classes)[: speakers.max() + 1]
        found.append(np.asarray(losses(state, embeddings, classes[speakers])))
    return np.array(found)


def figure(rows: list[dict], dim: str, unfrozen: int | None):
    from matplotlib.figure import Figure

    drawing = Figure((11, 4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    invalid = np.array([row["invalid"][dim] for row in rows])
    left.plot(epochs, invalid[:, 0], label="invalid: unseen speakers as training speakers", color="tab:red")
    left.fill_between(epochs, invalid[:, 1], invalid[:, 2], color="tab:red", alpha=0.2, linewidth=0)
    left.plot(
        epochs, [row["valid"][dim] for row in rows], label="valid: training speakers, held out", color="tab:blue"
    )
    left.plot(epochs, [row["training"].get(dim, np.nan) for row in rows], label="training", color="tab:gray")
    left.set(xlabel="epoch", ylabel=f"AAM-Softmax loss, dimension {dim}")
    low, eer, high = (100 * np.array([row["eer"][dim][i] for row in rows]) for i in range(3))
    right.plot(epochs, eer, color="tab:green", label="EER of unseen speakers, 95% interval")
    right.fill_between(epochs, low, high, color="tab:green", alpha=0.2, linewidth=0)
    right.set(xlabel="epoch", ylabel="EER %", ylim=(0, None))
    for axes in (left, right):
        if unfrozen is not None:
            axes.axvline(unfrozen, color="black", linestyle=":", label="backbone unfrozen")
        axes.grid(alpha=0.3)
        axes.legend()
    return drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the workdir of a run that kept all checkpoints")
    parser.add_argument("--trials", required=True)
    parser.add_argument("--audio_root", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--unfrozen", type=int, help="the epoch after which the backbone trains, for the plot")
    parser.add_argument("--mappings", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    judged = protocol.from_list(args.trials, args.audio_root)
    speakers = np.unique(judged.speakers, return_inverse=True)[1]
    history = json.loads((args.run / "history.json").read_text())["history"]
    steps = saved_steps(args.run)
    rows = []
    for entry in history:
        if entry["step"] not in steps or "dims" not in entry:
            continue
        run = open_run(args.run, entry["step"], averaged=False)
        # Crops as long as those that train, so that all losses are of the same task.
        pooled = pool_recordings(
            run.model, judged.recordings, crop_policy=CropPolicy(max(run.settings.data.crop_lengths))
        )
        embeddings = embed_pooled(run.model, pooled)[:, 0]
        losses = invalid_losses(run.heads, embeddings, speakers, args.mappings, args.seed)
        dims = list(entry["dims"])
        bounds = np.quantile(losses, [0.025, 0.975], axis=0)
        rows.append(
            {
                "epoch": entry["epoch"],
                "training": entry.get("losses", {}),
                "valid": entry["classification"]["losses"],
                "accuracy": entry["classification"]["accuracies"],
                "invalid": {d: [losses.mean(axis=0)[i], *bounds[:, i]] for i, d in enumerate(dims)},
                "eer": {d: [e["eer_ci95"][0], e["eer"], e["eer_ci95"][1]] for d, e in entry["dims"].items()},
            }
        )
        print(f"epoch {entry['epoch']:>3}", {d: round(float(rows[-1]["invalid"][d][0]), 2) for d in dims}, flush=True)
    correlation = {
        d: float(spearmanr([row["invalid"][d][0] for row in rows], [row["eer"][d][1] for row in rows])[0])
        for d in dims
    }
    print("rank correlation of the invalid loss and the EER over the epochs:", correlation)
    report.write_json(args.output / "results.json", {"rows": rows, "rank_correlation": correlation})
    files.write(args.output / "results.md", table(rows, dims[-1]).markdown())
    plots.save(figure(rows, dims[-1], args.unfrozen), args.output / "invalid.png")


def table(rows: list[dict], dim: str) -> report.Table:
    header = ("epoch", "training loss", "valid loss", "valid accuracy %", "invalid loss", "EER %", "95 % interval")
    cells = []
    for row in rows:
        low, eer, high = (100 * value for value in row["eer"][dim])
        cells.append(
            [
                str(row["epoch"]),
                f"{row['training'][dim]:.2f}" if dim in row["training"] else "",
                f"{row['valid'][dim]:.2f}",
                f"{100 * row['accuracy'][dim]:.1f}",
                f"{row['invalid'][dim][0]:.2f}",
                f"{eer:.2f}",
                f"{low:.2f} to {high:.2f}",
            ]
        )
    return report.Table(f"Dimension {dim}", header, cells)


if __name__ == "__main__":
    main()
