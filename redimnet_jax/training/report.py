"""What a run leaves at its end: tables, JSON, plots and a report of the best model, beside what it started from."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redimnet_jax.evaluation import html_report, output, plots, report
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.training import monitoring
from redimnet_jax.training.progress import Progress

logger = logging.getLogger(__name__)


def write(
    workdir: Path,
    progress: Progress,
    trial_set: TrialSet,
    dims: Sequence[int],
    averaged: Mapping[str, Any] | None = None,
    *,
    players: str = "embed",
) -> None:
    """Write and log the results of a run with that `progress`, validated on `trial_set`.

    `averaged` are the results, with their `epochs`, of the mean of the last models. `players` is one of
    `evaluation.settings.PLAYERS`.
    """
    results = best_results(progress)
    systems = _systems(progress, averaged)
    tables = [report.table(systems)]
    assert progress.best is not None
    scores = {"cosine": monitoring.read_scores(workdir, progress.best.step)}
    output.write(workdir, trial_set, dims, scores, None, results, systems, tables)
    entries = {
        "history": progress.history,
        "best": dataclasses.asdict(progress.best),
        "averaged": averaged,
    }
    report.write_json(workdir / "history.json", entries)
    plots.save(plots.training_curves(progress.history), workdir / "training.png")
    write_page(workdir, progress, trial_set, dims, averaged, players=players)
    logger.info("\n" + "\n".join(table.text() for table in tables))
    logger.info("Intervals are 95%, over resampled speakers; a difference within them is no progress.")
    logger.info(f"best model: {workdir / 'best'}; report.html, results.json, results.md and plots are in {workdir}")


def write_page(
    workdir: Path,
    progress: Progress,
    trial_set: TrialSet,
    dims: Sequence[int],
    averaged: Mapping[str, Any] | None = None,
    *,
    players: str = "none",
) -> None:
    """Write `report.html` of a run as far as it has come; the arguments are those of `write`."""
    assert progress.best is not None
    scores = monitoring.read_scores(workdir, progress.best.step)
    page = html_report.Report(
        f"Training run {workdir.name}",
        trial_set,
        dims,
        scores,
        best_results(progress),
        _systems(progress, averaged),
        progress.history,
        players=players,
    )
    html_report.write(workdir / "report.html", page)


def _systems(progress: Progress, averaged: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the results of what the run started from, of its best and last models, and of their average."""
    history = progress.history
    best = progress.best
    assert best is not None
    systems: dict[str, Any] = {} if progress.pretrained is None else {"pretrained": progress.pretrained}
    if history[0]["step"] == 0:
        systems["step 0"] = {"dims": history[0]["dims"]}
    systems[f"best (epoch {best.epoch})"] = best_results(progress)
    last = next(entry for entry in reversed(history) if "dims" in entry)
    if last["step"] != best.step:
        systems[f"last (epoch {last['epoch']})"] = {"dims": last["dims"]}
    if averaged is not None:
        systems[f"average (epochs {averaged['epochs'][0]} to {averaged['epochs'][-1]})"] = averaged
    return systems


def best_results(progress: Progress) -> dict[str, Any]:
    """Return what `results.json` holds: the figures of the best model, see `report`."""
    return {"score": "cosine", "dims": progress.best_entry()["dims"]}
