"""The training loop.

    validate before the first step
    for every epoch:
        for every step:      dispatch it; run the hooks that are due; save when due; stop when asked to
        at the end:          run the hooks for epochs (validation, ...), begin the next stage when due, save

A dispatched step runs on the device while the host goes on. Its figures (loss, gradient norm, accuracies) are read a
few dispatches later, so that the device never waits for the host.
"""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from redimnet_jax.errors import UserError
from redimnet_jax.training.hooks import Event, Hook
from redimnet_jax.training.log import TrainingLog
from redimnet_jax.training.progress import EpochSums
from redimnet_jax.training.run_time import CHECKPOINTS, STEPS, VALIDATION, RunTime
from redimnet_jax.training.saver import RunSaver, RunState
from redimnet_jax.training.stages import Stage
from redimnet_jax.training.steppers import LiveStepper, Stepper

# Dispatches whose figures are not read yet: enough to keep the device busy, and few enough to see soon that a loss is
# not finite.
MAX_UNREAD_DISPATCHES = 4


@dataclasses.dataclass(frozen=True)
class LoopSize:
    """The length of a run: `epochs`, each of `epoch_steps` batches; a batch has `batch_size` crops."""

    epochs: int
    epoch_steps: int
    batch_size: int

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.epochs * self.epoch_steps


