"""Short forms of embeddings: int8 and binary codes of prefixes, and their scores.

    float32   4 bytes an element   the prefix itself
    int8      1 byte an element    the prefix times 127 over its largest magnitude, rounded to integers
    binary    1 bit an element     the signs of the prefix after a fixed rotation, eight to a byte

Without the rotation the many elements of little variance would have as many bits as the few that tell speakers apart,
which Matryoshka embeddings have in front. The share of equal bits of rotated vectors estimates their angle (Charikar,
"Similarity estimation techniques from rounding algorithms", STOC 2002).

The score of two codes is the cosine of what they decode to, so neither form needs a scale. Both are exact in float32:
a sum of 512 products of int8 is below 2**24.
"""

import functools
from collections.abc import Sequence
from typing import Literal, TypeAlias

import jax
import numpy as np

from redimnet_jax import scoring

Form: TypeAlias = Literal["float32", "int8", "binary"]

FORMS: tuple[Form, ...] = ("float32", "int8", "binary")
_LEVELS = 127


def encode(embeddings: np.ndarray, dim: int, form: Form) -> np.ndarray:
    """Return the codes of the first `dim` elements of `embeddings` (rows, width).

    They are float32 (rows, dim), int8 (rows, dim) or uint8 (rows, `code_width`). A prefix of zeros stays one in int8.
    """
    prefixes = np.asarray(embeddings, np.float32)[:, :dim]
    if form == "float32":
        return prefixes
    if form == "binary":
        # In float64, so that the signs do not depend on the order of the sums.
        return np.packbits(prefixes.astype(np.float64) @ _rotation(dim) > 0, axis=1)
    largest = np.abs(prefixes).max(axis=1, keepdims=True)
    # Divided first: the largest magnitude may be too small for a finite inverse.
    return np.rint(prefixes / np.where(largest > 0, largest, 1) * _LEVELS).astype(np.int8)


def decode(codes: np.ndarray, dim: int, form: Form) -> np.ndarray:
    """Return float32 (rows, dim) whose cosines are the scores of `codes`; those of a binary code are -1 and 1."""
    if form == "binary":
        return np.unpackbits(codes, axis=1, count=dim).astype(np.float32) * 2 - 1
    return codes.astype(np.float32)


@functools.cache
def _rotation(dim: int) -> np.ndarray:
    """Return an orthogonal matrix (dim, dim), float64, uniform among all and the same on every machine."""
    q, r = np.linalg.qr(np.random.Generator(np.random.PCG64(0)).standard_normal((dim, dim)))
    return q * np.sign(np.diagonal(r))


def code_width(dim: int, form: Form) -> int:
    """Return the number of elements of a code of `dim` dimensions."""
    return -(-dim // 8) if form == "binary" else dim


def score_trials(
    embeddings: np.ndarray, left: np.ndarray, right: np.ndarray, dims: Sequence[int], form: Form
) -> jax.Array:
    """Return the scores of trials by codes of the first `dims` elements, float32 (dims, trials).

    Arguments and errors are those of `scoring.score_trials`, whose scores float32 gives to the bit.
    """
    embeddings = np.asarray(scoring.checked_embeddings(embeddings))
    dims = scoring.checked_dims(dims, embeddings.shape[1])
    if form == "float32":
        return scoring.score_trials(embeddings, left, right, dims)
    # A prefix of an int8 code is not the code of the prefix, whose scale differs.
    scores = [
        scoring.score_trials(decode(encode(embeddings, dim, form), dim, form), left, right, (dim,)) for dim in dims
    ]
    return jax.numpy.concatenate(scores)
