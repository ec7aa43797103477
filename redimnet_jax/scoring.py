"""Cosine scores of trials, for all Matryoshka dimensions in one pass.

Sums are float32. A score does not depend, to the bit, on what other trials are scored with it, on their order or on
the number of devices; another `block_size` may round it differently, by less than 1e-6.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from redimnet_jax.errors import UserError
from redimnet_jax.numerics import unit

Array: TypeAlias = jax.Array

DIMS = (64, 128, 192, 256)


def score_trials(
    embeddings: np.ndarray | Array,
    left: np.ndarray | Array,
    right: np.ndarray | Array,
    dims: Sequence[int] = DIMS,
    *,
    block_size: int = 4096,
    devices: Sequence[Any] | None = None,
) -> Array:
    """Cosines of the first `dims` elements, float32 (dims, trials); a prefix of zeros has the cosine 0.

    `embeddings` (utterances, width) of any length, `left` and `right` (trials,) indices into them. Trials are spread
    over `devices` (by default all of this process) and scored `block_size` at a time. Raises UserError on a dimension
    beyond the embedding, an index beyond the utterances, lengths that differ, and embeddings that are not finite.
    """
    embeddings = _checked_shape(embeddings)
    dims = checked_dims(dims, embeddings.shape[1])
    trials = checked_pairs(left, right, embeddings.shape[0])
    # Every utterance with itself: one pass for all norms, and the whole row's shows whether an element is not finite.
    every = np.arange(len(embeddings), dtype=np.int32)
    squares = by_blocks(_products, (embeddings,), (every, every), block_size, devices, (*dims, embeddings.shape[1]))
    inverse, finite = _inverse_norms_of_products(squares)
    if not finite:
        # Finite elements may have an infinite square.
        _check_finite(embeddings)
    scored = by_blocks(_cosines, (embeddings, inverse), trials, block_size, devices, dims)
    return scored.T


def score_matrix(
    enrolments: np.ndarray | Array,
    tests: np.ndarray | Array,
    dims: Sequence[int] = DIMS,
    *,
    block_size: int = 1024,
) -> Iterator[tuple[int, Array]]:
    """Cosines of every enrolment (rows, width) with every test embedding (tests, width), a block of rows at a time.

    Yields the number of the block's first row and its scores, float32 (dims, at most block_size, tests). Each element
    of an embedding is multiplied once, whatever the number of dimensions. Errors as in `score_trials`.
    """
    enrolments, tests = checked_embeddings(enrolments), checked_embeddings(tests)
    dims = checked_dims(dims, min(enrolments.shape[1], tests.shape[1]))
    if block_size < 1:
        raise UserError(f"block_size is {block_size} but must be at least 1.")
    tests = jnp.asarray(tests, jnp.float32)
    inverse = _inverse_norms(tests, dims)
    for start in range(0, len(enrolments), block_size):
        block = jnp.asarray(enrolments[start : start + block_size], jnp.float32)
        yield start, _matrix(block, tests, inverse, dims)


def group_means(embeddings: np.ndarray | Array, groups: np.ndarray | Array, dim: int) -> Array:
    """Mean of the embeddings of each group, each cut to `dim` and scaled to length one first: float32 (groups, dim).

    Enrolment of a speaker by several utterances, or a speaker of a cohort. `groups` (utterances,) are integers from
    0; raises UserError where one up to the largest has no utterance. The mean is not scaled: a cosine does that.
    """
    embeddings = checked_embeddings(embeddings)
    (dim,) = checked_dims((dim,), embeddings.shape[1])
    groups = np.asarray(groups)
    if groups.shape != (len(embeddings),) or groups.dtype.kind not in "iu" or groups.min() < 0:
        raise UserError(
            f"groups has shape {groups.shape} and dtype {groups.dtype} but must be {len(embeddings)} integers from "
            "0, one an utterance."
        )
    sizes = np.bincount(groups)
    if not sizes.all():
        raise UserError(f"Group {int(np.argmin(sizes))} of {len(sizes)} has no utterance; number them without gaps.")
    return _group_means(jnp.asarray(embeddings[:, :dim]), jnp.asarray(groups), jnp.asarray(sizes, jnp.float32))


def speaker_means(
    embeddings: np.ndarray | Array, speakers: np.ndarray | Array, dims: Sequence[int] = DIMS
) -> tuple[Array, ...]:
    """`group_means` for every dimension: a cohort for `score_norm.cohort_statistics`."""
    return tuple(group_means(embeddings, speakers, dim) for dim in dims)


def score_crops(
    crops: np.ndarray | Array,
    left: np.ndarray | Array,
    right: np.ndarray | Array,
    dims: Sequence[int] = DIMS,
    *,
    block_size: int = 4096,
    devices: Sequence[Any] | None = None,
) -> Array:
    """Scores of utterances of several crops: the mean cosine over all pairs of crops, float32 (dims, trials).

    `crops` (utterances, crops, width). The mean over pairs is the product of the means of the unit crops, so it costs
    no more than one crop. Arguments and errors as in `score_trials`.
    """
    if crops.ndim != 3 or 0 in crops.shape:
        raise UserError(f"Crops have shape {crops.shape} but must be (utterances, crops, width).")
    checked_embeddings(crops.reshape(-1, crops.shape[2]))
    trials = checked_pairs(left, right, len(crops))
    scores = []
    for dim in checked_dims(dims, crops.shape[2]):
        means = _crop_means(jnp.asarray(crops[..., :dim]))
        scores.append(by_blocks(_products, (means,), trials, block_size, devices, (dim,))[:, 0])
    return jnp.stack(scores)


def checked_embeddings(embeddings: np.ndarray | Array) -> Array:
    """`embeddings` on the device if they are finite floats (utterances, width); raises UserError if not."""
    embeddings = _checked_shape(embeddings)
    _check_finite(embeddings)
    return embeddings


def _checked_shape(embeddings: np.ndarray | Array) -> Array:
    if embeddings.ndim != 2 or 0 in embeddings.shape or not jnp.issubdtype(embeddings.dtype, jnp.floating):
        raise UserError(
            f"Embeddings have shape {embeddings.shape} and dtype {embeddings.dtype} but must be floats "
            "(utterances, width)."
        )
    return jnp.asarray(embeddings)


def _check_finite(embeddings: Array) -> None:
    finite = np.asarray(jnp.all(jnp.isfinite(embeddings), axis=1))
    if not finite.all():
        raise UserError(
            f"Embedding {int(np.argmin(finite))} of {len(finite)} has NaN or Inf; check that utterance and the "
            "weights."
        )


def checked_dims(dims: Sequence[int], width: int) -> tuple[int, ...]:
    """`dims` as a tuple of integers between 1 and `width`; raises UserError if they are not."""
    dims = tuple(dims)
    if not dims:
        raise UserError("There are no dims; give at least one.")
    for dim in dims:
        if not isinstance(dim, int | np.integer) or not 1 <= dim <= width:
            raise UserError(
                f"dims has {dim} but every dimension must be an integer between 1 and {width}, the embeddings' width."
            )
    return tuple(int(dim) for dim in dims)


def checked_pairs(
    left: np.ndarray | Array, right: np.ndarray | Array, count: int
) -> tuple[np.ndarray | Array, np.ndarray | Array]:
    """Both sides' indices, int32 (trials,), below `count`; raises UserError if they are not."""
    for side, index in (("left", left), ("right", right)):
        if index.ndim != 1 or not jnp.issubdtype(index.dtype, jnp.integer):
            raise UserError(f"{side} has shape {index.shape} and dtype {index.dtype} but must be integers (trials,).")
        if len(index) and not (int(index.min()) >= 0 and int(index.max()) < count):
            raise UserError(
                f"{side} goes from {int(index.min())} to {int(index.max())} but there are {count} embeddings; "
                "number them from 0."
            )
    if len(left) != len(right):
        raise UserError(f"left has {len(left)} trials but right has {len(right)}; give both sides of every trial.")
    if len(left) == 0:
        raise UserError("There are no trials; give at least one.")
    return left.astype(np.int32), right.astype(np.int32)


