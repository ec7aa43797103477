"""The assembly of a training run: which parts it has, and what each of them is made from."""

import contextlib
import json
from typing import Any

import jax
from flax import nnx

from redimnet_jax import files, hosts, sharding
from redimnet_jax.buckets import Mirror
from redimnet_jax.data import loader
from redimnet_jax.errors import UserError
from redimnet_jax.losses.chance_level import LossLevels
from redimnet_jax.losses.heads import Heads
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.settings import to_config_dict
from redimnet_jax.training import cloud_notices, earlier_heads
from redimnet_jax.training import report as training_report
from redimnet_jax.training.data import Data
from redimnet_jax.training.evaluations import Evaluations
from redimnet_jax.training.inputs import Inputs, crop_samples, train_batches
from redimnet_jax.training.log import TrainingLog
from redimnet_jax.training.loop import Loop, LoopSize
from redimnet_jax.training.objective_from_settings import make_objective
from redimnet_jax.training.partition import TrainableModel
from redimnet_jax.training.preemption import StopRequest
from redimnet_jax.training.progress import Progress
from redimnet_jax.training.run_checkpoints import ModelDescription, TrainingCheckpoints
from redimnet_jax.training.run_hooks import log_hooks, report_hook, snapshot_hooks
from redimnet_jax.training.run_time import OTHER, Clock, RunTime
from redimnet_jax.training.sampler import choose_strata
from redimnet_jax.training.saver import RunSaver, RunState
from redimnet_jax.training.settings import Settings
from redimnet_jax.training.stages import stages
from redimnet_jax.training.start import adapt
from redimnet_jax.training.trainer import StageSpan, StageTrainer
from redimnet_jax.training.unreadable_list import FILE as UNREADABLE
from redimnet_jax.training.unreadable_list import Unreadable
from redimnet_jax.training.validator import ModelSelection, PooledRecordings, Validator
from redimnet_jax.training.workdir import features_folder


