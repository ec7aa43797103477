"""What a run is judged by: trials of speakers it never trains on, and the recordings they name."""

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import trials, utterance_speakers
from redimnet_jax.data.recordings import AudioFiles, Recordings, select
from redimnet_jax.errors import UserError, shown, some_of
from redimnet_jax.trials import Trials
from redimnet_jax.utterance_speakers import SpeakerRule

Roots = str | Path | Sequence[str | Path]
BY_FOLDER = SpeakerRule()

logger = logging.getLogger(__name__)


def audio_roots(wanted: Roots | None, listed: str | Path) -> list[Path]:
    """Returns the folders that the paths of the list `listed` are relative to: `wanted`, or else its own folder.

    A str names one folder, or several with commas between them, unless there is a folder of that name.
    """
    if not wanted:
        return [Path(listed).parent]
    if isinstance(wanted, str) and "," in wanted and not os.path.isdir(wanted):
        wanted = [part.strip() for part in wanted.split(",") if part.strip()]
    roots = [wanted] if isinstance(wanted, str | Path) else wanted
    if not isinstance(roots, Sequence) or not all(isinstance(root, str | Path) for root in roots):
        raise UserError(f"audio_root is {wanted!r} but must be a folder, or several with commas between them.")
    return list(map(Path, roots))


def find_recordings(names: Sequence[str], listed: str | Path, audio_root: Roots | None, corpus) -> Recordings:
    """Returns the recordings `names` of the list at `listed`: of `corpus`, or else files; see `audio_roots`."""
    if corpus is not None:
        return select(corpus, names)
    return AudioFiles(audio_roots(audio_root, listed), names)


@dataclasses.dataclass(frozen=True)
class Validation:
    """Trials, the recordings they number, the speaker of every recording (its name), and where they come from.

    `speakers_from` says in a sentence what the speakers are taken from.
    """

    trials: Trials
    recordings: Recordings
    speakers: list[str]
    description: str
    speakers_from: str = dataclasses.field(default="the speakers", kw_only=True)

    def sides_with(self, recordings: np.ndarray) -> np.ndarray:
        """Return which names of the trials stand for one of `recordings`, bool (recordings,): bool (names,)."""
        return recordings


def find_no_signal(validation: Validation) -> dict[str, Any] | None:
    """Return {"recordings": names, "trials": count} of recordings without signal and their trials; None without any.

    Only recordings that are files have to be looked at, because a corpus leaves out what holds no signal.
    """
    recordings = validation.recordings
    if not isinstance(recordings, AudioFiles) or not recordings.without_signal.any():
        return None
    sides = validation.sides_with(recordings.without_signal)
    return {
        "recordings": [recordings.name(i) for i in np.flatnonzero(recordings.without_signal).tolist()],
        "trials": int((sides[validation.trials.left] | sides[validation.trials.right]).sum()),
    }


def warn_of_no_signal(validation: Validation) -> None:
    """Log a warning when recordings hold no signal: their embeddings are alike, so their scores mean nothing."""
    silent = find_no_signal(validation)
    if silent is not None:
        logger.warning(
            "%s of %s recordings hold no signal, so the scores of the %s trials that they are in mean nothing: %s",
            f"{len(silent['recordings']):,}",
            f"{len(validation.recordings):,}",
            f"{silent['trials']:,}",
            some_of(map(shown, silent["recordings"])),
        )


def from_list(
    path: str | Path, audio_root: Roots | None = None, corpus=None, speaker_rule: SpeakerRule = BY_FOLDER
) -> Validation:
    """Returns the trials in the list at `path`, of files (see `audio_roots`) or of `corpus`.

    Speakers are those that `utterance_speakers.speakers_of` finds. Raises UserError when a recording or its speaker
    is not found.
    """
    listed = trials.read(path)
    recordings = find_recordings(listed.names, path, audio_root, corpus)
    known = None if corpus is None else recordings
    return Validation(
        listed,
        recordings,
        utterance_speakers.speakers_of(listed.names, speaker_rule, known, path),
        f"{len(listed):,} trials of {path}",
        speakers_from=utterance_speakers.origin(speaker_rule, corpus),
    )


def from_corpus(
    corpus, *, count: int, seed: int, sexes: Mapping[str, str] | None = None, description: str = "a corpus"
) -> Validation:
    """`count` balanced trials of `corpus`, or as many as it has; see `trials.generate`."""
    made = trials.generate(corpus, count=min(count, most_trials(corpus.labels)), seed=seed, sexes=sexes)
    recordings = select(corpus, made.names)
    speakers = [recordings.speakers[label] for label in recordings.labels]
    return Validation(made, recordings, speakers, f"{len(made):,} trials made of {description}")


def most_trials(labels: np.ndarray) -> int:
    """How many balanced trials utterances of the speakers `labels` can have: twice the pairs of one speaker."""
    sizes = np.bincount(labels)
    targets = int((sizes * (sizes - 1) // 2).sum())
    if targets == 0:
        raise UserError(
            "No validation speaker has two utterances, so there are no target trials; give validation.trials, or a "
            "validation.tree with several utterances a speaker."
        )
    return 2 * targets


def check(validation: Validation, training_speakers: Collection[str], allow_shared: bool) -> None:
    """Raises UserError when the trials cannot be what the run is judged by; see `trials.check`."""
    of = dict(zip(validation.trials.names, validation.speakers, strict=True))
    problems = trials.check(validation.trials, training_speakers=training_speakers, speaker_of=of)
    if allow_shared:
        problems.pop("shared", None)
    elif "shared" in problems:
        raise UserError(
            problems["shared"].removesuffix("; leave them out of one of the two.")
            + ", and an EER on speakers that were trained on says nothing about others; leave them out, or set "
            "validation.allow_shared_speakers=True."
        )
    if "label" in problems:
        labels = problems["label"].replace("the speakers", validation.speakers_from, 1).removesuffix(".")
        problems["label"] = f"{labels}, or {utterance_speakers.OPTIONS}."
    for kind in ("one class", "self", "label", "duplicate"):
        if kind in problems:
            raise UserError(f"{validation.description}: {problems[kind]}")
