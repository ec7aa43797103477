"""Scores normalised against the speakers of a corpus; see `score_norm.py` for the methods."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from redimnet_jax import scoring
from redimnet_jax.data.corpus import Corpus
from redimnet_jax.data.recordings import Subset
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import score_norm
from redimnet_jax.evaluation.enrolment import sides
from redimnet_jax.evaluation.protocol import Validation
from redimnet_jax.numerics import unit


def choose(corpus: Corpus, utterances: int, seed: int, top_k: int | None = None) -> Subset:
    """At most `utterances` random utterances of every speaker; UserError when there are fewer than `top_k`."""
    if top_k is not None and not 2 <= top_k <= len(corpus.speakers):
        raise UserError(
            f"--top_k is {top_k} but must be at least 2 and at most {len(corpus.speakers)}, the speakers of the "
            "cohort; change it or give a larger cohort."
        )
    if utterances < 1:
        raise UserError(f"--cohort_utterances is {utterances} but must be at least 1.")
    order = np.random.default_rng(seed).permutation(len(corpus))
    order = order[np.argsort(corpus.labels[order], kind="stable")]
    labels = corpus.labels[order]
    place = np.arange(len(order)) - np.searchsorted(labels, labels)
    return Subset(corpus, np.sort(order[place < utterances]))


def check(cohort: Subset, judged: Validation) -> None:
    """Raises UserError when a speaker of the trials is in the cohort: it would be scored against itself."""
    shared = sorted(set(judged.speakers) & set(cohort.speakers))
    if shared:
        raise UserError(
            f"{len(shared)} of {len(set(judged.speakers))} speakers of {judged.description} are in the cohort too, "
            f"the first {shared[0]!r}; give a cohort of other speakers, such as those of training."
        )


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Normalises scores by `method` (see `score_norm.normalise`) against `means`, (speakers, dim) a dimension.

    `top_k` of the cohort count for an utterance; all of it where None.
    """

    method: str
    means: tuple[jax.Array, ...]
    top_k: int | None

    @classmethod
    def of(cls, method: str, embeddings: np.ndarray, labels: np.ndarray, dims: Sequence[int], top_k: int | None):
        """The cohort of raw `embeddings` (utterances, crops, embed_dim) of the speakers `labels` (utterances,)."""
        crops = embeddings.shape[1]
        rows = embeddings.reshape(-1, embeddings.shape[-1])
        return cls(method, scoring.speaker_means(rows, np.repeat(labels, crops), dims), top_k)

    def __call__(self, scores: np.ndarray, embeddings: np.ndarray, judged: Validation) -> np.ndarray:
        """Normalised `scores` (dims, trials) of the recordings' raw `embeddings` (recordings, crops, embed_dim)."""
        statistics = [self._statistics(embeddings, judged, table) for table in self.means]
        mean, deviation = (jnp.concatenate(column) for column in zip(*statistics, strict=True))
        of = judged.trials
        return np.asarray(score_norm.normalise(scores, of.left, of.right, mean, deviation, self.method))

    def _statistics(self, embeddings: np.ndarray, judged: Validation, table: jax.Array) -> tuple[jax.Array, ...]:
        """Mean and deviation of every side's scores with the cohort, (1, sides) each.

        A side's score with a speaker is the mean of its crops' cosines, as between the sides of a trial.
        """
        means = unit(jnp.asarray(sides(embeddings, judged, table.shape[1]))).mean(axis=1)
        lengths = jnp.linalg.norm(means, axis=1)
        return tuple(x * lengths for x in score_norm.cohort_statistics(means, (table,), top_k=self.top_k))
