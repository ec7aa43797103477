import numpy as np
import pytest

from redimnet_jax import scoring
from redimnet_jax.embedding import codes
from redimnet_jax.errors import UserError

ROWS = np.random.default_rng(0).standard_normal((40, 20)).astype(np.float32)
LEFT, RIGHT = np.arange(20), np.arange(20, 40)


def test_encode_says_what_each_form_holds():
    rows = np.array([[3.0, -1.5, 0.0, 100.0]], np.float32)
    np.testing.assert_array_equal(codes.encode(rows, 3, "float32"), [[3.0, -1.5, 0.0]])
    int8 = codes.encode(rows, 3, "int8")
    assert int8.dtype == np.int8
    np.testing.assert_array_equal(int8, [[127, -64, 0]])  # the element beyond the prefix sets no scale
    binary = codes.encode(np.concatenate([rows, -rows]), 3, "binary")
    assert binary.dtype == np.uint8
    assert binary[0, 0] ^ binary[1, 0] == 0b11100000  # opposite signs, and no bit beyond the prefix


@pytest.mark.parametrize("form", codes.FORMS)
@pytest.mark.parametrize("dim", [1, 8, 13, 20])
def test_codes_have_their_width_and_decode(form, dim):
    encoded = codes.encode(ROWS, dim, form)
    assert encoded.shape == (40, codes.code_width(dim, form))
    decoded = codes.decode(encoded, dim, form)
    assert decoded.shape == (40, dim)
    assert decoded.dtype == np.float32
    if form == "int8":
        scale = np.abs(ROWS[:, :dim]).max(axis=1, keepdims=True) / 127
        assert np.abs(decoded * scale - ROWS[:, :dim]).max() <= 0.501 * scale.max()
    if form == "binary":
        assert set(np.unique(decoded)) == {-1.0, 1.0}


def test_zeros_and_tiny_rows_make_finite_codes():
    rows = np.array([[0, 0], [1e-44, -1e-44], [3e38, -3e38]], np.float32)
    np.testing.assert_array_equal(codes.encode(rows, 2, "int8"), [[0, 0], [127, -127], [127, -127]])


def test_float32_scores_are_those_of_scoring_to_the_bit():
    expected = scoring.score_trials(ROWS, LEFT, RIGHT, (4, 20))
    np.testing.assert_array_equal(codes.score_trials(ROWS, LEFT, RIGHT, (4, 20), "float32"), expected)


@pytest.mark.parametrize("form", ["int8", "binary"])
def test_scores_are_cosines_of_codes(form):
    scores = codes.score_trials(ROWS, LEFT, RIGHT, (13, 20), form)
    for row, dim in zip(np.asarray(scores), (13, 20), strict=True):
        decoded = codes.decode(codes.encode(ROWS, dim, form), dim, form).astype(np.float64)
        unit = decoded / np.linalg.norm(decoded, axis=1, keepdims=True)
        np.testing.assert_allclose(row, (unit[LEFT] * unit[RIGHT]).sum(axis=1), atol=1e-6)


def test_binary_scores_estimate_angles_whatever_the_variances():
    """The expected share of equal bits is 1 - angle / pi, also where a few elements hold all the variance."""
    rng = np.random.default_rng(1)
    left = (rng.standard_normal((300, 256)) * 0.9 ** np.arange(256)).astype(np.float32)
    rows = np.concatenate([left, (left + 0.5 * rng.standard_normal(left.shape) * 0.9 ** np.arange(256))])
    rows = rows.astype(np.float32)
    pairs = np.arange(300), np.arange(300, 600)
    angles = np.arccos(np.asarray(scoring.score_trials(rows, *pairs, (256,))[0]))
    scores = np.asarray(codes.score_trials(rows, *pairs, (256,), "binary")[0])
    assert abs((scores - (1 - 2 * angles / np.pi)).mean()) < 0.02


def test_rows_that_are_not_finite_are_refused():
    rows = ROWS.copy()
    rows[3, 2] = np.nan
    with pytest.raises(UserError, match="Embedding 3 of 40 has NaN or Inf"):
        codes.score_trials(rows, LEFT, RIGHT, (20,), "int8")
