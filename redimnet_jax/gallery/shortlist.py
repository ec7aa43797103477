"""Find the rows of a large table that are nearest to queries, on the device, by a short form of the embeddings.

    float32   cosines of the first elements: `dim` of them, 4 bytes each
    int8      cosines of int8 codes: a quarter of that
    binary    numbers of equal bits: an eighth of that again, by XOR and population count

The table lies on the device in blocks. Each block gives its best rows, and the best of these are the result: memory
beyond the table does not grow with it. Within a block, the maxima of interleaved columns come first, because the best
`count` rows lie in the best `count` columns: to sort a million scores takes longer than to compute them.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from redimnet_jax.embedding import codes
from redimnet_jax.embedding.codes import Form
from redimnet_jax.models import buckets
from redimnet_jax.numerics import unit

BLOCK_ROWS = 1 << 18
MAX_QUERIES = 64
_COLUMN = 64  # rows of a column
_STEP = 1024  # the number of rows of a block is a multiple of it


class Shortlist:
    """The first `dim` elements of all rows of `arrays`, each (rows, width) codes of one `form`, on the device.

    Of a binary code they are the first `dim` bits, up to a whole byte.
    """

    def __init__(self, arrays: Sequence[np.ndarray], form: Form, dim: int):
        self._form: Form = form
        self._width = codes.code_width(dim, form)
        self._blocks: list[tuple[Any, int]] = []
        for rows in _blocks(arrays, self._width):
            padded = np.zeros((buckets.round_up(-(-len(rows) // _STEP)) * _STEP, self._width), rows.dtype)
            padded[: len(rows)] = rows
            self._blocks.append((_prepared(jnp.asarray(_words(padded) if form == "binary" else padded)), len(rows)))

    def __len__(self) -> int:
        return sum(rows for _, rows in self._blocks)

    def find(self, queries: np.ndarray, count: int) -> np.ndarray:
        """Return the `count` rows nearest to each of the `queries`, embeddings (queries, width), nearest first.

        They are int64 (queries, count); all rows where there are fewer.
        """
        count = min(count, len(self))
        encoded = codes.encode(queries, queries.shape[1], self._form)[:, : self._width]
        encoded = _words(encoded) if self._form == "binary" else encoded
        found = [
            self._find(encoded[start : start + MAX_QUERIES], count) for start in range(0, len(encoded), MAX_QUERIES)
        ]
        return np.concatenate(found).astype(np.int64)

    def _find(self, queries: np.ndarray, count: int) -> np.ndarray:
        padded = np.repeat(queries[:1], buckets.round_up(len(queries)), axis=0)
        padded[: len(queries)] = queries
        placed = jnp.asarray(padded)
        best, first = [], 0
        for table, rows in self._blocks:
            best.append(_best_of_block(table, placed, rows, first, count))
            first += rows
        return np.asarray(_best(best, count))[: len(queries)]


def _blocks(arrays: Sequence[np.ndarray], width: int) -> Iterator[np.ndarray]:
    """Yield the rows of all `arrays`, cut to `width` elements, in blocks that are all full but the last."""
    waiting: list[np.ndarray] = []
    for array in arrays:
        for start in range(0, len(array), BLOCK_ROWS):
            waiting.append(array[start : start + BLOCK_ROWS, :width])
            if sum(map(len, waiting)) >= BLOCK_ROWS:
                rows = np.concatenate(waiting)
                yield rows[:BLOCK_ROWS]
                waiting = [rows[BLOCK_ROWS:]]
    if any(map(len, waiting)):
        yield np.concatenate(waiting)


def _words(rows: np.ndarray) -> np.ndarray:
    """Return bytes (rows, width) as uint32 (rows, words), filled up with zeros."""
    filled = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    return np.ascontiguousarray(filled).view(np.uint32)


@jax.jit
def _prepared(rows: jax.Array) -> Any:
    """Return what `_scores` needs of a block of rows, codes of any form."""
    if rows.dtype == jnp.float32:
        return unit(rows)
    if rows.dtype == jnp.int8:
        squares = jnp.square(rows.astype(jnp.float32)).sum(axis=1)
        return rows, jax.lax.rsqrt(jnp.maximum(squares, 1.0))
    return rows


def _scores(table: Any, queries: jax.Array) -> jax.Array:
    """Return scores of the rows of a block, float32 (queries, rows), whose scale differs from query to query."""
    if isinstance(table, tuple):
        rows, inverse = table
        dimensions = (((1,), (1,)), ((), ()))
        products = jax.lax.dot_general(queries, rows, dimensions, preferred_element_type=jnp.int32)
        return products.astype(jnp.float32) * inverse
    if table.dtype == jnp.uint32:
        different = jax.lax.population_count(queries[:, None, :] ^ table[None])
        return -different.sum(axis=-1, dtype=jnp.uint32).astype(jnp.float32)
    return jnp.matmul(queries, table.T, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnums=4)
def _best_of_block(table: Any, queries: jax.Array, rows: int, first: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Return the scores and numbers of the best rows of a block, (queries, at most `count`); `first` is its first."""
    scores = _scores(table, queries)
    size = scores.shape[1]
    scores = jnp.where(jnp.arange(size) < rows, scores, -jnp.inf)
    columns = size // _COLUMN
    if columns <= count:
        values, places = jax.lax.top_k(scores, min(count, size))
        return values, places + first
    # Column c has the rows c, c + columns, c + 2 columns and so on, so that maxima are those of long vectors.
    grid = scores.reshape(len(scores), _COLUMN, columns)
    _, chosen = jax.lax.top_k(grid.max(axis=1), count)
    candidates = jnp.take_along_axis(grid, chosen[:, None, :], axis=2).reshape(len(scores), -1)
    values, places = jax.lax.top_k(candidates, count)
    return values, places // count * columns + jnp.take_along_axis(chosen, places % count, axis=1) + first


@functools.partial(jax.jit, static_argnums=1)
def _best(blocks: list[tuple[jax.Array, jax.Array]], count: int) -> jax.Array:
    values, rows = (jnp.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True))
    _, places = jax.lax.top_k(values, count)
    return jnp.take_along_axis(rows, places, axis=1)
