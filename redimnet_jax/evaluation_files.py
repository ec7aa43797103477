"""What an evaluation leaves in a folder: scores, results as JSON and as a table, and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import files, plots, report, score_file
from redimnet_jax.trials import Trials


def write(
    folder: Path,
    of: Trials,
    dims: Sequence[int],
    scores: np.ndarray,
    results: Mapping[str, Any],
    systems: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes `scores.tsv`, `results.json`, `results.md`, `det.png`, `scores.png` and `dimensions.png`.

    `scores` (dims, trials) and `results` are those of one system; the table and the last plot show all `systems`.
    """
    systems = systems or {"model": results}
    score_file.write(folder / "scores.tsv", of, dims, scores)
    report.write_json(folder / "results.json", results)
    files.write(folder / "results.md", report.markdown_table(systems))
    plots.save(plots.det_curves(scores, of.labels, dims), folder / "det.png")
    plots.save(plots.score_histograms(scores, of.labels, dims, results), folder / "scores.png")
    plots.save(plots.eer_by_dimension(systems), folder / "dimensions.png")
