"""What a training run reads: its corpus, its validation trials, and how crops are augmented."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import jax

from redimnet_jax import hosts, utterance_speakers
from redimnet_jax.data import augment, resumed, speech_only, splits
from redimnet_jax.data.corpus import Corpus, open_corpus, require_speakers
from redimnet_jax.data.recordings import Utterances
from redimnet_jax.data.speakers import read_sexes
from redimnet_jax.errors import ArgumentError, UserError
from redimnet_jax.evaluation import protocol
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.training import seen_speakers
from redimnet_jax.training.log import shows_progress
from redimnet_jax.training.seen_speakers import SeenSpeakers
from redimnet_jax.training.settings import Settings
from redimnet_jax.training.settings_data import Data as DataSettings
from redimnet_jax.training.settings_data import Validation as ValidationSettings

SYNTHETIC = re.compile(r"synthetic:(\d+)x(\d+)x(\d+)(?:@(\d+))?")
SYNTHETIC_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads.

    `seen` are recordings of training speakers that do not train, or None. `digests` are those of the corpora that
    were opened, by their setting.
    """

    corpus: Utterances
    validation: TrialSet
    speed: augment.Speed | None
    steps: tuple[augment.Step, ...]
    seen: SeenSpeakers | None = None
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """The name of every class, in the order of the prototypes."""
        factors = self.speed.factors if self.speed and self.speed.new_speakers else (1.0,)
        return [f"{name}@{factor:g}" if factor != 1 else name for factor in factors for name in self.corpus.speakers]


def check_sources(settings: Settings) -> None:
    """Raise UserError when the settings do not say what to train on; look at no file."""
    if not settings.data.train:
        raise UserError(
            "config.data.train is empty; give --config.data.train=FOLDER, a tree of speakers, or a list file or "
            "tfds:NAME, or choose the :demo preset of configs/projection_only.py, which makes its own data."
        )
    if settings.validation.same_sex and not settings.validation.metadata:
        raise UserError("validation.same_sex needs validation.metadata, the speakers' sex, such as vox1_meta.csv.")


def open_data(settings: Settings, workdir: Path, digests: Mapping[str, str] | None = None) -> Data:
    """Return the training corpus and the validation trials, checked, the quickest to check first.

    Indices of the audio and synthetic voices are kept in `workdir`. A run that resumes gives the `digests` of its
    start, by which recordings that were removed or replaced since are known, see `data.resumed`.
    """
    check_sources(settings)
    try:
        return _open_data(settings, workdir, digests or {})
    except ArgumentError as error:
        # The arguments of the library have the names of the settings of these sections.
        sections = {
            "data": settings.data,
            "classification": settings.classification,
            "validation": settings.validation,
        }
        keys = {name: f"{section}.{name}" for section, values in sections.items() for name in vars(values)}
        raise error.renamed(keys) from error


def _open_data(settings: Settings, workdir: Path, digests: Mapping[str, str]) -> Data:
    validation = settings.validation
    speaker_rule = utterance_speakers.rule(validation.utt2spk, validation.speaker_pattern)
    chosen = settings.data.augment
    active = {name: getattr(chosen, name) for name in augment.STEPS if getattr(chosen, name).p}
    options = {name: dataclasses.asdict(step) for name, step in active.items()}
    steps = augment.from_config(options, **vars(chosen.draw))
    speed = augment.speed_from_config(dataclasses.asdict(chosen.speed) if chosen.speed.factors else None)
    corpora = _Corpora(settings.data, workdir, digests)
    trials = None
    if validation.trials:
        unseen = corpora.open("validation.tree", validation.tree) if validation.tree else None
        trials = protocol.from_list(validation.trials, validation.audio_root, unseen, speaker_rule)
        if settings.data.speech_only and unseen is None:
            recordings = trials.recordings
            found = speech_only.find_speech(recordings, progress=shows_progress())
            recordings = speech_only.require_speech(recordings, found, settings.data.min_speech)
            trials = dataclasses.replace(trials, recordings=recordings)
    elif validation.tree:
        unseen = corpora.open("validation.tree", validation.tree)
        trials = _generated_trials(unseen, validation, settings.seed, validation.tree)
    corpus: Utterances = corpora.open("data.train", settings.data.train, min_speakers=2)
    if trials is None:
        corpus, unseen = splits.hold_out(corpus, validation.holdout, settings.seed)
        description = f"{len(unseen.speakers)} training speakers kept out of training"
        trials = _generated_trials(unseen, validation, settings.seed, description)
    resumed.require_all(trials.recordings, "the validation")
    protocol.check(trials, corpus.speakers, validation.allow_shared_speakers)
    corpus, seen = _seen_speakers(settings, corpora, corpus, speed)
    return Data(corpus, trials, speed, tuple(step.on(corpus) for step in steps), seen, corpora.digests)


