"""Score normalisation against a cohort: Z, T, S and adaptive S, for every dimension.

A trial's score is compared with what its two utterances score against speakers that neither of them is. Statistics
are per utterance, so a million trials need no more than those of their utterances. docs/metrics.md gives definitions
and sources.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from redimnet_jax import scoring
from redimnet_jax.errors import UserError
from redimnet_jax.numerics import unit

Array = jax.Array

METHODS = ("z-norm", "t-norm", "s-norm", "as-norm")


def cohort_statistics(
    embeddings: ArrayLike,
    cohort: Sequence[ArrayLike],
    *,
    top_k: int | None = None,
    block_size: int = 1024,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Array, Array]:
    """Mean and standard deviation of every utterance's cosines with the cohort, both float32 (dims, utterances).

    `embeddings` (utterances, width); `cohort`: for every dimension (speakers, dim), as `scoring.speaker_means` gives
    them. With `top_k` only the largest cosines count (adaptive normalisation); the deviation is that of the whole
    set, divided by its size. Cosines exist for `block_size` utterances at a time: block_size x speakers float32.
    Raises UserError on a cohort of less than two speakers or than `top_k`, on a dimension beyond the embedding, and
    on an utterance to which all of the cohort scores alike.
    """
    embeddings = scoring.checked_embeddings(embeddings)
    means, deviations = [], []
    for table in cohort:
        table = scoring.checked_embeddings(table)
        scoring.checked_dims((table.shape[1],), embeddings.shape[1])
        count = len(table) if top_k is None else top_k
        if not 2 <= count <= len(table):
            raise UserError(
                f"The cohort has {len(table)} speakers and top_k is {top_k} but at least two of them must count; "
                "change top_k or the cohort."
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
    """Normalised `scores` (dims, trials), float32, from the statistics (dims, utterances) of `cohort_statistics`.

    "z-norm" takes those of the enrolment utterance, `left` (trials,); "t-norm" those of the test utterance, `right`;
    "s-norm" and "as-norm" the mean of both normalised scores. What makes it adaptive is `top_k` of the statistics.
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
    """Mean and deviation (rows, 2) of the `count` largest cosines of every row with the cohort."""
    cosines = jnp.matmul(unit(rows[0]), tables[0].T, precision=jax.lax.Precision.HIGHEST)
    if count == cosines.shape[1]:
        mean = cosines.mean(axis=1, keepdims=True)
        variance = jnp.square(cosines - mean).mean(axis=1, keepdims=True)
    else:
        least = kth_largest(cosines, count)[:, None]
        above = cosines > least
        # Cosines equal to the least one fill the places that those above it leave.
        ties = count - above.sum(axis=1, keepdims=True)
        mean = (jnp.where(above, cosines, 0.0).sum(axis=1, keepdims=True) + ties * least) / count
        squares = jnp.where(above, jnp.square(cosines - mean), 0.0).sum(axis=1, keepdims=True)
        variance = (squares + ties * jnp.square(least - mean)) / count
    return jnp.concatenate([mean, jnp.sqrt(variance)], axis=1)


def kth_largest(x: Array, k: int) -> Array:
    """The k-th largest of every row of `x` (rows, columns), float32 without NaN: (rows,).

    Found bit by bit by counting, which is several times faster than a sort of every row and needs no room for one.
    """
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)  # + 0.0 makes one zero of both
    sign = jnp.uint32(1 << 31)
    # As unsigned integers in the order of the floats: negative ones upside down, below the others.
    keys = jnp.where(bits & sign, ~bits, bits | sign)

    def refine(step, found):
        candidate = found | (sign >> step.astype(jnp.uint32))
        return jnp.where((keys >= candidate[:, None]).sum(axis=1) >= k, candidate, found)

    found = jax.lax.fori_loop(0, 32, refine, jnp.zeros(len(x), jnp.uint32))
    return jax.lax.bitcast_convert_type(jnp.where(found & sign, found ^ sign, ~found), jnp.float32)
