"""Enrolment by several utterances: trials that name models, and the recordings each model is made of.

A model is the mean of the embeddings of its recordings (and of all their crops), each cut to the dimension and scaled
to length one first. Its score with a test utterance is their cosine, or the mean of the cosines with its crops.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from redimnet_jax import names as name_forms
from redimnet_jax import scoring, trials, utterance_speakers
from redimnet_jax.errors import UserError, shown
from redimnet_jax.evaluation.protocol import BY_FOLDER, Roots, Validation, find_recordings
from redimnet_jax.numerics import unit
from redimnet_jax.utterance_speakers import SpeakerRule


@dataclasses.dataclass(frozen=True)
class Enrolled(Validation):
    """Trials some of whose names are models. `speakers` are those of the names, not of the recordings.

    Name `sides[i]` of the trials has the recording `members[i]`, both int (members,); `is_model`, bool (names,).
    """

    sides: np.ndarray
    members: np.ndarray
    is_model: np.ndarray

    def sides_with(self, recordings: np.ndarray) -> np.ndarray:
        """Return which names of the trials stand for one of `recordings`, bool (recordings,): bool (names,)."""
        return np.bincount(self.sides, recordings[self.members], minlength=len(self.is_model)) > 0


def read(path: str | Path) -> dict[str, list[str]]:
    """The recordings of every model in a list of lines `model utterance utterance ...`.

    Columns are apart by tabs or by blanks; names may be quoted as by `names.quote`. Raises UserError naming the first
    line that has no utterance, has one twice, or repeats a model.
    """
    models: dict[str, list[str]] = {}
    for number, line in enumerate(name_forms.read_lines(path, "The enrolment list"), 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.strip().split(b"\t")] if b"\t" in line else line.split()
        try:
            model, *names = [name_forms.unquote(name_forms.decode(cell)) for cell in cells]
        except UserError as error:
            raise UserError(f"Line {number} of {path} cannot be read: {error}") from error
        different = len(set(map(name_forms.normalised, names)))
        wrong = "names no utterance" if not names else "names an utterance twice" if different < len(names) else ""
        if wrong or model in models:
            raise UserError(
                f"Line {number} of {path} {wrong or f'repeats the model {shown(model)}'}; correct the line."
            )
        models[model] = names
    if not models:
        raise UserError(f"The enrolment list {path} is empty; give lines such as 'model a.wav b.wav'.")
    return models


def from_list(
    path: str | Path,
    models: Mapping[str, list[str]],
    audio_root: Roots | None = None,
    corpus=None,
    speaker_rule: SpeakerRule = BY_FOLDER,
) -> Enrolled:
    """The trials in the list at `path`, whose names are `models` or else utterances.

    Audio and speakers of the utterances are found as by `validation.from_list`.

    Raises UserError when no trial names a model, when a model has several speakers, and when a trial compares a model
    with an utterance that it is made of.
    """
    listed = trials.read(path)
    parts = [models.get(name, [name]) for name in listed.names]
    is_model = np.array([name in models for name in listed.names])
    if not is_model.any():
        raise UserError(
            f"No trial of {path} names a model of the enrolment list; check that the two belong together."
        )
    number = {name: i for i, name in enumerate(dict.fromkeys(name for names in parts for name in names))}
    recordings = find_recordings(list(number), path, audio_root, corpus)
    known = None if corpus is None else recordings
    of = utterance_speakers.speakers_of(list(number), speaker_rule, known, path)
    members = [[number[name] for name in names] for names in parts]
    speakers = []
    for name, recorded in zip(listed.names, members, strict=True):
        found = sorted({of[member] for member in recorded})
        if len(found) > 1:
            raise UserError(
                f"The model {shown(name)} has utterances of {shown(found[0])} and {shown(found[1])}; give those of "
                f"one, or {utterance_speakers.OPTIONS}."
            )
        speakers += found
    _check_overlap(listed, parts)
    sizes = list(map(len, members))
    return Enrolled(
        listed,
        recordings,
        speakers,
        f"{len(listed):,} trials of {path} with {is_model.sum():,} models",
        np.repeat(np.arange(len(sizes)), sizes),
        np.concatenate(members),
        is_model,
        speakers_from=utterance_speakers.origin(speaker_rule, corpus),
    )


def sides(embeddings: np.ndarray, judged: Validation, dim: int) -> np.ndarray:
    """What the trials of `judged` compare, (names, crops, dim), of the recordings' raw embeddings (..., embed_dim).

    A model has the same embedding, of length one, for every crop.
    """
    if not isinstance(judged, Enrolled):
        return embeddings[..., :dim]
    crops = embeddings.shape[1]
    rows = embeddings[judged.members]
    means = scoring.group_means(rows.reshape(-1, rows.shape[-1]), np.repeat(judged.sides, crops), dim)
    first = judged.members[np.searchsorted(judged.sides, np.arange(len(judged.is_model)))]
    return np.where(judged.is_model[:, None, None], unit(jnp.asarray(means))[:, None], embeddings[first, :, :dim])


def _check_overlap(listed: trials.Trials, parts: list[list[str]]) -> None:
    contents = [frozenset(map(name_forms.normalised, names)) for names in parts]
    for left, right in zip(listed.left.tolist(), listed.right.tolist(), strict=True):
        shared = contents[left] & contents[right]
        if shared:
            raise UserError(
                f"A trial compares {shown(listed.names[left])} with {shown(listed.names[right])}, and "
                f"{shown(min(shared))} is in both; leave it out of the model or of the trials."
            )
