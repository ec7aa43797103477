"""What is fixed on one trial list and used on another: for every dimension a calibration and the EER threshold.

It is kept as JSON beside the checkpoint, with the system whose scores it is of: weights, windows and normalisation.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import files, metrics
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import calibration, report
from redimnet_jax.evaluation.calibration import Calibration
from redimnet_jax.evaluation.protocol import Validation
from redimnet_jax.trials import Trials


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Calibrations and thresholds by dimension, the `system` whose scores they are of, and what they were fit on.

    `trials` is {"from": a description, "digest", "speakers": their names}.
    """

    calibrations: Mapping[int, Calibration]
    thresholds: Mapping[int, float]
    system: Mapping[str, Any]
    trials: Mapping[str, Any]

    def refusal(self, system: Mapping[str, Any], dims: Sequence[int], of: Trials) -> str | None:
        """Why this is of no use for scores of `system` at `dims` on the trials `of`; None if it is."""
        changed = sorted(key for key in system.keys() | self.system.keys() if system.get(key) != self.system.get(key))
        if changed:
            return f"it was made with other {', '.join(changed)}"
        missing = [str(dim) for dim in dims if dim not in self.calibrations]
        if missing:
            return f"it has no dimension {', '.join(missing)}"
        return "it was fit on these very trials" if self.trials["digest"] == digest(of) else None

    def shared_speakers(self, judged: Validation) -> int:
        """How many speakers of `judged` it was fit on; they flatter its figures."""
        return len(set(self.trials["speakers"]) & set(judged.speakers))

    def figures(self, dim: int, scores: np.ndarray, labels: np.ndarray, p_targets: Sequence[float]) -> dict[str, Any]:
        """{"cllr", "min_cllr", "act_dcf": {p: }, "transferred": {"threshold", "far", "frr"}} of scores (trials,)."""
        llrs, threshold = self.calibrations[dim](scores), self.thresholds[dim]
        far, frr = metrics.error_rates(scores, labels, threshold)
        return {
            "cllr": metrics.cllr(llrs, labels),
            "min_cllr": metrics.min_cllr(scores, labels),
            "act_dcf": {f"{p:g}": metrics.act_dcf(llrs, labels, p_target=p) for p in p_targets},
            "transferred": {"threshold": threshold, "far": far, "frr": frr},
        }


def fit(scores: np.ndarray, judged: Validation, dims: Sequence[int], system: Mapping[str, Any]) -> Transfer:
    """What the trials of `judged` with `scores` (dims, trials) fix; errors as `calibration.fit`, naming the list."""
    of = judged.trials
    try:
        calibrations = {dim: calibration.fit(row, of.labels) for dim, row in zip(dims, scores, strict=True)}
    except UserError as error:
        raise UserError(f"{judged.description} cannot be calibrated on: {error}") from error
    thresholds = {dim: metrics.eer_threshold(row, of.labels) for dim, row in zip(dims, scores, strict=True)}
    fit_on = {"from": judged.description, "digest": digest(of), "speakers": sorted(set(judged.speakers))}
    return Transfer(calibrations, thresholds, system, fit_on)


def save(of: Transfer, path: str | Path) -> Path:
    """Writes `of` as JSON, which `calibration.load` reads too, whole or not at all; returns the path."""
    dims = {
        str(dim): dataclasses.asdict(each) | {"threshold": of.thresholds[dim]}
        for dim, each in of.calibrations.items()
    }
    return report.write_json(path, {"dims": dims, "system": of.system, "trials": of.trials})


def load(path: str | Path) -> Transfer:
    """What `save` wrote; raises UserError if it is something else."""
    calibrations = calibration.load(path)
    try:
        entries = files.parse_json(Path(path).read_bytes())
        thresholds = {dim: float(entries["dims"][str(dim)]["threshold"]) for dim in calibrations}
        trials = {key: entries["trials"][key] for key in ("from", "digest", "speakers")}
        return Transfer(calibrations, thresholds, dict(entries["system"]), trials)
    except (OSError, LookupError, TypeError, ValueError, OverflowError) as error:
        reason = files.first_line(error)
        raise UserError(
            f"{path} is no whole calibration ({reason}); make it anew with eval.py --calibrate."
        ) from error


def digest(of: Trials) -> str:
    """SHA-256 of which pairs are compared, whatever their order."""
    text = "\n".join(sorted(f"{a}\t{b}" for a, b in pairs(of)))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def pairs(of: Trials) -> set[tuple[str, str]]:
    """The names of every trial, the smaller first."""
    names = of.names
    return {
        (min(names[a], names[b]), max(names[a], names[b]))
        for a, b in zip(of.left.tolist(), of.right.tolist(), strict=True)
    }


def table(results: report.Results) -> report.Table:
    """The figures of a transfer in `results`, a row a dimension."""
    header = ("dim", "Cllr", "minCllr", "actDCF 0.01", "actDCF 0.05", "threshold", "FAR %", "FRR %")
    rows = []
    for dim, entry in report.dims(results):
        moved = entry["transferred"]
        costs = [f"{entry['act_dcf'][p]:.4f}" for p in ("0.01", "0.05")]
        rates = [f"{100 * moved['far']:.2f}", f"{100 * moved['frr']:.2f}"]
        cllr = [f"{entry['cllr']:.4f}", f"{entry['min_cllr']:.4f}"]
        rows.append([str(dim), *cllr, *costs, f"{moved['threshold']:.4f}", *rates])
    fit_on = results["calibration"]
    shared = f", {fit_on['shared_speakers']} of whose speakers are evaluated too" if fit_on["shared_speakers"] else ""
    return report.Table(f"Calibrated on {fit_on['trials']}{shared}", header, rows)
