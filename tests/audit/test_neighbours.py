"""Mutual neighbours: what a search of all pairs finds, whatever the blocks."""

import numpy as np
import pytest
from gaussian_voices import gaussian_voices

from redimnet_jax.audit import neighbours


def exhaustive(vectors, least, k):
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    nearest = np.argsort(-cosines, axis=1)[:, :k]
    pairs = {(i, int(j)) for i, row in enumerate(nearest) for j in row if cosines[i, j] >= least}
    return {(i, j) for i, j in pairs if i < j and (j, i) in pairs}


@pytest.mark.parametrize("rows, columns", [(2048, 1 << 16), (7, 16), (16, 7), (50, 50)])
def test_all_pairs_are_found(rows, columns, monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", rows)
    monkeypatch.setattr(neighbours, "_COLUMNS", columns)
    vectors, _ = gaussian_voices(10, 5)
    pairs, cosines = neighbours.mutual_pairs(vectors, 0.7)
    assert set(map(tuple, pairs.tolist())) == exhaustive(vectors, 0.7, 3) and len(pairs) > 10
    np.testing.assert_allclose(cosines, (vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(1), atol=1e-6)
    assert (np.diff(cosines) <= 0).all()


def test_none_and_few():
    vectors, _ = gaussian_voices(2, 1)
    assert neighbours.mutual_pairs(vectors[:1], -1.0)[0].shape == (0, 2)
    assert neighbours.mutual_pairs(vectors, -1.0)[0].tolist() == [[0, 1]]
    assert neighbours.mutual_pairs(vectors, 0.99)[0].shape == (0, 2)
