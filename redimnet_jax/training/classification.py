"""Classification of speakers who were trained on, from recordings that were not: loss and accuracy of the heads.

It is meaningful for training speakers alone: nobody else has prototypes. The EER of unseen speakers is what judges a
run; this says whether the heads have learnt the voices of their speakers or the very recordings.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from redimnet_jax.data.augment import Speed
from redimnet_jax.data.corpus import Corpus
from redimnet_jax.data.recordings import Recordings, Subset
from redimnet_jax.errors import UserError
from redimnet_jax.losses.heads import Heads

BLOCK = 1024  # rows whose cosines with all prototypes are in memory at once


@dataclasses.dataclass(frozen=True)
class SeenSpeakers:
    """Recordings of training speakers that do not train, the class of each, int32 (recordings,), whence they come."""

    recordings: Recordings
    labels: np.ndarray
    description: str


def seen_speakers(
    held: Corpus, training: Corpus, *, most: int, seed: int, description: str, speed: Speed | None = None
) -> SeenSpeakers:
    """At most `most` recordings of `held`, a random sample, with the classes that training on `training` gives them.

    With other speeds as new speakers that is the class of the unchanged speed.
    Raises UserError with the reason when `held` has another speaker, has what trains, or there is no such class.
    """
    unknown = sorted(set(held.speakers) - set(training.speakers))
    if unknown:
        raise UserError(
            f"classification.source has {len(unknown):,} of {len(held.speakers):,} speakers who are no training "
            f"speakers, such as {unknown[0]!r}, and for whom the heads have no prototype: each would be scored as "
            "some training speaker, which measures nothing; validate on unseen speakers by EER alone, and for a "
            "classification loss keep out recordings of the training speakers with classification.share=0.1."
        )
    first = 0
    if speed is not None and speed.new_speakers:
        if 1.0 not in speed.factors:
            raise UserError(
                f"data.augment.speed.factors are {speed.factors}, without 1, so no class is of recordings as they "
                "are, and classification asks for it; add 1.0, or leave classification out."
            )
        first = speed.label(0, speed.factors.index(1.0), len(training.speakers))
    if len(held) > most:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(held))[:most])
        held, description = Subset(held, chosen), f"{most:,} of {description}"
    number = {name: first + label for label, name in enumerate(training.speakers)}
    labels = np.array([number[held.speakers[label]] for label in held.labels], np.int32)
    return SeenSpeakers(held, labels, description)


def check_apart(held: Corpus, training: Corpus) -> None:
    """Raises UserError when an utterance of `held` is one of `training`, by speaker, name and length."""

    def key(corpus: Corpus, i: int) -> tuple[str, str, int]:
        return corpus.speakers[corpus.labels[i]], corpus.name(i), int(corpus.samples[i])

    known = {key(held, i) for i in range(len(held))}
    both = [each for i in range(len(training)) if (each := key(training, i)) in known]
    if both:
        raise UserError(
            f"classification.source has {len(both):,} utterances that also train, such as {both[0][1]}, and a loss "
            "on those is a training loss; give other recordings, or classification.share=0.1 in its place."
        )


def figures(heads: Heads, embeddings: np.ndarray, labels: np.ndarray, **options: Any) -> Mapping[str, Any]:
    """{"loss", "losses": {dim: loss}, "accuracies": {dim: accuracy}}, means over the recordings.

    `embeddings` are raw (recordings, crops, embed_dim); every crop counts. `options` are those of `Heads.loss`.
    """
    rows, labels = embeddings.reshape(-1, embeddings.shape[-1]), np.repeat(labels, embeddings.shape[1])
    graph, state = nnx.split(heads)

    @jax.jit
    def block(state, rows, labels):
        return nnx.merge(graph, state).loss(rows, labels, **options)

    def per_dim(values: Sequence[float]) -> dict[str, float]:
        return dict(zip(map(str, heads.dims), np.asarray(values).tolist(), strict=True))

    starts = range(0, len(rows), BLOCK)
    found = [jax.device_get(block(state, rows[i : i + BLOCK], labels[i : i + BLOCK])) for i in starts]
    sizes = [len(labels[i : i + BLOCK]) for i in starts]
    loss, each = jax.tree.map(lambda *values: np.average(values, axis=0, weights=sizes), *found)
    return {"loss": float(loss), "losses": per_dim(each["loss"]), "accuracies": per_dim(each["accuracy"])}
