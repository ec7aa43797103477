"""Make utterances to enrol: of recordings, and of folders of embeddings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from redimnet_jax.embedding import folder as embedding_folder
from redimnet_jax.embedding.recording import EmbeddedRecording
from redimnet_jax.errors import UserError
from redimnet_jax.gallery.manifest import Weights
from redimnet_jax.gallery.utterances import Utterances


def of_recordings(model: str, recordings: Sequence[EmbeddedRecording]) -> Utterances:
    """Return the `recordings` as utterances of one model.

    Raises UserError when there are none, and when one is there twice, which would count double in the mean.
    """
    names = [recording.name for recording in recordings]
    if not names:
        raise UserError("There are no recordings to enrol; give at least one.")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} is given {names.count(name)} times; give each recording once.")
    return Utterances(
        [model] * len(names),
        names,
        np.array([recording.quality.seconds for recording in recordings]),
        np.array([recording.quality.speech_seconds for recording in recordings]),
        np.stack([recording.vector for recording in recordings]).astype(np.float32),
    )


def of_embeddings(folder: str | Path) -> tuple[Utterances, Weights]:
    """Return the utterances in a folder that `redimnet-jax embed` wrote, mapped, and the weights they are of.

    Their speakers are the models. Raises UserError when the folder is unfinished or damaged, and when it has several
    crops of every utterance.
    """
    embeddings = embedding_folder.load(folder)
    if embeddings.array.ndim != 2:
        raise UserError(f"{folder} holds several crops of every utterance; embed whole ones, without --crops.")
    entries = embeddings.description
    try:
        weights = Weights(**{name: entries[name] for name in ("weights_sha256", "config_sha256", "dtype", "dim")})
    except KeyError as error:
        raise UserError(f"{folder} does not say what model it is of; embed again with this version.") from error
    unknown = np.full(len(embeddings.array), np.nan)
    utterances = Utterances(embeddings.speakers, embeddings.utterances, embeddings.seconds, unknown, embeddings.array)
    return utterances, weights
