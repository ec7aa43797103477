"""Choose the segments of recordings that are embedded."""

import dataclasses

import numpy as np

from redimnet_jax.data import audio
from redimnet_jax.data.recordings import Recordings
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel


@dataclasses.dataclass(frozen=True)
class CropPolicy:
    """The rule for which segments of a recording are embedded.

    Without `crop_seconds` that is all of it, up to `max_seconds` from its start. With `crop_seconds` it is `crops`
    crops of that length at even distances; a single one is the middle. A recording shorter than the crop is used
    whole.
    """

    crop_seconds: float | None = None
    crops: int = 1
    max_seconds: float = 60.0

    def segments(self, samples: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (starts, lengths) of the segments of recordings of `samples` samples: int (recordings, crops)."""
        seconds = self.max_seconds if self.crop_seconds is None else self.crop_seconds
        crops = 1 if self.crop_seconds is None else self.crops
        lengths = np.minimum(samples, round(seconds * sample_rate))[:, None].repeat(crops, axis=1)
        room = samples[:, None] - lengths
        if self.crop_seconds is None:
            return np.zeros_like(room), lengths
        share = np.array([0.5]) if crops == 1 else np.linspace(0.0, 1.0, crops)
        return np.floor(room * share).astype(np.int64), lengths


WHOLE_RECORDINGS = CropPolicy()


@dataclasses.dataclass(frozen=True)
class Segments:
    """The segments of `recordings`: `crops` of each, one recording after another.

    `starts` and `lengths` (segments,) are in samples.
    """

    recordings: Recordings
    crops: int
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of_recordings(cls, model: SpeakerModel, recordings: Recordings, crop_policy: CropPolicy) -> "Segments":
        """Return the segments of all `recordings`.

        Raises UserError when `model` has another sample rate than recordings, or a recording is too short for it.
        """
        if model.sample_rate != audio.SAMPLE_RATE:
            raise UserError(
                f"The model was trained at {model.sample_rate} Hz but recordings are read at {audio.SAMPLE_RATE} Hz; "
                "embed signals of its rate with model.embed."
            )
        starts, lengths = crop_policy.segments(np.asarray(recordings.samples), model.sample_rate)
        segments = cls(recordings, starts.shape[1], starts.reshape(-1), lengths.reshape(-1))
        short = np.flatnonzero(segments.lengths < model.min_samples)
        if len(short):
            raise UserError(
                f"{segments.name(short[0])} has {segments.lengths[short[0]]} samples, too short for an embedding "
                f"(at least {model.min_samples}); leave it out of the list."
            )
        return segments

    def __len__(self) -> int:
        return len(self.starts)

    def name(self, segment: int) -> str:
        """Return the name of the recording of a segment."""
        return self.recordings.name(int(segment) // self.crops)

    def read(self, segment: int) -> np.ndarray:
        """Return the waveform (samples,) float32; raise UserError when it cannot be read or is not finite."""
        start = int(self.starts[segment])
        signal = self.recordings.read(int(segment) // self.crops, start, int(self.lengths[segment]))
        if not np.isfinite(signal).all():
            raise UserError(f"{self.name(segment)} has NaN or Inf; repair it or leave it out.")
        return signal
