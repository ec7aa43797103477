"""Hooks that do not evaluate: the log, the report so far, and snapshots (`evaluations.py` has the others)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.training import averaging, report
from redimnet_jax.training.hooks import Event, Hook
from redimnet_jax.training.log import TrainingLog
from redimnet_jax.training.saver import RunState


def log_hooks(log: TrainingLog, state: RunState, every_steps: int, dim: int) -> list[Hook]:
    """Return a hook that logs every `every_steps` steps and one for epochs; the EER of `dim` chooses the best."""

    def log_step(event: Event) -> None:
        log.step(event.step, event.figures, state.trainer.learning_rate(event.step))

    def log_epoch(event: Event) -> None:
        best = state.progress.best
        log.epoch(event.entry, best is not None and best.step == event.step)
        log.overfitting(event.entry, dim)

    return [
        Hook(log_step, every_steps=every_steps, needs_figures_only=True),
        Hook(log_epoch, every_epochs=1),
    ]


def report_hook(workdir: Path, state: RunState, trial_set: TrialSet, dims: Sequence[int]) -> Hook:
    """Return a hook that writes the report of the run so far, without recordings, after every validation."""

    def write(event: Event) -> None:
        if "dims" in event.entry and jax.process_index() == 0:
            report.write_page(workdir, state.progress, trial_set, dims)

    return Hook(write, every_epochs=1)


def snapshot_hooks(workdir: Path, state: RunState, model: Callable[[], SpeakerModel], last: int) -> list[Hook]:
    """Return a hook that keeps the models of the newest `last` epochs of the stage, or no hook if `last` is 0."""

    def keep_snapshot(event: Event) -> None:
        # Collecting the model is collective; only the first process writes it.
        snapshot = model() if event.step else None
        if snapshot is not None and jax.process_index() == 0:
            averaging.keep_snapshot(snapshot, workdir, event.step, count=last, after=state.progress.stage_start)

    return [Hook(keep_snapshot, every_epochs=1)] if last else []
