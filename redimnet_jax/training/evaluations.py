"""What a run evaluates after its epochs, as hooks."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from redimnet_jax import files, sharding
from redimnet_jax.checkpoints import native
from redimnet_jax.embedding.extract import embed_pooled
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.losses.chance_level import LossLevels
from redimnet_jax.losses.objective import Objective
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.training import averaging, monitoring, seen_speakers
from redimnet_jax.training.hooks import Event, Hook
from redimnet_jax.training.log import TrainingLog
from redimnet_jax.training.saver import RunState
from redimnet_jax.training.seen_speakers import SeenSpeakers
from redimnet_jax.training.validator import ModelSelection, ValidationResult, Validator


class Evaluations:
    """The evaluations of a run with that `state`.

    `model` returns the model as it is now. `pretrained` is the model that training starts from, evaluated once for
    comparison, or None. `seen` are recordings of training speakers that do not train, classified in crops of
    `crop_seconds`, or None.
    """

    def __init__(
        self,
        state: RunState,
        selection: ModelSelection,
        model: Callable[[], SpeakerModel],
        log: TrainingLog,
        *,
        pretrained: SpeakerModel | None,
        seen: SeenSpeakers | None,
        crop_seconds: float,
        objective: Objective,
    ):
        self._state = state
        self._selection = selection
        self._validator: Validator = selection.validator
        self._model = model
        self._log = log
        self._pretrained = pretrained
        self._seen = seen
        self._windows = CropPolicy(crop_seconds)
        self._objective = objective
        # The model and the result of the validation that the current epoch had, if any.
        self._validated: tuple[SpeakerModel, ValidationResult] | None = None

    def hooks(self, levels: LossLevels) -> list[Hook]:
        """Return the evaluations in their order, the last of which adds the entry of an epoch to the history.

        The best model is chosen after everything that may be interrupted, so that a run that resumes within an
        evaluation chooses it by the same rule. `levels` are those of the loss.
        """
        every = self._validator.settings.every_epochs
        return [
            Hook(lambda event: self._warn_of_chance(levels, event), every_epochs=1),
            Hook(self._validate, every_epochs=every),
            *([Hook(self._classify_seen, every_epochs=every)] if self._seen is not None else []),
            *([Hook(self._evaluate_pretrained, every_epochs=every)] if self._pretrained is not None else []),
            Hook(self._select_best, every_epochs=every),
            Hook(self._record, every_epochs=1),
        ]

    def average(self, last: int, epoch_steps: int) -> dict[str, Any] | None:
        """Write the mean of the models of the `last` epochs; return its results with the `epochs`.

        Only epochs of the last stage count. Return None where there are no two models to average.
        """
        workdir = self._selection.workdir
        first_of_stage = self._state.progress.stage_start // epoch_steps + 1
        final = self._state.step // epoch_steps
        epochs = range(max(first_of_stage, final + 1 - last), final + 1)
        if len(epochs) < 2:
            self._log.say("averaging.last: no average, since the last stage has fewer than two epochs")
            return None
        model = self._model()
        arrays = jax.tree.map(np.asarray, native.flat(model.network))
        if jax.process_index() == 0:
            arrays = averaging.mean_of_snapshots(workdir, [epoch * epoch_steps for epoch in epochs])
        native.fill(model.network, sharding.from_first_process(arrays))
        validation = self._validator.run(model, reuse=not self._state.trainer.backbone_trains)
        if jax.process_index() == 0:
            files.remove_folder(workdir / averaging.AVERAGED)
            native.save(model, workdir / averaging.AVERAGED)
        return validation.results | {"epochs": list(epochs)}

    def _warn_of_chance(self, levels: LossLevels, event: Event) -> None:
        """Say which losses of the epoch are above those of random embeddings."""
        if "losses" not in event.entry:
            return
        weighted = zip(event.entry["losses"].items(), self._objective.weights, strict=True)
        trained = {dim: loss for (dim, loss), weight in weighted if weight}
        # The margin only grows, so that of the next step is the largest.
        if warning := levels.warning(trained, self._objective.margin(event.step)):
            self._log.say(warning)

    def _validate(self, event: Event) -> None:
        model = self._model()
        result = self._validator.run(model, reuse=not self._state.trainer.backbone_trains)
        event.entry.update(result.results)
        self._validated = model, result

    def _classify_seen(self, event: Event) -> None:
        """Add the loss and accuracy of the heads on recordings of training speakers that do not train."""
        assert self._seen is not None and self._validated is not None
        model, _ = self._validated
        # The crops are as long as those that train, the longest of several, so that both losses are of the same task.
        pooled = self._validator.pooled.get(
            "seen speakers",
            model,
            self._seen.recordings,
            self._windows,
            reuse=not self._state.trainer.backbone_trains,
        )
        event.entry["classification"] = seen_speakers.figures(
            self._state.trainer.model().heads,
            embed_pooled(model, pooled),
            self._seen.labels,
            weights=self._objective.weights,
        )

    def _evaluate_pretrained(self, event: Event) -> None:
        """Evaluate the model that training starts from, at its own width too, before the first step."""
        if self._pretrained is None or event.step:
            return
        width = self._pretrained.embed_dim
        dims = sorted({dim for dim in self._validator.dims if dim < width} | {width})
        self._state.progress.pretrained = self._validator.run(self._pretrained, reuse=True, dims=dims).results
        self._pretrained = None

    def _select_best(self, event: Event) -> None:
        assert self._validated is not None
        improvement = self._selection.update(*self._validated, event.step, event.epoch)
        if improvement is not None:
            event.entry["improvement"] = improvement

    def _record(self, event: Event) -> None:
        progress = self._state.progress
        progress.history.append(event.entry)
        progress.sums = None
        if self._validated is not None:
            event.entry["overfitting"] = monitoring.overfitting_signs(progress.history)
        self._validated = None
