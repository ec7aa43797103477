"""Batches of P speakers with K crops each, for losses that compare the crops of a batch.

Speakers, not crops, are shuffled, anew in each round. A batch takes the next P of them, all different unless one
cannot be read (see `Group`); the rest of a round is dropped. Each gives K crops in consecutive rows, from different
utterances while it has enough. Speakers are drawn equally often, however much they said.
"""

from dataclasses import dataclass

import numpy as np

from redimnet_jax.data.crops import OTHERS, UNREADABLE, Crops, Failure, failure_rows, nothing_readable
from redimnet_jax.errors import UserError


@dataclass(frozen=True)
class Group:
    """Makes `size` crops of a speaker, {"waveform": float32 (size, samples), "label": int32 (size,)}.

    If changed speeds count as new speakers, all crops of a group have the same speed. Another crop of the speaker
    takes the place of one that cannot be read. If none of the speaker can, a group of another speaker does; that
    speaker may then be in a batch twice. The entry UNREADABLE holds what failed, as in `Crops.example`.
    """

    crops: Crops
    size: int
    utterances: np.ndarray  # numbers of the utterances, sorted by speaker
    ends: np.ndarray  # (speakers,): ends[s] is the end of speaker s in `utterances`

    def __call__(self, speaker: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        failures: list[Failure] = []
        group = self._of(int(speaker), rng, failures)
        tries = 0
        while group is None:
            if tries == OTHERS:
                raise nothing_readable(failures)
            group = self._of(int(rng.integers(len(self.ends))), rng, failures)
            tries += 1
        # The failures of the group are spread over the failure entries of its crops.
        rows = [failure_rows(failures[row :: self.size]) for row in range(self.size)]
        return group | {UNREADABLE: np.stack(rows)}

    def _of(self, speaker: int, rng: np.random.Generator, failures: list[Failure]) -> dict[str, np.ndarray] | None:
        """Return the crops of a speaker, or None when one of them cannot be made."""
        own = self.utterances[self.ends[speaker - 1] if speaker else 0 : self.ends[speaker]]
        # Every utterance once before any comes a second time.
        rounds = [rng.permutation(own) for _ in range(-(-self.size // len(own)))]
        choices = self._speeds(rng)
        made = []
        for utterance, choice in zip(np.concatenate(rounds), choices, strict=False):
            crop = self.crops.of_speaker(int(utterance), choice, rng, failures)
            if crop is None:
                return None
            made.append(crop)
        return {name: np.stack([crop[name] for crop in made]) for name in made[0]}

    def _speeds(self, rng: np.random.Generator) -> list[int | None]:
        speed = self.crops.speed
        if speed is None:
            return [None] * self.size
        choices = rng.integers(len(speed.factors), size=self.size)
        return [int(choices[0])] * self.size if speed.new_speakers else choices.tolist()


def group(crops: Crops, size: int, *, batch_size: int, process_count: int, one_utterance: bool) -> Group:
    """Return the groups of `size` crops of each speaker, in batches of `batch_size` crops.

    Raises UserError if the sizes do not divide, if there are too few speakers, or, unless `one_utterance`, if a
    speaker has a single utterance only.
    """
    corpus = crops.corpus
    speakers = batch_size // size
    if batch_size % size or speakers % process_count:
        raise UserError(
            f"The batch size {batch_size} is no multiple of {size * process_count}, the crops_per_speaker times "
            f"{process_count} process(es), so make it one."
        )
    if speakers > len(corpus.speakers):
        raise UserError(
            f"A batch of {batch_size} crops, {size} a speaker, needs {speakers} speakers and the corpus has "
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
    return Group(crops, size, np.argsort(corpus.labels, kind="stable"), np.cumsum(counts))


def rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a batch of groups (speakers, crops, ...) as one of crops (speakers * crops, ...)."""
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in batch.items()}
