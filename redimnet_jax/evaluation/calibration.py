"""Calibration: from scores to log-likelihood ratios, and from one trial list to another.

A calibration, and the threshold at the EER, are fitted on one trial list and used on another. They are stored as JSON
beside the checkpoint, with a description of the system that gave the scores: weights, windows and normalisation.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from redimnet_jax import addresses, files, metrics, optional
from redimnet_jax.errors import ArgumentError, UserError
from redimnet_jax.evaluation import report
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.trials import Trials

_ADVICE = "fit the calibration again"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The map llr = scale * score + offset to natural logarithms; above 0 the evidence is for one speaker."""

    scale: float
    offset: float

    def __call__(self, scores: ArrayLike) -> np.ndarray:
        """Return log-likelihood ratios, float64, in the shape of `scores`."""
        return self.scale * np.asarray(scores, np.float64) + self.offset


@dataclasses.dataclass(frozen=True)
class SystemCalibration:
    """Calibrations and EER thresholds by dimension, the system they are for, and the trials they were fitted on.

    `system` describes the system whose scores were used. `trials` is {"from": a description, "digest": the digest of
    the trials, "speakers": their names}.
    """

    calibrations: Mapping[int, Calibration]
    thresholds: Mapping[int, float]
    system: Mapping[str, Any]
    trials: Mapping[str, Any]

    def reason_against(self, system: Mapping[str, Any], dims: Sequence[int], trials: Trials) -> str | None:
        """Return why this cannot serve the scores of `system` at `dims` on `trials`, or None if it can."""
        keys = system.keys() | self.system.keys()
        changed = sorted(key for key in keys if system.get(key) != self.system.get(key))
        if changed:
            return f"it was made with other {', '.join(changed)}"
        missing = [str(dim) for dim in dims if dim not in self.calibrations]
        if missing:
            return f"it has no dimension {', '.join(missing)}"
        return "it was fit on these very trials" if self.trials["digest"] == digest(trials) else None

    def shared_speakers(self, trial_set: TrialSet) -> int:
        """Return how many speakers of `trial_set` the calibration was fitted on, who flatter its figures."""
        return len(set(self.trials["speakers"]) & set(trial_set.speakers))

    def figures(self, dim: int, scores: np.ndarray, labels: np.ndarray, p_targets: Sequence[float]) -> dict[str, Any]:
        """Return the figures of `scores` (trials,), with `labels` (trials,), at the fitted calibration and threshold.

        They are {"cllr", "min_cllr", "act_dcf": {p_target: cost}, "transferred": {"threshold", "far", "frr"}}.
        """
        llrs = self.calibrations[dim](scores)
        threshold = self.thresholds[dim]
        far, frr = metrics.error_rates(scores, labels, threshold)
        return {
            "cllr": metrics.cllr(llrs, labels),
            "min_cllr": metrics.min_cllr(scores, labels),
            "act_dcf": {f"{p:g}": metrics.act_dcf(llrs, labels, p_target=p) for p in p_targets},
            "transferred": {"threshold": threshold, "far": far, "frr": frr},
        }


def fit(scores: ArrayLike, labels: ArrayLike, p_target: float = 0.5) -> Calibration:
    """Return the prior-weighted logistic regression of `labels` on `scores`, (trials,) each.

    The method is that of Brümmer and du Preez (2006). Target trials have the weight `p_target` together and
    non-target trials the rest, and the prior's log odds are subtracted again: with 0.5 the fit minimises Cllr, with
    another prior the cost around that operating point. There is no regularisation.
    Raise UserError for what `metrics.roc` refuses, for classes that do not overlap (the best scale would be infinite)
    and for scores that do not rise with the evidence.
    """
    optional.require("report")
    from sklearn.linear_model import LogisticRegression

    scores, labels = metrics.checked(scores, labels)
    _check_calibratable(scores, labels, p_target)
    # Standard scores, so that one tolerance suits cosines and normalised scores alike.
    centre = scores.mean()
    spread = scores.std()
    weights = np.where(labels, p_target / labels.sum(), (1 - p_target) / (~labels).sum()) * len(labels)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    model.fit(((scores - centre) / spread)[:, None], labels, sample_weight=weights)
    scale = float(model.coef_[0, 0]) / spread
    if not 0 < scale < math.inf:
        raise UserError(
            f"The scores do not rise with the evidence (the best scale is {scale:g}); check the labels and the model."
        )
    prior = math.log(p_target) - math.log1p(-p_target)
    return Calibration(scale, float(np.asarray(model.intercept_)[0]) - scale * centre - prior)


