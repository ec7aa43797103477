"""Batches of P speakers with K crops each, for losses that compare the crops of a batch.

In place of crops, speakers stand in a pseudo-random order, another one every round; a batch is the next P of them, so
no speaker is in it twice, and what remains at the end of a round is dropped. Each gives K crops, of different
utterances as far as they go, in consecutive rows. Speakers are drawn equally often, however much they said.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from redimnet_jax.data.crops import OTHERS, UNREADABLE, Example, Failure, failure_rows, nothing_readable
from redimnet_jax.errors import UserError

if TYPE_CHECKING:
    from redimnet_jax.data.recordings import Utterances


@dataclass(frozen=True)
class Group:
    """Makes the crops of a speaker, {"waveform": float32 (crops, samples), "label": int32 (crops,)}.

    `example` makes one. Where a speaker at another speed is another one, all crops of a group have the same. Where a
    recording cannot be read, another crop of the speaker takes its place; where none can be, a group of another
    speaker, who may then be in a batch twice. What failed is told as by `crops.Example`.
    """

    example: Example
    crops: int
    utterances: np.ndarray  # of the corpus, speaker by speaker
    ends: np.ndarray  # (speakers,), where those of a speaker end

    def __call__(self, speaker: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        failures: list[Failure] = []
        group = self._of(int(speaker), rng, failures)
        tries = 0
        while group is None:
            if tries == OTHERS:
                raise nothing_readable(failures)
            group, tries = self._of(int(rng.integers(len(self.ends))), rng, failures), tries + 1
        # All that failed travels with the group, dealt to its rows.
        rows = [failure_rows(failures[crop :: self.crops]) for crop in range(self.crops)]
        return group | {UNREADABLE: np.stack(rows)}

    def _of(self, speaker: int, rng: np.random.Generator, failures: list[Failure]) -> dict[str, np.ndarray] | None:
        """The crops of a speaker, or None when one of them cannot be made."""
        own = self.utterances[self.ends[speaker - 1] if speaker else 0 : self.ends[speaker]]
        # Every utterance once before any comes a second time.
        rounds = [rng.permutation(own) for _ in range(-(-self.crops // len(own)))]
        choices = self._speeds(rng)
        crops = []
        for utterance, choice in zip(np.concatenate(rounds), choices, strict=False):
            crop = self.example.of_speaker(int(utterance), choice, rng, failures)
            if crop is None:
                return None
            crops.append(crop)
        return {name: np.stack([crop[name] for crop in crops]) for name in crops[0]}

    def _speeds(self, rng: np.random.Generator) -> list[int | None]:
        if self.example.speed is None:
            return [None] * self.crops
        choices = rng.integers(len(self.example.speed.factors), size=self.crops)
        return [int(choices[0])] * self.crops if self.example.speed.new_speakers else choices.tolist()


def group(
    example: Example,
    corpus: "Utterances",
    *,
    crops: int,
    batch_size: int,
    process_count: int,
    one_utterance: bool,
) -> Group:
    """The groups of `crops` crops of the speakers of `corpus`, in batches of `batch_size` crops.

    Raises UserError when such batches cannot be, and unless `one_utterance`, for speakers with a single utterance.
    """
    speakers = batch_size // crops
    if batch_size % crops or speakers % process_count:
        raise UserError(
            f"The batch size {batch_size} is no multiple of {crops * process_count}, the crops_per_speaker times "
            f"{process_count} process(es), so make it one."
        )
    if speakers > len(corpus.speakers):
        raise UserError(
            f"A batch of {batch_size} crops, {crops} a speaker, is of {speakers} speakers and the corpus has "
            f"{len(corpus.speakers)}, so lower the batch size or raise crops_per_speaker."
        )
    counts = np.bincount(corpus.labels, minlength=len(corpus.speakers))
    single = np.flatnonzero(counts < 2)
    if len(single) and not one_utterance:
        raise UserError(
            f"{len(single):,} of {len(corpus.speakers):,} speakers have one utterance only, such as "
            f"{corpus.speakers[single[0]]}, and crops_per_speaker asks for different ones; leave these speakers out, "
            "or set data.one_utterance=True to take all crops of such a speaker from it."
        )
    return Group(example, crops, np.argsort(corpus.labels, kind="stable"), np.cumsum(counts))


def rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch of groups (speakers, crops, ...) as one of crops (speakers * crops, ...)."""
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in batch.items()}
