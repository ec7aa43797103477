"""The two-covariance model of speakers, fitted to the corpus itself: how likely are two sets of one speaker.

An embedding is the mean of its speaker plus an offset; both are normal, with covariances between and within speakers
(Brümmer and de Villiers, "The speaker partitioning problem", Odyssey 2010). In coordinates where the covariance
within speakers is the identity and that between them diagonal, n embeddings with the sum s have

    evidence(s, n) = sum over dimensions of (b s^2 / (1 + n b) - log(1 + n b)) / 2,

where b are the variances between speakers. The log-likelihood ratio that two sets have one speaker is
evidence(s + t, n + m) - evidence(s, n) - evidence(t, m).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array

from redimnet_jax.errors import UserError

_ROWS = 8192  # embeddings that are worked on at once


@dataclasses.dataclass(frozen=True)
class TwoCovariance:
    """Coordinates of speakers: `project` gives them, and `between` (dim,) is the variance between speakers there."""

    mean: np.ndarray
    transform: np.ndarray
    between: np.ndarray

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Return the coordinates, float32 (n, dim), of embeddings (n, dim)."""
        out = np.empty(vectors.shape, np.float32)
        for rows in blocks(len(vectors)):
            out[rows] = (vectors[rows] - self.mean) @ self.transform
        return out

    def evidence(self, sums: np.ndarray, counts: np.ndarray | float) -> np.ndarray:
        """Return the evidence (...) of sets with the `sums` (..., dim) of `counts` (...) coordinates."""
        spread = 1 + np.asarray(counts)[..., None] * self.between
        return 0.5 * (self.between * np.square(sums, dtype=np.float64) / spread - np.log(spread)).sum(-1)


def fit(vectors: np.ndarray, labels: np.ndarray, usable: np.ndarray) -> TwoCovariance:
    """Return the model of those of the embeddings `vectors` (n, dim) that are `usable`, bool (n,).

    labels: their speakers, int (n,). Both covariances are drawn towards a multiple of the identity, the more the
    fewer recordings or speakers there are. Raises UserError when no speaker has two usable embeddings.
    """
    width = vectors.shape[1]
    counts = np.bincount(labels[usable]).astype(np.float64)
    sums = np.zeros((len(counts), width))
    squares = np.zeros((width, width))
    for rows in blocks(len(vectors)):
        block = np.asarray(vectors[rows][usable[rows]], np.float64)
        add_rows(sums, labels[rows][usable[rows]], block)
        squares += block.T @ block
    present = counts > 0
    means = sums[present] / counts[present, None]
    freedom = counts.sum() - present.sum()
    if freedom < 1 or present.sum() < 2:
        raise UserError(
            f"{int(counts.sum()):,} recordings of {int(present.sum()):,} speakers agree with their labels, too few "
            "to compare voices; give at least two speakers, one of them with two recordings."
        )
    within = (squares - means.T @ (counts[present, None] * means)) / freedom
    within = _drawn(within, width / (width + freedom))
    centre = means.mean(0)
    deviations = means - centre
    noise = within * np.mean(1 / counts[present])
    between = deviations.T @ deviations / (len(means) - 1) - noise
    between = _drawn(between, width / (width + len(means)))
    whitening = np.linalg.inv(np.linalg.cholesky(within)).T
    variances, axes = np.linalg.eigh(whitening.T @ between @ whitening)
    return TwoCovariance(centre, whitening @ axes, np.maximum(variances, 0.0))


def _drawn(covariance: np.ndarray, share: float) -> np.ndarray:
    """Return `covariance` (dim, dim) with the fraction `share` of it replaced by its mean variance."""
    width = len(covariance)
    variance = max(np.trace(covariance) / width, 1e-9)
    return (1 - share) * covariance + share * variance * np.eye(width)


def add_rows(sums: np.ndarray, places: np.ndarray, rows: np.ndarray, weights: np.ndarray | None = None) -> None:
    """Add each of `rows` (n, dim), times its weight if there are `weights` (n,), to sums[places], places int (n,)."""
    unique, column = np.unique(places, return_inverse=True)
    values = np.ones(len(places), rows.dtype) if weights is None else weights.astype(rows.dtype)
    sums[unique] += csr_array((values, (column, np.arange(len(places)))), shape=(len(unique), len(places))) @ rows


def blocks(count: int, rows: int = _ROWS) -> Iterator[slice]:
    """Yield slices of `rows` that cover `count`."""
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))
