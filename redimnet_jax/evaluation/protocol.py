"""What an evaluation scores: trials, the recordings they compare, the speakers, and enrolment models.

An enrolment model stands for several recordings of one speaker. Its embedding is the mean of the embeddings of these
recordings (and of all their crops), each cut to the dimension and scaled to length one first. Its score with a test
utterance is their cosine, or the mean of the cosines with the crops of the utterance.
"""

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from redimnet_jax import names as name_forms
from redimnet_jax import scoring, trials, utterance_speakers
from redimnet_jax.data import kaldi
from redimnet_jax.data.corpus import open_utterances
from redimnet_jax.data.recordings import AudioFiles, Recordings, Subset, Utterances, select
from redimnet_jax.errors import ArgumentError, UserError, shown, some_of
from redimnet_jax.numerics import unit
from redimnet_jax.trials import Trials
from redimnet_jax.utterance_speakers import SpeakerRule

Roots = str | Path | Sequence[str | Path]
BY_FOLDER = SpeakerRule()

logger = logging.getLogger(__name__)


def audio_roots(roots: Roots | None, list_path: str | Path) -> list[Path]:
    """Return the folders that the paths in a list are relative to: `roots`, or by default the folder of the list.

    A string names one folder, or several with commas between them, unless a folder has exactly that name.
    """
    if not roots:
        return [Path(list_path).parent]
    if isinstance(roots, str) and "," in roots and not os.path.isdir(roots):
        roots = [part.strip() for part in roots.split(",") if part.strip()]
    folders = [roots] if isinstance(roots, str | Path) else roots
    if not isinstance(folders, Sequence) or not all(isinstance(folder, str | Path) for folder in folders):
        raise ArgumentError(f"`audio_root` is {roots!r} but must be a folder, or several with commas between them.")
    return list(map(Path, folders))


def find_recordings(
    names: Sequence[str], list_path: str | Path, audio_root: Roots | None, corpus: Utterances | None
) -> Recordings:
    """Return the recordings `names` of a list: those of `corpus`, or else of `audio_roots`.

    The roots are folders of audio files, or Kaldi folders whose utterances are called `names`.
    """
    if corpus is not None:
        return select(corpus, names)
    roots = audio_roots(audio_root, list_path)
    of_kaldi = [root for root in roots if kaldi.is_kaldi(root)]
    if not of_kaldi:
        return AudioFiles(roots, names)
    if len(of_kaldi) < len(roots):
        raise ArgumentError(
            f"`audio_root` has the Kaldi folder {of_kaldi[0]} and other folders; give Kaldi folders alone, or none."
        )
    return select(open_utterances(of_kaldi, names), names)


@dataclasses.dataclass(frozen=True)
class Enrolment:
    """The recordings that the names in a trial list stand for.

    `is_model`, bool (names,), says which names are models. Entry i of `names` and `recordings`, both int
    (members,), says that the name `names[i]` has the recording `recordings[i]`; `names` is sorted.
    """

    names: np.ndarray
    recordings: np.ndarray
    is_model: np.ndarray


