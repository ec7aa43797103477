"""An evaluation from its settings to its results: open the data, build the system, score the trials."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from redimnet_jax import scoring
from redimnet_jax.checkpoints import native
from redimnet_jax.checkpoints.open import open_model
from redimnet_jax.data import speech_only
from redimnet_jax.data.recordings import Recordings
from redimnet_jax.embedding.cache import PooledCache
from redimnet_jax.embedding.extract import embed_pooled, pool_recordings
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.evaluation import (
    calibration_figures,
    comparison,
    further_figures,
    protocol,
    report,
    score_norm,
    system_calibration,
)
from redimnet_jax.evaluation.evaluation_data import EvaluationData, open_data
from redimnet_jax.evaluation.html_report import Report
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.evaluation.quality_measures import COHORT, Sides
from redimnet_jax.evaluation.results import P_TARGETS, cosine_scores, error_rates
from redimnet_jax.evaluation.score_norm import Normalisation
from redimnet_jax.evaluation.settings import CROPS, EvaluationSettings
from redimnet_jax.evaluation.system_calibration import SystemCalibration
from redimnet_jax.evaluation.trial_measures import recording_sides
from redimnet_jax.models.speaker_model import SpeakerModel

COSINE = "cosine"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    `scores` has (dims, trials) by kind, the final one last; `llrs` (dims, trials) are the log-likelihood ratios of
    the final ones, where there is a calibration. `results` is the content of `results.json`. `systems` has the
    results of every kind of score by the system's name, and `tables` show all figures.
    """

    trial_set: TrialSet
    dims: tuple[int, ...]
    scores: dict[str, np.ndarray]
    llrs: np.ndarray | None
    results: dict[str, Any]
    systems: dict[str, report.Results]
    tables: list[report.Table]

    def as_report(self, players: str) -> Report:
        """Return what report.html shows, with `players` of one of the kinds in `settings.PLAYERS`."""
        *_, final = self.scores.values()
        title = f"Speaker verification with {list(self.systems)[-1]}"
        return Report(
            title, self.trial_set, self.dims, final, self.results, self.systems, llrs=self.llrs, players=players
        )


def evaluate(settings: EvaluationSettings) -> Evaluation:
    """Evaluate the system that `settings` describe; raise UserError when it cannot be evaluated."""
    model = open_model(settings.checkpoint, dtype=jnp.dtype(settings.dtype))
    data = open_data(settings)
    trial_set = data.trial_set
    recordings = len(trial_set.recordings)
    speakers = len(set(trial_set.speakers))
    logger.info(f"{trial_set.description}, {recordings:,} recordings of {speakers:,} speakers")
    system = open_system(settings, model, data)
    fitted = fit_calibration(settings, system, data)
    known = fitted or stored_calibration(settings, system, data)
    scored = system.score(trial_set, known.measures if known else ())
    if fitted is not None:
        final = scored.scores[system.kind]
        resampled = {"resamples": settings.bootstrap, "seed": settings.seed}
        known = fitted.judged_on(final, scored.sides, trial_set, **resampled)
        keep_calibration(settings, system, known)
    evaluation = summarise(settings, system, data, scored, known)
    evaluation.tables.extend(
        further_figures.add(
            evaluation.results,
            settings,
            trial_set,
            system.dims,
            scored.scores[system.kind],
            scored.embeddings,
            data.groupings,
            functools.partial(system.embed, trial_set.recordings),
        )
    )
    return evaluation