class Assembly:
    """The parts of a run in the workdir `mirror`, each made from its settings; `stack` closes what must be closed."""

    def __init__(
        self,
        settings: Settings,
        mirror: Mirror,
        data: Data,
        checkpoints: TrainingCheckpoints,
        stack: contextlib.ExitStack,
        clock: Clock,
    ):
        self.settings = settings
        self.workdir = mirror.local
        self.data = data
        self.checkpoints = checkpoints
        self.mesh = sharding.mesh()
        self.clock = clock
        self.stop = StopRequest()
        stack.enter_context(cloud_notices.watched(self.stop.request))
        self.dims = settings.projection.mrl_dims
        self.log = stack.enter_context(contextlib.closing(TrainingLog(self.workdir, self.dims)))
        self.unreadable = Unreadable(
            self.workdir / UNREADABLE, data.corpus, max(crop_samples(settings)), settings.data.max_bad
        )
        batches = stack.enter_context(contextlib.closing(train_batches(settings, data, augmented=True)))
        self.inputs = Inputs(
            settings, data, batches, self.unreadable, features_folder(mirror), self.mesh, self.log, self.stop, clock
        )
        self.inputs.raise_if_too_many_unreadable()
        crops_per_utterance = settings.data.crops_per_utterance
        epoch_steps = loader.steps_per_epoch(data.corpus, settings.batch_size, crops_per_utterance)
        self.size = LoopSize(settings.epochs, epoch_steps, settings.batch_size)
        self.objective = make_objective(settings, epoch_steps)
        self.stages = stages(settings)

    def complete(
        self, model: SpeakerModel, teacher: SpeakerNetwork | None, saved: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Train from the start, or from what is `saved`, to the end; return the results of the best model."""
        settings = self.settings
        heads = Heads(
            len(self.data.classes),
            self.dims,
            settings.chosen_loss,
            shared=settings.heads.shared,
            margins=settings.loss.margins,
            rngs=nnx.Rngs(settings.seed + 1),
        )
        pretrained = None
        if saved is None:
            progress = Progress(choose_strata(settings.batch_size, jax.device_count()))
            if settings.model.checkpoint is not None:
                pretrained = model
                model = self._adapted(pretrained, heads)
        else:
            self._check_speakers(saved["speakers"])
            progress = Progress.from_json(saved["progress"])
            self.inputs.batches.set_state(saved["batches"])
        description = ModelDescription.of(model)
        trainer = self._trainer(progress, TrainableModel(model.network, heads, teacher), resumed=saved is not None)
        state = RunState(progress, trainer, int(trainer.state.step))
        with hosts.failing_together():
            run_time = RunTime(self.workdir, self.clock, state.step, first=jax.process_index() == 0)
        loop, evaluations = self._loop(state, description, pretrained, run_time)
        self._announce(state)
        self.clock.begin(OTHER)
        with self.stop.watched():
            loop.run()
            last = settings.averaging.last
            averaged = evaluations.average(last, self.size.epoch_steps) if last else None
        results = self._report(progress, averaged)
        run_time.write(state.step)
        self.log.say(run_time.table())
        return results

    def _adapted(self, pretrained: SpeakerModel, heads: Heads) -> SpeakerModel:
        run = self.settings.heads.run
        if run is not None:
            theirs = earlier_heads.take_over(heads, self.data.classes, run)
            self.log.say(f"heads start at {heads.classes:,} of the {theirs:,} prototypes of {run}")
        return adapt(
            self.settings,
            pretrained,
            heads,
            lambda count: self.inputs.pooled_crops(pretrained, count),
            len(self.data.corpus),
            self.log,
        )

    def _check_speakers(self, saved: list[str]) -> None:
        """Raise UserError unless the speakers are those that a checkpoint was saved with."""
        if saved != self.data.classes:
            raise UserError(
                f"The speakers of {self.settings.data.train} ({len(self.data.classes)} classes) are not those that "
                f"the heads in {self.checkpoints.folder} were trained for ({len(saved)}); give the same data, or "
                "another workdir."
            )

    def _trainer(self, progress: Progress, model: TrainableModel, *, resumed: bool = False) -> StageTrainer:
        """Return the trainer of the current stage, which starts from `model`, or from the newest checkpoint."""
        stage = self.stages[progress.stage]
        steps = stage.last_epoch * self.size.epoch_steps - progress.stage_start
        return StageTrainer(
            stage,
            StageSpan(progress.stage_start, steps, self.size.epoch_steps),
            model,
            self.mesh,
            ema=self.settings.averaging.ema,
            checkpoints=self.checkpoints if resumed else None,
        )

    def _loop(
        self, state: RunState, description: ModelDescription, pretrained: SpeakerModel | None, run_time: RunTime
    ) -> tuple[Loop, Evaluations]:
        settings = self.settings
        saver = RunSaver(
            state, self.inputs.batches, self.checkpoints, self.stop, run_time, self._constants(description)
        )

        def model() -> SpeakerModel:
            return description.model(state.trainer.model().network)

        pooled = PooledRecordings(settings.validation.batch_seconds, saver.leave_validation, saver.saving_on_error)
        validator = Validator(settings.validation, self.data.validation, self.dims, settings.seed, pooled)
        evaluations = Evaluations(
            state,
            ModelSelection(validator, self.workdir, state.progress),
            model,
            self.log,
            pretrained=pretrained,
            seen=self.data.seen,
            crop_seconds=max(settings.data.crop_lengths),
            objective=self.objective,
        )

        def begin_stage(index: int) -> None:
            trained = state.trainer.model()
            state.progress.begin_stage(index, state.step)
            state.trainer = self._trainer(state.progress, trained)
            pooled.clear()

        loop = Loop(
            size=self.size,
            state=state,
            stages=self.stages,
            hooks=[
                *evaluations.hooks(self._levels()),
                *log_hooks(self.log, state, settings.log_every_steps, validator.dim),
                report_hook(self.workdir, state, self.data.validation, self.dims),
                *snapshot_hooks(self.workdir, state, model, settings.averaging.last),
            ],
            saver=saver,
            log=self.log,
            time=run_time,
            open_stepper=lambda: self.inputs.open_stepper(
                state.trainer, model, self.objective, state.progress.strata
            ),
            begin_stage=begin_stage,
            raise_if_too_many_unreadable=self.inputs.raise_if_too_many_unreadable,
            save_every_steps=settings.checkpoint.every_steps,
            synchronize_every_steps=settings.log_every_steps,
        )
        return loop, evaluations

    def _constants(self, description: ModelDescription) -> dict[str, Any]:
        """Return the entries that all checkpoints of the run have."""
        return {
            "config": json.loads(to_config_dict(self.settings).to_json_best_effort()),
            "speakers": self.data.classes,
            "model": description.to_json(),
            "corpora": dict(self.data.digests),
        }

    def _levels(self) -> LossLevels:
        settings = self.settings
        crops = settings.data.crops_per_speaker
        speakers = settings.batch_size // crops
        return LossLevels(
            settings.chosen_loss, len(self.data.classes), self.dims, speakers, crops, settings.loss.margins
        )

    def _announce(self, state: RunState) -> None:
        """Write `config.json`, and log what trains on what."""
        settings = self.settings
        corpus = self.data.corpus
        trainer = state.trainer
        config = to_config_dict(settings)
        if jax.process_index() == 0:
            files.write(self.workdir / "config.json", config.to_json_best_effort(indent=2) + "\n")
        self.log.say(str(config))
        self.log.say(f"training    {len(corpus):,} utterances of {len(corpus.speakers):,} speakers")
        self.log.say(f"validation  {self.data.validation.description}")
        if self.data.seen is not None:
            self.log.say(f"seen        {self.data.seen.description}")
        self.log.say(f"trained     {trainer.description()}")
        self.log.say(f"frozen      {trainer.size('frozen'):,} values")
        devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
        self.log.say(f"devices     {devices}, {jax.process_count()} process(es)")
        size = self.size
        crops = f"{size.batch_size} crops ({size.batch_size // jax.device_count()} a device)"
        self.log.say(f"steps       {size.steps:,} of {crops}, {size.epoch_steps:,} an epoch")
        if settings.cache.crops:
            at_once = settings.cache.crops_at_once(jax.device_count())
            self.log.say(f"features    {at_once:,} crops at once ({at_once // jax.device_count():,} a device)")
        self.log.say(self._levels().description())
        if state.step:
            stage = f" in stage {1 + state.progress.stage}" if len(self.stages) > 1 else ""
            self.log.say(f"resumed at step {state.step:,}{stage}")

    def _report(self, progress: Progress, averaged: dict[str, Any] | None) -> dict[str, Any]:
        """Write tables, JSON and plots of the whole run; return the best model's results."""
        if progress.stopped:
            self.log.say(f"stopped early: no better EER for {progress.stale} validations")
        if count := len(self.unreadable):
            plural = "s" if count > 1 else ""
            self.log.say(f"unreadable: {count:,} training recording{plural}; see {self.unreadable.path}")
        if jax.process_index() == 0:
            players = "embed" if self.settings.validation.players else "none"
            training_report.write(self.workdir, progress, self.data.validation, self.dims, averaged, players=players)
        return training_report.best_results(progress)
