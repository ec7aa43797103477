"""Decisions: whether a score is accepted at an operating point, and how often that is wrong."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from redimnet_jax.evaluation.error_curve import ErrorCurve, ErrorRates
from redimnet_jax.evaluation.system_calibration import PrefixCalibration
from redimnet_jax.verification.operating_point import OperatingPoint


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a score of two sides says about their speakers.

    same_speaker: the decision; None where there is none, and `reason` says why.
    llr: the natural log-likelihood ratio; None without a calibration that holds.
    threshold: what `llr` was compared with, or `score` where the operating point is a score.
    errors: the error rates at the threshold. measured: the curve that they come from.
    """

    score: float
    operating_point: OperatingPoint
    same_speaker: bool | None = None
    llr: float | None = None
    threshold: float | None = None
    errors: ErrorRates | None = None
    measured: ErrorCurve | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the decision as plain values; `errors` say what they were measured on."""
        entries = {name: getattr(self, name) for name in ("same_speaker", "score", "llr", "threshold", "reason")}
        errors = None
        if self.errors is not None and self.measured is not None:
            errors = dataclasses.asdict(self.errors) | {
                "measured_on": self.measured.description,
                **{name: getattr(self.measured, name) for name in ("targets", "nontargets", "speakers")},
            }
        return entries | {"operating_point": self.operating_point.to_json(), "errors": errors}


def decide(
    score: float,
    measures: Mapping[str, tuple[float, float]],
    prefix: PrefixCalibration | None,
    operating_point: OperatingPoint,
    no_calibration: str = "there is no calibration for this model",
) -> Decision:
    """Return the decision about a `score` at an operating point.

    `measures` has the quality measures of both sides, at least those that the calibration `prefix` has limits of. A
    trial outside these limits has no log-likelihood ratio. Without a calibration, `no_calibration` says why, and only
    an operating point at a score gives a decision. Raise ArgumentError for a false acceptance rate that the
    calibration's trials cannot show.
    """
    llr, reason = None, no_calibration
    if prefix is not None:
        pairs = {name: np.sort(np.array(measures[name], np.float64))[:, None] for name in prefix.limits}
        reason = prefix.reason_outside(pairs)
        if reason is None:
            llr = float(prefix.calibration(np.array([score]), pairs)[0])
    undecided = Decision(score, operating_point, llr=llr, reason=reason)
    if operating_point.threshold is not None:
        threshold = operating_point.threshold
        return dataclasses.replace(undecided, same_speaker=score >= threshold, threshold=threshold)
    if prefix is None or llr is None:
        return undecided
    threshold = operating_point.llr_threshold(prefix.fitted)
    return dataclasses.replace(
        undecided,
        same_speaker=llr >= threshold,
        threshold=threshold,
        errors=prefix.curve.at(threshold),
        measured=prefix.curve,
    )