@dataclasses.dataclass(frozen=True)
class System:
    """A system that scores trials: a model, the dimensions, how recordings are pooled, and a score normalisation.

    `mean`, (embed_dim,), is subtracted from every raw embedding, before prefixes are cut and scaled to length one.
    `description` has everything that a calibration of the scores depends on.
    """

    model: SpeakerModel
    dims: tuple[int, ...]
    windows: CropPolicy
    pool: Callable[[Recordings, CropPolicy], np.ndarray]
    mean: np.ndarray | None
    normalisation: Normalisation | None
    description: dict[str, Any]

    @property
    def kind(self) -> str:
        """The kind of the final scores: `COSINE` or the method of the normalisation."""
        return COSINE if self.normalisation is None else self.normalisation.method

    def embed(self, recordings: Recordings, windows: CropPolicy | None = None) -> np.ndarray:
        """Return the embeddings (recordings, crops, embed_dim), less the mean that is subtracted.

        `windows` replace those of the system.
        """
        embeddings = embed_pooled(self.model, self.pool(recordings, windows or self.windows))
        return embeddings if self.mean is None else embeddings - self.mean

    def score(self, trial_set: TrialSet, measures: Sequence[str] = ()) -> "ScoredTrials":
        """Return the scores of the trials, and their quality measures: duration, norm and those of `measures`."""
        embeddings = self.embed(trial_set.recordings)
        scores = {COSINE: cosine_scores(embeddings, trial_set, self.dims)}
        sides = recording_sides(embeddings, trial_set, self.dims, self.windows, measures)
        if self.normalisation is not None:
            scores[self.kind] = self.normalisation(scores[COSINE], embeddings, trial_set)
            if COHORT in measures:
                for dim, mean in zip(self.dims, self.normalisation.cohort_means(embeddings, trial_set), strict=True):
                    sides[dim][COHORT] = mean
        return ScoredTrials(scores, sides, embeddings)


@dataclasses.dataclass(frozen=True)
class ScoredTrials:
    """Scores of trials, (dims, trials) by kind, the final ones last, and for every dimension the quality measures.

    `embeddings` (recordings, crops, embed_dim) are those that gave the cosines.
    """

    scores: dict[str, np.ndarray]
    sides: Mapping[int, Sides]
    embeddings: np.ndarray


def open_system(settings: EvaluationSettings, model: SpeakerModel, data: EvaluationData) -> System:
    """Return the system of the settings; embed the cohort if there is one."""
    dims = scoring.checked_dims(settings.dims or model.mrl_dims or (model.embed_dim,), model.embed_dim)
    if data.other is not None:
        comparison.common_dims(data.other, dims)
    windows = CropPolicy(settings.crop_seconds, settings.crops or CROPS, settings.max_seconds)
    pool_whole = functools.partial(
        pool_recordings,
        model,
        batch_seconds=settings.batch_seconds,
        progress="embedding",
        cache=None if settings.cache is None else PooledCache(settings.cache, model),
    )

    def pool(recordings: Recordings, windows: CropPolicy) -> np.ndarray:
        if settings.speech_only:
            found = speech_only.find_speech(recordings)
            recordings = speech_only.require_speech(recordings, found, settings.min_speech)
        return pool_whole(recordings, crop_policy=windows)

    enrolment = data.trial_set.enrolment is not None
    description = system_calibration.describe(model, windows, settings.score_norm or COSINE, enrolment)
    if settings.speech_only:
        description["speech"] = speech_only.description(settings.min_speech)
    # A system without an option is described as it was before the option existed.
    mean = None
    if data.mean_of is not None:
        mean = embed_pooled(model, pool(data.mean_of, windows)).mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
        description |= {"subtracted_mean": data.mean_of.digest}
    system = System(model, dims, windows, pool, mean, None, description)
    if data.cohort is None:
        return system
    assert settings.score_norm is not None
    top_k = settings.cohort_size()
    labels = score_norm.member_labels(data.cohort, settings.cohort_by)
    description |= {"cohort": data.cohort.digest, "top_k": top_k}
    if settings.cohort_by != "speaker":
        description |= {"cohort_by": settings.cohort_by}
    embeddings = system.embed(data.cohort)
    normalisation = Normalisation.from_embeddings(settings.score_norm, embeddings, labels, dims, top_k)
    return dataclasses.replace(system, normalisation=normalisation, description=description)


def fit_calibration(settings: EvaluationSettings, system: System, data: EvaluationData) -> SystemCalibration | None:
    """Return a calibration fitted on the trials to calibrate on, or None without such trials."""
    trial_set = data.calibration_set
    if trial_set is None:
        return None
    measures = settings.measures()
    scored = system.score(trial_set, measures)
    return system_calibration.fit_system(
        scored.scores[system.kind],
        trial_set,
        system.description,
        scored.sides,
        measures=measures,
        resamples=settings.bootstrap,
        seed=settings.seed,
    )


