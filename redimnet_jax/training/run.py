"""A training run: from a config and a workdir to the best model by the EER of unseen speakers.

The workdir holds `config.json`, `checkpoints/` (what an interrupted run resumes from), `best/` (the best model,
native), `scores/` (of the validations that were the best so far), `index/` (of the audio), `events/` (TensorBoard),
`unreadable.txt` (training recordings that could not be read, if any), and at the end `results.json`, `results.md` and
plots; with `averaging.last` also `epochs/`, the last epochs' models, and `averaged/`, their mean.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax import class_sharding, files, hosts, local_paths, locks, sharding
from redimnet_jax.checkpoints import native
from redimnet_jax.data import loader
from redimnet_jax.embedding.extract import Recordings, Windows, embed_pooled, pool_recordings
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import results as evaluation_results
from redimnet_jax.losses import objective
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.levels import LossLevels
from redimnet_jax.models import config as model_config
from redimnet_jax.models import matryoshka
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel
from redimnet_jax.training import averaging, classification, early_stopping, optimizer, overfitting, stages
from redimnet_jax.training import config as train_config
from redimnet_jax.training import data as training_data
from redimnet_jax.training import report as training_report
from redimnet_jax.training.cached import CachedSteps, Layout, choose_strata
from redimnet_jax.training.checkpoints import TrainingCheckpoints, save_best
from redimnet_jax.training.data import Data, open_data
from redimnet_jax.training.feature_cache import Crops, FeatureCache, extract
from redimnet_jax.training.live import LiveSteps
from redimnet_jax.training.log import TrainingLog
from redimnet_jax.training.preemption import StopRequest
from redimnet_jax.training.start import adapt, open_teacher, pooled_crops, starting_model
from redimnet_jax.training.step import Arrays, Learner, Split, compile_step, initial_state, make_step
from redimnet_jax.training.unreadable import FILE as UNREADABLE
from redimnet_jax.training.unreadable import Unreadable

# Steps that may be on their way before their figures are read: enough to keep the device busy, and soon enough to see
# a loss that is not finite.
IN_FLIGHT = 4
# Folders of a workdir where a killed run may have left incomplete files; others clean their own.
LEFTOVERS = ("index", early_stopping.SCORES, averaging.SNAPSHOTS)


class Preempted(Exception):
    """The run was asked to stop; everything is saved."""


def train(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Trains, or goes on training, in `workdir`; returns the results of the best model (see `evaluate.results_of`).

    `config` is `train_config.default()` with changes. Raises UserError for what the user can mend, before any long
    work where that can be known, and Preempted after a SIGTERM, when all is saved.
    """
    workdir = _checked_start(config, workdir)
    with _only_run(workdir):
        _check_folders(config, workdir)
        return _train(config, workdir)


def _checked_start(config: Any, workdir: str | Path) -> Path:
    """Returns the absolute workdir, after the checks that need no look at any file."""
    local_paths.check(workdir, "The workdir")
    local_paths.check_all(config.to_dict(), "config.")
    workdir = Path(workdir).absolute()
    settings = hashlib.sha256(config.to_json_best_effort(sort_keys=True).encode()).hexdigest()
    hosts.check_same(settings, "The config of process {which} is not that of process 0; give all processes the same.")
    with hosts.failing_together():
        train_config.check(config, jax.device_count(), jax.process_count())
        training_data.check_sources(config)
    return workdir


@contextlib.contextmanager
def _only_run(workdir: Path) -> Iterator[None]:
    """Makes the workdir, and keeps every other run out of it during the block."""
    with contextlib.ExitStack() as stack:
        with hosts.failing_together():
            if jax.process_index() == 0:
                try:
                    stack.enter_context(locks.locked(workdir))
                except UserError as error:
                    raise UserError(f"The workdir {error}") from error
        yield


