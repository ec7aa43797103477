"""The files that an evaluation writes: scores, results as JSON and as tables, and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import files, names
from redimnet_jax.evaluation import plots, report, score_file
from redimnet_jax.evaluation.protocol import TrialSet


def write(
    folder: Path,
    trial_set: TrialSet,
    dims: Sequence[int],
    scores: Mapping[str, np.ndarray],
    llrs: np.ndarray | None,
    results: Mapping[str, Any],
    systems: Mapping[str, report.Results],
    tables: Sequence[report.Table],
) -> None:
    """Write `scores.tsv` with its checksum, `results.json`, `results.md`, `det.png`, `scores.png`, `dimensions.png`.

    `scores` has (dims, trials) by kind. The last kind is the one that `results` and the plots show; the others go to
    `KIND.tsv`. With log-likelihood ratios `llrs` (dims, trials) there is `calibration.png`. `dimensions.png` shows
    all `systems`, and `results.md` has all `tables`. `html_report.write` writes the page that shows all of it.
    """
    trials = trial_set.trials
    *other_kinds, final = scores
    score_file.write(folder / "scores.tsv", trials, dims, scores[final])
    for kind in other_kinds:
        score_file.write(folder / f"{kind}.tsv", trials, dims, scores[kind])
    report.write_json(folder / "results.json", results)
    sections = (f"## {names.one_line(table.title)}\n\n{table.markdown()}" for table in tables)
    files.write(folder / "results.md", "\n".join(sections))
    plots.save(plots.det_curves(scores[final], trials.labels, dims), folder / "det.png")
    plots.save(plots.score_histograms(scores[final], trials.labels, dims, results), folder / "scores.png")
    plots.save(plots.eer_by_dimension(systems), folder / "dimensions.png")
    if llrs is not None:
        plots.save(plots.reliability(llrs, trials.labels, dims), folder / "calibration.png")
