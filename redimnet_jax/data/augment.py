"""Random changes to training waveforms, each of which is switched on separately.

A step is a frozen dataclass that maps (waveform float32 (samples,) at 16 kHz, generator) to a waveform of the same
shape and type; with probability 1 - p it changes nothing. What a step does depends on the generator alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from redimnet_jax import buckets
from redimnet_jax.data import audio, decoding
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.errors import UserError

# Only the start of an impulse response is read: later reflections are inaudible, and memory stays bounded.
MAX_RESPONSE = 5 * SAMPLE_RATE

Range = tuple[float, float]
T = TypeVar("T")


def power(waveform: np.ndarray) -> float:
    """Return the mean square of a waveform (samples,)."""
    return float(np.dot(waveform, waveform)) / len(waveform)


def at_power(waveform: np.ndarray, target: float) -> np.ndarray:
    """Return the waveform scaled to a mean square of `target`; silence stays silence."""
    actual = power(waveform)
    return waveform * np.float32(np.sqrt(target / actual)) if actual > 0 else waveform


def mix(waveform: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Return the sum of both (samples,), the noise scaled to `snr` decibels below the waveform."""
    return waveform + at_power(noise, power(waveform) / 10 ** (snr / 10))


@dataclass(frozen=True, kw_only=True)
class Step:
    """Base of all steps: the probability `p` of a change, and ranges (low, high) of uniform draws."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.p, int | float) or not 0 <= self.p <= 1:
            raise UserError(f"{self.where('p')} is {self.p!r}, so give a probability from 0 to 1.")
        for entry in fields(self):
            if entry.type is Range:
                object.__setattr__(self, entry.name, self._range(entry.name))

    def _range(self, name: str) -> Range:
        value = getattr(self, name)
        try:
            low, high = (float(bound) for bound in value)
        except (TypeError, ValueError):
            raise UserError(f"{self.where(name)} is {value!r}, so give two numbers, (low, high).") from None
        if not (np.isfinite([low, high]).all() and low <= high):
            raise UserError(f"{self.where(name)} is {value!r}, so give two finite numbers, the lower first.")
        return low, high

    def where(self, name: str) -> str:
        """Return how an error names the option `name` of this step."""
        return f"The option {name} of the augmentation step {type(self).__name__}"

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.apply(waveform, rng) if rng.random() < self.p else waveform

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the changed waveform, of the same shape and dtype."""
        raise NotImplementedError


def list_audio(folder: str, where: str) -> tuple[str, ...]:
    """Return the audio files under `folder`, sorted and relative to it.

    Raises UserError, which begins with `where`, when there are none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{where} is {str(folder)!r}, which is no folder, so give one that holds audio files.")
    paths = (path for path in root.rglob("*") if path.suffix.lower() in decoding.SUFFIXES)
    files = tuple(sorted(path.relative_to(root).as_posix() for path in paths))
    if not files:
        raise UserError(
            f"{where} is {str(folder)!r}, under which is no audio file ({' '.join(sorted(decoding.SUFFIXES))})."
        )
    return files


# The lengths of the same noise files are needed again and again; an entry is one number, so many are cheap.
_duration = lru_cache(maxsize=65536)(audio.duration)


def random_segment(path: str, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random segment of a file, float32 (samples,), and repeat shorter files to that length."""
    start = int(rng.integers(max(_duration(path) - samples, 0) + 1))
    segment = audio.read(path, start, samples)
    if not len(segment):
        raise UserError(f"The noise file {path} holds no samples at {start}, so repair or remove it.")
    return np.resize(segment, samples)


@dataclass(frozen=True, kw_only=True)
class Reverberation(Step):
    """Convolution with a random impulse response of `folder`.

    The direct path (the largest sample of the response) stays where the signal was, and the power is kept. Channels
    are averaged; the first 5 s of a response are used.
    """

    folder: str
    root: str = field(init=False, repr=False)
    files: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "root", str(buckets.staged(self.folder)))
        object.__setattr__(self, "files", list_audio(self.root, self.where("folder")))

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from scipy.signal import fftconvolve

        path = f"{self.root}/{self.files[rng.integers(len(self.files))]}"
        response = audio.read(path, 0, MAX_RESPONSE)
        if not response.any():
            raise UserError(f"The impulse response {path} is empty or silent, so repair or remove it.")
        direct = int(np.argmax(np.abs(response)))
        wet = fftconvolve(waveform, response)[direct : direct + len(waveform)]
        return at_power(wet, power(waveform)).astype(np.float32)


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
        if self.talkers[0] < 1:
            raise UserError(f"{self.where('talkers')} is {self.talkers!r}, so give numbers of files from 1 up.")
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


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Step):
    """White Gaussian noise, `snr` decibels below the signal."""

    snr: Range = (10.0, 40.0)

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal(len(waveform), dtype=np.float32)
        return mix(waveform, noise, rng.uniform(*self.snr))


def _slope(ratio: np.ndarray) -> np.ndarray:
    """Return the attenuation of a Butterworth filter of order 4; repeated squares are faster than a power."""
    return np.sqrt(1 + np.square(np.square(np.square(ratio))))


