"""Cohorts of corpora, and scores normalised against them."""

import types

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import scoring, trials
from redimnet_jax.evaluation import results as evaluation_results
from redimnet_jax.evaluation import score_norm
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.evaluation.score_norm import Normalisation
from redimnet_jax.numerics import unit

DIMS = (4, 6)


class Corpus(types.SimpleNamespace):
    def __len__(self):
        return len(self.labels)


def corpus(labels):
    labels, count = np.array(labels, np.int32), len(labels)
    speakers = tuple("abcd"[: labels.max() + 1])
    lengths = np.full(count, 1)
    lists = {
        "sessions": np.full(count, -1),
        "samples": lengths,
        "original_samples": lengths,
        "gone": np.zeros(count, bool),
    }
    return Corpus(labels=labels, speakers=speakers, digest="", **lists)


def test_a_cohort_has_so_many_utterances_of_every_speaker():
    whole = corpus([0, 1, 0, 2, 0, 1, 0, 2, 0, 0])
    for seed in range(5):
        chosen = score_norm.choose_cohort(whole, 2, seed)
        assert np.bincount(chosen.labels).tolist() == [2, 2, 2] and chosen.speakers == ("a", "b", "c")
    assert len(score_norm.choose_cohort(whole, 5, 0)) == 9
    assert len({score_norm.choose_cohort(whole, 1, seed).digest for seed in range(20)}) > 1
    assert "cohort_utterances is 0" in refusal(score_norm.choose_cohort, whole, 0, 0)


def test_a_member_is_a_speaker_or_an_utterance():
    chosen = score_norm.choose_cohort(corpus([0, 1, 0, 2, 0, 1]), 2, 0)
    assert score_norm.member_labels(chosen, "speaker").tolist() == chosen.labels.tolist()
    assert score_norm.member_labels(chosen, "utterance").tolist() == [0, 1, 2, 3, 4]
    assert "at most 3, the number of cohort speakers" in refusal(score_norm.check_size, chosen, "speaker", 4)
    score_norm.check_size(chosen, "utterance", 4)
    assert "at most 5, the number of cohort utterances" in refusal(score_norm.check_size, chosen, "utterance", 6)


def test_trial_speakers_in_the_cohort_are_refused():
    judged = TrialSet(None, None, ["z", "c", "c"], "3 trials")
    assert "'c'" in refusal(score_norm.check_cohort, corpus([0, 1, 2]), judged)
    score_norm.check_cohort(corpus([0, 1]), judged)


@pytest.fixture
def judged():
    listed = trials.from_pairs(["a", "a", "b"], ["b", "c", "c"], [True, False, False])
    return TrialSet(listed, None, ["s", "s", "t"], "3 trials")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("crops", "method", "top_k"), [(1, "z-norm", None), (2, "t-norm", None), (2, "s-norm", None), (2, "as-norm", 3)]
)
def test_a_side_scores_with_the_cohort_as_with_the_other_side(crops, method, top_k, judged):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(3, crops, 6)).astype(np.float32)
    others = rng.normal(size=(8, crops, 6)).astype(np.float32)
    labels = np.arange(8) // 2
    normalise = Normalisation.from_embeddings(method, others, labels, DIMS, top_k)
    found = normalise(evaluation_results.cosine_scores(embeddings, judged, DIMS), embeddings, judged)
    for dim, row in zip(DIMS, found, strict=True):
        units = np.asarray(unit(embeddings[..., :dim]))
        members = np.asarray(unit(others[..., :dim])).reshape(4, -1, dim).mean(axis=1)
        members /= np.linalg.norm(members, axis=1, keepdims=True)
        with_cohort = np.sort(np.einsum("ucd,md->ucm", units, members).mean(axis=1))[:, -(top_k or 4) :]
        mean, deviation = with_cohort.mean(axis=1), with_cohort.std(axis=1)
        left, right = judged.trials.left, judged.trials.right
        scores = np.einsum("tcd,ted->t", units[left], units[right]) / crops**2
        z, t = ((scores - mean[side]) / deviation[side] for side in (left, right))
        wanted = {"z-norm": z, "t-norm": t}.get(method, (z + t) / 2)
        np.testing.assert_allclose(row, wanted, rtol=1e-3, atol=1e-3)


def test_of_one_crop_it_is_score_norm(judged):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(3, 1, 6)).astype(np.float32)
    others = rng.normal(size=(8, 1, 6)).astype(np.float32)
    scores = evaluation_results.cosine_scores(embeddings, judged, DIMS)
    found = Normalisation.from_embeddings("s-norm", others, np.arange(8) // 2, DIMS, None)(scores, embeddings, judged)
    statistics = score_norm.cohort_statistics(
        embeddings[:, 0], scoring.speaker_means(others[:, 0], np.arange(8) // 2, DIMS)
    )
    wanted = score_norm.normalise(scores, judged.trials.left, judged.trials.right, *statistics, "s-norm")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
