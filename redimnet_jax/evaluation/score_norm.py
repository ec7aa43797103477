"""Score normalisation against a cohort: Z, T, S and adaptive S, for every dimension.

The score of a trial is compared with the scores of its two utterances against speakers who are neither of them. The
statistics belong to utterances, so a million trials need no more of them than their utterances do.
docs/reference/metrics.md gives definitions and sources.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from redimnet_jax import scoring
from redimnet_jax.data.corpus import Corpus
from redimnet_jax.data.recordings import Subset
from redimnet_jax.errors import ArgumentError, UserError, shown
from redimnet_jax.evaluation.protocol import TrialSet, side_embeddings
from redimnet_jax.evaluation.settings import METHODS
from redimnet_jax.numerics import unit

Array = jax.Array


def choose_cohort(corpus: Corpus, cohort_utterances: int, seed: int) -> Subset:
    """Return at most `cohort_utterances` random utterances of every speaker of `corpus`, drawn with `seed`."""
    if cohort_utterances < 1:
        raise ArgumentError(f"`cohort_utterances` is {cohort_utterances} but must be at least 1.")
    order = np.random.default_rng(seed).permutation(len(corpus))
    order = order[np.argsort(corpus.labels[order], kind="stable")]
    labels = corpus.labels[order]
    position = np.arange(len(order)) - np.searchsorted(labels, labels)
    return Subset(corpus, np.sort(order[position < cohort_utterances]))


def member_labels(cohort: Subset, by: str) -> np.ndarray:
    """Return the member that every utterance of the cohort belongs to, int (utterances,).

    `by` "speaker", a member is a speaker; `by` "utterance", every utterance is one.
    """
    return np.arange(len(cohort)) if by == "utterance" else cohort.labels


def check_size(cohort: Subset, by: str, top_k: int | None) -> None:
    """Raise ArgumentError when `top_k`, how many members count, is not between 2 and the size of the cohort."""
    members = 1 + int(member_labels(cohort, by).max())
    if top_k is not None and not 2 <= top_k <= members:
        raise ArgumentError(
            f"`top_k` is {top_k} but must be at least 2 and at most {members}, the number of cohort {by}s; change it "
            "or give a larger cohort."
        )


def check_cohort(cohort: Corpus | Subset, trial_set: TrialSet, role: str = "the cohort") -> None:
    """Raise UserError when a speaker of the trials is in the cohort, who would be scored against themselves.

    `role` is what the error calls the cohort.
    """
    shared = sorted(set(trial_set.speakers) & set(cohort.speakers))
    if shared:
        raise UserError(
            f"{len(shared)} of {len(set(trial_set.speakers))} speakers of {trial_set.description} are in {role} too, "
            f"the first {shown(shared[0])}; give one of other speakers, such as those of training."
        )


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """A score normalisation by `method`, one of `METHODS`, against the cohort.

    `means` has for every dimension the embeddings of the cohort's members, (members, dim). The `top_k` members
    nearest to an utterance count for it, or all where it is None.
    """

    method: str
    means: tuple[jax.Array, ...]
    top_k: int | None

    @classmethod
    def from_embeddings(
        cls, method: str, embeddings: np.ndarray, labels: np.ndarray, dims: Sequence[int], top_k: int | None
    ) -> "Normalisation":
        """Return the normalisation of raw cohort `embeddings` (utterances, crops, embed_dim); `labels` as above."""
        crops = embeddings.shape[1]
        rows = embeddings.reshape(-1, embeddings.shape[-1])
        return cls(method, scoring.speaker_means(rows, np.repeat(labels, crops), dims), top_k)

    def __call__(self, scores: np.ndarray, embeddings: np.ndarray, trial_set: TrialSet) -> np.ndarray:
        """Return normalised `scores` (dims, trials); `embeddings` (recordings, crops, embed_dim) are the raw ones."""
        statistics = [self._statistics(embeddings, trial_set, means) for means in self.means]
        mean, deviation = (jnp.concatenate(column) for column in zip(*statistics, strict=True))
        trials = trial_set.trials
        return np.asarray(normalise(scores, trials.left, trials.right, mean, deviation, self.method))

    def cohort_means(self, embeddings: np.ndarray, trial_set: TrialSet) -> np.ndarray:
        """Return the mean score with the cohort, float64 (dims, names), of what the trials compare."""
        means = [self._statistics(embeddings, trial_set, table)[0] for table in self.means]
        return np.asarray(jnp.concatenate(means), np.float64)

    def _statistics(
        self, embeddings: np.ndarray, trial_set: TrialSet, means: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return mean and deviation, (1, names) each, of the cohort scores of every name of the trials.

        The score with a cohort speaker is the mean of the crops' cosines, as in a trial.
        """
        sides = unit(jnp.asarray(side_embeddings(embeddings, trial_set, means.shape[1]))).mean(axis=1)
        lengths = jnp.linalg.norm(sides, axis=1)
        mean, deviation = cohort_statistics(sides, (means,), top_k=self.top_k)
        return mean * lengths, deviation * lengths


