"""Figures beside those of the whole list: identification, groups of trials, and widths, formats and durations."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.evaluation import identification, report, subgroups, width_table
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.evaluation.settings import EvaluationSettings
from redimnet_jax.evaluation.subgroups import Grouping

logger = logging.getLogger(__name__)


def add(
    results: dict[str, Any],
    settings: EvaluationSettings,
    trial_set: TrialSet,
    dims: Sequence[int],
    scores: np.ndarray,
    embeddings: np.ndarray,
    groupings: Sequence[Grouping],
    embed: Callable[[CropPolicy], np.ndarray],
) -> list[report.Table]:
    """Add "identification", "subgroups" and "widths" to `results`, and return their tables.

    `scores` (dims, trials) are the final ones, `embeddings` (recordings, crops, embed_dim) the raw ones. `embed`
    returns the embeddings of other segments of the recordings.
    """
    resampling = {"resamples": settings.bootstrap, "seed": settings.seed}
    tables = []
    found = identification.figures(
        embeddings, trial_set, dims, enrol_utterances=settings.enrol_utterances, **resampling
    )
    results["identification"] = found
    if "reason" in found:
        logger.info(f"identification: {found['reason']}")
    if "dims" in found:
        tables.append(identification.table(found))
    thresholds = [results["dims"][str(dim)]["threshold"] for dim in dims]
    if groupings:
        results["subgroups"] = {}
    for grouping in groupings:
        groups = subgroups.figures(scores, trial_set, dims, thresholds, grouping, **resampling)
        results["subgroups"][grouping.name] = groups
        tables.append(subgroups.table(grouping.name, groups))
    if settings.table:
        results["widths"] = width_table.figures(embed, trial_set, settings.max_seconds, **resampling)
        tables.append(width_table.table(results["widths"]))
    return tables
