"""Saving the state of a run, also when it is asked to stop or fails."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax

from redimnet_jax.data.loader import TrainBatches
from redimnet_jax.errors import UserError
from redimnet_jax.training.preemption import Preempted, StopRequest
from redimnet_jax.training.progress import Progress
from redimnet_jax.training.run_checkpoints import TrainingCheckpoints
from redimnet_jax.training.run_time import CHECKPOINTS, RunTime
from redimnet_jax.training.trainer import StageTrainer


@dataclasses.dataclass
class RunState:
    """What changes during a run: its progress, the trainer of the current stage, and the number of steps done."""

    progress: Progress
    trainer: StageTrainer
    step: int


@dataclasses.dataclass(frozen=True)
class RunSaver:
    """Writes checkpoints of a run; `constants` are the entries that are the same in all of them."""

    state: RunState
    batches: TrainBatches
    checkpoints: TrainingCheckpoints
    stop: StopRequest
    time: RunTime
    constants: Mapping[str, Any]

    def save(self) -> None:
        """Save everything as it is now, in the background."""
        with self.time.clock.counting(CHECKPOINTS):
            self.time.write(self.state.step)
            self._save()

    def _save(self) -> None:
        progress = self.state.progress
        entries = {**self.constants, "batches": self.batches.get_state(), "progress": progress.to_json()}
        best_step = None if progress.best is None else progress.best.step
        self.checkpoints.save(*self.state.trainer.arrays(), entries, best_step)

    def leave(self) -> NoReturn:
        """Raise Preempted when everything is on disk."""
        with self.time.clock.counting(CHECKPOINTS):
            self.checkpoints.wait()
        self.time.write(self.state.step)
        raise Preempted(
            f"Stopped at step {self.state.step:,}; everything is saved, the same command goes on from there."
        )

    def leave_validation(self) -> None:
        """Save and raise Preempted if the run was asked to stop while it validates.

        Several processes all stop after the validation instead, since the others would wait in vain.
        """
        if self.stop.requested and jax.process_count() == 1:
            # At the end of a run everything is saved already.
            if self.state.progress.sums:
                self.save()
            self.leave()

    @contextlib.contextmanager
    def saving_on_error(self, before: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Save the steps of an epoch that is not validated yet when the block raises UserError.

        `before` is called first. All processes must raise together.
        """
        try:
            yield
        except UserError:
            before()
            if self.state.progress.unvalidated_steps:
                self.save()
                self.checkpoints.wait()
            raise
