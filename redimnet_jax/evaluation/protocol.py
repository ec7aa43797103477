"""What a run is judged by: trials of speakers it never trains on, and the recordings they name."""

import dataclasses
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from redimnet_jax import trials, utterance_speakers
from redimnet_jax.data import audio, subset
from redimnet_jax.embedding.extract import Recordings
from redimnet_jax.errors import UserError, shown, some_of
from redimnet_jax.names import normalised
from redimnet_jax.trials import Trials
from redimnet_jax.utterance_speakers import SpeakerRule

Roots = str | Path | Sequence[str | Path]
BY_FOLDER = SpeakerRule()


class AudioFiles:
    """Files as recordings: each name is the file of that path below the first of the `roots` that has one.

    Raises UserError at once when a file is in none of them or unreadable. `without_signal` names those that hold no
    signal: their scores with each other mean nothing.
    """

    def __init__(self, roots: Sequence[Path], names: Sequence[str]):
        self.names = names
        with ThreadPoolExecutor() as pool:
            self.paths = _located(roots, names, pool)
            inspections = list(pool.map(audio.inspect, self.paths))
        self.samples = np.array([inspection.samples for inspection in inspections], np.int64)
        self.without_signal = [
            name for name, inspection in zip(names, inspections, strict=True) if not inspection.has_signal
        ]
        if self.without_signal:
            print(
                f"{len(self.without_signal)} of {len(names)} recordings hold no signal; their scores mean nothing: "
                f"{some_of(map(shown, self.without_signal))}",
                file=sys.stderr,
            )

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def source(self, index: int) -> Path:
        return self.paths[index]

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        return audio.read(self.paths[index], start, samples)


def _located(roots: Sequence[Path], names: Sequence[str], pool: ThreadPoolExecutor) -> list[Path]:
    """The file of every name; UserError when some are below none of the `roots`."""

    def locate(name: str) -> Path | None:
        paths = (root / normalised(name) for root in roots)
        # Of os.path, which takes a name that no file can have for one that is not there.
        return next((path for path in paths if os.path.isfile(path)), None)

    paths = list(pool.map(locate, names))
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} recordings of the trials are not below {some_of(roots)}, the first "
            f"{missing[0]!r}; check the audio root."
        )
    return paths


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
        return subset.named(corpus, names)
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
    recordings = subset.named(corpus, made.names)
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
