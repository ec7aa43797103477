"""Score normalisation against NumPy's mean and deviation of sorted cosines."""

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import scoring
from redimnet_jax.evaluation import score_norm


def example():
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((30, 16)).astype(np.float32)
    cohort = scoring.speaker_means(rng.standard_normal((120, 16)).astype(np.float32), np.arange(120) % 40, (8, 16))
    return embeddings, cohort


def cohort_cosines(embeddings, table):
    table = np.asarray(table, np.float64)
    cut = embeddings[:, : table.shape[1]].astype(np.float64)
    return (cut / np.linalg.norm(cut, axis=1)[:, None]) @ (table / np.linalg.norm(table, axis=1)[:, None]).T


@pytest.mark.slow
@pytest.mark.parametrize("top_k, block_size", [(None, 4), (2, 30), (7, 4), (40, 1024)])
def test_statistics(top_k, block_size):
    embeddings, cohort = example()
    mean, deviation = score_norm.cohort_statistics(embeddings, cohort, top_k=top_k, block_size=block_size)
    for row, table in enumerate(cohort):
        best = np.sort(cohort_cosines(embeddings, table), axis=1)[:, -(top_k or 40) :]
        np.testing.assert_allclose(mean[row], best.mean(axis=1), atol=1e-6)
        np.testing.assert_allclose(deviation[row], best.std(axis=1), atol=1e-6)


def test_ties_at_the_least_of_the_top_k():
    embeddings = np.eye(3, dtype=np.float32)[:1]
    cohort = np.array([[1, 0, 0], [1, 1, 0], [1, -1, 0], [1, 0, 1], [0, 1, 0]], np.float32)
    mean, deviation = score_norm.cohort_statistics(embeddings, [cohort], top_k=3)
    best = [1, np.sqrt(0.5), np.sqrt(0.5)]
    np.testing.assert_allclose([mean[0, 0], deviation[0, 0]], [np.mean(best), np.std(best)], atol=1e-6)


def test_kth_largest():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 33)).astype(np.float32)
    x[0, :20], x[1], x[2, ::2], x[3, 0] = 0.25, -0.0, 0.0, np.inf
    for k in (1, 2, 16, 33):
        np.testing.assert_array_equal(score_norm.kth_largest(jnp.asarray(x), k), np.sort(x, axis=1)[:, -k])


def test_methods():
    rng = np.random.default_rng(1)
    scores, mean = rng.standard_normal((2, 5)), rng.standard_normal((2, 4))
    deviation = rng.uniform(1, 2, (2, 4))
    left, right = rng.integers(0, 4, (2, 5))
    z = (scores - mean[:, left]) / deviation[:, left]
    t = (scores - mean[:, right]) / deviation[:, right]
    for method, expected in {"z-norm": z, "t-norm": t, "s-norm": (z + t) / 2, "as-norm": (z + t) / 2}.items():
        np.testing.assert_allclose(
            score_norm.normalise(scores, left, right, mean, deviation, method), expected, atol=1e-5
        )
    assert "'x-norm'" in refusal(score_norm.normalise, scores, left, right, mean, deviation, "x-norm")
    assert "(dims, trials)" in refusal(score_norm.normalise, scores[:1], left, right, mean, deviation)


def test_bad_cohorts():
    embeddings, cohort = example()
    statistics = score_norm.cohort_statistics
    assert "top_k is 41" in refusal(statistics, embeddings, cohort, top_k=41)
    assert "top_k is 1" in refusal(statistics, embeddings, cohort, top_k=1)
    assert "1 members" in refusal(statistics, embeddings, [cohort[0][:1]])
    assert "between 1 and 8" in refusal(statistics, embeddings[:, :8], cohort)
    silent = embeddings.copy()
    silent[4] = 0
    assert "Utterance 4 scores alike" in refusal(statistics, silent, cohort)