def _check_folders(config: Any, workdir: Path) -> None:
    """Raises UserError on every process unless all see the same folders that the run writes."""
    hosts.check_common_folder(workdir, "the workdir")
    if config.cache.crops and config.cache.folder:
        folder = Path(config.cache.folder)
        with hosts.failing_together():
            if jax.process_index() == 0:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UserError(
                        f"cache.folder {folder} cannot be made ({error.strerror}); choose another one."
                    ) from error
        hosts.check_common_folder(folder, "cache.folder")


def _train(config: Any, workdir: Path) -> dict[str, Any]:
    """Trains in a workdir that no other run uses; see `train`."""
    if jax.config.jax_compilation_cache_dir is None:
        # So that a run that goes on does not compile again.
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    with contextlib.closing(TrainingCheckpoints(workdir, config.checkpoint.keep)) as checkpoints:
        saved = None if checkpoints.latest() is None else checkpoints.read_progress()
        with hosts.failing_together():
            if saved is None:
                model = starting_model(config)
            else:
                train_config.check_resume(config, saved["config"], workdir)
                model = _empty_model(saved["model"], jnp.dtype(config.dtype))
            _check_filters(config, model)
            model.network.backbone.remat = config.remat
            teacher = open_teacher(config)
            data = open_data(config, workdir, saved and saved.get("corpora"))
        with contextlib.closing(_Run(config, workdir, data, model, teacher, checkpoints, saved)) as run:
            return run.complete()


