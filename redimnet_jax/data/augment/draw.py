"""Which of the steps augment a crop: an overall probability, and kinds of which each crop gets one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from redimnet_jax.data.augment.step import Step
from redimnet_jax.errors import UserError

if TYPE_CHECKING:
    from redimnet_jax.data.recordings import Utterances


@dataclass(frozen=True, kw_only=True)
class Drawn(Step):
    """Apply some of the named `steps`, in their order; with probability 1 - p, none of them.

    Of `kinds`, groups of names, one is drawn in proportion to `weights`. Its steps apply, each with its own
    probability, and those of the other kinds do not. Steps that are in no kind apply with their own probability.
    """

    steps: tuple[tuple[str, Step], ...]
    kinds: tuple[tuple[str, ...], ...] = ()
    weights: tuple[float, ...] = ()

    def on(self, corpus: "Utterances") -> "Drawn":
        steps = tuple((name, step.on(corpus)) for name, step in self.steps)
        return Drawn(p=self.p, steps=steps, kinds=self.kinds, weights=self.weights)

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        drawn: tuple[str, ...] = ()
        if self.kinds:
            ends = np.cumsum(self.weights)
            drawn = self.kinds[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]
        left_out = {name for kind in self.kinds for name in kind}.difference(drawn)
        for name, step in self.steps:
            if name not in left_out:
                waveform = step(waveform, rng)
        return waveform


def parse_kinds(texts: Iterable[str], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the steps of each kind, whose text joins them with "+".

    Raises UserError for a step that is not one of `names`, those that are switched on.
    """
    kinds = tuple(tuple(part.strip() for part in text.split("+")) for text in texts)
    unknown = [name for kind in kinds for name in kind if name not in names]
    if unknown:
        raise UserError(
            f"The augmentation draws one of {', '.join(texts)}, but {unknown[0]!r} is not one of the steps that are "
            f"switched on, {', '.join(names) or 'which are none'}; give it a p above 0, or leave it out."
        )
    return kinds