def cohort_statistics(
    embeddings: np.ndarray | Array,
    cohort: Sequence[np.ndarray | Array],
    *,
    top_k: int | None = None,
    block_size: int = 1024,
    devices: Sequence[Any] | None = None,
) -> tuple[Array, Array]:
    """Return mean and standard deviation of every utterance's cosines with the cohort, float32 (dims, utterances).

    `embeddings` has shape (utterances, width). `cohort` has for every dimension its members' embeddings,
    (members, dim), as `scoring.speaker_means` gives them. With `top_k` only the largest cosines count (adaptive
    normalisation). The deviation divides by the number of cosines. Cosines exist for `block_size` utterances at a
    time: block_size x members float32.
    Raise UserError for a cohort of fewer than two members or than `top_k`, for a dimension beyond the embedding, and
    for an utterance that has the same cosine with all of the cohort.
    """
    embeddings = scoring.checked_embeddings(embeddings)
    means, deviations = [], []
    for table in cohort:
        table = scoring.checked_embeddings(table)
        scoring.checked_dims((table.shape[1],), embeddings.shape[1])
        count = len(table) if top_k is None else top_k
        if not 2 <= count <= len(table):
            raise ArgumentError(
                f"The cohort has {len(table)} members and `top_k` is {top_k} but at least two of them must count; "
                "change one of the two."
            )
        table = unit(jnp.asarray(table, jnp.float32))
        rows = jnp.asarray(embeddings[:, : table.shape[1]], jnp.float32)
        mean, deviation = scoring.by_blocks(_statistics, (table,), (rows,), block_size, devices, count).T
        if not bool((deviation > 0).all()):
            raise UserError(
                f"Utterance {int(jnp.argmin(deviation))} scores alike with all of the cohort at dimension "
                f"{table.shape[1]}; give a cohort of different speakers."
            )
        means.append(mean)
        deviations.append(deviation)
    return jnp.stack(means), jnp.stack(deviations)


def normalise(
    scores: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    mean: ArrayLike,
    deviation: ArrayLike,
    method: str = "as-norm",
) -> Array:
    """Return normalised `scores` (dims, trials), float32, from the `cohort_statistics` (dims, utterances).

    "z-norm" uses the statistics of the enrolment utterance, `left` (trials,); "t-norm" those of the test utterance,
    `right`; "s-norm" and "as-norm" average both normalised scores. Statistics with `top_k` make it adaptive.
    """
    if method not in METHODS:
        raise UserError(f"The score normalisation {method!r} is unknown; choose one of {', '.join(METHODS)}.")
    scores, mean, deviation = (jnp.asarray(x, jnp.float32) for x in (scores, mean, deviation))
    left, right = scoring.checked_pairs(np.asarray(left), np.asarray(right), mean.shape[-1])
    if scores.shape != (len(mean), len(left)) or deviation.shape != mean.shape:
        raise UserError(
            f"Scores have shape {scores.shape} and statistics {mean.shape} but must be (dims, trials) of {len(left)} "
            "trials and (dims, utterances)."
        )
    z = (scores - mean[:, left]) / deviation[:, left]
    if method == "z-norm":
        return z
    t = (scores - mean[:, right]) / deviation[:, right]
    return t if method == "t-norm" else 0.5 * (z + t)


def _statistics(count: int, tables: tuple[Array], rows: tuple[Array]) -> Array:
    """Return mean and deviation (rows, 2) of the `count` largest cosines of every row with the cohort."""
    cosines = jnp.matmul(unit(rows[0]), tables[0].T, precision=jax.lax.Precision.HIGHEST)
    if count == cosines.shape[1]:
        mean = cosines.mean(axis=1, keepdims=True)
        variance = jnp.square(cosines - mean).mean(axis=1, keepdims=True)
    else:
        smallest = kth_largest(cosines, count)[:, None]
        above = cosines > smallest
        # Cosines equal to the smallest one fill the places that those above it leave.
        ties = count - above.sum(axis=1, keepdims=True)
        mean = (jnp.where(above, cosines, 0.0).sum(axis=1, keepdims=True) + ties * smallest) / count
        squares = jnp.where(above, jnp.square(cosines - mean), 0.0).sum(axis=1, keepdims=True)
        variance = (squares + ties * jnp.square(smallest - mean)) / count
    return jnp.concatenate([mean, jnp.sqrt(variance)], axis=1)


def kth_largest(x: Array, k: int) -> Array:
    """Return the k-th largest value, (rows,), of every row of `x` (rows, columns), float32 without NaN.

    The value is found bit by bit by counting, which is several times faster than sorting every row and takes no
    memory for sorted copies.
    """
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)  # + 0.0 makes one zero of both
    sign = jnp.uint32(1 << 31)
    # Unsigned integers in the order of the floats: the bits of negative ones are inverted, which puts them below.
    keys = jnp.where(bits & sign, ~bits, bits | sign)

    def refine(step: Array, prefix: Array) -> Array:
        candidate = prefix | (sign >> step.astype(jnp.uint32))
        return jnp.where((keys >= candidate[:, None]).sum(axis=1) >= k, candidate, prefix)

    kth = jax.lax.fori_loop(0, 32, refine, jnp.zeros(len(x), jnp.uint32))
    return jax.lax.bitcast_convert_type(jnp.where(kth & sign, kth ^ sign, ~kth), jnp.float32)
