"""What a run leaves at its end: tables, JSON and plots of the best model, beside what it started from."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redimnet_jax.evaluation import output, plots, report
from redimnet_jax.training import monitoring
from redimnet_jax.training.progress import Progress
from redimnet_jax.trials import Trials

logger = logging.getLogger(__name__)


def write(
    workdir: Path,
    progress: Progress,
    trials: Trials,
    dims: Sequence[int],
    averaged: Mapping[str, Any] | None = None,
) -> None:
    """Write and log the results of a run with that `progress`.

    `averaged` are the results, with their `epochs`, of the mean of the last models.
    """
    history = progress.history
    best = progress.best
    assert best is not None
    results = best_results(progress)
    systems: dict[str, Any] = {} if progress.pretrained is None else {"pretrained": progress.pretrained}
    if history[0]["step"] == 0:
        systems["step 0"] = {"dims": history[0]["dims"]}
    systems[f"best (epoch {best.epoch})"] = results
    last = next(entry for entry in reversed(history) if "dims" in entry)
    if last["step"] != best.step:
        systems[f"last (epoch {last['epoch']})"] = {"dims": last["dims"]}
    if averaged is not None:
        systems[f"average (epochs {averaged['epochs'][0]} to {averaged['epochs'][-1]})"] = averaged
    tables = [report.table(systems)]
    scores = {"cosine": monitoring.read_scores(workdir, best.step)}
    output.write(workdir, trials, dims, scores, results, systems, tables)
    entries = {"history": history, "best": dataclasses.asdict(best), "averaged": averaged}
    report.write_json(workdir / "history.json", entries)
    plots.save(plots.training_curves(history), workdir / "training.png")
    logger.info("\n" + "\n".join(table.text() for table in tables))
    logger.info("Intervals are 95%, over resampled speakers; a difference within them is no progress.")
    logger.info(f"best model: {workdir / 'best'}; results.json, results.md and plots are in {workdir}")


def best_results(progress: Progress) -> dict[str, Any]:
    """Return what `results.json` holds: the figures of the best model, see `report`."""
    return {"score": "cosine", "dims": progress.best_entry()["dims"]}
