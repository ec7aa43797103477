"""Operating points and decisions against a calibration that is known."""

import dataclasses
import math

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import metrics
from redimnet_jax.evaluation.calibration import Calibration
from redimnet_jax.evaluation.error_curve import ErrorCurve
from redimnet_jax.evaluation.system_calibration import PrefixCalibration
from redimnet_jax.verification.decision import decide
from redimnet_jax.verification.operating_point import OperatingPoint


def curve(far, frr, description):
    intervals = tuple((0.9 * rate, min(1.0, 1.1 * rate)) for rate in far)
    others = tuple((0.9 * rate, min(1.0, 1.1 * rate)) for rate in frr)
    return ErrorCurve((-4.0, 0.0, 2.0, 5.0), far, frr, intervals, others, 50, 1000, 9, description)


FITTED = curve((1.0, 0.08, 0.01, 0.0), (0.0, 0.05, 0.3, 1.0), "the fitting list")
JUDGED = curve((1.0, 0.1, 0.02, 0.0), (0.0, 0.06, 0.4, 1.0), "the judging list")
PREFIX = PrefixCalibration(
    Calibration(10.0, -4.0, {"duration": (1.0, 0.5)}), 0.4, {"duration": (1.0, 8.0)}, FITTED, JUDGED
)
SIDES = {"duration": (4.0, 2.0)}
LLR = 10 * 0.5 - 4 + math.log(2) + 0.5 * math.log(4)


def test_the_ratio_is_compared_with_the_bayes_threshold():
    for point, threshold in (
        (OperatingPoint(), 0.0),
        (OperatingPoint(p_target=0.01), math.log(99)),
        (OperatingPoint(c_miss=2, c_fa=3), math.log(1.5)),
    ):
        decision = decide(0.5, SIDES, PREFIX, point)
        assert decision.llr == pytest.approx(LLR, abs=1e-12)
        assert decision.threshold == pytest.approx(threshold, abs=1e-12)
        assert decision.same_speaker == (threshold <= LLR) and decision.reason is None
        assert threshold == metrics.bayes_threshold(point.p_target or 0.5, point.c_miss or 1, point.c_fa or 1)


def test_the_order_of_the_sides_does_not_matter():
    assert decide(0.5, SIDES, PREFIX, OperatingPoint()) == decide(
        0.5, {"duration": (2.0, 4.0)}, PREFIX, OperatingPoint()
    )


def test_a_false_acceptance_rate_is_that_of_the_fitting_list_and_errors_are_those_of_the_other():
    decision = decide(0.5, SIDES, PREFIX, OperatingPoint(far=0.01))
    assert decision.threshold == 2.0 and decision.same_speaker
    assert (decision.errors.far, decision.errors.frr) == (0.02, 0.4)
    assert decision.errors.far_ci95 == pytest.approx((0.018, 0.022))
    entries = decision.to_json()
    assert entries["errors"]["measured_on"] == "the judging list" and entries["errors"]["nontargets"] == 1000
    assert entries["operating_point"] == {"far": 0.01}
    unjudged = dataclasses.replace(PREFIX, judged=None)
    assert decide(0.5, SIDES, unjudged, OperatingPoint(far=0.01)).measured is FITTED
    assert "non-target trials show no rate below 0.001" in refusal(
        decide, 0.5, SIDES, PREFIX, OperatingPoint(far=0.0001)
    )


def test_between_points_of_the_curve_rates_are_interpolated():
    rates = JUDGED.at(1.0)
    assert rates.far == pytest.approx(0.06) and rates.frr == pytest.approx(0.23)
    assert (JUDGED.at(-9).far, JUDGED.at(9).far, JUDGED.at(9).frr) == (1.0, 0.0, 1.0)


def test_outside_its_limits_a_calibration_gives_no_decision():
    decision = decide(0.5, {"duration": (4.0, 0.6)}, PREFIX, OperatingPoint())
    assert decision.same_speaker is None and decision.llr is None and decision.errors is None
    assert decision.reason == (
        "the duration of 0.60 s is outside the 1.00 to 8.00 s that the calibration was fitted on"
    )
    assert decide(0.5, {"duration": (4.0, 0.6)}, PREFIX, OperatingPoint(threshold=0.4)).same_speaker is True


def test_without_a_calibration_only_a_score_decides():
    decision = decide(0.5, {}, None, OperatingPoint(), "there is none")
    assert decision.same_speaker is None and decision.reason == "there is none" and decision.score == 0.5
    for threshold in (0.5, 0.6):
        decision = decide(0.5, {}, None, OperatingPoint(threshold=threshold), "there is none")
        assert decision.same_speaker == (threshold == 0.5) and decision.errors is None and decision.llr is None
    assert decide(0.5, SIDES, PREFIX, OperatingPoint(threshold=0.6)).llr == pytest.approx(LLR)


@pytest.mark.parametrize(
    "point, told",
    [
        ({"p_target": 0.0}, "p_target is 0.0"),
        ({"p_target": 1.5}, "p_target is 1.5"),
        ({"p_target": float("nan")}, "p_target is nan"),
        ({"c_miss": 0.0}, "c_miss is 0.0"),
        ({"c_fa": math.inf}, "c_fa is inf"),
        ({"far": 1.0}, "far is 1.0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"far": 0.1, "threshold": 0.5}, "far and threshold"),
        ({"c_fa": 2.0, "far": 0.1}, "c_fa and far"),
    ],
)
def test_points_that_cannot_be_are_refused(point, told):
    assert told in refusal(OperatingPoint, **point)


def test_a_point_says_what_it_is():
    assert str(OperatingPoint(p_target=0.01)) == "a prior of 0.01, costs of 1 (miss) and 1 (false acceptance)"
    assert str(OperatingPoint(far=0.001)) == "a false acceptance rate of 0.001"
    assert str(OperatingPoint(threshold=0.25)) == "a score of 0.25"
    assert OperatingPoint(c_fa=10).to_json() == {"p_target": 0.5, "c_miss": 1.0, "c_fa": 10}
    assert np.isclose(OperatingPoint(c_fa=10).llr_threshold(FITTED), math.log(10))
    assert "score" in refusal(OperatingPoint(threshold=0.1).llr_threshold, FITTED)
