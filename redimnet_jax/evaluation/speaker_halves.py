"""Two halves of a trial list without a common speaker: one to fit a calibration on, one to judge it."""

import dataclasses

import numpy as np

from redimnet_jax.data.recordings import AudioFiles, Recordings, Subset
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation.protocol import Enrolment, TrialSet
from redimnet_jax.trials import Trials


def halves(trial_set: TrialSet, seed: int) -> tuple[TrialSet, TrialSet, int]:
    """Return the trials within either half of the speakers, drawn with `seed`, and how many are in neither.

    The larger half of an odd number of speakers is the second. Raise UserError when a half lacks a class.
    """
    first, second = (
        select_trials(trial_set, mask, f"half of the speakers of {trial_set.description}")
        for mask in half_masks(trial_set, seed)
    )
    return first, second, len(trial_set.trials) - len(first.trials) - len(second.trials)


def half_masks(trial_set: TrialSet, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which trials are within the first half of the speakers, and which within the second: bool (trials,)."""
    speakers = len(set(trial_set.speakers))
    in_first = np.zeros(speakers, bool)
    in_first[np.random.default_rng(seed).permutation(speakers)[: speakers // 2]] = True
    left, right = (in_first[side] for side in trial_set.speaker_numbers())
    masks = (left & right, ~left & ~right)
    for name, mask in zip(("first", "second"), masks, strict=True):
        labels = trial_set.trials.labels[mask]
        if labels.all() or not labels.any():  # True of none, too.
            raise UserError(
                f"The {name} half of the {speakers} speakers of {trial_set.description} has not both target and "
                "non-target trials; give trials of more speakers."
            )
    return masks


def select_trials(trial_set: TrialSet, mask: np.ndarray, source: str) -> TrialSet:
    """Return the trials of `mask` (trials,), which are of `source`, with the names and recordings that they need."""
    trials = trial_set.trials
    names, sides = np.unique(np.stack([trials.left[mask], trials.right[mask]]), return_inverse=True)
    left, right = sides.reshape(2, -1).astype(np.int32)
    kept = Trials([trials.names[i] for i in names], left, right, trials.labels[mask])
    enrolment, recordings = None, names
    if trial_set.enrolment is not None:
        members = np.flatnonzero(np.isin(trial_set.enrolment.names, names))
        recordings, numbers = np.unique(trial_set.enrolment.recordings[members], return_inverse=True)
        of = np.searchsorted(names, trial_set.enrolment.names[members])
        enrolment = Enrolment(of, numbers, trial_set.enrolment.is_model[names])
    return dataclasses.replace(
        trial_set,
        trials=kept,
        recordings=_chosen(trial_set.recordings, recordings),
        speakers=[trial_set.speakers[i] for i in names],
        description=f"{len(kept):,} trials of {source}",
        enrolment=enrolment,
    )


def _chosen(recordings: Recordings, index: np.ndarray) -> Recordings:
    if isinstance(recordings, AudioFiles):
        return recordings.subset(index)
    assert isinstance(recordings, Subset)  # All recordings of trials are files or a part of a corpus.
    return Subset(recordings, index)
