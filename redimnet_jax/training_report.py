"""What a run leaves at its end: tables, JSON and plots of the best model, beside what it started from."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import evaluation_files, files, plots, report, verdicts
from redimnet_jax.trials import Trials

SCORES = "best-scores.npz"


def keep_scores(workdir: Path, scores: np.ndarray) -> None:
    """Keeps the best model's `scores` (dims, trials) for the end of the run, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, scores=scores)
    files.write(workdir / SCORES, buffer.getvalue())


def write(workdir: Path, progress: Mapping[str, Any], of: Trials, dims: Sequence[int]) -> dict[str, Any]:
    """Writes and prints the results of the run with that `progress` (see `train`); returns the best model's."""
    history, best = progress["history"], progress["best"]
    results = best_results(progress)
    systems = {} if progress["pretrained"] is None else {"pretrained": progress["pretrained"]}
    if history[0]["step"] == 0:
        systems["step 0"] = {"dims": history[0]["dims"]}
    systems[f"best (epoch {best['epoch']})"] = results
    last = next(entry for entry in reversed(history) if "dims" in entry)
    if last["step"] != best["step"]:
        systems[f"last (epoch {last['epoch']})"] = {"dims": last["dims"]}
    tables = [report.table(systems), verdicts.table(results["verdicts"])]
    with np.load(workdir / SCORES, allow_pickle=False) as saved:
        scores = {"cosine": saved["scores"]}
    evaluation_files.write(workdir, of, dims, scores, results, systems, tables)
    report.write_json(workdir / "history.json", {"history": history, "best": best})
    plots.save(plots.training_curves(history), workdir / "training.png")
    print("\n" + "\n".join(table.text() for table in tables))
    print("Intervals are 95%, over resampled speakers; a difference within them is no progress.")
    print(f"best model: {workdir / 'best'}; results.json, results.md and plots are in {workdir}")
    return results


def best_results(progress: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` holds: the figures of the best model, see `report`, and its verdicts."""
    best = next(entry for entry in progress["history"] if entry["step"] == progress["best"]["step"])
    results = {"score": "cosine", "dims": best["dims"]}
    return results | {"verdicts": verdicts.verdicts(results)}
