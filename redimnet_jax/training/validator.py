"""Validation of a run: verification results of a model, the best model so far, and patience."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from redimnet_jax import sharding
from redimnet_jax.embedding.extract import Recordings, pool_recordings
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.evaluation import results as evaluation_results
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.training import monitoring, settings
from redimnet_jax.training.log import shows_progress
from redimnet_jax.training.progress import Best, Progress, Reference
from redimnet_jax.training.run_checkpoints import save_best


class PooledRecordings:
    """Pooled features of sets of recordings; those of a frozen backbone are computed once.

    `batch_seconds` bounds the audio of a batch on a device. `check` is called before every batch and may raise.
    Features are computed within a context of `guard`, which sees the UserError of a recording.
    """

    def __init__(
        self, batch_seconds: float, check: Callable[[], None], guard: Callable[[], AbstractContextManager[None]]
    ):
        self._batch_seconds = batch_seconds
        self._check = check
        self._guard = guard
        self._latest: dict[str, np.ndarray] = {}

    def get(
        self, name: str, model: SpeakerModel, recordings: Recordings, windows: CropPolicy, *, reuse: bool
    ) -> np.ndarray:
        """Return the features (recordings, crops, features), float32, of the recordings that are called `name`.

        With `reuse` they are those of the latest call for that name since `clear`, if there was one.
        """
        if not (reuse and name in self._latest):
            with self._guard():
                self._latest[name] = pool_recordings(
                    model,
                    recordings,
                    crop_policy=windows,
                    batch_seconds=self._batch_seconds,
                    progress=name if shows_progress() else None,
                    check=self._check,
                )
        return self._latest[name]

    def clear(self) -> None:
        """Forget all features."""
        self._latest = {}


@dataclasses.dataclass(frozen=True)
class ValidationResult:
    """The `results` of `evaluation.results.evaluate` and the scores, float32 (dims, trials)."""

    results: dict[str, Any]
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Validator:
    """The validation of models on the `trials` of a run, for the prefix lengths `dims`."""

    settings: settings.Validation
    trials: TrialSet
    dims: Sequence[int]
    seed: int
    pooled: PooledRecordings

    @property
    def dim(self) -> int:
        """The dimension whose EER chooses the best model."""
        return self.settings.dim or self.dims[-1]

    def run(self, model: SpeakerModel, *, reuse: bool, dims: Sequence[int] | None = None) -> ValidationResult:
        """Return the results of `model` at `dims`, by default all of them.

        `reuse` says that the backbone is that of the latest call, whose pooled features are then used again.
        """
        settings = self.settings
        windows = CropPolicy(settings.crop_seconds, settings.crops, settings.max_seconds)
        pooled = self.pooled.get("validation", model, self.trials.recordings, windows, reuse=reuse)
        results, scores, _ = evaluation_results.evaluate(
            model, pooled, self.trials, dims or self.dims, bootstrap=settings.bootstrap, seed=self.seed
        )
        return ValidationResult(results, scores)


@dataclasses.dataclass(frozen=True)
class ModelSelection:
    """Keeps the model with the lowest EER in `workdir`, and counts the validations since the last improvement."""

    validator: Validator
    workdir: Path
    progress: Progress

    def update(self, model: SpeakerModel, result: ValidationResult, step: int, epoch: int) -> dict[str, Any] | None:
        """Note the `result` of `model` after a step; return the improvement over the reference, or None.

        The improvement (see `monitoring.improvement`) is measured only where the EER is the lowest so far.
        """
        progress = self.progress
        # All processes decide by the EER of the first one, which may round differently.
        eer = float(sharding.from_first_process(result.results["dims"][str(self.validator.dim)]["eer"]))
        progress.stale += 1
        best = progress.best
        if best is not None and eer >= best.eer:
            return None
        improvement = None if best is None else self._improvement(result.scores)
        if improvement is None or self._resets_patience(improvement, eer):
            progress.reference = Reference(eer, step)
            progress.stale = 0
        progress.best = Best(eer, step, epoch)
        if jax.process_index() == 0:
            save_best(model, self.workdir, step)
            monitoring.keep_scores(self.workdir, step, result.scores)
        return improvement

    def _improvement(self, scores: np.ndarray) -> dict[str, Any]:
        """Return the improvement over the reference, of which only the first process has the numbers."""
        assert self.progress.reference is not None
        improvement = {"difference": 0.0, "ci95": [0.0, 0.0], "beyond_noise": False}
        if jax.process_index() == 0:
            row = list(self.validator.dims).index(self.validator.dim)
            improvement = monitoring.improvement(
                scores[row],
                monitoring.read_scores(self.workdir, self.progress.reference.step)[row],
                self.validator.trials,
                resamples=self.validator.settings.bootstrap,
                seed=self.validator.seed,
            )
        improvement["beyond_noise"] = bool(sharding.from_first_process(improvement["beyond_noise"]))
        return improvement

    def _resets_patience(self, improvement: dict[str, Any], eer: float) -> bool:
        assert self.progress.reference is not None
        return monitoring.is_improvement(
            eer,
            self.progress.reference.eer,
            beyond_noise=improvement["beyond_noise"],
            min_improvement=self.validator.settings.min_improvement,
            significant=self.validator.settings.significant,
        )
