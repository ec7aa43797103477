"""The order in which numbered crops are made, so that one decoding of an utterance serves several of them.

Crop number r is crop r // utterances of utterance r % utterances. They are made in passes over the utterances: a
pass of K makes K crops of each utterance in a row. Behind the given passes, each pass is of one crop, so without
passes the rows are in the order of the numbers.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class CropOrder:
    """Which crop a row holds; `passes` are the crops of an utterance that each pass makes."""

    utterances: int
    passes: tuple[int, ...] = ()

    def number(self, row: int) -> int:
        """Return the number of the crop in a row."""
        first = 0
        for crops in self.passes:
            if row < (first + crops) * self.utterances:
                utterance, within = divmod(row - first * self.utterances, crops)
                return (first + within) * self.utterances + utterance
            first += crops
        return row

    def row(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows of the crops with these numbers, int64."""
        crop, utterance = np.divmod(np.asarray(numbers, np.int64), self.utterances)
        first, crops = self._pass_of(int(crop.max(initial=0)) + 1)
        return first[crop] * self.utterances + utterance * crops[crop] + crop - first[crop]

    def rows(self, crops: int) -> int:
        """Return how many rows hold the first `crops` crops of every utterance, and the others of their passes."""
        first, sizes = self._pass_of(crops)
        return int(first[-1] + sizes[-1]) * self.utterances

    def of_crop(self, rows: np.ndarray, crop: int) -> np.ndarray:
        """Return the part (utterances, ...) of `rows` that holds a crop of every utterance; nothing is copied."""
        first, sizes = (int(array[crop]) for array in self._pass_of(crop + 1))
        made = rows[first * self.utterances : (first + sizes) * self.utterances]
        return made.reshape(self.utterances, sizes, *rows.shape[1:])[:, crop - first]

    def _pass_of(self, crops: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (first crop, number of crops), int64 (crops,) each, of the pass of each of the first crops."""
        sizes = np.array([*self.passes, *[1] * crops], np.int64)
        first = np.cumsum(sizes) - sizes
        return np.repeat(first, sizes)[:crops], np.repeat(sizes, sizes)[:crops]
