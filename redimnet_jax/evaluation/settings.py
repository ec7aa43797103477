"""The settings of an evaluation. No numerical library is imported, so that command lines start quickly."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from redimnet_jax.errors import ArgumentError, shown

METHODS = ("z-norm", "t-norm", "s-norm", "as-norm")  # of score normalisation
# Quality measures of a calibration; `quality_measures` computes them. The last one needs a cohort.
QUALITY_MEASURES = ("duration", "speech", "norm", "cohort")
ALL_MEASURES = "all"
DTYPES = ("float32", "bfloat16")
TOP_K = 300  # cohort speakers that count in as-norm
CROPS = 10  # crops of a recording, where it is cropped
COHORT_UTTERANCES = 20
COHORT_MEMBERS = ("speaker", "utterance")  # what a member of the cohort stands for
OF_COHORT = "cohort"  # the mean to subtract is that of the cohort
COUNT = 10_000  # generated trials
MAX_SECONDS = 60.0
BATCH_SECONDS = 240.0
BOOTSTRAP = 1000
PLAYERS = ("embed", "link", "none")  # of recordings in the report


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated and how; raise ArgumentError for values and combinations that no evaluation can have.

    checkpoint: a native checkpoint, the workdir of a run, or a PyTorch file.
    output: the folder for indices of corpora and for a new calibration.
    trials: a trial list in VoxCeleb's format; without it, `count` trials are generated from `corpus`.
    audio_root: folders that the paths in `trials` are relative to; by default the folder of the list.
    utt2spk, speaker_pattern: see `utterance_speakers.rule`.
    corpus, data_dir: see `data.corpus.open_corpus`; the corpus replaces `audio_root`.
    allow_repeated_trials: count a pair as often as `trials` has it; otherwise a repeated pair is an error.
    enrolment: a list of enrolment models, see `protocol.read_models`.
    cache: a folder for pooled features.
    score_norm: one of `METHODS`, against `cohort`, a corpus of which `cohort_utterances` of every speaker are used
        and, with as-norm, the `top_k` nearest members. `cohort_by`, one of `COHORT_MEMBERS`, says whether a member is
        the mean of a speaker's utterances or a single utterance.
    subtract_mean: a corpus whose mean embedding is subtracted from all embeddings, or `OF_COHORT` for that of the
        cohort; of a corpus, `cohort_utterances` of every speaker are used.
    calibrate, calibrate_root: a trial list to calibrate on, and the folders of its recordings; trials that are
        evaluated too are an error unless `allow_same_trials`.
    calibrate_half: calibrate on the trials of half of the speakers, drawn with `seed`, and evaluate those of the
        others.
    calibrate_quality: the quality measures that the new calibration uses, of `QUALITY_MEASURES` or `ALL_MEASURES`.
    compare: a score file of another system.
    enrol_utterances: recordings of a speaker that identification enrols, without `enrolment`.
    metadata: a table of utterances or speakers, see `metadata.read`; `by` has the columns to group trials by, by
        default all of them, and `edges` the bounds between groups of numbers, by column.
    table: also embed 1, 2 and 3 s of every recording, and give the EER by width, format and duration.
    players: one of `PLAYERS`, of the hardest trials in report.html.
    dims: dimensions to score; by default those that the model was trained for.
    crop_seconds, crops, max_seconds: see `embedding.extract.Windows`.
    speech_only: cut recordings to their speech first; those with less than `min_speech` seconds of it are an error.
    bootstrap: the number of resamples of the speakers; `seed` is also that of generated trials and of the cohort.
    dtype: the type of the network's arithmetic; batch_seconds: seconds of audio in a batch on each device.
    """

    checkpoint: Path
    output: Path
    trials: Path | None = None
    audio_root: tuple[Path, ...] | None = None
    utt2spk: Path | None = None
    speaker_pattern: str | None = None
    allow_repeated_trials: bool = False
    corpus: str | None = None
    data_dir: Path | None = None
    count: int = COUNT
    enrolment: Path | None = None
    cache: Path | None = None
    score_norm: str | None = None
    cohort: str | None = None
    cohort_utterances: int = COHORT_UTTERANCES
    cohort_by: str = "speaker"
    subtract_mean: str | None = None
    top_k: int | None = None
    calibrate: Path | None = None
    calibrate_root: tuple[Path, ...] | None = None
    allow_same_trials: bool = False
    calibrate_half: bool = False
    calibrate_quality: tuple[str, ...] = ()
    compare: Path | None = None
    enrol_utterances: int = 1
    metadata: Path | None = None
    by: tuple[str, ...] | None = None
    edges: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    table: bool = False
    players: str = "embed"
    dims: tuple[int, ...] | None = None
    crop_seconds: float | None = None
    crops: int | None = None
    max_seconds: float = MAX_SECONDS
    speech_only: bool = False
    min_speech: float | None = None
    bootstrap: int = BOOTSTRAP
    dtype: str = "float32"
    batch_seconds: float = BATCH_SECONDS
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_values()
        self._check_combinations()

    def cohort_size(self) -> int | None:
        """Return how many members of the cohort count for an utterance, or None where all do."""
        if self.score_norm != "as-norm":
            return None
        return TOP_K if self.top_k is None else self.top_k

    def measures(self) -> tuple[str, ...]:
        """Return the quality measures of the new calibration."""
        if ALL_MEASURES in self.calibrate_quality:
            return QUALITY_MEASURES[: None if self.cohort else -1]
        return tuple(dict.fromkeys(self.calibrate_quality))

    def _check_values(self) -> None:
        for name in ("count", "cohort_utterances", "bootstrap", "enrol_utterances"):
            check_number(name, getattr(self, name), minimum=1)
        check_number("seed", self.seed, minimum=0)
        if self.top_k is not None:
            check_number("top_k", self.top_k, minimum=2)
        check_choice("score_norm", self.score_norm, (None, *METHODS))
        for name in self.calibrate_quality:
            check_choice("calibrate_quality", name, (ALL_MEASURES, *QUALITY_MEASURES))
        check_choice("cohort_by", self.cohort_by, COHORT_MEMBERS)
        for dim in self.dims or ():
            check_number("dims", dim, minimum=1)
        if self.dims == ():
            raise ArgumentError("`dims` is empty; give at least one dimension, or leave it out.")
        check_windows(self.crop_seconds, self.crops, self.max_seconds)
        check_speech(self.speech_only, self.min_speech)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("players", self.players, PLAYERS)
        for name, bounds in self.edges.items():
            if (
                not bounds
                or any(b <= a for a, b in itertools.pairwise(bounds))
                or not all(map(math.isfinite, bounds))
            ):
                raise ArgumentError(f"`edges` of {shown(name)} are {shown(bounds)} but must be finite and rising.")
        check_positive("batch_seconds", self.batch_seconds)

    def _check_combinations(self) -> None:
        for wrong, problem in self._combinations():
            if wrong:
                raise ArgumentError(problem)

    def _combinations(self) -> Iterator[tuple[bool, str]]:
        """Yield (whether arguments do not go together, what is wrong with them)."""
        listed = self.trials is not None
        corpus = self.corpus is not None
        utt2spk = self.utt2spk is not None
        pattern = self.speaker_pattern is not None
        missing = "`trials` is missing; give a trial list, or `corpus` to generate trials from."
        yield not listed and not corpus, missing
        yield self.enrolment is not None and not listed, "`enrolment` needs `trials`, whose trials name its models."
        yield bool(self.audio_root) and not listed, "`audio_root` needs `trials`, whose paths it is for."
        no_root = "`audio_root` has no effect with `corpus`, which has the recordings; leave one of them out."
        yield bool(self.audio_root) and corpus, no_root
        yield utt2spk and pattern, "`utt2spk` and `speaker_pattern` both define the speakers; give one of them."
        repeated = self.allow_repeated_trials
        yield repeated and not listed, "`allow_repeated_trials` needs `trials`; generated ones repeat no pair."
        compared_twice = "`compare` finds trials by their pairs, so `allow_repeated_trials` excludes it."
        yield repeated and self.compare is not None, compared_twice
        yield utt2spk and not listed, "`utt2spk` needs `trials`, whose utterances it is for."
        no_pattern = (
            "`speaker_pattern` has no effect with `corpus`, which defines the speakers; leave one of them out."
        )
        yield pattern and corpus and self.calibrate_root is None, no_pattern
        normalised = self.score_norm is not None
        yield normalised != (self.cohort is not None), "`score_norm` and `cohort` need each other; give both or none."
        several = self.enrol_utterances != 1 and self.enrolment is not None
        yield several, "`enrol_utterances` has no effect with `enrolment`, whose models are enrolled; leave it out."
        in_table = self.table and (self.crop_seconds is not None or self.enrolment is not None)
        yield in_table, "`table` embeds single segments of recordings; leave out `crop_seconds` and `enrolment`."
        mean_of_none = (
            "`subtract_mean` is cohort but there is no `cohort`; give one, or a corpus to take the mean of."
        )
        yield self.subtract_mean == OF_COHORT and not normalised, mean_of_none
        by_utterance = self.cohort_by != "speaker"
        yield by_utterance and not normalised, "`cohort_by` has no effect without `cohort`; leave it out."
        no_list = self.calibrate_root is not None and self.calibrate is None
        yield no_list, "`calibrate_root` needs `calibrate`, whose paths it is for."
        two_lists = "`calibrate` and `calibrate_half` both give the calibration trials; leave one of them out."
        yield self.calibrate_half and self.calibrate is not None, two_lists
        calibrates = self.calibrate_half or self.calibrate is not None
        quality = bool(self.calibrate_quality)
        no_fit = "`calibrate_quality` needs `calibrate` or `calibrate_half`, which fit a calibration."
        yield quality and not calibrates, no_fit
        cropped = "`calibrate_quality` measures whole recordings, so leave `crop_seconds` out."
        yield quality and self.crop_seconds is not None, cropped
        no_cohort = "`calibrate_quality` has cohort but there is no `cohort`; give one, or leave the measure out."
        yield "cohort" in self.calibrate_quality and not normalised, no_cohort
        compared = (
            "`compare` needs the scores of all trials, of which `calibrate_half` leaves some out; do without one."
        )
        yield self.calibrate_half and self.compare is not None, compared
        no_top_k = self.top_k is not None and self.score_norm != "as-norm"
        yield no_top_k, "`top_k` has no effect without `score_norm` as-norm; leave it out."


