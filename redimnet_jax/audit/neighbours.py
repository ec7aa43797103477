"""Pairs of embeddings that are nearest to one another, found on the device a block of rows at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_ROWS = 2048
_COLUMNS = 1 << 16


def mutual_pairs(vectors: np.ndarray, least: float, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return (pairs int64 (pairs, 2), cosines float32 (pairs,)) of rows that are among each other's `k` nearest.

    vectors: (n, dim), unit length; only cosines of `least` or more count. The largest cosine comes first. Memory
    grows with n, and not with its square.
    """
    k = min(k, len(vectors) - 1)
    if k < 1:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    columns = min(_COLUMNS, len(vectors))
    padded = jnp.pad(jnp.asarray(vectors, jnp.float32), ((0, -len(vectors) % columns), (0, 0)))
    left, right, cosines = [], [], []
    for start in range(0, len(vectors), _ROWS):
        # The last block overlaps the one before it, so that all have one shape.
        first = max(0, min(start, len(vectors) - _ROWS))
        values, places = map(np.asarray, _nearest(padded, first, min(_ROWS, len(vectors)), columns, k))
        rows, ranks = np.nonzero(values >= least)
        new = rows + first >= start
        left.append(rows[new] + first)
        right.append(places[rows, ranks][new])
        cosines.append(values[rows, ranks][new])
    pairs = np.stack([np.concatenate(left), np.concatenate(right)], axis=1).astype(np.int64)
    values = np.concatenate(cosines)
    # A pair that was found from both of its sides is there twice, in either order.
    unique, first, counts = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True, return_counts=True)
    mutual = counts == 2
    order = np.argsort(-values[first[mutual]], kind="stable")
    return unique[mutual][order], values[first[mutual]][order]


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _nearest(vectors, first, rows: int, columns: int, k: int):
    """Return (cosines, places), each (rows, k), of the `k` nearest others of the rows from `first` on."""
    x = jax.lax.dynamic_slice_in_dim(vectors, first, rows)
    own = first + jnp.arange(rows)

    def block(number, best):
        table = jax.lax.dynamic_slice_in_dim(vectors, number * columns, columns)
        places = number * columns + jnp.arange(columns)
        cosines = jnp.matmul(x, table.T, precision=jax.lax.Precision.HIGHEST)
        cosines = jnp.where(places == own[:, None], -2.0, cosines)
        values, which = jax.lax.top_k(cosines, min(k, columns))
        values = jnp.concatenate([best[0], values], axis=1)
        which = jnp.concatenate([best[1], places[which]], axis=1)
        kept, order = jax.lax.top_k(values, k)
        return kept, jnp.take_along_axis(which, order, axis=1)

    start = jnp.full((rows, k), -2.0), jnp.zeros((rows, k), own.dtype)
    return jax.lax.fori_loop(0, len(vectors) // columns, block, start)