@dataclasses.dataclass(frozen=True)
class TrialSet:
    """Trials with what they compare.

    Without an `enrolment`, name i of the trials is recording i. `speakers` has the speaker of every name of the
    trials. `description` says in messages where the trials come from, `speakers_from` where the speakers do.
    """

    trials: Trials
    recordings: Recordings
    speakers: list[str]
    description: str
    speakers_from: str = dataclasses.field(default="the speakers", kw_only=True)
    enrolment: Enrolment | None = dataclasses.field(default=None, kw_only=True)

    def speaker_numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the speakers on the left and the right of every trial, int (trials,) each."""
        numbers = np.unique(self.speakers, return_inverse=True)[1]
        return numbers[self.trials.left], numbers[self.trials.right]

    def first_recordings(self) -> np.ndarray:
        """Return the first recording that each name of the trials stands for, int (names,)."""
        if self.enrolment is None:
            return np.arange(len(self.trials.names))
        names = np.arange(len(self.enrolment.is_model))
        return self.enrolment.recordings[np.searchsorted(self.enrolment.names, names)]

    def names_with(self, recordings: np.ndarray) -> np.ndarray:
        """Return which names of the trials stand for one of `recordings`, bool (recordings,): bool (names,)."""
        if self.enrolment is None:
            return recordings
        chosen = recordings[self.enrolment.recordings]
        return np.bincount(self.enrolment.names, chosen, minlength=len(self.enrolment.is_model)) > 0


def read_models(path: str | Path) -> dict[str, list[str]]:
    """Return the recordings of every enrolment model in a list of lines `model utterance utterance ...`.

    Tabs or blanks separate columns; names may be quoted as by `names.quote`. Raise UserError naming the first line
    that has no utterance, has one twice, or repeats a model.
    """
    models: dict[str, list[str]] = {}
    for number, line in enumerate(name_forms.read_lines(path, "The enrolment list"), 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.strip().split(b"\t")] if b"\t" in line else line.split()
        try:
            model, *utterances = [name_forms.unquote(name_forms.decode(cell)) for cell in cells]
        except UserError as error:
            raise UserError(f"Line {number} of {path} cannot be read: {error}") from error
        distinct = len(set(map(name_forms.normalised, utterances)))
        problem = (
            "names no utterance"
            if not utterances
            else "names an utterance twice"
            if distinct < len(utterances)
            else ""
        )
        if problem or model in models:
            raise UserError(
                f"Line {number} of {path} {problem or f'repeats the model {shown(model)}'}; correct the line."
            )
        models[model] = utterances
    if not models:
        raise UserError(f"The enrolment list {path} is empty; give lines such as 'model a.wav b.wav'.")
    return models


def find_no_signal(trial_set: TrialSet) -> dict[str, Any] | None:
    """Return {"recordings": names, "trials": count} of recordings without signal and their trials; None without any.

    Only recordings that are files have to be looked at, because a corpus leaves out what holds no signal.
    """
    recordings = trial_set.recordings
    if not isinstance(recordings, AudioFiles) or not recordings.without_signal.any():
        return None
    sides = trial_set.names_with(recordings.without_signal)
    return {
        "recordings": [recordings.name(i) for i in np.flatnonzero(recordings.without_signal).tolist()],
        "trials": int((sides[trial_set.trials.left] | sides[trial_set.trials.right]).sum()),
    }


def warn_of_no_signal(trial_set: TrialSet) -> None:
    """Log a warning when recordings hold no signal: their embeddings are alike, so their scores mean nothing."""
    silent = find_no_signal(trial_set)
    if silent is not None:
        logger.warning(
            "%s of %s recordings hold no signal, so the scores of the %s trials that they are in mean nothing: %s",
            f"{len(silent['recordings']):,}",
            f"{len(trial_set.recordings):,}",
            f"{silent['trials']:,}",
            some_of(map(shown, silent["recordings"])),
        )


def from_list(
    path: str | Path,
    audio_root: Roots | None = None,
    corpus: Utterances | None = None,
    speaker_rule: SpeakerRule = BY_FOLDER,
    models: Mapping[str, list[str]] | None = None,
) -> TrialSet:
    """Return the trials in the list at `path`, with recordings from files (see `audio_roots`) or from `corpus`.

    The speakers are those that `utterance_speakers.speakers_of` finds. With `models`, from `read_models`, the list
    may name models as well as recordings.

    Raise UserError when a recording or its speaker is not found. Of models, raise UserError when no trial names one,
    when one has several speakers, and when a trial compares one with a recording of its own.
    """
    listed = trials.read(path)
    utterances = [[name] if models is None else models.get(name, [name]) for name in listed.names]
    is_model = np.array([models is not None and name in models for name in listed.names])
    if models is not None and not is_model.any():
        raise UserError(
            f"No trial of {path} names a model of the enrolment list; check that the two belong together."
        )
    unique = list(dict.fromkeys(name for group in utterances for name in group))
    recordings = find_recordings(unique, path, audio_root, corpus)
    in_corpus = recordings if isinstance(recordings, Subset) else None
    if corpus is None and in_corpus is not None and speaker_rule.pattern is not None:
        raise ArgumentError(
            "`speaker_pattern` has no effect with a Kaldi folder as `audio_root`, whose utt2spk has the speakers; "
            "leave it out."
        )
    speakers = utterance_speakers.speakers_of(unique, speaker_rule, in_corpus, path)  # type: ignore[arg-type] (as above)
    speaker_of = dict(zip(unique, speakers, strict=True))
    speakers = [
        _single_speaker(name, group, speaker_of) for name, group in zip(listed.names, utterances, strict=True)
    ]
    description = f"{len(listed):,} trials of {path}"
    speakers_from = utterance_speakers.origin(speaker_rule, in_corpus)  # type: ignore[arg-type]
    if models is None:
        return TrialSet(listed, recordings, speakers, description, speakers_from=speakers_from)
    _check_overlap(listed, utterances)
    number = {name: index for index, name in enumerate(unique)}
    enrolment = Enrolment(
        np.repeat(np.arange(len(utterances)), list(map(len, utterances))),
        np.array([number[name] for group in utterances for name in group]),
        is_model,
    )
    description += f" with {is_model.sum():,} models"
    return TrialSet(listed, recordings, speakers, description, speakers_from=speakers_from, enrolment=enrolment)


def _single_speaker(name: str, utterances: Sequence[str], speaker_of: Mapping[str, str]) -> str:
    """Return the speaker of all `utterances`; raise UserError when the model `name` has several."""
    speakers = sorted({speaker_of[utterance] for utterance in utterances})
    if len(speakers) > 1:
        raise ArgumentError(
            f"The model {shown(name)} has utterances of {shown(speakers[0])} and {shown(speakers[1])}; give those of "
            f"one speaker, or {utterance_speakers.OPTIONS}."
        )
    return speakers[0]


def _check_overlap(listed: Trials, utterances: Sequence[Sequence[str]]) -> None:
    """Raise UserError when a trial compares a model with a recording that belongs to the model."""
    contents = [frozenset(map(name_forms.normalised, group)) for group in utterances]
    for left, right in zip(listed.left.tolist(), listed.right.tolist(), strict=True):
        shared = contents[left] & contents[right]
        if shared:
            raise UserError(
                f"A trial compares {shown(listed.names[left])} with {shown(listed.names[right])}, and "
                f"{shown(min(shared))} is in both; leave it out of the model or of the trials."
            )


def side_embeddings(embeddings: np.ndarray, trial_set: TrialSet, dim: int) -> np.ndarray:
    """Return what the trials compare, (names, crops, dim), from raw `embeddings` (recordings, crops, embed_dim).

    A model has the same embedding, of length one, for every crop.
    """
    enrolment = trial_set.enrolment
    if enrolment is None:
        return embeddings[..., :dim]
    crops = embeddings.shape[1]
    rows = embeddings[enrolment.recordings]
    means = scoring.group_means(rows.reshape(-1, rows.shape[-1]), np.repeat(enrolment.names, crops), dim)
    models = np.asarray(unit(jnp.asarray(means)))[:, None]
    return np.where(enrolment.is_model[:, None, None], models, embeddings[trial_set.first_recordings(), :, :dim])


def from_corpus(
    corpus: Utterances,
    *,
    count: int,
    seed: int,
    sexes: Mapping[str, str] | None = None,
    description: str = "a corpus",
) -> TrialSet:
    """Return `count` balanced trials of `corpus`, or as many as it has; see `trials.generate`."""
    generated = trials.generate(corpus, count=min(count, max_trials(corpus.labels)), seed=seed, sexes=sexes)
    recordings = select(corpus, generated.names)
    speakers = [recordings.speakers[label] for label in recordings.labels]
    return TrialSet(generated, recordings, speakers, f"{len(generated):,} trials generated from {description}")


def max_trials(labels: np.ndarray) -> int:
    """Return how many balanced trials utterances of the speakers `labels` can have: twice the target pairs."""
    sizes = np.bincount(labels)
    targets = int((sizes * (sizes - 1) // 2).sum())
    if targets == 0:
        raise UserError(
            "No speaker has two utterances, so there are no target trials; give a list of trials, or a corpus with "
            "several utterances per speaker."
        )
    return 2 * targets


def check(
    trial_set: TrialSet,
    training_speakers: Collection[str] = (),
    allow_shared: bool = False,
    allow_repeated: bool = False,
) -> None:
    """Raise UserError when error rates on the trials would not mean what they should; see `trials.check`.

    Speakers of the trials among `training_speakers` are an error unless `allow_shared`, and repeated pairs unless
    `allow_repeated`.
    """
    speaker_of = dict(zip(trial_set.trials.names, trial_set.speakers, strict=True))
    problems = trials.check(trial_set.trials, training_speakers=training_speakers, speaker_of=speaker_of)
    if "shared" in problems and not allow_shared:
        raise ArgumentError(
            problems["shared"].removesuffix("; leave them out of one of the two.")
            + ", and an EER on speakers that were trained on says nothing about others; leave them out, or set "
            "`allow_shared_speakers`."
        )
    if "label" in problems:
        labels = problems["label"].replace("the speakers", trial_set.speakers_from, 1).removesuffix(".")
        problems["label"] = f"{labels}, or {utterance_speakers.OPTIONS}."
    for kind in ("one class", "self", "label", "duplicate"):
        if kind in problems and not (kind == "duplicate" and allow_repeated):
            raise ArgumentError(f"{trial_set.description}: {problems[kind]}")