@dataclass(frozen=True, kw_only=True)
class Channel(Step):
    """A random zero-phase channel: a smooth frequency response, a tilt and a pass band; the power is kept.

    Gains from `equaliser` (dB) are drawn at ten frequencies, equally spaced in octaves, and interpolated linearly;
    `tilt` is in dB per octave, around 1 kHz. Below `low` and above `high` (Hz) the response falls by 24 dB per
    octave. In corpora with one recording a speaker it keeps the network from learning the recording.
    """

    equaliser: Range = (-6.0, 6.0)
    tilt: Range = (-2.0, 2.0)
    low: Range = (20.0, 300.0)
    high: Range = (3400.0, 8000.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high"):
            if getattr(self, name)[0] <= 0:
                raise UserError(f"{self.where(name)} is {getattr(self, name)!r}, so give frequencies above 0 Hz.")

    def response(self, frequencies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a random amplitude response, float32, at `frequencies` (Hz)."""
        frequencies = np.maximum(frequencies, 1.0).astype(np.float32)
        octaves = np.log2(frequencies / 1000)
        grid = np.linspace(np.log2(50 / 1000), np.log2(8000 / 1000), 10)
        decibels = (
            np.interp(octaves, grid, rng.uniform(*self.equaliser, len(grid))) + rng.uniform(*self.tilt) * octaves
        )
        low = np.float32(rng.uniform(*self.low))
        high = np.float32(rng.uniform(*self.high))
        gain = np.exp(np.float32(np.log(10) / 20) * decibels.astype(np.float32))
        return gain / (_slope(low / frequencies) * _slope(frequencies / high))

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from scipy import fft

        # Zeros at the end keep the circular convolution from joining both ends of the signal.
        size: Any = fft.next_fast_len(len(waveform) + SAMPLE_RATE // 4, real=True)
        response = self.response(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), rng)
        filtered = fft.irfft(fft.rfft(waveform, size) * response, size)[: len(waveform)]
        return at_power(np.asarray(filtered), power(waveform))


@dataclass(frozen=True, kw_only=True)
class Gain(Step):
    """Change the level by `decibels`."""

    decibels: Range = (-10.0, 10.0)

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return waveform * np.float32(10 ** (rng.uniform(*self.decibels) / 20))


# The steps by their key in a configuration, in the order in which they are applied: the room, the noise in it, the
# channel, the level.
STEPS: dict[str, type[Step]] = {
    "reverberation": Reverberation,
    "noise_folder": NoiseFolder,
    "gaussian_noise": GaussianNoise,
    "channel": Channel,
    "gain": Gain,
}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Play an utterance faster by a factor, which also raises pitch and formants; the factor is drawn uniformly.

    With `new_speakers` a speaker at another speed is another class (Yamamoto et al., "Speaker Augmentation and
    Bandwidth Extension for Deep Speaker Embedding", Interspeech 2019): label = index of the factor * speakers +
    speaker, so that with 1.0 first the labels of the corpus keep their meaning. It is not one of `STEPS`, since it
    needs more of the utterance than the crop and may change the label.
    """

    factors: tuple[float, ...] = (1.0, 0.9, 1.1)
    new_speakers: bool = True

    def __post_init__(self) -> None:
        try:
            factors = tuple(float(factor) for factor in self.factors)
        except (TypeError, ValueError):
            factors = ()
        if not factors or len(set(factors)) < len(factors) or not all(0.5 <= factor <= 2 for factor in factors):
            raise UserError(
                f"The option factors of Speed is {self.factors!r}, so give one or more different ones from 0.5 to 2."
            )
        object.__setattr__(self, "factors", factors)

    def classes(self, speakers: int) -> int:
        """Return the number of classes for a corpus of `speakers`."""
        return speakers * len(self.factors) if self.new_speakers else speakers

    def label(self, speaker: int, choice: int, speakers: int) -> int:
        """Return the class of `speaker` (of `speakers`) at the factor of index `choice`."""
        return choice * speakers + speaker if self.new_speakers else speaker

    def samples(self, choice: int, crop: int) -> int:
        """Return how many samples become `crop` samples at the factor of index `choice`."""
        return int(np.ceil(crop * self.factors[choice]))

    def change(self, waveform: np.ndarray, choice: int) -> np.ndarray:
        """Return `waveform`, float32 (samples,), at the factor of index `choice`: about samples / factor long."""
        if self.factors[choice] == 1:
            return waveform
        import soxr

        return soxr.resample(waveform, self.factors[choice] * SAMPLE_RATE, SAMPLE_RATE)


def from_config(config: Mapping[str, Mapping[str, Any]]) -> tuple[Step, ...]:
    """Return the steps whose names in `STEPS` are keys of `config`, with its options, in the order of `STEPS`.

    Raises UserError for an unknown step or option, a bad value, and a folder that is missing or holds no audio.
    """
    unknown = [name for name in config if name not in STEPS]
    if unknown:
        raise UserError(f"There is no augmentation {unknown[0]!r}, only {', '.join(STEPS)}.")
    return tuple(_build(name, STEPS[name], config[name]) for name in STEPS if name in config)


def speed_from_config(options: Mapping[str, Any] | None) -> Speed | None:
    """Return the speed perturbation with `options`; None without any. Raises UserError as `from_config` does."""
    return None if options is None else _build("speed", Speed, options)


def _build(name: str, cls: type[T], options: Mapping[str, Any]) -> T:
    known = {entry.name for entry in fields(cls) if entry.init}  # type: ignore[arg-type]  (T is a dataclass)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UserError(f"The augmentation {name} has no option {unknown[0]!r}, only {', '.join(sorted(known))}.")
    if "folder" in known and not options.get("folder"):
        raise UserError(f"The augmentation {name} needs the option folder, a folder of audio files.")
    return cls(**options)


def apply(steps: Sequence[Step], waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply all steps, one after the other."""
    for step in steps:
        waveform = step(waveform, rng)
    return waveform