@dataclasses.dataclass
class Loop:
    """Trains a run from its current step to its end.

    `open_stepper()` returns the stepper of the current stage. `begin_stage(i)` replaces the trainer with that of
    stage i. `raise_if_too_many_unreadable()` raises UserError when more recordings could not be read than the
    settings allow. The run is saved every `save_every_steps` steps and after every epoch. Several processes agree on
    whether to stop every `synchronize_every_steps` steps only, because agreeing is a collective operation.
    """

    size: LoopSize
    state: RunState
    stages: Sequence[Stage]
    hooks: Sequence[Hook]
    saver: RunSaver
    log: TrainingLog
    time: RunTime
    open_stepper: Callable[[], Stepper]
    begin_stage: Callable[[int], None]
    raise_if_too_many_unreadable: Callable[[], None]
    save_every_steps: int
    synchronize_every_steps: int

    def run(self) -> None:
        """Train until the last step, or until patience ends the last stage."""
        progress = self.state.progress
        between_epochs = self.state.step % self.size.epoch_steps == 0
        # Validate before the first step, and after an epoch whose validation was interrupted.
        if not progress.history or (progress.sums and between_epochs):
            self._end_epoch({})
        while not self._finished():
            with contextlib.closing(self.open_stepper()) as stepper:
                stage = progress.stage
                while progress.stage == stage and not self._finished():
                    with self.time.clock.counting(STEPS):
                        timing = self._train_epoch(stepper)
                    self._end_epoch(timing)
        with self.time.clock.counting(CHECKPOINTS):
            self.saver.checkpoints.wait()

    def _finished(self) -> bool:
        return self.state.step >= self.size.steps or self.state.progress.stopped

    def _train_epoch(self, stepper: Stepper) -> dict[str, float]:
        """Train to the end of the current epoch; return {"crops_per_second", "input_wait"}."""
        state = self.state
        begin = state.step
        epoch = begin // self.size.epoch_steps
        end = (epoch + 1) * self.size.epoch_steps
        state.progress.sums = state.progress.sums or EpochSums.zeros(len(self.log.dims))
        stepper.wait_fraction()  # This call resets the meter; the next one measures from here.
        start = time.perf_counter()
        with self._bar(epoch, begin) as bar:
            in_flight = _InFlight(self, bar)
            while state.step < end:
                self._dispatch(stepper, in_flight, end)
                if self._processes_synchronize_here():
                    with in_flight.saving_on_error():
                        self.raise_if_too_many_unreadable()
                    if self.saver.stop.requested_anywhere():
                        in_flight.read_all()
                        self.saver.save()
                        self.saver.leave()
                due = [hook for hook in self._hooks_of_the_state() if hook.is_due_at_step(state.step)]
                if due:
                    in_flight.read_all()
                for hook in due:
                    hook.run(Event(state.step, epoch))
                # After the last step of an epoch, `_end_epoch` saves the run.
                if state.step % self.save_every_steps == 0 and state.step < end:
                    in_flight.read_all()
                    self.saver.save()
            in_flight.read_all()
            with self.saver.saving_on_error():
                self.raise_if_too_many_unreadable()
        seconds = max(time.perf_counter() - start, 1e-9)
        waited = stepper.wait_fraction()
        speed = (end - begin) * self.size.batch_size / seconds
        if isinstance(stepper, LiveStepper):
            self.log.input(waited, speed)
        return {"crops_per_second": speed, "input_wait": waited}

    def _bar(self, epoch: int, begin: int) -> tqdm:
        crops = self.size.epoch_steps * self.size.batch_size
        done = begin % self.size.epoch_steps * self.size.batch_size
        return self.log.bar(f"epoch {epoch + 1}/{self.size.epochs}", crops, done, "crop")

    def _dispatch(self, stepper: Stepper, in_flight: "_InFlight", end: int) -> None:
        """Start the steps up to the next hook, save, synchronization or end of the epoch."""
        state = self.state
        before = state.step
        until = min([end, *(hook.next_step(before) for hook in self._hooks_of_the_state())])
        until = min(until, _next_multiple(before, self.save_every_steps))
        if jax.process_count() > 1:
            until = min(until, _next_multiple(before, self.synchronize_every_steps))
        # Saving needs all processes. When the input of one fails, the others are still training.
        alone = jax.process_count() == 1
        with in_flight.saving_on_error() if alone else contextlib.nullcontext():
            trainer = state.trainer
            trainer.state, figures, state.step = stepper.run(trainer.state, trainer.frozen, before, until)
        in_flight.add(before, state.step, figures)
        self.time.note(state.step, stepper.flops)

    def _processes_synchronize_here(self) -> bool:
        """Return whether to ask for a stop after this step, which a single process always does."""
        return jax.process_count() == 1 or self.state.step % self.synchronize_every_steps == 0

    def _hooks_of_the_state(self) -> list[Hook]:
        """Return the hooks for steps that need the finished state of their step, not only its figures."""
        return [hook for hook in self.hooks if hook.every_steps is not None and not hook.needs_figures_only]

    def note_step(self, step: int, figures: dict[str, Any]) -> None:
        """Add the figures of a step to those of its epoch, and run the hooks that need only these."""
        self._check_finite(step, figures)
        assert self.state.progress.sums is not None
        self.state.progress.sums.add(figures)
        for hook in self.hooks:
            if hook.needs_figures_only and hook.is_due_at_step(step):
                hook.run(Event(step, (step - 1) // self.size.epoch_steps, figures))

    def _check_finite(self, step: int, figures: dict[str, Any]) -> None:
        if math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"]):
            return
        self.saver.checkpoints.wait()
        kept = self.saver.checkpoints.latest()
        state = "there is no checkpoint yet" if kept is None else f"the checkpoint of step {kept} is kept"
        raise UserError(
            f"The loss is {figures['loss']} and the gradient norm {figures['grad_norm']} at step {step}, and "
            f"{state}; start again in another workdir with a lower optimizer.learning_rate."
        )

    def _end_epoch(self, timing: dict[str, float]) -> None:
        """Run the hooks for epochs, begin the next stage when due, and save; at step 0, run the hooks only.

        Leave the run when it was asked to stop meanwhile.
        """
        state = self.state
        epoch = state.step // self.size.epoch_steps
        entry: dict[str, Any] = {"step": state.step, "epoch": epoch, "stage": 1 + state.progress.stage}
        if state.progress.unvalidated_steps:
            assert state.progress.sums is not None
            entry |= state.progress.sums.means(self.log.dims)
        entry |= timing
        last = state.step == self.size.steps
        with self.time.clock.counting(VALIDATION):
            for hook in self.hooks:
                if hook.is_due_after_epoch(epoch, last=last):
                    hook.run(Event(state.step, epoch, entry=entry))
        if state.step:
            self._end_stage_when_due(epoch)
            self.saver.save()
        # Before the next stage is compiled. A run that has finished only writes its results.
        if not self._finished() and self.saver.stop.requested_anywhere():
            self.saver.leave()

    def _end_stage_when_due(self, epoch: int) -> None:
        """Stop the run, or begin the next stage from the weights just validated; patience starts again."""
        progress = self.state.progress
        if not self.stages[progress.stage].ends(epoch, progress.stale):
            return
        if progress.stage == len(self.stages) - 1 or self.state.step == self.size.steps:
            progress.stopped = self.state.step < self.size.steps
            return
        self.begin_stage(progress.stage + 1)
        self.log.say(f"stage {1 + progress.stage} starts after epoch {epoch}: {self.state.trainer.description()}")


class _InFlight:
    """Dispatched steps whose figures have not been read yet."""

    def __init__(self, loop: Loop, bar: tqdm):
        self._loop = loop
        self._bar = bar
        self._waiting: collections.deque[tuple[int, int, dict[str, jax.Array]]] = collections.deque()

    def add(self, before: int, reached: int, figures: dict[str, jax.Array]) -> None:
        """Add the steps `before` + 1 to `reached`, and read figures until `MAX_UNREAD_DISPATCHES` are left."""
        self._waiting.append((before, reached, figures))
        self._read(MAX_UNREAD_DISPATCHES)

    def read_all(self) -> None:
        """Wait for the figures of all steps."""
        self._read(0)

    def saving_on_error(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that saves the run up to the last finished step when a UserError is raised."""
        return self._loop.saver.saving_on_error(self.read_all)

    def _read(self, count: int) -> None:
        while len(self._waiting) > count:
            for step, figures in _by_step(*self._waiting.popleft()):
                self._loop.note_step(step, figures)
                self._bar.set_postfix_str(f"loss {figures['loss']:.3f}", refresh=False)
                self._bar.update(self._loop.size.batch_size)


def _next_multiple(step: int, every: int) -> int:
    """Return the first multiple of `every` after `step`."""
    return step - step % every + every


def _by_step(before: int, reached: int, figures: dict[str, jax.Array]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Wait for the steps after step `before`, and yield (number, figures as Python numbers) of each.

    Figures have a row for every step; those of a single step may lack that axis.
    """
    arrays = {name: np.asarray(value) for name, value in figures.items()}
    if not arrays["loss"].ndim:
        arrays = {name: array[None] for name, array in arrays.items()}
    for number in range(before, reached):
        yield number + 1, {name: array[number - before].tolist() for name, array in arrays.items()}