def _check_calibratable(scores: np.ndarray, labels: np.ndarray, p_target: float) -> None:
    """Raise UserError when the logistic regression of `labels` on `scores` has no finite solution."""
    if not 0 < p_target < 1:
        raise ArgumentError(f"`p_target` is {p_target} but must lie between 0 and 1, both excluded.")
    if not np.isfinite(scores).all():
        raise UserError("Some scores are infinite; calibrate scores, not log-likelihood ratios of an earlier fit.")
    lowest = scores[labels].min()
    highest = scores[~labels].max()
    if lowest >= highest and scores.min() < scores.max():
        raise UserError(
            f"All {int(labels.sum())} target trials score at least {lowest:g} and all non-target trials at most "
            f"{highest:g}, so no finite calibration is best; give more or harder trials."
        )
    if scores.std() == 0:
        raise UserError(f"All {len(scores)} scores are {scores.mean():g}; constant scores cannot be calibrated.")


def fit_system(
    scores: np.ndarray, trial_set: TrialSet, dims: Sequence[int], system: Mapping[str, Any]
) -> SystemCalibration:
    """Return the calibrations and thresholds that `scores` (dims, trials) of a `system` give.

    Raise the errors of `fit` with the description of the trials.
    """
    trials = trial_set.trials
    try:
        calibrations = {dim: fit(row, trials.labels) for dim, row in zip(dims, scores, strict=True)}
    except UserError as error:
        raise UserError(f"{trial_set.description} cannot be calibrated on: {error}") from error
    thresholds = {dim: metrics.eer_threshold(row, trials.labels) for dim, row in zip(dims, scores, strict=True)}
    source = {
        "from": trial_set.description,
        "digest": digest(trials),
        "speakers": sorted(set(trial_set.speakers)),
    }
    return SystemCalibration(calibrations, thresholds, system, source)


def save(calibration: SystemCalibration, path: str | Path) -> Path:
    """Write `calibration` as JSON, whole or not at all; return the path."""
    dims = {
        str(dim): dataclasses.asdict(each) | {"threshold": calibration.thresholds[dim]}
        for dim, each in calibration.calibrations.items()
    }
    return report.write_json(path, {"dims": dims, "system": calibration.system, "trials": calibration.trials})


def load(path: str | Path) -> SystemCalibration:
    """Return the calibration in a file that `save` wrote; raise UserError if the file is something else."""
    try:
        content = files.parse_json(addresses.read(path))
        dims = content["dims"]
        calibrations = {int(dim): Calibration(float(x["scale"]), float(x["offset"])) for dim, x in dims.items()}
        thresholds = {dim: float(dims[str(dim)]["threshold"]) for dim in calibrations}
        trials = {key: content["trials"][key] for key in ("from", "digest", "speakers")}
        system = dict(content["system"])
    except LookupError as error:
        raise UserError(f"{path} lacks {error} of a calibration; {_ADVICE}.") from error
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or files.first_line(error)
        raise UserError(f"{path} is not a calibration ({reason}); {_ADVICE}.") from error
    for dim, each in calibrations.items():
        if not (0 < each.scale < math.inf and math.isfinite(each.offset) and math.isfinite(thresholds[dim])):
            raise UserError(f"{path} has no usable calibration of dimension {dim} ({each}); {_ADVICE}.")
    if not isinstance(trials["speakers"], list) or not all(isinstance(name, str) for name in trials["speakers"]):
        raise UserError(f"{path} has something other than names in 'speakers'; {_ADVICE}.")
    return SystemCalibration(calibrations, thresholds, system, trials)


def digest(trials: Trials) -> str:
    """Return the SHA-256 of the pairs that are compared, in any order."""
    text = "\n".join(sorted(f"{a}\t{b}" for a, b in pairs(trials)))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def pairs(trials: Trials) -> set[tuple[str, str]]:
    """Return the pair of names of every trial, the smaller name first."""
    names = trials.names
    return {
        (min(names[a], names[b]), max(names[a], names[b]))
        for a, b in zip(trials.left.tolist(), trials.right.tolist(), strict=True)
    }


def table(results: report.Results) -> report.Table:
    """Return the calibration figures in `results`, a row for every dimension."""
    header = ("dim", "Cllr", "minCllr", "actDCF 0.01", "actDCF 0.05", "threshold", "FAR %", "FRR %")
    rows = []
    for dim, entry in report.dims(results):
        transferred = entry["transferred"]
        costs = [f"{entry['act_dcf'][p]:.4f}" for p in ("0.01", "0.05")]
        rates = [f"{100 * transferred['far']:.2f}", f"{100 * transferred['frr']:.2f}"]
        cllr = [f"{entry['cllr']:.4f}", f"{entry['min_cllr']:.4f}"]
        rows.append([str(dim), *cllr, *costs, f"{transferred['threshold']:.4f}", *rates])
    source = results["calibration"]
    shared = f", {source['shared_speakers']} of whose speakers are evaluated too" if source["shared_speakers"] else ""
    return report.Table(f"Calibrated on {source['trials']}{shared}", header, rows)
