"""Verification results of a model: scores of the trials and error rates of every prefix."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from redimnet_jax import metrics, scoring
from redimnet_jax.embedding.extract import embed_pooled
from redimnet_jax.evaluation import confidence
from redimnet_jax.evaluation.enrolment import Enrolled, sides
from redimnet_jax.evaluation.protocol import Validation
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.trials import Trials

P_TARGETS = (0.01, 0.05)


def evaluate(
    model: SpeakerModel,
    pooled: np.ndarray,
    validation: Validation,
    dims: Sequence[int],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """(results, scores (dims, trials), raw embeddings (recordings, crops, embed_dim)).

    `pooled` are the recordings' pooled features, see `embedding.pool_recordings`; the results are `results_of`'s.
    """
    embeddings = embed_pooled(model, pooled)
    scores = cosines(embeddings, validation, dims)
    return results_of(scores, validation, dims, bootstrap=bootstrap, seed=seed), scores, embeddings


def cosines(embeddings: np.ndarray, validation: Validation, dims: Sequence[int]) -> np.ndarray:
    """Scores (dims, trials), float32, of the recordings' raw `embeddings` (recordings, crops, embed_dim)."""
    if not isinstance(validation, Enrolled):
        return _cosines(embeddings, validation.trials, dims)
    each = (_cosines(sides(embeddings, validation, dim), validation.trials, (dim,)) for dim in dims)
    return np.concatenate(list(each))


def speaker_sides(validation: Validation) -> tuple[np.ndarray, np.ndarray]:
    """The number of the speaker of both sides of every trial, int (trials,) each."""
    speakers = np.unique(validation.speakers, return_inverse=True)[1]
    return speakers[validation.trials.left], speakers[validation.trials.right]


def results_of(
    scores: np.ndarray, validation: Validation, dims: Sequence[int], *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """{"dims": {dim: figures}} of `scores` (dims, trials): what `results.json` holds.

    EER, its threshold, the accuracy there and the interval are fractions; the interval is the speaker bootstrap's.
    """
    labels = validation.trials.labels
    speakers = speaker_sides(validation)
    intervals = confidence.bootstrap(scores, labels, *speakers, resamples=bootstrap, seed=seed).eer
    # NumPy sorts outside the interpreter's lock, so the dimensions need not wait for one another.
    with ThreadPoolExecutor() as pool:
        figures = pool.map(lambda row, interval: _figures(row, labels, interval), scores, intervals)
        return {"dims": {str(dim): entry for dim, entry in zip(dims, figures, strict=True)}}


def _cosines(sides: np.ndarray, of: Trials, dims: Sequence[int]) -> np.ndarray:
    # A single crop needs no mean, and takes one pass for all dimensions.
    one = sides.shape[1] == 1
    score = scoring.score_trials if one else scoring.score_crops
    return np.asarray(score(sides[:, 0] if one else sides, of.left, of.right, dims))


def _figures(scores: np.ndarray, labels: np.ndarray, interval: Sequence[float]) -> dict[str, Any]:
    curve = metrics.roc(scores, labels)
    threshold = curve.eer_threshold()
    return {
        "eer": curve.eer(),
        "eer_ci95": [float(bound) for bound in interval],
        "threshold": threshold,
        "accuracy": metrics.accuracy(scores, labels, threshold),
        "min_dcf": {f"{p:g}": curve.min_dcf(p) for p in P_TARGETS},
        "target_mean": float(np.mean(scores[labels], dtype=np.float64)),
        "nontarget_mean": float(np.mean(scores[~labels], dtype=np.float64)),
        "trials": len(labels),
    }
