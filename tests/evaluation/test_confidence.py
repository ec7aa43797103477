"""Bootstrap intervals: weights against repeated trials, coverage against the truth, and the paired test."""

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import metrics
from redimnet_jax.evaluation import confidence, device_metrics


def voices(seed, speakers=24, trials=600, spread=0.0):
    """Scores of trials whose speakers each add a value of their own, `spread` wide."""
    rng = np.random.default_rng(seed)
    left = rng.integers(0, speakers, trials)
    labels = rng.random(trials) < 0.5
    right = np.where(labels, left, (left + rng.integers(1, speakers, trials)) % speakers)
    own = spread * rng.standard_normal(speakers)
    scores = rng.standard_normal(trials) + 2.0 * labels + (own[left] + own[right]) / 2
    return scores.astype(np.float32), labels, left, right


@pytest.mark.slow
def test_a_resample_is_a_repetition_of_trials():
    """Counts on the sorted order give what the host gives for trials that are really repeated."""
    scores, labels, left, right = voices(0)
    # The second row has many ties.
    scores = np.stack([scores, np.round(scores[::-1] * 2) / 2])
    counts = np.random.default_rng(1).multinomial(24, np.ones(24) / 24, size=3).T
    table = np.concatenate([counts, np.zeros((1, 3), int)]).astype(np.int32)
    ranking = device_metrics.rank(*map(jnp.asarray, (scores, labels, left, right)), 24)
    eer, dcf = device_metrics.rates(ranking, jnp.asarray(table), device_metrics.normalised_costs((0.01, 0.3)))
    assert eer.shape == (2, 3) and dcf.shape == (2, 2, 3)
    for resample in range(3):
        count = counts[:, resample]
        times = np.where(labels, count[left], count[left] * count[right])
        for row in range(2):
            repeated = np.repeat(scores[row], times), np.repeat(labels, times)
            assert float(eer[row, resample]) == pytest.approx(metrics.eer(*repeated), abs=1e-6)
            for p, figure in zip((0.01, 0.3), dcf[:, row, resample], strict=True):
                assert float(figure) == pytest.approx(metrics.min_dcf(*repeated, p), abs=1e-6)


@pytest.mark.slow
def test_intervals():
    scores, labels, left, right = voices(1)
    both = np.stack([scores, scores + labels])
    found = confidence.bootstrap(both, labels, left, right, resamples=96)
    assert found.eer.shape == (2, 2) and found.min_dcf.shape == (2, 2, 2) and found.resamples == 96
    for row, line in enumerate(both):
        low, high = found.eer[row]
        assert low < metrics.eer(line, labels) < high
        for p, (low, high) in zip((0.01, 0.05), found.min_dcf[row], strict=True):
            assert low < high and metrics.min_dcf(line, labels, p) < high + 0.05
    # The same seed draws the same speakers, whatever else is asked; another draws others.
    alone = confidence.bootstrap(both[1], labels, left + 5, right + 5, resamples=96, p_targets=())
    np.testing.assert_array_equal(alone.eer[0], found.eer[1])
    assert alone.min_dcf.shape == (1, 0, 2)
    assert (confidence.bootstrap(both, labels, left, right, resamples=96, seed=1).eer != found.eer).any()
    narrow = confidence.bootstrap(both, labels, left, right, resamples=96, level=0.5)
    assert (np.diff(narrow.eer) < np.diff(found.eer)).all()


def test_order_of_trials_does_not_matter():
    trials = voices(2)
    order = np.random.default_rng(0).permutation(len(trials[0]))
    first = confidence.bootstrap(*trials, resamples=96, p_targets=())
    second = confidence.bootstrap(*(x[order] for x in trials), resamples=96, p_targets=())
    np.testing.assert_array_equal(first.eer, second.eer)


@pytest.mark.slow
def test_speakers_that_differ_widen_the_interval_and_the_truth_lies_inside():
    """Where every speaker has a voice of its own, resampling trials is far too sure of itself."""
    truth = metrics.eer(*voices(99, speakers=2000, trials=200_000, spread=1.0)[:2])
    inside, widths = np.zeros(2), np.zeros(2)
    runs = 40
    for seed in range(runs):
        scores, labels, left, right = voices(seed, speakers=24, trials=600, spread=1.0)
        for way, sides in enumerate(((left, right), ())):
            low, high = confidence.bootstrap(scores, labels, *sides, resamples=96, p_targets=()).eer[0]
            inside[way] += low <= truth <= high
            widths[way] += high - low
    assert inside[0] >= 0.85 * runs and widths[0] > 1.3 * widths[1]


def test_plain_interval_has_the_width_of_independent_trials():
    """Symmetric normal scores: the standard error of the EER is that of far and frr together, at one threshold."""
    rng = np.random.default_rng(0)
    labels = np.arange(600) < 300
    scores = rng.standard_normal(600) + 2.0 * labels
    eer = metrics.eer(scores, labels)
    ((low, high),) = confidence.bootstrap(scores, labels, resamples=96, p_targets=()).eer
    expected = 2 * 1.96 * np.sqrt(eer * (1 - eer) / 600)
    assert high - low == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
def test_paired_test():
    scores, labels, left, right = voices(3)
    noise = np.random.default_rng(0).standard_normal(600)
    others = np.stack([scores + 2 * labels, scores, scores * 0.5 + 3, scores + 0.2 * noise])
    found = confidence.compare(np.stack([scores] * 4), others, labels, left, right, resamples=96)
    expected = [metrics.eer(line, labels) - metrics.eer(scores, labels) for line in others]
    np.testing.assert_allclose(found.difference, expected, atol=1e-6)
    # Better; the same system; the same order of scores; about the same.
    assert found.differs.tolist()[:3] == [True, False, False] and found.resamples == 96
    assert found.p_value[0] == pytest.approx(2 / 97) and found.p_value[1:3].tolist() == [1, 1]
    assert found.interval[0, 1] < 0 and 0 < found.p_value[3] <= 1


@pytest.mark.slow
def test_bad_input():
    scores, labels, left, right = voices(4, trials=50)
    bootstrap = confidence.bootstrap
    assert "50 of 50 labels are at odds" in refusal(bootstrap, scores, ~labels, left, right)
    assert "left and right" in refusal(bootstrap, scores, labels, left)
    assert "shapes" in refusal(bootstrap, scores, labels, left[1:], right)
    assert "one label a trial" in refusal(bootstrap, scores[1:], labels, left, right)
    assert "NaN" in refusal(bootstrap, np.where(left == 3, np.nan, scores), labels, left, right)
    assert "All 50 trials" in refusal(bootstrap, scores, np.ones(50))
    assert "no trials" in refusal(bootstrap, scores[:0], labels[:0])
    assert "resamples is 0" in refusal(bootstrap, scores, labels, left, right, resamples=0)
    assert "level" in refusal(bootstrap, scores, labels, left, right, level=95)
    assert "same trials" in refusal(confidence.compare, scores, np.stack([scores, scores]), labels, left, right)
    # Of three speakers a resample must draw the first, for the target trial, and the third, for the other.
    assert "more speakers" in refusal(bootstrap, scores[:2], [1, 0], [0, 1], [0, 2], resamples=96, p_targets=())
