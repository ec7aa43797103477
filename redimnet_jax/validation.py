"""What a run is judged by: trials of speakers it never trains on, and the recordings they name."""

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from redimnet_jax import audio, subset, trials
from redimnet_jax.embedding import Recordings
from redimnet_jax.errors import UserError
from redimnet_jax.trials import Trials


class AudioFiles:
    """Files below `root` as recordings; raises UserError at once when one is missing or unreadable.

    `without_signal` are the names of those that hold no signal: their scores with each other mean nothing.
    """

    def __init__(self, root: Path, names: Sequence[str]):
        self.root, self.names = root, names
        missing = [name for name in names if not (root / name).is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(names)} recordings of the trials are not below {root}, the first "
                f"{missing[0]!r}; check the audio root."
            )
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(lambda name: audio.inspect(root / name), names))
        self.samples = np.array([each.samples for each in found], np.int64)
        self.without_signal = [name for name, each in zip(names, found, strict=True) if not each.has_signal]
        if self.without_signal:
            more = len(self.without_signal) - 3
            print(
                f"{len(self.without_signal)} of {len(names)} recordings hold no signal; their scores mean nothing: "
                + ", ".join(map(repr, self.without_signal[:3]))
                + (f" ... and {more} more" if more > 0 else ""),
                file=sys.stderr,
            )

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        return audio.read(self.root / self.names[index], start, samples)


@dataclasses.dataclass(frozen=True)
class Validation:
    """Trials, the recordings they number, the speaker of every recording (its name), and where they come from."""

    trials: Trials
    recordings: Recordings
    speakers: list[str]
    description: str


def from_list(path: str | Path, audio_root: str | Path | None = None, corpus=None) -> Validation:
    """The trials in the list at `path`, of files below `audio_root` (default: the list's folder) or of `corpus`."""
    listed = trials.read(path)
    if corpus is None:
        recordings = AudioFiles(Path(audio_root) if audio_root else Path(path).parent, listed.names)
        speakers = [trials.speaker_of_path(name) for name in listed.names]
    else:
        recordings = subset.named(corpus, listed.names)
        speakers = [recordings.speakers[label] for label in recordings.labels]
    return Validation(listed, recordings, speakers, f"{len(listed):,} trials of {path}")


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
    for kind in ("one class", "self", "label", "duplicate"):
        if kind in problems:
            raise UserError(f"{validation.description}: {problems[kind]}")