def keep_calibration(settings: EvaluationSettings, system: System, fitted: SystemCalibration) -> None:
    """Save the calibration in the output folder and beside the checkpoint."""
    for folder in filter(None, (settings.output, checkpoint_folder(settings.checkpoint))):
        path = folder / system_calibration.file_name(system.kind)
        logger.info(f"calibration: {system_calibration.save(fitted, path)}")


def stored_calibration(
    settings: EvaluationSettings, system: System, data: EvaluationData
) -> SystemCalibration | None:
    """Return the calibration beside the checkpoint if it suits the system and the trials, or None."""
    beside = checkpoint_folder(settings.checkpoint)
    name = system_calibration.file_name(system.kind)
    if beside is None or not (beside / name).exists():
        return None
    stored = system_calibration.load(beside / name)
    reason = stored.reason_against(system.description, system.dims, data.trial_set.trials)
    logger.info(f"calibration: {beside / name}" + (f" is not used, {reason}" if reason else ""))
    return None if reason else stored


def checkpoint_folder(path: Path) -> Path | None:
    """Return the folder of the native checkpoint that `path` opens, or None when it is a file."""
    folders = (path, path / native.BEST)
    return next((folder for folder in folders if (folder / native.DESCRIPTION).exists()), None)


def summarise(
    settings: EvaluationSettings,
    system: System,
    data: EvaluationData,
    scored: ScoredTrials,
    known: SystemCalibration | None,
) -> Evaluation:
    """Compute all figures of the `scored` trials, with the calibration that is `known`, and show them as tables."""
    scores = scored.scores
    trial_set = data.trial_set
    by_kind = {
        kind: error_rates(each, trial_set, system.dims, bootstrap=settings.bootstrap, seed=settings.seed)
        for kind, each in scores.items()
    }
    name = settings.checkpoint.resolve().name
    final = scores[system.kind]
    systems: dict[str, report.Results] = {
        name if len(by_kind) == 1 else f"{name}, {kind}": each for kind, each in by_kind.items()
    }
    results = {"score": system.kind, "trials_from": trial_set.description, **by_kind[system.kind]}
    no_signal = protocol.find_no_signal(trial_set)
    if no_signal is not None:
        results["no_signal"] = no_signal
    tables = [report.table(systems)]
    if system.kind != COSINE:
        results[COSINE] = by_kind[COSINE]
    if settings.calibrate_half:
        results["dropped_trials"] = data.dropped
    llrs = None
    if known is not None:
        llrs = _add_calibration(results, settings, known, final, scored.sides, trial_set)
        tables.append(calibration_figures.table(results))
    if data.other is not None:
        results["comparison"] = comparison.compare(
            data.other,
            final,
            trial_set.trials.labels,
            system.dims,
            trial_set.speaker_numbers(),
            resamples=settings.bootstrap,
            seed=settings.seed,
        )
        tables.append(comparison.table(results["comparison"]))
    return Evaluation(trial_set, system.dims, scores, llrs, results, systems, tables)


def _add_calibration(
    results: dict[str, Any],
    settings: EvaluationSettings,
    known: SystemCalibration,
    scores: np.ndarray,
    sides: Mapping[int, Sides],
    trial_set: TrialSet,
) -> np.ndarray:
    """Add the figures of the calibrated `scores` (dims, trials) to `results`; return log-likelihood ratios, alike."""
    rows = []
    outside = np.zeros(len(trial_set.trials), bool)
    for (dim, each), row in zip(sides.items(), scores, strict=True):
        prefix = known.prefixes[dim]
        measures = system_calibration.pairs_of(each, trial_set, prefix.limits)
        outside |= prefix.outside(measures)
        rows.append(prefix.calibration(row, measures))
        results["dims"][str(dim)] |= calibration_figures.figures(
            prefix, row, rows[-1], trial_set, P_TARGETS, resamples=settings.bootstrap, seed=settings.seed
        )
    results["calibration"] = {
        "trials": known.trials["from"],
        "measures": [
            name for name in known.measures if name in known.prefixes[next(iter(sides))].calibration.weights
        ],
        "shared_speakers": known.shared_speakers(trial_set),
        "outside": int(outside.sum()),
    }
    return np.stack(rows)
