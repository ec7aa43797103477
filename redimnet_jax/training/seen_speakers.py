"""Loss and accuracy of the heads on recordings of training speakers that do not train.

They mean something for training speakers only, since nobody else has prototypes. A run is judged by the EER of unseen
speakers; this shows whether the heads have learnt the voices of their speakers or only the recordings that train.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from redimnet_jax.data.augment import Speed
from redimnet_jax.data.recordings import Recordings, Subset, Utterances
from redimnet_jax.errors import UserError
from redimnet_jax.losses.heads import Heads

# Rows whose cosines with all prototypes are in memory at once.
BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class SeenSpeakers:
    """Recordings of training speakers that do not train, with the class of each, int32 (recordings,)."""

    recordings: Recordings
    labels: np.ndarray
    description: str


def seen_speakers(
    recordings: Utterances,
    training: Utterances,
    *,
    max_recordings: int,
    seed: int,
    description: str,
    speed: Speed | None = None,
) -> SeenSpeakers:
    """Return a random sample of the `recordings`, with the classes that training on `training` gives them.

    With other speeds as new speakers the class is that of the unchanged speed.
    Raise UserError when `recordings` has a speaker who is not in `training`, or when there is no such class.
    """
    unknown = sorted(set(recordings.speakers) - set(training.speakers))
    if unknown:
        raise UserError(
            f"classification.source has {len(unknown):,} of {len(recordings.speakers):,} speakers who are "
            f"no training speakers, such as {unknown[0]!r}, and for whom the heads have no prototype: each would be "
            "scored as some training speaker, which measures nothing; validate on unseen speakers by EER alone, and "
            "for a classification loss keep out recordings of the training speakers with classification.share=0.1."
        )
    first = 0
    if speed is not None and speed.new_speakers:
        if 1.0 not in speed.factors:
            raise UserError(
                f"data.augment.speed.factors are {speed.factors}, without 1, so no class is of recordings as they "
                "are, and classification asks for it; add 1.0, or leave classification out."
            )
        first = speed.label(0, speed.factors.index(1.0), len(training.speakers))
    sample: Utterances = recordings
    if len(recordings) > max_recordings:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(recordings))[:max_recordings])
        sample = Subset(recordings, chosen)
        description = f"{max_recordings:,} of {description}"
    number = {name: first + label for label, name in enumerate(training.speakers)}
    labels = np.array([number[sample.speakers[label]] for label in sample.labels], np.int32)
    return SeenSpeakers(sample, labels, description)


def check_apart(recordings: Utterances, training: Utterances) -> None:
    """Raise UserError when one of the `recordings` is also in `training`, by speaker, name and length."""

    def key(corpus: Utterances, i: int) -> tuple[str, str, int]:
        return corpus.speakers[corpus.labels[i]], corpus.name(i), int(corpus.samples[i])

    known = {key(recordings, i) for i in range(len(recordings))}
    both = [each for i in range(len(training)) if (each := key(training, i)) in known]
    if both:
        raise UserError(
            f"classification.source has {len(both):,} utterances that also train, such as {both[0][1]}, and a loss "
            "on those is a training loss; give other recordings, or classification.share=0.1 in its place."
        )


def figures(heads: Heads, embeddings: np.ndarray, labels: np.ndarray, **options: Any) -> Mapping[str, Any]:
    """Return {"loss", "losses": {dim: loss}, "accuracies": {dim: accuracy}}, means over the recordings.

    `embeddings` are raw (recordings, crops, embed_dim); every crop counts. `options` are those of `Heads.loss`.
    """
    rows = embeddings.reshape(-1, embeddings.shape[-1])
    labels = np.repeat(labels, embeddings.shape[1])
    graph, state = nnx.split(heads)

    @jax.jit
    def block(state, rows, labels):
        return nnx.merge(graph, state).loss(rows, labels, **options)

    def per_dim(values: Sequence[float]) -> dict[str, float]:
        return dict(zip(map(str, heads.dims), np.asarray(values).tolist(), strict=True))

    starts = range(0, len(rows), BLOCK)
    figures_of_blocks = [jax.device_get(block(state, rows[i : i + BLOCK], labels[i : i + BLOCK])) for i in starts]
    sizes = [len(labels[i : i + BLOCK]) for i in starts]
    loss, each = jax.tree.map(lambda *values: np.average(values, axis=0, weights=sizes), *figures_of_blocks)
    return {"loss": float(loss), "losses": per_dim(each["loss"]), "accuracies": per_dim(each["accuracy"])}