def check_number(name: str, value: Any, minimum: int) -> None:
    """Raise ArgumentError unless `value`, the argument `name`, is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ArgumentError(f"`{name}` is {shown(value)} but must be a whole number of at least {minimum}.")


def check_positive(name: str, value: Any) -> None:
    """Raise ArgumentError unless `value`, the argument `name`, is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ArgumentError(f"`{name}` is {shown(value)} but must be a positive number.")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise ArgumentError unless `value`, the argument `name`, is one of `choices`."""
    if value not in choices:
        words = ", ".join(str(choice) for choice in choices if choice is not None)
        raise ArgumentError(f"`{name}` is {shown(value)} but must be one of {words}.")


def check_windows(crop_seconds: float | None, crops: int | None, max_seconds: float) -> None:
    """Raise ArgumentError unless the arguments define windows of recordings, see `embedding.extract.Windows`."""
    check_positive("max_seconds", max_seconds)
    if crop_seconds is not None:
        check_positive("crop_seconds", crop_seconds)
    if crops is not None:
        check_number("crops", crops, minimum=1)
        if crop_seconds is None and crops > 1:
            raise ArgumentError("`crops` needs `crop_seconds`, the length of a crop.")


def check_speech(speech_only: bool, min_speech: float | None) -> None:
    """Raise ArgumentError unless the arguments go together, see `data.speech_only`."""
    if min_speech is not None:
        check_positive("min_speech", min_speech)
        if not speech_only:
            raise ArgumentError("`min_speech` has no effect without `speech_only`; leave it out.")
