"""Resamples of speakers on the host are those that the device draws."""

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import metrics
from redimnet_jax.evaluation import confidence, resampling


def trials(speakers, utterances=3):
    left, right = np.triu_indices(speakers * utterances, 1)
    first, second = left // utterances, right // utterances
    return first == second, first, second


@pytest.mark.parametrize("resamples", [20, 70])
def test_they_give_the_intervals_of_the_device(resamples):
    labels, first, second = trials(7)
    scores = (np.random.default_rng(0).normal(size=len(labels)) + 2 * labels).astype(np.float32)
    eers = [
        metrics.roc(scores, labels, weights).eer()
        for weights in resampling.trial_weights(labels, first, second, resamples=resamples, seed=3)
    ]
    expected = confidence.bootstrap(scores, labels, first, second, resamples=resamples, seed=3)
    assert len(eers) == expected.resamples
    np.testing.assert_allclose(np.quantile(eers, [0.025, 0.975]), expected.eer[0], atol=1e-6)


def test_lists_whose_resamples_mostly_lack_a_class_are_refused():
    labels, first, second = trials(10)
    # The only non-target trials are of two speakers, who are both drawn in 41% of the resamples.
    kept = labels | ((first == 0) & (second == 1))
    sides = labels[kept], first[kept], second[kept]
    message = refusal(lambda: list(resampling.trial_weights(*sides, resamples=200, seed=0)))
    assert "of 200 resamples of 10 speakers have target and non-target trials" in message
