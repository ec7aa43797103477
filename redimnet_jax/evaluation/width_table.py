"""The EER of narrow, compressed and short embeddings: width x format x duration of the recordings."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from redimnet_jax import metrics
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.embedding import codes
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.evaluation import confidence, report
from redimnet_jax.evaluation.protocol import TrialSet

WIDTHS = (8, 16, 32, 64, 96, 128, 192, 256)
SECONDS = (1.0, 2.0, 3.0)
WHOLE = "whole"


def conditions(max_seconds: float) -> dict[str, CropPolicy]:
    """Return what is embedded of every recording, by duration: the middle 1, 2 and 3 s, and all of it."""
    crops = {f"{seconds:g}": CropPolicy(seconds, 1, max_seconds) for seconds in SECONDS}
    return crops | {WHOLE: CropPolicy(max_seconds=max_seconds)}


def figures(
    embed: Callable[[CropPolicy], np.ndarray],
    trial_set: TrialSet,
    max_seconds: float,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return the EER of every combination, as `results.json` has it.

    `embed` returns the raw embeddings (recordings, 1, embed_dim) of the segments that a policy chooses.
    """
    trials = trial_set.trials
    samples = np.asarray(trial_set.recordings.samples)
    results: dict[str, Any] = {}
    for duration, policy in conditions(max_seconds).items():
        embeddings = embed(policy)[:, 0]
        widths = [width for width in WIDTHS if width <= embeddings.shape[1]]
        shorter = 0 if duration == WHOLE else int((samples < float(duration) * SAMPLE_RATE).sum())
        results[duration] = {"shorter_recordings": shorter, "formats": {}}
        for form in codes.FORMS:
            scores = np.asarray(codes.score_trials(embeddings, trials.left, trials.right, widths, form))
            intervals = confidence.bootstrap(
                scores, trials.labels, *trial_set.speaker_numbers(), resamples=resamples, seed=seed
            ).eer
            results[duration]["formats"][form] = {
                str(width): {"eer": metrics.eer(row, trials.labels), "eer_ci95": interval.tolist()}
                for width, row, interval in zip(widths, scores, intervals, strict=True)
            }
    return results


def table(results: dict[str, Any]) -> report.Table:
    """Return the EERs with their intervals, a row for every width and format and a column for every duration."""
    durations = list(results)
    first = results[durations[0]]["formats"]
    header = ["dim", "format", "bytes", *(f"EER % {_shown(duration)}" for duration in durations)]
    rows = []
    for form in first:
        for width in first[form]:
            entries = [results[duration]["formats"][form][width] for duration in durations]
            cells = [f"{report.percent(each['eer'])} [{_bounds(each['eer_ci95'])}]" for each in entries]
            rows.append([width, form, str(_size(int(width), form)), *cells])
    return report.Table("EER by width, format and duration, with 95 % intervals", header, rows)


def _shown(duration: str) -> str:
    return duration if duration == WHOLE else f"{duration} s"


def _bounds(interval: Sequence[float]) -> str:
    return report.interval(interval).replace(" to ", ", ")


def _size(width: int, form: codes.Form) -> int:
    """Return the bytes of a code."""
    code = codes.encode(np.zeros((1, width), np.float32), width, form)
    return code.nbytes
