"""The base of all steps of the augmentation, and levels of waveforms."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from redimnet_jax.errors import UserError

if TYPE_CHECKING:
    from redimnet_jax.data.recordings import Utterances

Range = tuple[float, float]


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

    def on(self, corpus: "Utterances") -> "Step":
        """Return the step that augments crops of `corpus`, from whose recordings some steps take sounds."""
        return self

    def __call__(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.apply(waveform, rng) if rng.random() < self.p else waveform

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the changed waveform, of the same shape and dtype."""
        raise NotImplementedError


def apply(steps: Sequence[Step], waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply all steps, one after the other."""
    for step in steps:
        waveform = step(waveform, rng)
    return waveform
