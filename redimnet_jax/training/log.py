"""What a run reports while it goes on: log messages, progress bars and TensorBoard events of the first process."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from redimnet_jax import files
from redimnet_jax.errors import UserError
from redimnet_jax.training import monitoring

logger = logging.getLogger(__name__)

# A run says so when it waits for audio for more than this fraction of an epoch.
MAX_INPUT_WAIT = 0.05
# TensorBoard's events are on the disk after this time at most.
FLUSH_SECONDS = 60.0
# The width of a column of the epoch table.
COLUMN = 22


def shows_progress() -> bool:
    """Return whether this process shows progress bars: the first one does, where messages are logged."""
    return jax.process_index() == 0 and logger.isEnabledFor(logging.INFO)


class TrainingLog:
    """The log of the run in `workdir` with heads for the dimensions `dims`."""

    def __init__(self, workdir: Path, dims: Sequence[int]):
        self.dims = dims
        self._has_header = False
        self._events = _Events(workdir / "events") if jax.process_index() == 0 else None

    def close(self) -> None:
        """Close the event file."""
        if self._events:
            self._events.close()

    def say(self, text: str) -> None:
        """Log a message of the first process."""
        if jax.process_index() == 0:
            logger.info(text)

    def bar(self, name: str, total: int, initial: int = 0, unit: str = "batch") -> tqdm:
        """Return a progress bar with the time left."""
        return tqdm(total=total, initial=initial, desc=name, unit=unit, disable=not shows_progress(), leave=False)

    def step(self, number: int, figures: Mapping[str, Any], learning_rate: float) -> None:
        """Write the figures of a training step, see `step.make_step`, as Python numbers."""
        scalars = {"loss": figures["loss"], "grad_norm": figures["grad_norm"], "learning_rate": learning_rate}
        if "distillation" in figures:
            scalars["distillation"] = figures["distillation"]
        for index, dim in enumerate(self.dims):
            scalars[f"loss/{dim}"] = figures["losses"][index]
            scalars[f"accuracy/{dim}"] = figures["accuracies"][index]
        self._scalars("train", scalars, number)

    def epoch(self, entry: Mapping[str, Any], is_best: bool) -> None:
        """Log an entry of the run's history as a row of the epoch table, and write its events."""
        seen = entry.get("classification")
        if not self._has_header:
            self._has_header = True
            columns = "".join(f"EER % {dim} [95 %]".rjust(COLUMN) for dim in self.dims)
            self.say(f"{'epoch':>5} {'step':>9} {'loss':>8}{columns}")
            if seen:
                columns = "loss, right %".rjust(COLUMN) * len(self.dims)
                self.say(f"{'seen speakers:':>15} {'loss':>8}{columns}")
        self.say(_row(entry, is_best))
        if seen:
            self.say(_classification_row(seen))
        self._epoch_scalars(entry)

    def overfitting(self, entry: Mapping[str, Any], dim: int) -> None:
        """Say which signs of overfitting hold at `dim`, when any does besides a falling loss."""
        signs = entry.get("overfitting", {})
        for warning in monitoring.overfitting_warnings({key: signs[key] for key in signs if key == str(dim)}):
            self.say(warning)

    def input(self, waited: float, crops_per_second: float) -> None:
        """Say so when the devices waited for audio for too large a fraction of an epoch."""
        if waited > MAX_INPUT_WAIT:
            self.say(
                f"the devices waited for audio {waited:.0%} of the epoch ({crops_per_second:.0f} crops/s); more "
                "data.workers, or audio that decodes faster (wav), would help"
            )

    def _epoch_scalars(self, entry: Mapping[str, Any]) -> None:
        step = entry["step"]
        if seen := entry.get("classification"):
            scalars = {"loss": seen["loss"]}
            scalars |= {f"loss/{dim}": value for dim, value in seen["losses"].items()}
            scalars |= {f"accuracy/{dim}": value for dim, value in seen["accuracies"].items()}
            self._scalars("classification", scalars, step)
        names = ("loss", "crops_per_second", "input_wait")
        self._scalars("epoch", {name: entry[name] for name in names if name in entry}, step)
        names = ("eer", "accuracy", "target_mean", "nontarget_mean")
        for dim, figures in entry.get("dims", {}).items():
            self._scalars("validation", {f"{name}/{dim}": figures[name] for name in names}, step)
        if self._events:
            self._events.flush()

    def _scalars(self, group: str, scalars: Mapping[str, float], step: int) -> None:
        if self._events:
            self._events.add({f"{group}/{name}": value for name, value in scalars.items()}, step)


def _row(entry: Mapping[str, Any], is_best: bool) -> str:
    """Return the row of the epoch table of an entry of the history."""
    loss = f"{entry['loss']:.3f}" if "loss" in entry else ""
    cells = []
    for figures in entry.get("dims", {}).values():
        low, high = (100 * bound for bound in figures["eer_ci95"])
        cells.append(f"{100 * figures['eer']:.2f} [{low:.2f}, {high:.2f}]".rjust(COLUMN))
    mark = ""
    if is_best:
        beyond_noise = entry.get("improvement", {"beyond_noise": True})["beyond_noise"]
        mark = "  best" if beyond_noise else "  best (within noise)"
    return f"{entry['epoch']:>5} {entry['step']:>9,} {loss:>8}{''.join(cells)}{mark}"


def _classification_row(seen: Mapping[str, Any]) -> str:
    """Return the row of the epoch table for the recordings of training speakers, see `seen_speakers.figures`."""
    pairs = zip(seen["losses"].values(), seen["accuracies"].values(), strict=True)
    cells = [f"{loss:.3f}, {100 * accuracy:.1f}".rjust(COLUMN) for loss, accuracy in pairs]
    return f"{'':>15} {seen['loss']:>8.3f}{''.join(cells)}"


class _Events:
    """TensorBoard's event file in `folder`; its methods raise UserError where the disk fails.

    The calling thread writes it, since a writer with its own thread prints the traceback of a full disk and loses the
    error.
    """

    def __init__(self, folder: Path):
        # The writers of TensorBoard and clu need TensorFlow; this one does not.
        from tensorboardX.event_file_writer import EventsWriter

        self._folder = folder
        self._flushed = time.monotonic()
        with self._writable():
            folder.mkdir(parents=True, exist_ok=True)
            # Two starts within a second get different files.
            self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Add the scalars of a step, and flush now and then."""
        # Generated code, whose classes a type checker does not see.
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]
        from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
        with self._writable():
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write all events to the disk."""
        with self._writable():
            self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write all events to the disk, and close the file."""
        with self._writable():
            self._events.close()

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder} cannot be written ({files.reason(error)}); free some space and start again."
            ) from error
