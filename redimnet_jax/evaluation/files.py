"""What an evaluation leaves in a folder: scores, results as JSON and as a table, and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import files, names
from redimnet_jax.evaluation import plots, report, score_file
from redimnet_jax.trials import Trials


def write(
    folder: Path,
    of: Trials,
    dims: Sequence[int],
    scores: Mapping[str, np.ndarray],
    results: Mapping[str, Any],
    systems: Mapping[str, Mapping[str, Any]],
    tables: Sequence[report.Table],
) -> None:
    """Writes `scores.tsv` with its checksum, `results.json`, `results.md`, `det.png`, `scores.png`, `dimensions.png`.

    `scores` (dims, trials) by kind, of which the last is what `results` and the plots are of; any other kind goes to
    `KIND.tsv`. The last plot shows all `systems`, and `results.md` has all `tables`.
    """
    *others, final = scores
    score_file.write(folder / "scores.tsv", of, dims, scores[final])
    for kind in others:
        score_file.write(folder / f"{kind}.tsv", of, dims, scores[kind])
    report.write_json(folder / "results.json", results)
    sections = (f"## {names.one_line(table.title)}\n\n{table.markdown()}" for table in tables)
    files.write(folder / "results.md", "\n".join(sections))
    plots.save(plots.det_curves(scores[final], of.labels, dims), folder / "det.png")
    plots.save(plots.score_histograms(scores[final], of.labels, dims, results), folder / "scores.png")
    plots.save(plots.eer_by_dimension(systems), folder / "dimensions.png")
