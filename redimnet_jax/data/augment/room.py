"""Reverberation by impulse responses of rooms."""

from dataclasses import dataclass, field

import numpy as np

from redimnet_jax import buckets
from redimnet_jax.data import audio
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.augment.sounds import list_audio
from redimnet_jax.data.augment.step import Step, at_power, power
from redimnet_jax.errors import UserError

# Only the start of an impulse response is read: later reflections are inaudible, and memory stays bounded.
MAX_RESPONSE = 5 * SAMPLE_RATE


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