class _Corpora:
    """Opens the corpora of a run, whose indices and synthetic voices are kept in `workdir`.

    `saved` are the digests of the corpora that the run was started with, by their setting.
    """

    def __init__(self, settings: DataSettings, workdir: Path, saved: Mapping[str, str]):
        self._settings = settings
        self._workdir = workdir
        self._saved = saved
        self.digests: dict[str, str] = {}

    def open(self, setting: str, source: str, min_speakers: int = 1) -> Utterances:
        """Return the corpus at `source`, the same on every process, or as it was when the run was started."""
        indices = self._workdir / "index"
        current = hosts.first_then_others(lambda: self._open(source, indices, min_speakers))
        corpus = resumed.resumed(current, self._saved.get(setting), indices, show=jax.process_index() == 0)
        hosts.check_same(
            corpus.digest,
            f"Process {{which}} finds other recordings in {source} than process 0; give all processes the same data.",
        )
        self.digests[setting] = corpus.digest
        return self._speech(corpus, indices) if self._settings.speech_only else corpus

    def _speech(self, corpus: Utterances, indices: Path) -> Utterances:
        """Return the speech of `corpus`; one process searches for it, and the others read what it found."""
        return hosts.first_then_others(
            lambda: speech_only.speech_corpus(
                corpus,
                indices,
                min_seconds=self._settings.min_speech,
                max_bad=self._settings.max_bad,
                progress=shows_progress(),
            )
        )

    def _open(self, source: str, indices: Path, min_speakers: int) -> Corpus:
        synthetic = source.startswith("synthetic:")
        path = str(_synthetic_tree(source, self._workdir / "synthetic")) if synthetic else source
        corpus = open_corpus(
            path,
            cache_dir=indices,
            min_seconds=self._settings.min_seconds,
            max_bad=self._settings.max_bad,
            data_dir=self._settings.data_dir,
            progress=shows_progress(),
        )
        require_speakers(corpus, path, min_speakers)
        return corpus


def _generated_trials(corpus: Utterances, settings: ValidationSettings, seed: int, description: str) -> TrialSet:
    sexes = read_sexes(settings.metadata) if settings.same_sex and settings.metadata else None
    return protocol.from_corpus(
        corpus, description=description, count=settings.generated_trials, seed=seed, sexes=sexes
    )


def _seen_speakers(
    settings: Settings, corpora: _Corpora, corpus: Utterances, speed: augment.Speed | None
) -> tuple[Utterances, SeenSpeakers | None]:
    """Return (corpus that trains, recordings of its speakers that do not train or None)."""
    classification = settings.classification
    if classification.source:
        recordings = corpora.open("classification.source", classification.source)
        description = f"recordings of training speakers in {classification.source}"
        seen_speakers.check_apart(recordings, corpus)
    elif classification.share:
        parts = splits.split(
            corpus,
            classification.share,
            gap_seconds=classification.gap_seconds,
            min_seconds=settings.data.min_seconds,
            seed=settings.seed,
        )
        corpus = parts.train
        recordings = parts.held_out
        description = parts.description
    else:
        return corpus, None
    resumed.require_all(recordings, "the classification of training speakers")
    return corpus, seen_speakers.seen_speakers(
        recordings,
        corpus,
        max_recordings=classification.max_recordings,
        seed=settings.seed,
        description=description,
        speed=speed,
    )


def _synthetic_tree(source: str, folder: Path) -> Path:
    """Return the tree of `synthetic:SPEAKERSxSESSIONSxUTTERANCES[@FIRST]` below `folder`, made if it does not exist.

    FIRST is the number of the first speaker, so that two sources can have different ones.
    """
    from redimnet_jax.data.synthetic import voices

    match = SYNTHETIC.fullmatch(source)
    if match is None:
        raise UserError(f"{source!r} is not understood; write synthetic:SPEAKERSxSESSIONSxUTTERANCES[@FIRST].")
    speakers, sessions, utterances, first = (int(number or 0) for number in match.groups())
    tree = folder / source.removeprefix("synthetic:")
    if not tree.exists():
        voices.write_corpus(
            tree,
            speakers=speakers,
            sessions=sessions,
            utterances=utterances,
            seconds=SYNTHETIC_SECONDS,
            first_speaker=first,
        )
    return tree
