"""Training examples: crops of utterances, and what takes the place of a crop that cannot be read."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from redimnet_jax.data.augment import Speed, Step, apply
from redimnet_jax.data.recordings import ReadOnce, read_stretch
from redimnet_jax.errors import UserError

if TYPE_CHECKING:
    from redimnet_jax.data.recordings import Recordings, Utterances

# Crops that are tried of a recording that cannot be read; then so many others of the same speaker, then of anybody.
SAME_RECORDING, OTHERS = 3, 6
# The key of the failures in an example, and the most rows that it can have.
UNREADABLE, MOST_FAILURES = "unreadable", SAME_RECORDING + 2 * OTHERS


@dataclass(frozen=True)
class Failure:
    """A stretch of a recording that cannot be read: the utterance, the first sample at 16 kHz, and why."""

    utterance: int
    start: int
    error: UserError


@dataclass(frozen=True)
class Crops:
    """Crops of `samples` samples at 16 kHz of `corpus`, fixed by `seed`; `speed`, then `steps`, augment them.

    Where a recording cannot be read, another crop takes its place: of the same recording, then of other recordings of
    the speaker, then of any. The choice comes from the example's random generator, so from seed and position only.
    `read_from` is what the waveforms are read from, in place of `corpus` itself.
    """

    corpus: "Utterances"
    samples: int
    seed: int
    steps: tuple[Step, ...] = ()
    speed: Speed | None = None
    read_from: "Recordings | None" = None

    def made_of(self) -> dict[str, Any]:
        """Return all that determines a crop, except its number, as JSON."""
        return {
            "corpus": self.corpus.digest,
            "samples": self.samples,
            "seed": self.seed,
            "steps": [repr(step) for step in self.steps],
            "speed": repr(self.speed),
        }

    def maker(self, crops_per_read: int) -> Callable[[int, np.random.Generator], dict[str, Any]]:
        """Return what makes the example of a number, or the group of examples that share one reading."""
        return self.example if crops_per_read == 1 else SharedReading(self, crops_per_read)

    def reading_once(self, count: int) -> "Crops":
        """Return the same crops, of which `count` of one utterance share a decoding where that is cheaper."""
        return dataclasses.replace(self, read_from=ReadOnce(self.corpus, count))

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return {"waveform": float32 (samples,), "label": int32, UNREADABLE: int32 (MOST_FAILURES, 2)}.

        The example comes from utterance `index` % len(corpus), or from a substitute. UNREADABLE says what failed, and
        holds -1 in the rows that are not used. Raises UserError when nothing can be read.
        """
        choice = int(rng.integers(len(self.speed.factors))) if self.speed else None
        utterance, failures = int(index) % len(self.corpus), []
        example = self.of_speaker(utterance, choice, rng, failures)
        if example is None:
            anyone = (int(rng.integers(len(self.corpus))) for _ in range(OTHERS))
            example = self.first_readable(anyone, choice, rng, failures)
        if example is None:
            raise nothing_readable(failures)
        return example | {UNREADABLE: failure_rows(failures)}

    def of_speaker(
        self, utterance: int, choice: int | None, rng: np.random.Generator, failures: list[Failure]
    ) -> dict[str, Any] | None:
        """Return a crop of `utterance` with speed number `choice`, or of another utterance of its speaker.

        None when a few tries find none that can be read; what fails is appended to `failures`.
        """

        def candidates() -> Iterator[int]:
            yield from [utterance] * SAME_RECORDING
            others = np.flatnonzero(self.corpus.labels == self.corpus.labels[utterance])
            yield from rng.permutation(others[others != utterance])[:OTHERS].tolist()

        return self.first_readable(candidates(), choice, rng, failures)

    def first_readable(
        self,
        utterances: Iterable[int],
        choice: int | None,
        rng: np.random.Generator,
        failures: list[Failure],
    ) -> dict[str, Any] | None:
        """Return a crop of the first utterance that can be read, or None; append the others to `failures`."""
        recordings = self.corpus if self.read_from is None else self.read_from
        for utterance in utterances:
            label, samples = int(self.corpus.labels[utterance]), self.samples
            if self.speed and choice is not None:
                label = self.speed.label(label, choice, len(self.corpus.speakers))
                samples = self.speed.samples(choice, self.samples)
            length = int(self.corpus.samples[utterance])
            start = int(rng.integers(max(length - samples, 0) + 1))
            try:
                waveform = read_stretch(recordings, utterance, start, samples)
            except UserError as error:
                failures.append(Failure(utterance, start, error))
                continue
            if self.speed and choice is not None:
                waveform = np.resize(self.speed.change(waveform, choice), self.samples)
            waveform = apply(self.steps, waveform, rng)
            return {"waveform": waveform.astype(np.float32, copy=False), "label": np.int32(label)}
        return None


@dataclass(frozen=True)
class SharedReading:
    """Makes `size` crops of an utterance from one decoding of it, {"waveform": float32 (size, samples), ...}.

    The entries are those of `Crops.example`, stacked. Where the utterance cannot be read, each crop has a substitute.
    """

    crops: Crops
    size: int

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        crops = self.crops.reading_once(self.size)
        made = [crops.example(index, rng) for _ in range(self.size)]
        return {name: np.stack([crop[name] for crop in made]) for name in made[0]}


def failure_rows(failures: Sequence[Failure]) -> np.ndarray:
    """Return `failures` as an array that fits in an example, int32 (MOST_FAILURES, 2): utterance, first sample."""
    rows = np.full((MOST_FAILURES, 2), -1, np.int32)
    for row, failure in zip(rows, failures, strict=False):
        row[:] = failure.utterance, min(failure.start, np.iinfo(np.int32).max)
    return rows


def nothing_readable(failures: Sequence[Failure]) -> UserError:
    """Return the error for a place in a batch that no recording could fill."""
    return UserError(
        f"None of the {len(failures)} crops that were tried for one place in a batch can be read, the first since: "
        f"{failures[0].error}"
    )
