"""Scores of trials against cosines of cut embeddings, and that nothing but the embeddings matters to them."""

import subprocess
import sys
from pathlib import Path

import cpu_devices
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusal

import redimnet_jax as rj
from redimnet_jax import scoring


def cosines(a, b, dim):
    a, b = a[..., :dim].astype(np.float64), b[..., :dim].astype(np.float64)
    return (a * b).sum(-1) / np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))


def example(utterances=50, width=256, trials=301, seed=0):
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((utterances, width)).astype(np.float32) * rng.uniform(0.1, 30, (utterances, 1))
    left, right = rng.integers(0, utterances, (2, trials)).astype(np.int32)
    return embeddings.astype(np.float32), left, right


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(64, 128, 192, 256), (256, 64), (1, 7, 20), (64, 64)])
def test_scores_are_cosines_of_the_cut_embeddings(dims):
    embeddings, left, right = example()
    scores = rj.scoring.score_trials(embeddings, left, right, dims)
    assert scores.shape == (len(dims), 301) and scores.dtype == jnp.float32
    for row, dim in zip(scores, dims, strict=True):
        np.testing.assert_allclose(row, cosines(embeddings[left], embeddings[right], dim), atol=1e-6)
        # The same as scores of embeddings that were cut first.
        alone = rj.scoring.score_trials(embeddings[:, :dim].copy(), left, right, (dim,))[0]
        np.testing.assert_allclose(row, alone, atol=1e-6)


def test_other_trials_their_order_and_the_block_size_do_not_matter():
    embeddings, left, right = example()
    whole = np.asarray(scoring.score_trials(embeddings, left, right, block_size=64))
    for part in (slice(17, 90), slice(None, None, -1), slice(300, 301)):
        np.testing.assert_array_equal(
            scoring.score_trials(embeddings, left[part], right[part], block_size=64), whole[:, part]
        )
    np.testing.assert_array_equal(scoring.score_trials(embeddings, right, left, block_size=64), whole)
    for block_size in (1, 7, 1000):
        other = scoring.score_trials(embeddings, left, right, block_size=block_size)
        np.testing.assert_allclose(other, whole, rtol=0, atol=1e-6)


EIGHT = """
import sys
import jax, numpy as np
sys.path.insert(0, {tests!r})
from test_scoring import example
from redimnet_jax import scoring
from redimnet_jax.evaluation import score_norm
assert jax.local_device_count() == 8
embeddings, left, right = example()
everywhere, three, one = (
    np.asarray(scoring.score_trials(embeddings, left, right, block_size=64, devices=devices))
    for devices in (None, jax.devices()[:3], jax.devices()[:1])
)
np.testing.assert_array_equal(everywhere, one)
np.testing.assert_array_equal(three, one)
cohort = scoring.speaker_means(embeddings, np.arange(50) % 20, (64,))
for a, b in zip(
    *(score_norm.cohort_statistics(embeddings, cohort, top_k=5, block_size=4, devices=devices)
      for devices in (None, jax.devices()[:1])),
    strict=True,
):
    np.testing.assert_array_equal(a, b)
np.save(sys.argv[1], one)
"""


@pytest.mark.slow
def test_number_of_devices_does_not_matter(tmp_path):
    code = EIGHT.format(tests=str(Path(__file__).parent))
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "scores.npy"],
        env=cpu_devices.environment(8),
        check=True,
    )
    here = scoring.score_trials(*example(), block_size=64)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), here)


def test_a_prefix_of_zeros_scores_zero():
    embeddings = np.zeros((2, 4), np.float32)
    embeddings[:, 2:] = 1
    scores = scoring.score_trials(embeddings, np.array([0]), np.array([1]), (2, 4))
    np.testing.assert_allclose(scores[:, 0], [0, 1], atol=1e-6)


def test_finite_elements_with_infinite_squares_are_no_error():
    embeddings, left, right = example(utterances=5, width=16)
    large = embeddings.copy()
    large[:, 8:] = 1e30
    scores = scoring.score_trials(large, left[:9] % 5, right[:9] % 5, (8,))
    np.testing.assert_array_equal(scores, scoring.score_trials(embeddings, left[:9] % 5, right[:9] % 5, (8,)))


def test_score_matrix():
    embeddings, _, _ = example(utterances=20, width=32)
    blocks = list(scoring.score_matrix(embeddings[:7], embeddings, (32, 8, 16), block_size=3))
    assert [start for start, _ in blocks] == [0, 3, 6] and blocks[-1][1].shape == (3, 1, 20)
    scores = np.concatenate([block for _, block in blocks], axis=1)
    for row, dim in zip(scores, (32, 8, 16), strict=True):
        np.testing.assert_allclose(row, cosines(embeddings[:7, None], embeddings[None], dim), atol=1e-6)


def test_group_means_normalise_before_they_average():
    embeddings, _, _ = example(utterances=6, width=8)
    means = scoring.group_means(embeddings, np.array([0, 1, 0, 1, 1, 2]), 4)
    cut = embeddings[:, :4] / np.linalg.norm(embeddings[:, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(means, [cut[[0, 2]].mean(0), cut[[1, 3, 4]].mean(0), cut[5]], atol=1e-6)
    assert "Group 1 of 3" in refusal(scoring.group_means, embeddings, np.array([0, 0, 2, 2, 2, 2]), 4)
    assert "6 integers" in refusal(scoring.group_means, embeddings, np.zeros(5, int), 4)


def test_crops_score_the_mean_of_the_score_matrix():
    crops = np.random.default_rng(0).standard_normal((5, 10, 16)).astype(np.float32)
    left, right = np.array([0, 1, 4]), np.array([2, 1, 3])
    scores = scoring.score_crops(crops, left, right, (8, 16))
    for row, dim in zip(scores, (8, 16), strict=True):
        by_hand = [cosines(crops[a][:, None], crops[b][None], dim).mean() for a, b in zip(left, right, strict=True)]
        np.testing.assert_allclose(row, by_hand, atol=1e-6)
    assert "crops" in refusal(scoring.score_crops, crops[0], left, right, (8,))


@pytest.mark.slow
def test_bad_input():
    embeddings, left, right = example(utterances=5, width=16)
    ok = np.array([0, 1])
    broken = embeddings.copy()
    broken[3, 2] = np.nan
    behind = embeddings.copy()
    behind[2, 12] = -np.inf
    for arguments, word in (
        ((embeddings, ok, ok, (8, 17)), "17"),
        ((embeddings, ok, ok, (0,)), "dims has 0"),
        ((embeddings, ok, ok, (8.5,)), "8.5"),
        ((embeddings, ok, ok, ()), "no dims"),
        ((embeddings, ok, np.array([0, 5]), (8,)), "right goes from 0 to 5"),
        ((embeddings, np.array([-1, 0]), ok, (8,)), "left goes from -1"),
        ((embeddings, ok, ok[:1], (8,)), "left has 2 trials but right has 1"),
        ((embeddings, ok[:0], ok[:0], (8,)), "no trials"),
        ((embeddings, ok * 1.0, ok, (8,)), "integers"),
        ((broken, ok, ok, (8,)), "Embedding 3 of 5"),
        ((behind, ok, ok, (8,)), "Embedding 2 of 5"),
        ((embeddings[0], ok, ok, (8,)), "shape (16,)"),
        ((embeddings.astype(int), ok, ok, (8,)), "floats"),
    ):
        assert word in refusal(scoring.score_trials, *arguments)
    assert "block_size" in refusal(scoring.score_trials, embeddings, ok, ok, (8,), block_size=0)
