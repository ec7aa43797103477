"""What an evaluation reads before any long work: trials, their groups, cohorts, and scores to compare with."""

import dataclasses
from collections.abc import Callable, Sequence

from redimnet_jax import optional, utterance_speakers
from redimnet_jax.data.corpus import Corpus, open_corpus
from redimnet_jax.data.recordings import Subset
from redimnet_jax.errors import ArgumentError
from redimnet_jax.evaluation import (
    comparison,
    metadata,
    protocol,
    score_norm,
    speaker_halves,
    subgroups,
    system_calibration,
)
from redimnet_jax.evaluation.comparison import SystemScores
from redimnet_jax.evaluation.html_report import players
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.evaluation.settings import OF_COHORT, EvaluationSettings
from redimnet_jax.evaluation.subgroups import Grouping


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """The trials to evaluate, their groups, the trials to calibrate on, and the scores to compare with.

    `dropped` counts the trials that `speaker_halves.halves` leaves out. `cohort` is that of the score normalisation;
    the mean embedding of `mean_of` is subtracted from all embeddings.
    """

    trial_set: TrialSet
    calibration_set: TrialSet | None
    dropped: int
    cohort: Subset | None
    mean_of: Subset | None
    other: SystemScores | None
    groupings: list[Grouping]


def open_data(settings: EvaluationSettings) -> EvaluationData:
    """Read and check everything but the model, so that errors show before any long work."""
    optional.require("report")  # for the calibration and the plots, which come last

    def opened(source: str) -> Corpus:
        return open_corpus(source, cache_dir=settings.output / "index", data_dir=settings.data_dir)

    table = None if settings.metadata is None else metadata.read(settings.metadata)
    models = None if settings.enrolment is None else protocol.read_models(settings.enrolment)
    rule = utterance_speakers.rule(settings.utt2spk, settings.speaker_pattern)
    corpus = None if settings.corpus is None else opened(settings.corpus)
    if settings.trials is not None:
        trial_set = protocol.from_list(settings.trials, settings.audio_root, corpus, rule, models)
    else:
        assert corpus is not None
        description = str(settings.corpus)
        trial_set = protocol.from_corpus(corpus, count=settings.count, seed=settings.seed, description=description)
    protocol.check(trial_set, allow_repeated=settings.allow_repeated_trials)
    protocol.warn_of_no_signal(trial_set)

    if settings.players == "link":
        players.check_links(trial_set.recordings)
    calibration_set, dropped = None, 0
    if settings.calibrate_half:
        calibration_set, trial_set, dropped = speaker_halves.halves(trial_set, settings.seed)
    elif settings.calibrate is not None:
        roots = settings.calibrate_root or settings.audio_root
        source = corpus if settings.calibrate_root is None else None
        calibration_set = protocol.from_list(settings.calibrate, roots, source, rule, models)
        protocol.check(calibration_set)
        if not settings.allow_same_trials:
            _check_different_trials(calibration_set, trial_set)
    cohort, mean_of = _open_cohorts(settings, opened, [each for each in (trial_set, calibration_set) if each])
    other = None if settings.compare is None else comparison.read(settings.compare, trial_set.trials)
    groupings = subgroups.groupings(trial_set, table, settings.by, settings.edges)
    return EvaluationData(trial_set, calibration_set, dropped, cohort, mean_of, other, groupings)


def _open_cohorts(
    settings: EvaluationSettings, opened: Callable[[str], Corpus], trial_sets: Sequence[TrialSet]
) -> tuple[Subset | None, Subset | None]:
    """Return (the cohort, the utterances whose mean is subtracted), none of whose speakers are in the trials."""

    def chosen(source: str | None) -> Subset | None:
        if source is None:
            return None
        return score_norm.choose_cohort(opened(source), settings.cohort_utterances, settings.seed)

    cohort = chosen(settings.cohort)
    mean_of = cohort if settings.subtract_mean == OF_COHORT else chosen(settings.subtract_mean)
    if cohort is not None:
        score_norm.check_size(cohort, settings.cohort_by, settings.cohort_size())
    for others, role in ((cohort, "the cohort"), (mean_of, "the corpus of the mean")):
        if others is not None:
            for trial_set in trial_sets:
                score_norm.check_cohort(others, trial_set, role)
    return cohort, mean_of


def _check_different_trials(calibration_set: TrialSet, trial_set: TrialSet) -> None:
    shared = system_calibration.pairs(calibration_set.trials) & system_calibration.pairs(trial_set.trials)
    if shared:
        raise ArgumentError(
            f"{len(shared):,} of the {calibration_set.description} are evaluated too, so the calibration would be "
            "judged on the trials it was fitted on; give other trials, or set `allow_same_trials`."
        )
