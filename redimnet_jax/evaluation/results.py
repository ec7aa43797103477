"""Verification results of a model: scores of the trials, and error rates of every dimension."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from redimnet_jax import metrics, scoring
from redimnet_jax.embedding.extract import embed_pooled
from redimnet_jax.evaluation import confidence
from redimnet_jax.evaluation.confidence import P_TARGETS
from redimnet_jax.evaluation.protocol import TrialSet, side_embeddings
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.trials import Trials


def evaluate(
    model: SpeakerModel,
    pooled: np.ndarray,
    trial_set: TrialSet,
    dims: Sequence[int],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return (results, scores (dims, trials), raw embeddings (recordings, crops, embed_dim)) of a model.

    `pooled` has the pooled features of the recordings, see `extract.pool_recordings`; the results are those of
    `error_rates`.
    """
    embeddings = embed_pooled(model, pooled)
    scores = cosine_scores(embeddings, trial_set, dims)
    return error_rates(scores, trial_set, dims, bootstrap=bootstrap, seed=seed), scores, embeddings


def cosine_scores(embeddings: np.ndarray, trial_set: TrialSet, dims: Sequence[int]) -> np.ndarray:
    """Return the cosine scores, float32 (dims, trials), of raw `embeddings` (recordings, crops, embed_dim)."""
    if trial_set.enrolment is None:
        return _cosines(embeddings, trial_set.trials, dims)
    rows = [_cosines(side_embeddings(embeddings, trial_set, dim), trial_set.trials, (dim,)) for dim in dims]
    return np.concatenate(rows)


def error_rates(
    scores: np.ndarray, trial_set: TrialSet, dims: Sequence[int], *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return {"dims": {dim: figures}} of `scores` (dims, trials), as `results.json` has them.

    The EER, the accuracy at its threshold and its interval are fractions. The interval is that of `bootstrap`
    resamples of the speakers, drawn with `seed`.
    """
    labels = trial_set.trials.labels
    intervals = confidence.bootstrap(scores, labels, *trial_set.speaker_numbers(), resamples=bootstrap, seed=seed).eer
    # NumPy sorts outside the interpreter's lock, so the dimensions need not wait for one another.
    with ThreadPoolExecutor() as pool:
        figures = pool.map(lambda row, interval: _figures(row, labels, interval), scores, intervals)
        return {"dims": {str(dim): entry for dim, entry in zip(dims, figures, strict=True)}}


def _cosines(embeddings: np.ndarray, trials: Trials, dims: Sequence[int]) -> np.ndarray:
    """Return the scores (dims, trials) of `embeddings` (names, crops, width), each the mean over pairs of crops."""
    if embeddings.shape[1] == 1:  # A single crop needs no mean, and takes one pass for all dimensions.
        return np.asarray(scoring.score_trials(embeddings[:, 0], trials.left, trials.right, dims))
    return np.asarray(scoring.score_crops(embeddings, trials.left, trials.right, dims))


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
