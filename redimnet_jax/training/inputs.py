"""What the stages of a run train on: batches of audio, or cached features of a frozen backbone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from redimnet_jax import buckets
from redimnet_jax.data import loader
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.crops import Crops
from redimnet_jax.errors import UserError
from redimnet_jax.losses.objective import Objective
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.training.data import Data
from redimnet_jax.training.feature_cache import FeatureCache, extract, folder_name
from redimnet_jax.training.feature_source import CachedCrops, open_features
from redimnet_jax.training.log import TrainingLog
from redimnet_jax.training.partition import NamedArrays
from redimnet_jax.training.preemption import Preempted, StopRequest
from redimnet_jax.training.run_time import COMPILATION, FEATURES, Clock, program_flops
from redimnet_jax.training.sampler import EpochSampler
from redimnet_jax.training.settings import Settings
from redimnet_jax.training.start import pooled_crops
from redimnet_jax.training.step import Figures, Step, TrainState
from redimnet_jax.training.steppers import CachedStepper, LiveStepper, Stepper
from redimnet_jax.training.trainer import StageTrainer
from redimnet_jax.training.unreadable_list import Unreadable


def train_batches(settings: Settings, data: Data, *, augmented: bool) -> loader.TrainBatches:
    """Return the batches of `data`; without `augmented` their crops are clean and one of a speaker each."""
    lengths = crop_samples(settings)
    crops = Crops(data.corpus, max(lengths), settings.seed, data.steps if augmented else (), data.speed)
    return loader.train_batches(
        crops,
        settings.batch_size,
        crops_per_utterance=settings.data.crops_per_utterance,
        crops_per_read=settings.data.crops_per_read,
        crops_per_speaker=settings.data.crops_per_speaker if augmented else 1,
        one_utterance=settings.data.one_utterance,
        lengths=lengths,
        readers=loader.Readers(
            settings.data.workers, process_index=jax.process_index(), process_count=jax.process_count()
        ),
    )


def crop_samples(settings: Settings) -> tuple[int, ...]:
    """Return the lengths of training crops in samples, of which each batch has one."""
    return tuple(round(seconds * SAMPLE_RATE) for seconds in settings.data.crop_lengths)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The training data of a run in the forms that its stages need.

    `batches` are those of the whole run. Features that are not shared with other runs are in `folder`, a path
    or an address.
    """

    settings: Settings
    data: Data
    batches: loader.TrainBatches
    unreadable: Unreadable
    folder: Path
    mesh: Mesh
    log: TrainingLog
    stop: StopRequest
    clock: Clock

    def raise_if_too_many_unreadable(self) -> None:
        """Note the recordings that `batches` could not read; raise UserError when they are too many."""
        self._note(self.batches.take_unreadable())

    def pooled_crops(self, pretrained: SpeakerModel, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (pooled features, labels) of about `count` training crops, to start from."""
        settings = self.settings
        if settings.cache.crops:
            utterances = len(self.data.corpus)
            crops = settings.cache.crops
            if settings.projection.init == "lossless" and crops * utterances <= settings.projection.mrl_dims[-1]:
                # There are too few for a rotation: the start alone takes more crops of every utterance.
                crops = -(-count // utterances)
            return self._features(pretrained, crops).sample(crops * utterances, count, settings.seed)
        batches = train_batches(settings, self.data, augmented=False)
        pooled = pooled_crops(pretrained, batches, -(-count // settings.batch_size), self.mesh, self.log)
        self._note(batches.take_unreadable())
        return pooled

    def open_stepper(
        self, trainer: StageTrainer, model: Callable[[], SpeakerModel], objective: Objective, strata: int
    ) -> Stepper:
        """Return what runs the steps of the stage of `trainer`; `model` gives its network, whose features are cached.

        `strata` is that of `sampler.choose_strata`.
        """
        step = trainer.make_step(objective, self.settings.seed)
        if self.settings.cache.crops and not trainer.backbone_trains:
            return self._cached_stepper(step, model(), strata)
        programs: dict[int, Step] = {}
        for samples in crop_samples(self.settings):
            # Tracing is part of it, which JAX's own count of compilations leaves out.
            with self.clock.counting(COMPILATION):
                programs[samples], seconds = trainer.compile_step(step, self.settings.batch_size, samples)
            crops = f"crops of {samples / SAMPLE_RATE:g} s"
            self.log.say(f"compiled the training step on {crops} in {seconds:.0f} s")

        def run(state: TrainState, frozen: NamedArrays, batch: dict[str, jax.Array]) -> tuple[TrainState, Figures]:
            return programs[batch["waveform"].shape[1]](state, frozen, batch)

        flops = [program_flops(program) for program in programs.values()]
        # The lengths are drawn evenly, so a step has the mean.
        mean = None if None in flops else sum(filter(None, flops)) / len(flops)
        return LiveStepper(run, self.mesh, self.batches, clock=self.clock, flops=mean)

    def _cached_stepper(self, step: Callable, model: SpeakerModel, strata: int) -> CachedStepper:
        settings = self.settings
        utterances = len(self.data.corpus)
        cache = self._features(model, settings.cache.crops)
        sampler = EpochSampler(
            utterances=utterances,
            crops=settings.cache.crops,
            batch_size=settings.batch_size,
            seed=settings.seed,
            strata=strata,
            crops_per_epoch=settings.data.crops_per_utterance,
        )
        rows = cache.order.rows(settings.cache.crops)
        crops = CachedCrops(cache.read_features(rows), cache.read_labels(rows), cache.order.passes)
        source = open_features(sampler, self.mesh, crops, memory_share=settings.cache.memory_share)
        where = "are in the devices' memory" if source.on_device else f"are read from {cache.folder}"
        self.log.say(f"cached features of {rows:,} crops {where}")
        return CachedStepper(step, self.mesh, source, clock=self.clock)

    def _features(self, model: SpeakerModel, crops_per_utterance: int) -> FeatureCache:
        """Return the features of so many crops of every utterance, and compute those that are not there yet."""
        settings = self.settings
        data = self.data
        [samples] = crop_samples(settings)
        crops = Crops(data.corpus, samples, settings.seed, data.steps, data.speed)
        dtype = jnp.dtype(settings.dtype)
        folder = Path(settings.cache.folder or self.folder) / folder_name(model, crops, dtype)
        with self.clock.counting(FEATURES), buckets.writing_together(folder) as mirror, self.stop.watched():
            cache = FeatureCache(mirror.local.parent, model, crops, dtype)
            extract(
                cache,
                cache.plan(crops_per_utterance),
                batch_size=settings.cache.crops_at_once(jax.device_count()),
                mesh=self.mesh,
                log=self.log,
                workers=settings.data.workers,
                check=self._check_stop,
                unreadable=self._note,
            )
            mirror.share()
        return cache

    def _check_stop(self) -> None:
        if self.stop.requested_anywhere():
            raise Preempted("Stopped while caching features; they are kept, the same command goes on from there.")

    def _note(self, found: list[tuple[int, int]]) -> None:
        """Count and list recordings, as (utterance, first sample); raise UserError when they are too many."""
        for text in self.unreadable.note(found):
            self.log.say(text)
        if too_many := self.unreadable.excess():
            raise UserError(too_many)
