"""Training batches from a corpus: shuffled, cropped, augmented, and the same whatever machine makes them.

The order depends on the seed and the position only. The crops of an epoch are 0 to utterances * crops_per_utterance
- 1. Each epoch has its own pseudo-random permutation of them, computed one element at a time. The random numbers of a
crop come from the seed and its position. Batch t of an epoch starts at position t * batch_size; the incomplete last
batch is dropped, other utterances every epoch. Processes take every process_count-th position, and workers make whole
batches in turn. So the number of workers does not change the stream, and the number of processes changes only who
makes which example of a step. The step number is the whole state.
"""

import dataclasses
import functools
import itertools
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from redimnet_jax import optional
from redimnet_jax.data import speaker_groups, worker_process
from redimnet_jax.data.augment import Speed
from redimnet_jax.data.crop_lengths import CropLengths, Maker, MakerByLength
from redimnet_jax.data.crop_order import CropOrder
from redimnet_jax.data.crops import UNREADABLE, Crops
from redimnet_jax.errors import UserError

if TYPE_CHECKING:
    from redimnet_jax.data.recordings import Utterances

Batch = dict[str, np.ndarray]

# Batches that a worker process and its queue hold in shared memory at most: being made, queued, held by the reader,
# and waiting behind it.
BATCHES_A_WORKER = 4
# More crops than anybody will ever draw.
MANY = 2**40


def steps_per_epoch(corpus: "Utterances", batch_size: int, crops_per_utterance: int = 1) -> int:
    """Return the number of batches of an epoch; the remainder of less than a batch is dropped."""
    return len(corpus) * crops_per_utterance // batch_size


def classes(corpus: "Utterances", speed: Speed | None = None) -> int:
    """Return how many classes the labels of `train_batches` have; changed speeds may count as new speakers."""
    return speed.classes(len(corpus.speakers)) if speed else len(corpus.speakers)


