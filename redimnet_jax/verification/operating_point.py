"""Operating points: where the line between "same speaker" and "different speakers" lies."""

import dataclasses
import math
from typing import Any

from redimnet_jax import metrics
from redimnet_jax.errors import ArgumentError, UserError
from redimnet_jax.evaluation.error_curve import ErrorCurve

P_TARGET = 0.5


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """One of three lines: of least cost, of a false acceptance rate, or at a score.

    p_target, c_miss, c_fa: the prior probability of one speaker, and what a false rejection and a false acceptance
        cost; by default 0.5, 1 and 1. The line is where accepting costs less on average.
    far: the rate of false acceptances on the trials that the calibration was fitted on.
    threshold: the score from which on a trial is accepted; it needs no calibration.

    Raise ArgumentError for more than one line, and for values that none can have.
    """

    p_target: float | None = None
    c_miss: float | None = None
    c_fa: float | None = None
    far: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        costs = [name for name in ("p_target", "c_miss", "c_fa") if getattr(self, name) is not None]
        given = [*costs[:1], *(name for name in ("far", "threshold") if getattr(self, name) is not None)]
        if len(given) > 1:
            raise ArgumentError(f"`{given[0]}` and `{given[1]}` are different operating points; give one of them.")
        if self.p_target is not None and not 0 < self.p_target < 1:
            raise ArgumentError(f"`p_target` is {self.p_target} but must lie between 0 and 1, both excluded.")
        for name in ("c_miss", "c_fa"):
            cost = getattr(self, name)
            if cost is not None and not 0 < cost < math.inf:
                raise ArgumentError(f"`{name}` is {cost} but a cost must be a positive number.")
        if self.far is not None and not 0 < self.far < 1:
            raise ArgumentError(f"`far` is {self.far} but must be a rate between 0 and 1, both excluded.")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ArgumentError(f"`threshold` is {self.threshold} but must be a number to compare scores with.")

    def llr_threshold(self, fitted: ErrorCurve) -> float:
        """Return the log-likelihood ratio from which on a trial is accepted.

        `fitted` has the error rates of the trials that the calibration was fitted on. Raise ArgumentError for a rate
        that these cannot show, and UserError for an operating point at a score.
        """
        if self.threshold is not None:
            raise UserError("An operating point at a score has no log-likelihood ratio; give a prior or a rate.")
        if self.far is not None:
            return fitted.threshold_at_far(self.far)
        return metrics.bayes_threshold(**self._costs())

    def _costs(self) -> dict[str, float]:
        given = {"p_target": self.p_target, "c_miss": self.c_miss, "c_fa": self.c_fa}
        default = {"p_target": P_TARGET, "c_miss": 1.0, "c_fa": 1.0}
        return {name: default[name] if value is None else value for name, value in given.items()}

    def to_json(self) -> dict[str, Any]:
        """Return {"p_target", "c_miss", "c_fa"}, {"far"} or {"threshold"}."""
        if self.threshold is not None:
            return {"threshold": self.threshold}
        return self._costs() if self.far is None else {"far": self.far}

    def __str__(self) -> str:
        if self.threshold is not None:
            return f"a score of {self.threshold:g}"
        if self.far is not None:
            return f"a false acceptance rate of {self.far:g}"
        costs = self._costs()
        return "a prior of {p_target:g}, costs of {c_miss:g} (miss) and {c_fa:g} (false acceptance)".format(**costs)
