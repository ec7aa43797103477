"""Crops of several lengths in one stream of batches: which length a batch has, and how its crops are made."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# example(number, generator) -> the crop, or the crops, of that number
Maker = Callable[[int, np.random.Generator], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class CropLengths:
    """The lengths of crops in samples, of which each batch has one, drawn evenly from `seed` and its number alone.

    Batches are numbered over all epochs. An epoch has `numbers` numbers, and its batches take `size` each, in their
    order; the rest, less than a batch, is dropped.
    """

    samples: tuple[int, ...]
    seed: int
    numbers: int
    size: int

    def of_batch(self, batch: int) -> int:
        """Return the length of the crops of a batch."""
        return self.samples[int(np.random.default_rng((self.seed, batch)).integers(len(self.samples)))]

    def with_length(self, position: int, number: int) -> tuple[int, int]:
        """Return (number, length) of the number at a position, which goes on from epoch to epoch."""
        epoch, within = divmod(position, self.numbers)
        return number, self.of_batch(epoch * (self.numbers // self.size) + within // self.size)


@dataclasses.dataclass(frozen=True)
class MakerByLength:
    """Makes the crop of (number, length) with the maker of that length."""

    makers: Mapping[int, Maker]

    def __call__(self, numbered: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
        number, samples = numbered
        return self.makers[samples](number, rng)