def by_blocks(
    function: Callable[..., Array],
    tables: tuple[Array, ...],
    rows: tuple[np.ndarray | Array, ...],
    block_size: int,
    devices: Sequence[Any] | None,
    *static,
) -> Array:
    """function(*static, tables, rows), computed `block_size` rows at a time on every one of `devices`.

    The leading axis of `rows` and of the result is the one that is cut; `tables` go to every device whole. Rows on
    the host are padded there: each operation on a device costs a small call more than its arithmetic.
    """
    if block_size < 1:
        raise UserError(f"block_size is {block_size} but must be at least 1.")
    devices = tuple(jax.local_devices() if devices is None else devices)
    count = len(rows[0])
    # Blocks are always whole: one shape has one order of summation, however many rows and devices there are.
    padded = -(-count // (block_size * len(devices))) * block_size * len(devices)
    mesh = Mesh(np.array(devices), ("rows",))
    tables = jax.device_put(tables, NamedSharding(mesh, P()))
    rows = tuple(_padded(row, padded - count) for row in rows)
    rows = jax.device_put(rows, NamedSharding(mesh, P("rows")))
    results = _mapped(function, static, mesh, block_size, tables, rows)
    return results if padded == count else results[:count]


def _padded(row: np.ndarray | Array, count: int) -> np.ndarray | Array:
    library = np if isinstance(row, np.ndarray) else jnp
    return library.pad(row, ((0, count),) + ((0, 0),) * (row.ndim - 1)) if count else row


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _mapped(function, static, mesh: Mesh, block_size: int, tables, rows) -> Array:
    def local(tables, rows):
        blocks = jax.tree.map(lambda row: row.reshape(-1, block_size, *row.shape[1:]), rows)
        results = jax.lax.map(lambda block: function(*static, tables, block), blocks)
        return results.reshape(-1, *results.shape[2:])

    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows"), check_vma=False)(
        tables, rows
    )


