"""Error rates against scikit-learn, brute force and closed forms."""

import dataclasses
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusal
from sklearn.metrics import roc_curve

from redimnet_jax import metrics
from redimnet_jax.evaluation import device_metrics

# Few distinct values make ties; the label of every trial is drawn beside its score.
TRIALS = st.lists(
    st.tuples(st.one_of(st.integers(-3, 3).map(float), st.floats(-1, 1)), st.booleans()), min_size=2, max_size=40
).filter(lambda trials: len({label for _, label in trials}) == 2)


def columns(trials):
    scores, labels = zip(*trials, strict=True)
    return np.array(scores), np.array(labels)


def points(scores, labels):
    """(threshold, false alarms / non-targets, misses / targets) by counting, exactly."""
    targets, nontargets = scores[labels], scores[~labels]
    return [
        (t, Fraction(int((nontargets >= t).sum()), len(nontargets)), Fraction(int((targets < t).sum()), len(targets)))
        for t in [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    ]


def exact_eer(rates):
    """Where far = frr on the broken line through `rates` [(far, frr), ...], exactly."""
    for (far0, frr0), (far1, frr1) in zip(rates, rates[1:], strict=False):
        if far0 < frr0 and far1 >= frr1:
            share = (frr0 - far0) / ((frr0 - far0) + (far1 - frr1))
            return far0 + share * (far1 - far0)
    raise AssertionError


def random_trials(seed, count, grid=None):
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.3
    labels[:2] = True, False
    scores = rng.standard_normal(count) + 1.5 * labels
    return (scores if grid is None else np.round(scores * grid) / grid), labels


@settings(max_examples=60)
@given(TRIALS)
def test_operating_points_and_eer_by_counting(trials):
    scores, labels = columns(trials)
    curve, counted = metrics.roc(scores, labels), points(scores, labels)
    assert curve.thresholds.tolist() == [t for t, _, _ in counted]
    assert curve.far.tolist() == [float(far) for _, far, _ in counted]
    assert curve.frr.tolist() == [float(frr) for _, _, frr in counted]
    eer = exact_eer([(far, frr) for _, far, frr in counted])
    assert metrics.eer(scores, labels) == pytest.approx(float(eer), abs=1e-12)


@settings(max_examples=60)
@given(TRIALS)
def test_eer_is_that_of_scikit_learn(trials):
    scores, labels = columns(trials)
    far, hit, _ = roc_curve(labels, scores, drop_intermediate=False)
    pairs = [(Fraction(a), 1 - Fraction(b)) for a, b in zip(far.tolist(), hit.tolist(), strict=True)]
    assert metrics.eer(scores, labels) == pytest.approx(float(exact_eer(pairs)), abs=1e-9)


@pytest.mark.parametrize("grid", [None, 20, 3])
def test_many_trials_against_scikit_learn(grid):
    scores, labels = random_trials(1, 20_000, grid)
    far, hit, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    frr = 1 - hit
    after = int(np.argmax(far >= frr))
    share = (frr - far)[after - 1] / ((frr - far)[after - 1] + (far - frr)[after])
    assert metrics.eer(scores, labels) == pytest.approx(
        far[after - 1] + share * (far[after] - far[after - 1]), abs=1e-9
    )
    for p in (0.01, 0.5, 0.9):
        cost = (2 * p * frr + 3 * (1 - p) * far) / min(2 * p, 3 * (1 - p))
        assert metrics.min_dcf(scores, labels, p, c_miss=2, c_fa=3) == pytest.approx(cost.min(), abs=1e-9)
    threshold = metrics.eer_threshold(scores, labels)
    assert threshold == thresholds[after - 1 if abs(share) < 0.5 else after]


@settings(max_examples=60)
@given(TRIALS, st.randoms(use_true_random=False))
def test_weights_are_repetitions(trials, random):
    scores, labels = columns(trials)
    weights = np.array([random.randint(0, 3) for _ in labels])
    if not (weights[labels].any() and weights[~labels].any()):
        assert "one class" in refusal(metrics.roc, scores, labels, weights)
        return
    weighted = metrics.roc(scores, labels, weights)
    repeated = metrics.roc(np.repeat(scores, weights), np.repeat(labels, weights))
    for a, b in zip(vars(weighted).values(), vars(repeated).values(), strict=True):
        assert a.tolist() == b.tolist()


def test_order_of_trials_does_not_matter():
    scores, labels = random_trials(2, 500, 10)
    order = np.random.default_rng(0).permutation(500)
    for figure in (metrics.eer, metrics.min_dcf, metrics.eer_threshold, metrics.min_cllr, metrics.rocch_eer):
        assert figure(scores, labels) == figure(scores[order], labels[order])


def test_documented_limits():
    labels = np.array([1, 0, 0])
    assert metrics.eer(np.ones(3), labels) == 0.5 and metrics.eer_threshold(np.ones(3), labels) == 1
    assert metrics.min_dcf(np.ones(3), labels) == 1
    assert metrics.eer([3, 2, 1], labels) == 0 and metrics.eer_threshold([3, 2, 1], labels) == 3
    assert metrics.eer([1, 2, 3], labels) == 1
    assert metrics.threshold_at_far([1, 2, 3], labels, 0.1) == np.inf


def test_accuracy_and_thresholds():
    scores, labels = random_trials(3, 300, 5)
    for threshold in (-1.0, 0.2, 1.4):
        by_hand = sum((s >= threshold) == y for s, y in zip(scores, labels, strict=True)) / 300
        assert metrics.accuracy(scores, labels, threshold) == pytest.approx(by_hand, abs=1e-12)
    counted = points(scores, labels)
    for wanted in (0.0, 0.013, 0.1, 1.0):
        assert metrics.threshold_at_far(scores, labels, wanted) == min(t for t, far, _ in counted if far <= wanted)
        assert metrics.threshold_at_frr(scores, labels, wanted) == max(t for t, _, frr in counted if frr <= wanted)


@settings(max_examples=50)
@given(TRIALS)
def test_convex_hull_by_brute_force(trials):
    """EER of the hull: the least that any mixture of two operating points reaches."""
    scores, labels = columns(trials)
    rates = [(far, frr) for _, far, frr in points(scores, labels)]
    least = min(max(p) for p in rates)
    for a in rates:
        for b in rates:
            if a[0] < a[1] and b[0] >= b[1]:
                least = min(least, exact_eer([a, b]))
    assert metrics.rocch_eer(scores, labels) == pytest.approx(float(least), abs=1e-9)
    hull = metrics.roc(scores, labels).convex_hull()
    for p in (0.01, 0.3, 0.8):
        cost = metrics.detection_cost(hull.far, hull.frr, p).min()
        assert cost == pytest.approx(metrics.min_dcf(scores, labels, p), abs=1e-9)


@settings(max_examples=50)
@given(TRIALS)
def test_min_cllr_is_cllr_after_isotonic_regression(trials):
    from sklearn.isotonic import IsotonicRegression

    scores, labels = columns(trials)
    targets = labels.sum()
    # Both classes weigh one half, so the posterior's odds are the likelihood ratio.
    weights = np.where(labels, 0.5 / targets, 0.5 / (len(labels) - targets))
    # Ranks keep scikit-learn from merging scores that differ in the last digits.
    ranks = np.unique(scores, return_inverse=True)[1]
    posterior = IsotonicRegression().fit(ranks, labels, sample_weight=weights).predict(ranks)
    with np.errstate(divide="ignore"):
        llrs = np.log(posterior) - np.log1p(-posterior)
    assert metrics.min_cllr(scores, labels) == pytest.approx(metrics.cllr(llrs, labels), abs=1e-6)


def test_cllr_closed_forms():
    labels = np.array([True, False, True, False])
    assert metrics.cllr(np.zeros(4), labels) == pytest.approx(1.0)
    llrs = np.array([1.0, -2.0, 0.5, 3.0])
    by_hand = (np.mean(np.log2(1 + np.exp([-1.0, -0.5]))) + np.mean(np.log2(1 + np.exp([-2.0, 3.0])))) / 2
    assert metrics.cllr(llrs, labels) == pytest.approx(by_hand)
    # No overflow where the exponential has one.
    assert metrics.cllr([1e4, -1e4, 1e4, -1e4], labels) == 0
    assert np.isfinite(metrics.cllr([-1e4, -1e4, 1e4, -1e4], labels))


def test_act_dcf():
    llrs, labels = random_trials(4, 400)
    threshold = np.log(0.95 * 3) - np.log(0.05 * 2)
    frr, far = np.mean(llrs[labels] < threshold), np.mean(llrs[~labels] >= threshold)
    by_hand = (2 * 0.05 * frr + 3 * 0.95 * far) / 0.1
    assert metrics.act_dcf(llrs, labels, 0.05, c_miss=2, c_fa=3) == pytest.approx(by_hand)
    assert metrics.act_dcf(llrs, labels) >= metrics.min_dcf(llrs, labels)


def test_corners_draw_the_same_curve():
    scores, labels = random_trials(5, 1000, 50)
    whole = metrics.roc(scores, labels)
    few = whole.corners()
    assert len(few.far) < len(whole.far) and few.eer() == pytest.approx(whole.eer(), abs=1e-12)
    along = whole.far - whole.frr
    np.testing.assert_allclose(np.interp(along, few.far - few.frr, few.far), whole.far, atol=1e-12)


def test_det_is_a_straight_line_for_normal_scores():
    scores, labels = random_trials(6, 50_000)
    far, frr = metrics.roc(scores, labels).det()
    inside = np.abs(far) < 2
    # Unit variances 1.5 apart: the deviates add up to -1.5.
    np.testing.assert_allclose((far + frr)[inside & (np.abs(frr) < 2)], -1.5, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("count, grid", [(2, None), (257, 2), (3000, None)])
def test_device_path_equals_the_host_path(count, grid):
    rng = np.random.default_rng(count)
    labels = random_trials(count, count)[1]
    scores = (rng.standard_normal((3, count)) + labels).astype(np.float32)
    scores = scores if grid is None else np.round(scores * grid) / np.float32(grid)
    # A row with all scores alike, and both zeros, which are one score.
    scores = np.concatenate([scores, np.zeros((1, count), np.float32)])
    scores[3, ::2] = -0.0
    eer, dcf = device_metrics.eer_and_min_dcf(scores, labels, (0.01, 0.05), c_miss=2, c_fa=1)
    assert eer.shape == (4,) and dcf.shape == (2, 4)
    for row, line in enumerate(scores):
        assert float(eer[row]) == pytest.approx(metrics.eer(line, labels), abs=1e-6)
        for p, figure in zip((0.01, 0.05), dcf[:, row], strict=True):
            assert float(figure) == pytest.approx(metrics.min_dcf(line, labels, p, 2, 1), abs=1e-6)


def test_device_path_under_jit_says_nan():
    labels = np.array([True, False, True])
    scores = np.array([[1.0, 0.0, 2.0], [1.0, np.nan, 2.0]], np.float32)
    eer, dcf = jax.jit(device_metrics.eer_and_min_dcf)(scores, labels)
    assert np.isnan(eer).tolist() == [False, True] and np.isnan(dcf).tolist() == [[False, True]] * 2
    eer, dcf = device_metrics.eer_and_min_dcf(scores[:1], np.ones(3, bool))
    assert np.isnan(eer).all() and np.isnan(dcf).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "scores, labels, word",
    [
        ([], [], "no trials"),
        ([1.0, 2.0], [1, 1], "All 2 trials are target"),
        ([1.0, 2.0], [0, 0], "All 2 trials are non-target"),
        ([1.0, np.nan], [1, 0], "Score 1 of 2 is NaN"),
        ([1.0, 2.0], [1, 0, 0], "2 scores but 3 labels"),
        ([1.0, 2.0], [1, 2], "Label 1 is 2"),
        ([[1.0, 2.0]], [1, 0], "shape (1, 2)"),
    ],
)
def test_bad_input(scores, labels, word):
    for figure in (metrics.eer, metrics.min_dcf, metrics.cllr, metrics.eer_threshold, metrics.min_cllr):
        assert word in refusal(figure, np.array(scores), np.array(labels))


def test_bad_parameters():
    scores, labels = [0.0, 1.0], [0, 1]
    assert "p_target" in refusal(metrics.min_dcf, scores, labels, 1.0)
    assert "c_miss" in refusal(metrics.min_dcf, scores, labels, 0.5, c_miss=0)
    assert "far" in refusal(metrics.threshold_at_far, scores, labels, 1.5)
    assert "NaN" in refusal(metrics.accuracy, scores, labels, np.nan)
    assert "weights" in refusal(metrics.roc, scores, labels, [1, -1])


def test_single_precision_gives_the_same_points():
    rng = np.random.default_rng(5)
    tiny = np.float32(1e-45)
    odd = np.array([0.0, -0.0, tiny, -tiny, np.inf, -np.inf, 1.0, -1.0, 1.0, 3e38, -3e38], np.float32)
    scores = np.concatenate([odd, odd, rng.integers(-3, 4, 200) / 2, rng.normal(size=500)]).astype(np.float32)
    labels = rng.random(len(scores)) < 0.4
    single, double = metrics.roc(scores, labels), metrics.roc(scores.astype(np.float64), labels)
    assert single.thresholds.dtype == np.float64 and np.isin([0.0, tiny, -tiny], single.thresholds).all()
    for ours, theirs in zip(dataclasses.astuple(single), dataclasses.astuple(double), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # One score that single precision does not hold has all of them sorted as they are.
    scores = scores.astype(np.float64)
    for some in (scores, np.append(scores[1:], 1e300)):
        curve = metrics.roc(some, labels)
        # Without the first, which accepts nothing: some scores are infinite too.
        counted = points(some, labels)[1:]
        assert curve.thresholds.tolist()[1:] == [t for t, _, _ in counted]
        assert curve.far.tolist()[1:] == [float(far) for _, far, _ in counted]
        assert curve.frr.tolist()[1:] == [float(frr) for _, _, frr in counted]