class _Run:
    """The state of one run between its steps."""

    def __init__(
        self,
        config: Any,
        workdir: Path,
        data: Data,
        model: SpeakerModel,
        teacher: SpeakerNetwork | None,
        checkpoints: TrainingCheckpoints,
        saved: dict[str, Any] | None,
    ):
        self.config, self.workdir, self.data, self.checkpoints = config, workdir, data, checkpoints
        self.first = jax.process_index() == 0
        if self.first:
            for folder in (workdir, *(workdir / name for name in LEFTOVERS)):
                files.remove_leftovers(folder)
        self.log = TrainingLog(workdir, tuple(config.projection.mrl_dims))
        self.mesh = sharding.mesh()
        crop = round(config.data.crop_seconds * 16000)
        self.unreadable = Unreadable(workdir / UNREADABLE, data.corpus, crop, config.data.max_bad)
        self._note_unreadable([])
        self.batches = self._batches(self.data.steps, self.data.speed, config.data.crops_per_speaker)
        self.epoch_steps = loader.steps_per_epoch(data.corpus, config.batch_size, config.data.crops_per_utterance)
        self.total_steps = config.epochs * self.epoch_steps
        self.objective = objective.from_config(config, self.epoch_steps)
        self.dims = tuple(config.projection.mrl_dims)
        self.stop = StopRequest()
        self.steps: LiveSteps | CachedSteps | None = None
        self.pretrained: SpeakerModel | None = None
        self.pooled: dict[str, np.ndarray] = {}
        criterion, rngs = objective.loss_from_config(config), nnx.Rngs(config.seed + 1)
        heads = Heads(len(data.classes), self.dims, criterion, shared=config.heads.shared, rngs=rngs)
        each = config.data.crops_per_speaker
        self.levels = LossLevels(criterion, len(data.classes), self.dims, config.batch_size // each, each)
        if saved is None:
            if config.model.checkpoint is not None:
                self.pretrained = model
                model = adapt(config, model, heads, self._pooled_crops, len(data.corpus), self.log)
            self.progress = {"history": [], "best": None, "reference": None, "stale": 0, "stopped": False}
            self.progress |= {"sums": None, "pretrained": None, "stage": 0, "stage_start": 0}
            self.progress["strata"] = choose_strata(config.batch_size, jax.device_count())
        else:
            if saved["speakers"] != data.classes:
                raise UserError(
                    f"The speakers of {config.data.train} ({len(data.classes)} classes) are not those that the heads "
                    f"in {checkpoints.folder} were trained for ({len(saved['speakers'])}); give the same data, or "
                    "another workdir."
                )
            self.progress = saved["progress"]
            self.batches.set_state(saved["batches"])
        self.model_config, self.arch, self.source = model.model_config, model.arch, model.source
        self.stages = stages.stages(config)
        self._begin_stage(Learner(model.network, heads, teacher), resumed=saved is not None)
        self.step = int(self.state.step)

    def _pooled_crops(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(pooled features, labels) of about `count` training crops for the start."""
        config = self.config
        if config.cache.crops:
            utterances = len(self.data.corpus)
            crops = config.cache.crops
            if config.projection.init == "lossless" and crops * utterances <= self.dims[-1]:
                # Too few for a rotation: the start alone has more crops of every utterance.
                crops = -(-count // utterances)
            return self._features(self.pretrained, crops).sample(crops * utterances, count, config.seed)
        batches = self._batches(speed=self.data.speed)
        found = pooled_crops(self.pretrained, batches, -(-count // config.batch_size), self.mesh, self.log)
        self._note_unreadable(batches.take_unreadable())
        return found

    def _note_unreadable(self, found: list[tuple[int, int]]) -> None:
        """Counts and lists recordings; UserError when they are too many."""
        for text in self.unreadable.note(found):
            self.log.say(text)
        if too_many := self.unreadable.excess():
            raise UserError(too_many)

    def _features(self, model: SpeakerModel, each: int) -> FeatureCache:
        """The features of `each` crops of every utterance; those that are not there yet are computed."""
        config, data = self.config, self.data

        def check() -> None:
            if self.stop.made and jax.process_count() == 1:
                raise Preempted("Stopped while caching features; they are kept, the same command goes on from there.")

        samples, folder = round(config.data.crop_seconds * 16000), config.cache.folder or self.workdir / "features"
        crops = Crops(data.corpus, samples, config.seed, data.steps, data.speed)
        cache = FeatureCache(folder, model, crops, jnp.dtype(config.dtype))
        with self.stop.watched():
            extract(
                cache,
                model,
                crops,
                each * len(data.corpus),
                batch_size=config.cache.batch_size,
                mesh=self.mesh,
                log=self.log,
                workers=config.data.workers,
                check=check,
                unreadable=self._note_unreadable,
            )
        return cache

    def _begin_stage(self, learner: Learner, *, resumed: bool = False) -> None:
        """The first state of the current stage, which starts from `learner`, with its optimizer and schedule.

        If it is `resumed`, the state is that of the newest checkpoint.
        """
        index, start = self.progress["stage"], self.progress["stage_start"]
        stage = self.stages[index]
        settings = stage.optimizer
        self.split = Split(learner, stage.filters, batch_stats=stage.batch_stats, key=stage.key)
        self.schedule = optimizer.schedule(
            settings.learning_rate,
            stages.last_epoch(self.config, index) * self.epoch_steps - start,
            round(settings.warmup_epochs * self.epoch_steps),
            settings.final_learning_rate,
        )
        self.optimizer = optimizer.adamw(
            self.schedule,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
            factors=stages.rate_factors(stage, self.split.names["params"], self.split.variables),
        )
        state = initial_state(self.split, self.optimizer, step=start, ema=bool(self.config.averaging.ema))
        frozen: Arrays = self.split.arrays("frozen")
        if resumed:
            state, frozen = self.checkpoints.restore(state, frozen)
        self.state, self.frozen = class_sharding.place((state, frozen), self.mesh)
        self.pooled = {}

    def close(self) -> None:
        if self.steps is not None:
            self.steps.close()
        self.batches.close()
        self.log.close()

    def _batches(self, steps=(), speed=None, crops_per_speaker=1) -> loader.TrainBatches:
        config = self.config
        return loader.train_batches(
            self.data.corpus,
            batch_size=config.batch_size,
            crop=round(config.data.crop_seconds * 16000),
            seed=config.seed,
            steps=steps,
            speed=speed,
            crops_per_utterance=config.data.crops_per_utterance,
            crops_per_speaker=crops_per_speaker,
            one_utterance=config.data.one_utterance,
            workers=config.data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def complete(self) -> dict[str, Any]:
        """Trains to the end, or until the EER has stalled, and reports."""
        self._announce()
        with self.stop.watched():
            if not self.progress["history"] or (self.progress["sums"] and self.step % self.epoch_steps == 0):
                self._validate()
            stage = None
            while self.step < self.total_steps and not self.progress["stopped"]:
                if stage != self.progress["stage"]:
                    stage, self.steps = self.progress["stage"], self._steps_of_stage()
                self._epoch()
            self.checkpoints.wait()
            averaged = self._averaged() if self.config.averaging.last else None
        return self._report(averaged)

    def _steps_of_stage(self) -> LiveSteps | CachedSteps:
        config = self.config
        if self.steps is not None:
            self.steps.close()
        step = make_step(
            self.split,
            self.optimizer,
            self.objective,
            seed=config.seed,
            accumulate=self.stages[self.progress["stage"]].optimizer.accumulate,
            ema=config.averaging.ema,
        )
        if config.cache.crops and not self.split.backbone_trains:
            return self._cached_steps(step)
        shape = (config.batch_size, round(config.data.crop_seconds * 16000))
        batch = {
            "waveform": jax.ShapeDtypeStruct(shape, jnp.float32),
            "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
        }
        start = time.perf_counter()
        compiled = compile_step(step, self.mesh, self.state, self.frozen, batch)
        self.log.say(f"compiled the training step in {time.perf_counter() - start:.0f} s")
        return LiveSteps(compiled, self.mesh, self.batches)

    def _cached_steps(self, step: Callable) -> CachedSteps:
        config, utterances = self.config, len(self.data.corpus)
        cache, rows = self._features(self.model(), config.cache.crops), config.cache.crops * utterances
        steps = CachedSteps(
            step,
            self.mesh,
            Layout(utterances, config.cache.crops, self.progress["strata"], config.data.crops_per_utterance),
            cache.read_features(rows),
            cache.read_labels(rows),
            batch_size=config.batch_size,
            seed=config.seed,
            memory_share=config.cache.memory_share,
        )
        where = "are in the devices' memory" if steps.on_device else f"are read from {cache.folder}"
        self.log.say(f"cached features of {rows:,} crops {where}")
        return steps

    def _next_stop(self, end: int) -> int:
        """The step until which nothing has to be done but train: a checkpoint, or agreeing on whether to stop."""
        every = [self.config.checkpoint.every_steps, *[self.config.log_every_steps] * (jax.process_count() > 1)]
        return min(end, *(self.step - self.step % steps + steps for steps in every))

    def _epoch(self) -> None:
        """To the end of the current epoch, with its validation and checkpoint."""
        epoch = self.step // self.epoch_steps
        begin, end = self.step, (epoch + 1) * self.epoch_steps
        zeros = [0.0] * len(self.dims)
        sums = self.progress["sums"] or {"steps": 0, "loss": 0.0, "losses": zeros, "accuracies": zeros}
        self.progress["sums"] = sums
        waiting: collections.deque = collections.deque()
        self.steps.wait_fraction()

        def read(count: int) -> None:
            """Reads figures until `count` dispatches are on their way."""
            while len(waiting) > count:
                for number, figures in _by_step(*waiting.popleft()):
                    note(number, figures)

        def note(number: int, figures: dict[str, Any]) -> None:
            self._check_finite(number, figures)
            sums["steps"] += 1
            sums["loss"] += figures["loss"]
            for name in ("losses", "accuracies"):
                sums[name] = [a + b for a, b in zip(sums[name], figures[name], strict=True)]
            bar.set_postfix_str(f"loss {figures['loss']:.3f}", refresh=False)
            bar.update(self.config.batch_size)
            if number % self.config.log_every_steps == 0:
                since = number - 1 - self.progress["stage_start"]
                self.log.step(number, figures, float(self.schedule(since)))

        total = self.epoch_steps * self.config.batch_size
        name = f"epoch {epoch + 1}/{self.config.epochs}"
        # To agree costs a meeting of all processes, too much for every step.
        alone = jax.process_count() == 1
        with self.log.bar(name, total, (begin % self.epoch_steps) * self.config.batch_size, "crop") as bar:
            start = time.perf_counter()
            while self.step < end:
                before, until = self.step, self._next_stop(end)
                with self._saved_on_error(lambda: read(0)) if alone else contextlib.nullcontext():
                    self.state, figures, self.step = self.steps.run(self.state, self.frozen, before, until)
                waiting.append((before, self.step, figures))
                read(IN_FLIGHT)
                if alone or self.step % self.config.log_every_steps == 0:
                    with self._saved_on_error(lambda: read(0)):
                        self._note_unreadable(self.batches.take_unreadable())
                if self._must_stop():
                    read(0)
                    self._save()
                    self._leave()
                if self.step % self.config.checkpoint.every_steps == 0 and self.step < end:
                    read(0)
                    self._save()
            read(0)
            with self._saved_on_error():
                self._note_unreadable(self.batches.take_unreadable())
            seconds = time.perf_counter() - start
        waited = self.steps.wait_fraction()
        speed = (end - begin) * self.config.batch_size / max(seconds, 1e-9)
        if isinstance(self.steps, LiveSteps):
            self.log.input(waited, speed)
        self._validate({"crops_per_second": speed, "input_wait": waited})

    def _validate(self, timing: dict[str, float] | None = None) -> None:
        """Ends an epoch (or, before the first step, begins the run): validation, best model, checkpoint."""
        config, epoch = self.config, self.step // self.epoch_steps
        entry: dict[str, Any] = {"step": self.step, "epoch": epoch, "stage": 1 + self.progress["stage"]}
        sums = self.progress["sums"]
        if sums:
            entry["loss"] = sums["loss"] / sums["steps"]
            for name in ("losses", "accuracies"):
                means = (total / sums["steps"] for total in sums[name])
                entry[name] = dict(zip(map(str, self.dims), means, strict=True))
            weights = dict(zip(entry["losses"], self.objective.weights, strict=True))
            trained = {dim: loss for dim, loss in entry["losses"].items() if weights[dim]}
            # The margin only grows, so that of the next step is the largest.
            if chance := self.levels.warning(trained, float(self.objective.margin(self.step))):
                self.log.say(chance)
        entry |= timing or {}
        eer = None
        if epoch % config.validation.every_epochs == 0 or self.step == self.total_steps:
            model = self.model()
            pooled = self._pooled_validation(model)
            judging = dict(bootstrap=config.validation.bootstrap, seed=config.seed)
            results, scores, _ = evaluation_results.evaluate(
                model, pooled, self.data.validation, self.dims, **judging
            )
            entry |= results
            if self.data.seen is not None:
                entry["classification"] = self._classification(model)
            if self.pretrained is not None and self.step == 0:
                width = self.pretrained.embed_dim
                dims = sorted({dim for dim in self.dims if dim < width} | {width})
                self.progress["pretrained"], *_ = evaluation_results.evaluate(
                    self.pretrained, pooled, self.data.validation, dims, **judging
                )
                self.pretrained = None
            eer = self._judge(entry, model, scores)
        self.progress["history"].append(entry)
        if eer is not None:
            entry["overfitting"] = overfitting.signs(self.progress["history"])
        self.progress["sums"] = None
        best = self.progress["best"]
        self.log.epoch(entry, best is not None and best["step"] == self.step)
        self.log.overfitting(entry, config.validation.dim or self.dims[-1])
        if self.step:
            self._keep_for_average()
            self._end_stage_when_due()
            self._save()

    def _keep_for_average(self) -> None:
        count = self.config.averaging.last
        if not count:
            return
        model, after = self.model(), self.progress["stage_start"]
        if self.first:
            averaging.keep_snapshot(model, self.workdir, self.step, count=count, after=after)

    def _end_stage_when_due(self) -> None:
        """Stops the run, or begins the second stage from the weights that were just validated, with patience anew."""
        epoch, stage = self.step // self.epoch_steps, self.progress["stage"]
        if not stages.ends(self.config, stage, epoch, self.progress["stale"]):
            return
        if stage == len(self.stages) - 1 or self.step == self.total_steps:
            self.progress["stopped"] = self.step < self.total_steps
            return
        learner = self._learner()
        self.progress |= {"stage": stage + 1, "stage_start": self.step, "stale": 0}
        self._begin_stage(learner)
        self.log.say(f"stage {stage + 2} starts after epoch {epoch}: {self._what_trains()}")

    def _what_trains(self) -> str:
        count = sum(array.size for array in self.split.arrays("params").values())
        return f"{', '.join(self.stages[self.progress['stage']].filters)}: {count:,} parameters"

    def _averaged(self) -> dict[str, Any] | None:
        """Writes the mean of the last epochs' models as `averaged`; returns its results and the `epochs`.

        None where there are no two models to average.
        """
        folder, model = self.workdir / averaging.AVERAGED, self.model()
        first, last = self.progress["stage_start"] // self.epoch_steps + 1, self.step // self.epoch_steps
        epochs = range(max(first, last + 1 - self.config.averaging.last), last + 1)
        if len(epochs) < 2:
            self.log.say("averaging.last: no average, since that would be of less than two epochs of the last stage")
            return None
        arrays = jax.tree.map(np.asarray, native.flat(model.network))
        if self.first:
            steps = [epoch * self.epoch_steps for epoch in epochs]
            arrays = averaging.mean_of_snapshots(self.workdir, steps)
        native.fill(model.network, sharding.agreed(arrays))
        judging = dict(bootstrap=self.config.validation.bootstrap, seed=self.config.seed)
        pooled = self._pooled_validation(model)
        results, *_ = evaluation_results.evaluate(model, pooled, self.data.validation, self.dims, **judging)
        if self.first:
            shutil.rmtree(folder, ignore_errors=True)
            native.save(model, folder)
        return results | {"epochs": list(epochs)}

    def _pooled_validation(self, model: SpeakerModel) -> np.ndarray:
        wanted = self.config.validation
        windows = Windows(wanted.crop_seconds, wanted.crops, wanted.max_seconds)
        return self._pooled_recordings("validation", model, self.data.validation.recordings, windows)

    def _pooled_recordings(
        self, name: str, model: SpeakerModel, recordings: Recordings, windows: Windows
    ) -> np.ndarray:
        """Pooled features of the recordings called `name`; a frozen backbone needs to give them only once."""
        if name not in self.pooled or self.split.backbone_trains:
            with self._saved_on_error():
                self.pooled[name] = pool_recordings(
                    model,
                    recordings,
                    windows=windows,
                    batch_seconds=self.config.validation.batch_seconds,
                    progress=name if self.first else None,
                    check=self._check_stop,
                )
        return self.pooled[name]

    def _classification(self, model: SpeakerModel) -> dict[str, Any]:
        """Loss and accuracy of the heads on recordings of training speakers that do not train."""
        seen = self.data.seen
        # As long as the crops that train, so that both losses are of the same task.
        crops = Windows(self.config.data.crop_seconds)
        pooled = self._pooled_recordings("seen speakers", model, seen.recordings, crops)
        return classification.figures(
            self._learner().heads,
            embed_pooled(model, pooled),
            seen.labels,
            weights=tuple(self.config.loss.weights or (1.0,) * len(self.dims)),
        )

    def _judge(self, entry: dict[str, Any], model: SpeakerModel, scores: np.ndarray) -> float:
        """The EER that decides; keeps the model when it is the best, counts the epochs since the best otherwise."""
        wanted, best = self.config.validation, self.progress["best"]
        # All processes decide by the figure of the first one, which may round otherwise.
        eer = float(sharding.agreed(entry["dims"][str(wanted.dim or self.dims[-1])]["eer"]))
        self.progress["stale"] += 1
        if best is None or eer < best["eer"]:
            self.progress["best"] = {"eer": eer, "step": self.step, "epoch": entry["epoch"]}
            if best is None or self._improves(entry, eer, scores):
                self.progress |= {"reference": {"eer": eer, "step": self.step}, "stale": 0}
            if self.first:
                save_best(model, self.workdir, self.step)
                early_stopping.keep_scores(self.workdir, self.step, scores)
        return eer

    def _improves(self, entry: dict[str, Any], eer: float, scores: np.ndarray) -> bool:
        """Whether the best EER so far starts patience anew; what it is to the last one that did goes to `entry`."""
        wanted, reference = self.config.validation, self.progress["reference"]
        found = {"difference": 0.0, "ci95": [0.0, 0.0], "beyond_noise": False}
        if self.first:
            row, before = self.dims.index(wanted.dim or self.dims[-1]), reference["step"]
            found = early_stopping.improvement(
                scores[row],
                early_stopping.read_scores(self.workdir, before)[row],
                self.data.validation,
                resamples=wanted.bootstrap,
                seed=self.config.seed,
            )
        found["beyond_noise"] = bool(sharding.agreed(found["beyond_noise"]))
        entry["improvement"] = found
        return early_stopping.counts(
            found,
            eer,
            reference["eer"],
            min_improvement=wanted.min_improvement,
            significant=wanted.significant,
        )

    def _learner(self) -> Learner:
        """The learner as it is validated: the moving averages where there are any; with arrays of this process."""
        trained = self.state.ema or self.state.params | self.state.stats
        return self.split.merge(*sharding.local((trained, self.frozen)))

    def model(self) -> SpeakerModel:
        """The model as it is now."""
        return SpeakerModel(self._learner().network, self.model_config, self.source)

    def _save(self) -> None:
        everything = {
            "config": json.loads(self.config.to_json_best_effort()),
            "speakers": self.data.classes,
            "model": {
                "arch": self.arch,
                "model_config": self.model_config,
                "source": dataclasses.asdict(self.source),
            },
            "batches": self.batches.get_state(),
            "progress": self.progress,
            "corpora": dict(self.data.digests),
        }
        state, frozen = self.split.exact(sharding.collected((self.state, self.frozen)))
        best = self.progress["best"]
        self.checkpoints.save(state, frozen, everything, best and best["step"])

    def _check_finite(self, step: int, figures: dict[str, Any]) -> None:
        if not math.isfinite(figures["loss"]) or not math.isfinite(figures["grad_norm"]):
            self.checkpoints.wait()
            kept = self.checkpoints.latest()
            state = "there is no checkpoint yet" if kept is None else f"the checkpoint of step {kept} is kept"
            raise UserError(
                f"The loss is {figures['loss']} and the gradient norm {figures['grad_norm']} at step {step}, and "
                f"{state}; start again in another workdir with a lower optimizer.learning_rate."
            )

    def _must_stop(self) -> bool:
        # To agree costs a meeting of all processes, too much for every step.
        return (
            jax.process_count() == 1 or self.step % self.config.log_every_steps == 0
        ) and self.stop.made_anywhere()

    def _check_stop(self) -> None:
        # With several processes the others would wait in vain; they all stop after this validation.
        if self.stop.made and jax.process_count() == 1:
            # At the end of a run all is saved already.
            if self.progress["sums"]:
                self._save()
            self._leave()

    @contextlib.contextmanager
    def _saved_on_error(self, before: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Saves the steps of an epoch that is not validated yet when the block raises UserError.

        `before` is called first. All processes must raise together.
        """
        try:
            yield
        except UserError:
            before()
            if self.progress["sums"] and self.progress["sums"]["steps"]:
                self._save()
                self.checkpoints.wait()
            raise

    def _leave(self) -> None:
        self.checkpoints.wait()
        raise Preempted(f"Stopped at step {self.step:,}; everything is saved, the same command goes on from there.")

    def _announce(self) -> None:
        config, corpus = self.config, self.data.corpus
        if not self.first:
            return
        files.write(self.workdir / "config.json", config.to_json_best_effort(indent=2) + "\n")
        print(config)
        print(f"training    {len(corpus):,} utterances of {len(corpus.speakers):,} speakers")
        print(f"validation  {self.data.validation.description}")
        if self.data.seen is not None:
            print(f"seen        {self.data.seen.description}")
        print(f"trained     {self._what_trains()}")
        print(f"frozen      {sum(array.size for array in self.split.arrays('frozen').values()):,} values")
        print(f"devices     {jax.device_count()} {jax.devices()[0].device_kind}, {jax.process_count()} process(es)")
        print(f"steps       {self.total_steps:,} of {config.batch_size} crops, {self.epoch_steps:,} an epoch")
        self.log.say(self.levels.description())
        if self.step:
            print(f"resumed at step {self.step:,}" + f" in stage {1 + self.progress['stage']}" * len(self.stages[1:]))
        sys.stdout.flush()

    def _report(self, averaged: dict[str, Any] | None) -> dict[str, Any]:
        """Tables, JSON and plots of the whole run; returns the best model's results."""
        if self.progress["stopped"]:
            self.log.say(f"stopped early: no better EER for {self.progress['stale']} validations")
        if count := len(self.unreadable):
            self.log.say(f"unreadable: {count:,} training recording{'s' * (count > 1)}; see {self.unreadable.path}")
        if not self.first:
            return training_report.best_results(self.progress)
        return training_report.write(self.workdir, self.progress, self.data.validation.trials, self.dims, averaged)


def _check_filters(config: Any, model: SpeakerModel) -> None:
    """Raises UserError for filters of what trains that match nothing in a network like `model` and its heads."""
    dims = tuple(config.projection.mrl_dims)
    made = matryoshka.check_dims(model, dims)

    def learner():
        rngs = nnx.Rngs(0)
        heads = Heads(2, dims, objective.loss_from_config(config), rngs=rngs)
        return Learner(SpeakerNetwork(made, rngs=rngs), heads)

    abstract = nnx.eval_shape(learner)
    splits = []
    for stage in stages.stages(config):
        splits.append(Split(abstract, stage.filters, batch_stats=stage.batch_stats, key=stage.key))
        stages.rate_factors(stage, splits[-1].names["params"], splits[-1].variables)
    if config.cache.crops and splits[0].backbone_trains:
        raise UserError(
            f"config.cache.crops is {config.cache.crops} but the backbone, whose features would be cached, trains "
            "from the start; set cache.crops to 0."
        )


def _by_step(before: int, reached: int, figures: dict[str, jax.Array]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, figures as Python numbers) of the steps after step `before`; waits for them.

    Those of a single step may lack the leading axis.
    """
    arrays = {name: np.asarray(value) for name, value in figures.items()}
    if not arrays["loss"].ndim:
        arrays = {name: array[None] for name, array in arrays.items()}
    for number in range(before, reached):
        yield number + 1, {name: array[number - before].tolist() for name, array in arrays.items()}


def _empty_model(saved: dict[str, Any], dtype) -> SpeakerModel:
    """A model of the saved kind, whose variables a checkpoint is about to fill."""
    config = model_config.parse(saved["arch"], saved["model_config"])
    network = SpeakerNetwork(config, dtype=dtype, rngs=nnx.Rngs(0))
    return SpeakerModel(network, saved["model_config"], Source(**saved["source"]))