def _cosines(dims: tuple[int, ...], tables, pair) -> Array:
    embeddings, inverse = tables
    left, right = pair
    return _products(dims, (embeddings,), pair) * (inverse[left] * inverse[right])


def _products(dims: tuple[int, ...], tables, pair) -> Array:
    (vectors,) = tables
    left, right = pair
    return _prefix_sums(vectors[left].astype(jnp.float32) * vectors[right].astype(jnp.float32), dims)


@jax.jit
def _crop_means(crops: Array) -> Array:
    return unit(crops.astype(jnp.float32)).mean(axis=1)


@jax.jit
def _group_means(embeddings: Array, groups: Array, sizes: Array) -> Array:
    sums = jnp.zeros((len(sizes), embeddings.shape[1]), jnp.float32)
    return sums.at[groups].add(unit(embeddings.astype(jnp.float32))) / sizes[:, None]


@functools.partial(jax.jit, static_argnums=3)
def _matrix(enrolments: Array, tests: Array, inverse: Array, dims: tuple[int, ...]) -> Array:
    own = _inverse_norms(enrolments, dims)
    total, scores, done = jnp.zeros((len(enrolments), len(tests)), jnp.float32), {}, 0
    for dim in sorted(set(dims)):
        total = total + jnp.matmul(enrolments[:, done:dim], tests[:, done:dim].T, precision=jax.lax.Precision.HIGHEST)
        scores[dim], done = total, dim
    return jnp.stack([scores[dim] * own[:, None, i] * inverse[None, :, i] for i, dim in enumerate(dims)])


@functools.partial(jax.jit, static_argnums=1)
def _inverse_norms(embeddings: Array, dims: tuple[int, ...]) -> Array:
    """One over the length of every prefix, float32 (utterances, dims); 0 for a prefix of zeros."""
    return _inverse_roots(_prefix_sums(jnp.square(embeddings.astype(jnp.float32)), dims))


@jax.jit
def _inverse_norms_of_products(squares: Array) -> tuple[Array, Array]:
    """Return the inverse roots of all columns but the last, and whether the last one is finite."""
    return _inverse_roots(squares[:, :-1]), jnp.isfinite(squares[:, -1]).all()


def _inverse_roots(squares: Array) -> Array:
    return jnp.where(squares > 0, 1.0 / jnp.sqrt(squares), 0.0)


def _prefix_sums(x: Array, dims: tuple[int, ...]) -> Array:
    """Sum the first `dims` elements of every row of `x` (rows, width) to (rows, dims), adding each element once.

    The row is cut into chunks of the largest width that every dimension is a multiple of.
    """
    chunk = math.gcd(*dims)
    chunks = x[:, : max(dims)].reshape(len(x), -1, chunk).sum(axis=-1)
    total, sums = jnp.zeros(len(x), x.dtype), {}
    for number in range(chunks.shape[1]):
        total = total + chunks[:, number]
        sums[(number + 1) * chunk] = total
    return jnp.stack([sums[dim] for dim in dims], axis=1)
