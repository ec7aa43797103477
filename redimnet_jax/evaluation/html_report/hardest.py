"""The hardest trials of an evaluation: the worst false acceptances and the worst false rejections."""

from typing import NamedTuple

import numpy as np

from redimnet_jax.evaluation.protocol import TrialSet

MOST = 10  # trials of each kind


class Hard(NamedTuple):
    """A trial by its number, with its score."""

    trial: int
    score: float


def false_acceptances(scores: np.ndarray, trial_set: TrialSet, threshold: float, most: int = MOST) -> list[Hard]:
    """Return the non-target trials of the highest `scores` (trials,) at or above `threshold`, the worst first.

    Every pair of speakers is there once, with its worst trial: the next nine would say the same.
    """
    return _worst(scores, ~trial_set.trials.labels & (scores >= threshold), -scores, trial_set, most)


def false_rejections(scores: np.ndarray, trial_set: TrialSet, threshold: float, most: int = MOST) -> list[Hard]:
    """Return the target trials of the lowest `scores` (trials,) below `threshold`, every speaker once."""
    return _worst(scores, trial_set.trials.labels & (scores < threshold), scores, trial_set, most)


def _worst(scores: np.ndarray, wrong: np.ndarray, order: np.ndarray, trial_set: TrialSet, most: int) -> list[Hard]:
    left, right = trial_set.speaker_numbers()
    candidates = np.flatnonzero(wrong)
    candidates = candidates[np.argsort(order[candidates], kind="stable")]
    pairs = np.stack([np.minimum(left, right), np.maximum(left, right)], axis=1)[candidates]
    first = np.unique(pairs, axis=0, return_index=True)[1]
    return [Hard(int(trial), float(scores[trial])) for trial in candidates[np.sort(first)[:most]]]
