"""Exact scores of the rows that a shortlist found: those of `scoring` to the bit, whatever is scored with them."""

from collections.abc import Sequence

import numpy as np

from redimnet_jax import scoring
from redimnet_jax.models import buckets

# A multiple of this many trials is scored, so that a few programs serve all numbers.
_TRIALS = 4096


def score_pairs(
    queries: np.ndarray,
    rows: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    dim: int,
    dims: Sequence[int] | None = None,
) -> np.ndarray:
    """Return cosines of the first `dim` elements of `queries[left]` and `rows[right]`, float32 (pairs,).

    They are those of `scoring.score_trials` with `dims`, of which `dim` is one (default: `dim` alone): other
    dimensions of the same pass decide the order of the sums.
    """
    dims = (dim,) if dims is None else tuple(dims)
    width = max(dims)
    count = len(left)
    padding = -count % _TRIALS
    size = buckets.round_up(len(queries) + len(rows))
    table = np.ones((size, width), np.float32)
    table[: len(queries)] = queries[:, :width]
    table[len(queries) : len(queries) + len(rows)] = rows[:, :width]
    left, right = np.pad(left, (0, padding)), np.pad(right + len(queries), (0, padding))
    return np.asarray(scoring.score_trials(table, left, right, dims)[dims.index(dim)])[:count]


def means(rows: np.ndarray, groups: np.ndarray, dim: int) -> np.ndarray:
    """Return `scoring.group_means`, float32 (groups, dim), by one of a few programs for all numbers of rows."""
    count = int(groups.max()) + 1
    filled = buckets.round_up(count + 1)
    size = buckets.round_up(len(rows) + filled - count)
    padded = np.ones((size, dim), np.float32)
    padded[: len(rows)] = rows[:, :dim]
    # Each group that fills up has a row, and the last one has the rest.
    filling = np.minimum(count + np.arange(size - len(rows)), filled - 1)
    return np.asarray(scoring.group_means(padded, np.concatenate([groups, filling]), dim))[:count]


def best_means(scores: np.ndarray, groups: np.ndarray, best: int) -> np.ndarray:
    """Return the mean of the `best` highest scores of each group, or of all where it has fewer, float32 (groups,)."""
    order = np.lexsort((-scores, groups))
    sizes = np.bincount(groups)
    firsts = np.cumsum(sizes) - sizes
    rank = np.arange(len(scores)) - firsts[groups[order]]
    chosen = order[rank < best]
    # In float64, so that the mean of one score is that score.
    sums = np.bincount(groups[chosen], scores[chosen].astype(np.float64))
    return (sums / np.minimum(sizes, best)).astype(np.float32)
