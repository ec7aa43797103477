"""Speed perturbation, which may make new speakers of those of a corpus."""

from dataclasses import dataclass

import numpy as np

from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.errors import UserError


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
