"""What the user sees while a run goes on: text, progress bars and TensorBoard events, of the first process only."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from redimnet_jax import files
from redimnet_jax.errors import UserError
from redimnet_jax.training import overfitting

# Above this share of an epoch spent waiting for audio, the user is told.
STARVED = 0.05
# TensorBoard's events are on the disk after this time at most.
FLUSH_SECONDS = 60.0


@dataclasses.dataclass
class TrainingLog:
    """The log of the run in `workdir` with heads for the dimensions `dims`."""

    workdir: Path
    dims: Sequence[int]

    def __post_init__(self) -> None:
        self.shown = jax.process_index() == 0
        self._writer = None
        self._has_header = False
        if self.shown:
            self._writer = _Events(self.workdir / "events")

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def say(self, text: str) -> None:
        if self.shown:
            print(text, flush=True)

    def bar(self, name: str, total: int, initial: int = 0, unit: str = "batch") -> tqdm:
        """A progress bar with the time left."""
        return tqdm(total=total, initial=initial, desc=name, unit=unit, disable=not self.shown, leave=False)

    def step(self, number: int, figures: Mapping[str, Any], learning_rate: float) -> None:
        """The figures of a training step, see `train_step.make_step`, as Python numbers."""
        scalars = {"loss": figures["loss"], "grad_norm": figures["grad_norm"], "learning_rate": learning_rate}
        scalars |= {name: figures[name] for name in ("distillation",) if name in figures}
        for index, dim in enumerate(self.dims):
            scalars[f"loss/{dim}"] = figures["losses"][index]
            scalars[f"accuracy/{dim}"] = figures["accuracies"][index]
        self._scalars("train", scalars, number)

    def epoch(self, entry: Mapping[str, Any], is_best: bool) -> None:
        """A row of the epoch table: an entry of the run's history, with results where it was validated."""
        if not self.shown:
            return
        if not self._has_header:
            dims = "".join(f"{f'EER % {dim} [95 %]':>22}" for dim in self.dims)
            print(f"{'epoch':>5} {'step':>9} {'loss':>8}{dims}")
            if "classification" in entry:
                print(f"{'seen speakers:':>15} {'loss':>8}{'loss, right %'.rjust(22) * len(self.dims)}")
            self._has_header = True
        loss = f"{entry['loss']:.3f}" if "loss" in entry else ""
        cells = []
        for figures in entry.get("dims", {}).values():
            low, high = (100 * bound for bound in figures["eer_ci95"])
            cells.append(f"{100 * figures['eer']:.2f} [{low:.2f}, {high:.2f}]".rjust(22))
        step = entry["step"]
        noise = is_best and not entry.get("improvement", {"beyond_noise": True})["beyond_noise"]
        mark = "  best" * is_best + " (within noise)" * noise
        print(f"{entry['epoch']:>5} {step:>9,} {loss:>8}{''.join(cells)}{mark}", flush=True)
        seen = entry.get("classification", {})
        if seen:
            pairs = zip(seen["losses"].values(), seen["accuracies"].values(), strict=True)
            cells = (f"{loss:.3f}, {100 * share:.1f}".rjust(22) for loss, share in pairs)
            print(f"{'':>15} {seen['loss']:>8.3f}{''.join(cells)}", flush=True)
            self._scalars("classification", {"loss": seen["loss"]}, step)
            for name, kind in (("loss", "losses"), ("accuracy", "accuracies")):
                self._scalars("classification", {f"{name}/{dim}": value for dim, value in seen[kind].items()}, step)
        names = ("loss", "crops_per_second", "input_wait")
        self._scalars("epoch", {name: entry[name] for name in names if name in entry}, step)
        for dim, figures in entry.get("dims", {}).items():
            names = ("eer", "accuracy", "target_mean", "nontarget_mean")
            self._scalars("validation", {f"{name}/{dim}": figures[name] for name in names}, step)
        self._writer.flush()

    def overfitting(self, entry: Mapping[str, Any], dim: int) -> None:
        """Says which signs of overfitting hold at `dim`, when any does besides a falling loss."""
        found = entry.get("overfitting", {})
        for warning in overfitting.warnings({key: signs for key, signs in found.items() if key == str(dim)}):
            self.say(warning)

    def input(self, waited: float, crops_per_second: float) -> None:
        """Says so when the devices waited for audio for more than `STARVED` of an epoch."""
        if waited > STARVED:
            self.say(
                f"the devices waited for audio {waited:.0%} of the epoch ({crops_per_second:.0f} crops/s); more "
                "data.workers, or audio that decodes faster (wav), would help"
            )

    def _scalars(self, group: str, scalars: Mapping[str, float], step: int) -> None:
        if self._writer:
            self._writer.add({f"{group}/{name}": value for name, value in scalars.items()}, step)


class _Events:
    """TensorBoard's event file in `folder`; raises UserError where the disk fails.

    It is written by the calling thread: the writer with a thread of its own prints the traceback of a full disk and
    loses the error.
    """

    def __init__(self, folder: Path):
        # TensorBoard's own writer, and clu's, need TensorFlow; this one does not.
        from tensorboardX.event_file_writer import EventsWriter

        self._folder, self._flushed = folder, time.monotonic()
        with self._writable():
            folder.mkdir(parents=True, exist_ok=True)
            # Two starts within a second have different files.
            self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Adds the scalars of a step, and flushes now and then."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
        with self._writable():
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        with self._writable():
            self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
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