class TrainBatches:
    """An endless iterator over batches whose state is the number of batches taken.

    The state is plain JSON. It holds the step and what gives it meaning (seed, batch size, corpus), and `set_state`
    refuses others. It fits any number of workers and processes.
    """

    def __init__(self, batches: Any, workers: int, threads: int, identity: dict[str, Any]):
        self._batches = batches  # a grain.MapDataset of local batches
        self._workers = workers
        self._threads = threads
        self._identity = identity
        self._step = 0
        self._iterator: Any = None
        self._closing: Any = None
        self._unreadable: list[tuple[int, int]] = []

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
            # Grain's threads and workers end with tracebacks when the interpreter ends before they are closed.
            self._closing = weakref.finalize(self, self._iterator.close)
        batch = dict(next(self._iterator))
        self._step += 1
        failures = batch.pop(UNREADABLE).reshape(-1, 2)
        self._unreadable += map(tuple, failures[failures[:, 0] >= 0].tolist())
        return batch

    def take_unreadable(self) -> list[tuple[int, int]]:
        """Return (utterance, first sample) of all that could not be read in the batches since the last call."""
        taken, self._unreadable = self._unreadable, []
        return taken

    def _start(self) -> Iterator[Batch]:
        import grain
        from absl import flags

        threads = 0 if self._workers else self._threads
        batches = self._batches[self._step :].to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        )
        if self._workers:
            # Grain needs parsed flags of absl, which only absl.app parses; elsewhere their defaults hold.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1),
                worker_init_fn=worker_process.begin,
            )
        return iter(batches)

    def get_state(self) -> dict[str, Any]:
        """Return the number of batches taken so far ("step"), and what it counts; JSON-serialisable."""
        return {"step": self._step, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which `state` was taken; raise UserError if it is from another stream."""
        state = {"crops_per_read": 1} | state  # Earlier versions had no other.
        for key, ours in self._identity.items():
            if state.get(key) != ours and key == "corpus":
                raise UserError(
                    f"The state of the input pipeline was saved with the corpus {state.get(key)!r} and the run has"
                    f" {ours!r}, in which recordings have other names, lengths or speakers, so give data.train as it"
                    " was, or start a new run in another workdir."
                )
            if state.get(key) != ours:
                raise UserError(
                    f"The state of the input pipeline was saved with {key} = {state.get(key)!r} and the run has"
                    f" {ours!r}, so resume with the saved value or start a new run."
                )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """End workers and threads; the next batch starts them again."""
        if self._iterator is not None:
            self._closing()
            self._iterator = None


def _check_shared_memory(needed: int) -> None:
    # Writing to a full /dev/shm kills a worker with a bus error that says nothing.
    folder = "/dev/shm"
    if os.path.isdir(folder) and (free := shutil.disk_usage(folder).free) < needed:
        raise UserError(
            f"The input workers may fill {needed >> 20} MiB of shared memory and {folder} has {free >> 20} MiB free,"
            " so use fewer workers, workers = 0 (threads), smaller batches or a larger /dev/shm (docker: --shm-size)."
        )


@dataclasses.dataclass(frozen=True)
class Readers:
    """What makes the batches of this process, one of `process_count`.

    With workers, each worker process makes whole batches in turn. Without, `threads` threads do (default: one per
    core, at most 8). Up to `threads` batches wait for the consumer, or `BATCHES_A_WORKER` per worker in shared
    memory.
    """

    workers: int = 0
    threads: int | None = None
    process_index: int = 0
    process_count: int = 1

    def local_batch(self, batch_size: int) -> int:
        """Return how many of the `batch_size` crops of a batch this process makes."""
        return batch_size // self.process_count

    def number_of_threads(self, samples: int) -> int:
        """Return how many threads make batches of `samples`; raise UserError when workers lack shared memory."""
        if self.workers:
            _check_shared_memory((self.workers * BATCHES_A_WORKER + 1) * samples * 4)
        return min(os.cpu_count() or 1, 8) if self.threads is None else self.threads


def train_batches(
    crops: Crops,
    batch_size: int,
    *,
    crops_per_utterance: int = 1,
    crops_per_read: int = 1,
    crops_per_speaker: int = 1,
    one_utterance: bool = False,
    lengths: Sequence[int] = (),
    readers: Readers = Readers(),  # noqa: B008 (it is immutable)
) -> TrainBatches:
    """Return endless batches {"waveform": float32 (rows, crops.samples), "label": int32 (rows,)}.

    With several `lengths`, different numbers of samples, each batch has crops of one of them in place of
    `crops.samples`, drawn evenly from the seed and the number of the batch.

    `batch_size` is that of all processes together, of which this one makes rows = batch_size / process_count. Every
    utterance gives `crops_per_utterance` random crops an epoch; labels are of `classes(corpus, speed)`. With
    `crops_per_speaker` above 1 a batch holds speakers with that many crops each, see `speaker_groups`; the number of
    batches of an epoch stays the same.

    `crops_per_read`, a divisor of `crops_per_utterance`, is how many of an utterance's crops of an epoch stand in
    consecutive rows of a batch and share one decoding of the utterance; the order is that of these groups.

    Where a recording cannot be read, another crop takes its place (see `data.crops`), and `take_unreadable` lists it.
    Raises UserError at once for numbers out of range, and while iterating if no substitute can be read.
    """
    optional.require("train")
    import grain

    corpus = crops.corpus
    numbers_given = {
        "crops_per_utterance": crops_per_utterance,
        "crops_per_read": crops_per_read,
        "crops_per_speaker": crops_per_speaker,
    }
    _check_numbers(crops, batch_size, readers, **numbers_given)
    if not steps_per_epoch(corpus, batch_size, crops_per_utterance):
        raise UserError(
            f"The batch size {batch_size} exceeds the {len(corpus) * crops_per_utterance} crops of an epoch, so lower"
            " it or raise crops_per_utterance."
        )
    by_length = {samples: dataclasses.replace(crops, samples=samples) for samples in lengths or (crops.samples,)}
    # What the order is of: an epoch has `numbers` of them, a batch `size`, each of some crops.
    together = max(crops_per_read, crops_per_speaker)
    size = batch_size // together
    makers: dict[int, Maker]
    if crops_per_speaker > 1:
        numbers = len(corpus.speakers)
        group = functools.partial(
            speaker_groups.group,
            size=crops_per_speaker,
            batch_size=batch_size,
            process_count=readers.process_count,
            one_utterance=one_utterance,
        )
        makers = {samples: group(made) for samples, made in by_length.items()}
    else:
        numbers = len(corpus) * crops_per_utterance // crops_per_read
        makers = {samples: made.maker(crops_per_read) for samples, made in by_length.items()}
    stream = grain.MapDataset.range(numbers).seed(crops.seed).shuffle()
    if len(makers) > 1:
        drawn = CropLengths(tuple(makers), crops.seed, numbers, size)
        stream = stream.map_with_index(drawn.with_length).random_map(MakerByLength(makers))
    else:
        stream = stream.random_map(next(iter(makers.values())))
    batches = stream[: numbers // size * size][readers.process_index :: readers.process_count].batch(
        size // readers.process_count, drop_remainder=True
    )
    if together > 1:
        batches = batches.map(speaker_groups.rows)
    identity = {
        "seed": crops.seed,
        "batch_size": batch_size,
        "crop": list(by_length) if len(by_length) > 1 else next(iter(by_length)),
        **numbers_given,
        "corpus": corpus.digest,
    }
    threads = readers.number_of_threads(readers.local_batch(batch_size) * max(by_length))
    return TrainBatches(batches.repeat(), readers.workers, threads, identity)


def crops_in_order(
    crops: Crops,
    batch_size: int,
    *,
    begin: int = 0,
    order: CropOrder | None = None,
    readers: Readers = Readers(),  # noqa: B008 (it is immutable)
) -> TrainBatches:
    """Return endless batches, as `train_batches` does, of the crops in the rows of `order`, from row `begin` on.

    Crop r is of utterance r % len(corpus). It depends only on the seed and r, so any crop can be made again. Without
    an `order`, row r holds crop r. A process makes the rows of a batch that lie side by side, the first the first.
    """
    optional.require("train")
    import grain

    _check_numbers(crops, batch_size, readers)
    rows = readers.local_batch(batch_size)
    order = order or CropOrder(len(crops.corpus))
    first = begin + readers.process_index * rows
    batches = grain.MapDataset.range(MANY).map(InOrder(crops, order, first, batch_size, rows))
    identity = {
        "seed": crops.seed,
        "batch_size": batch_size,
        "crop": crops.samples,
        "begin": begin,
        "corpus": crops.corpus.digest,
    }
    threads = readers.number_of_threads(rows * crops.samples)
    return TrainBatches(batches, readers.workers, threads, identity)


@dataclasses.dataclass(frozen=True)
class InOrder:
    """Makes batch t: the `rows` rows of `order` from `first` + t * `step` on; those of one utterance together."""

    crops: Crops
    order: CropOrder
    first: int
    step: int
    rows: int

    def __call__(self, number: int) -> Batch:
        import grain

        # One data set serves all, since it takes longer to make than most crops: its function reads the variable
        # `crops`, which the loop below sets for each utterance. Its type is loose, since an element may be None.
        examples: Any = grain.MapDataset.range(MANY).seed(self.crops.seed)
        examples = examples.random_map(lambda number, rng: crops.example(number, rng))
        begin = self.first + number * self.step
        numbers = map(self.order.number, range(begin, begin + self.rows))
        made = []
        for _, group in itertools.groupby(numbers, lambda number: number % len(self.crops.corpus)):
            of_utterance = tuple(group)
            crops = self.crops.reading_once(len(of_utterance))
            made += [examples[number] for number in of_utterance]
        return {name: np.stack([example[name] for example in made]) for name in made[0]}


def _check_numbers(crops: Crops, batch_size: int, readers: Readers, **numbers: int) -> None:
    """Raise UserError for numbers out of range."""
    numbers |= {"batch_size": batch_size, "crop": crops.samples, "workers": readers.workers, "seed": crops.seed}
    least = {"workers": 0, "seed": 0}
    for name, value in numbers.items():
        if value < least.get(name, 1):
            raise UserError(f"The input pipeline's {name} is {value}, so give {least.get(name, 1)} or more.")
    if batch_size % readers.process_count:
        raise UserError(
            f"The batch size {batch_size} is no multiple of the {readers.process_count} processes, so make it one."
        )
    together = numbers.get("crops_per_read", 1)
    if together == 1:
        return
    if numbers["crops_per_speaker"] > 1:
        raise UserError("crops_per_read is above 1 and so is crops_per_speaker, so set one of them to 1.")
    if numbers["crops_per_utterance"] % together:
        raise UserError(
            f"The crops_per_utterance, {numbers['crops_per_utterance']}, is no multiple of the {together} "
            "crops_per_read, so make it one."
        )
    if batch_size % (together * readers.process_count):
        raise UserError(
            f"The batch size {batch_size} is no multiple of {together * readers.process_count}, the crops_per_read "
            f"times {readers.process_count} process(es), so make it one."
        )


class WaitMeter:
    """Iterates over `batches` and measures how long the consumer waits for them.

    JAX returns before a step is done. So the fraction is how long the accelerator waits only if the consumer reads a
    result every few steps, such as a loss.
    """

    def __init__(self, batches: Iterator[Batch], clock=time.perf_counter):
        self._batches = batches
        self._clock = clock
        self._waited = 0.0
        self._since = clock()

    def __iter__(self) -> "WaitMeter":
        return self

    def __next__(self) -> Batch:
        start = self._clock()
        batch = next(self._batches)
        self._waited += self._clock() - start
        return batch

    def wait_fraction(self) -> float:
        """Return the part of the time since the last call (or the start) that was spent waiting, from 0 to 1."""
        now = self._clock()
        fraction = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return fraction
