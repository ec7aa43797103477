"""What a run leaves at its end: tables, JSON and plots of the best model, beside what it started from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redimnet_jax.evaluation import output, plots, report
from redimnet_jax.training import early_stopping
from redimnet_jax.trials import Trials


def write(
    workdir: Path,
    progress: Mapping[str, Any],
    of: Trials,
    dims: Sequence[int],
    averaged: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes and prints the results of the run with that `progress` (see `train`); returns the best model's.

    `averaged` are results, with `epochs`, of the mean of the last models.
    """
    history, best = progress["history"], progress["best"]
    results = best_results(progress)
    systems = {} if progress["pretrained"] is None else {"pretrained": progress["pretrained"]}
    if history[0]["step"] == 0:
        systems["step 0"] = {"dims": history[0]["dims"]}
    systems[f"best (epoch {best['epoch']})"] = results
    last = next(entry for entry in reversed(history) if "dims" in entry)
    if last["step"] != best["step"]:
        systems[f"last (epoch {last['epoch']})"] = {"dims": last["dims"]}
    if averaged is not None:
        systems[f"average (epochs {averaged['epochs'][0]} to {averaged['epochs'][-1]})"] = averaged
    tables = [report.table(systems)]
    scores = {"cosine": early_stopping.read_scores(workdir, best["step"])}
    output.write(workdir, of, dims, scores, results, systems, tables)
    report.write_json(workdir / "history.json", {"history": history, "best": best, "averaged": averaged})
    plots.save(plots.training_curves(history), workdir / "training.png")
    print("\n" + "\n".join(table.text() for table in tables))
    print("Intervals are 95%, over resampled speakers; a difference within them is no progress.")
    print(f"best model: {workdir / 'best'}; results.json, results.md and plots are in {workdir}")
    return results


def best_results(progress: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` holds: the figures of the best model, see `report`."""
    best = next(entry for entry in progress["history"] if entry["step"] == progress["best"]["step"])
    return {"score": "cosine", "dims": best["dims"]}
