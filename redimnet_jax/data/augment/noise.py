"""Additive noise: files of noise, music and speech, babble of several talkers, and white noise."""

import copy
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from redimnet_jax import buckets
from redimnet_jax.data.augment.sounds import list_audio, random_segment, random_speech
from redimnet_jax.data.augment.step import Range, Step, at_power, mix
from redimnet_jax.data.recordings import Utterances
from redimnet_jax.errors import UserError

CATEGORIES = ("noise", "music", "speech")


@dataclass(frozen=True, kw_only=True)
class NoiseFolder(Step):
    """Noise from the files of `folder`.

    As in MUSAN, files under its subfolders `music` and `speech` are music and speech; all others are noise. A
    category is drawn uniformly from those present. For speech, several files (`talkers`) are summed at equal power
    (babble). The ranges (dB) are
    those of Snyder et al., "X-Vectors: Robust DNN Embeddings for Speaker Recognition", ICASSP 2018.
    """

    folder: str
    noise: Range = (0.0, 15.0)
    music: Range = (5.0, 15.0)
    speech: Range = (13.0, 20.0)
    talkers: Range = (3, 7)
    root: str = field(init=False, repr=False)
    files: dict[str, tuple[str, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_talkers(self, self.talkers)
        files: dict[str, list[str]] = {}
        object.__setattr__(self, "root", str(buckets.staged(self.folder)))
        for name in list_audio(self.root, self.where("folder")):
            top = name.partition("/")[0]
            files.setdefault(top if top in CATEGORIES else "noise", []).append(name)
        object.__setattr__(self, "files", {category: tuple(names) for category, names in sorted(files.items())})

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        category = tuple(self.files)[rng.integers(len(self.files))]
        names = self.files[category]
        low, high = self.talkers if category == "speech" else (1, 1)
        noise = np.zeros_like(waveform)
        for _ in range(rng.integers(int(low), int(high) + 1)):
            path = f"{self.root}/{names[rng.integers(len(names))]}"
            noise += at_power(random_segment(path, len(waveform), rng), 1.0)
        return mix(waveform, noise, rng.uniform(*getattr(self, category)))


def check_talkers(step: Step, talkers: Range) -> None:
    """Raise UserError unless the numbers of talkers of `step` are 1 or more."""
    if talkers[0] < 1:
        raise UserError(f"{step.where('talkers')} is {talkers!r}, so give numbers of files from 1 up.")


@dataclass(frozen=True, kw_only=True)
class Noise(Step):
    """Noise of one file of `folder`, `snr` decibels below the signal; ranges are those of `NoiseFolder`."""

    folder: str
    snr: Range = (0.0, 15.0)
    root: str = field(init=False, repr=False)
    files: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "root", str(buckets.staged(self.folder)) if self.folder else "")
        object.__setattr__(self, "files", list_audio(self.root, self.where("folder")) if self.folder else ())

    def sound(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Return a random stretch of a random file, float32 (samples,)."""
        return random_segment(f"{self.root}/{self.files[rng.integers(len(self.files))]}", samples, rng)

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return mix(waveform, self.sound(len(waveform), rng), rng.uniform(*self.snr))


@dataclass(frozen=True, kw_only=True)
class Music(Noise):
    """Music of one file of `folder`, `snr` decibels below the signal."""

    snr: Range = (5.0, 15.0)


@dataclass(frozen=True, kw_only=True)
class Speech(Noise):
    """Speech of one recording, `snr` decibels below the signal.

    The recording is of `folder`, or without one of the training corpus, of any of its speakers.
    """

    folder: str = ""
    snr: Range = (13.0, 20.0)
    corpus: Utterances | None = field(init=False, repr=False, compare=False, default=None)

    def on(self, corpus: Utterances) -> Self:
        """Return the step whose speech is that of `corpus`, unless it has a folder."""
        if self.folder:
            return self
        made = copy.copy(self)
        object.__setattr__(made, "corpus", corpus)
        return made

    def sound(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        if self.folder:
            return super().sound(samples, rng)
        if self.corpus is None:
            raise UserError(f"{self.where('folder')} is empty and there is no corpus, so give a folder of speech.")
        return random_speech(self.corpus, samples, rng)


@dataclass(frozen=True, kw_only=True)
class Babble(Speech):
    """The sum of `talkers` recordings of speech, each at its own level, `snr` decibels below the signal."""

    talkers: Range = (3, 7)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_talkers(self, self.talkers)

    def sound(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        babble = np.zeros(samples, np.float32)
        for _ in range(rng.integers(int(self.talkers[0]), int(self.talkers[1]) + 1)):
            babble += super().sound(samples, rng)
        return babble


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Step):
    """White Gaussian noise, `snr` decibels below the signal."""

    snr: Range = (10.0, 40.0)

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal(len(waveform), dtype=np.float32)
        return mix(waveform, noise, rng.uniform(*self.snr))
