"""The calibrations of a system: fitted on one trial list, judged on another, and kept as JSON beside the checkpoint.

They belong to the system that gave the scores, which they describe: weights, windows and normalisation.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from redimnet_jax import addresses, files, metrics
from redimnet_jax.checkpoints import native
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import error_curve, quality_measures, report
from redimnet_jax.evaluation.calibration import Calibration, fit
from redimnet_jax.evaluation.error_curve import ErrorCurve
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.evaluation.quality_measures import DURATION, UNITS, Pairs, Sides
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.trials import Trials

_ADVICE = "fit the calibration again"

Limits = Mapping[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class PrefixCalibration:
    """The calibration of one dimension.

    threshold: the score at the EER of the fitting trials. limits: the lowest and the highest value that each quality
    measure had there. fitted, judged: error rates over log-likelihood ratios on the fitting trials, and on those that
    the calibration was judged on, if there were any.
    """

    calibration: Calibration
    threshold: float
    limits: Limits
    fitted: ErrorCurve
    judged: ErrorCurve | None = None

    @property
    def curve(self) -> ErrorCurve:
        """The error rates to expect: the judged ones where there are any."""
        return self.fitted if self.judged is None else self.judged

    def outside(self, measures: Pairs) -> np.ndarray:
        """Return which trials have `measures`, (2, trials) each, beyond the limits: bool (trials,)."""
        found = [quality_measures.outside(name, measures[name], limits) for name, limits in self.limits.items()]
        return np.any(found, axis=0)

    def reason_outside(self, measures: Pairs) -> str | None:
        """Return why a trial, whose `measures` are (2, 1) each, is beyond the limits; None if it is not."""
        for name, (low, high) in self.limits.items():
            values = measures[name]
            if quality_measures.outside(name, values, (low, high))[0]:
                wrong = values[0, 0] if values[0, 0] < low else values[1, 0]
                unit = UNITS[name]
                return (
                    f"the {name} of {wrong:.2f}{unit} is outside the {low:.2f} to {high:.2f}{unit} that the "
                    "calibration was fitted on"
                )
        return None


@dataclasses.dataclass(frozen=True)
class SystemCalibration:
    """Calibrations by dimension, the system they are for, and the trials they were fitted on.

    `system` describes the system whose scores were used. `trials` is {"from": a description, "digest": the digest of
    the trials, "speakers": their names}.
    """

    prefixes: Mapping[int, PrefixCalibration]
    system: Mapping[str, Any]
    trials: Mapping[str, Any]

    @property
    def measures(self) -> tuple[str, ...]:
        """The quality measures that the calibrations need, or whose limits they know."""
        return tuple(dict.fromkeys(name for each in self.prefixes.values() for name in each.limits))

    def reason_against_system(self, system: Mapping[str, Any], dims: Sequence[int]) -> str | None:
        """Return why this cannot serve the scores of `system` at `dims`, or None if it can."""
        keys = system.keys() | self.system.keys()
        changed = sorted(key for key in keys if system.get(key) != self.system.get(key))
        if changed:
            return f"it was made with other {', '.join(changed)}"
        missing = [str(dim) for dim in dims if dim not in self.prefixes]
        return f"it has no dimension {', '.join(missing)}" if missing else None

    def reason_against(self, system: Mapping[str, Any], dims: Sequence[int], trials: Trials) -> str | None:
        """Return why this cannot serve the scores of `system` at `dims` on `trials`, or None if it can."""
        reason = self.reason_against_system(system, dims)
        if reason is None and self.trials["digest"] == digest(trials):
            return "it was fit on these very trials"
        return reason

    def shared_speakers(self, trial_set: TrialSet) -> int:
        """Return how many speakers of `trial_set` the calibration was fitted on, who flatter its figures."""
        return len(set(self.trials["speakers"]) & set(trial_set.speakers))

    def judged_on(
        self, scores: np.ndarray, sides: Mapping[int, Sides], trial_set: TrialSet, *, resamples: int, seed: int
    ) -> "SystemCalibration":
        """Return the calibrations with their error rates on `scores` (dims, trials), in the order of the prefixes."""
        shared = self.shared_speakers(trial_set)
        description = trial_set.description + (f", {shared} of whose speakers it was fitted on" if shared else "")
        judged = {}
        for (dim, prefix), row in zip(self.prefixes.items(), scores, strict=True):
            llrs = prefix.calibration(row, pairs_of(sides[dim], trial_set, prefix.limits))
            curve = error_curve.measure(llrs, trial_set, description, resamples=resamples, seed=seed)
            judged[dim] = dataclasses.replace(prefix, judged=curve)
        return dataclasses.replace(self, prefixes=judged)


def pairs_of(sides: Sides, trial_set: TrialSet, measures: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the `measures` of every trial, (2, trials) each, from those of the names of the trials."""
    return quality_measures.pairs(sides, trial_set.trials.left, trial_set.trials.right, measures)


def fit_system(
    scores: np.ndarray,
    trial_set: TrialSet,
    system: Mapping[str, Any],
    sides: Mapping[int, Sides],
    *,
    measures: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> SystemCalibration:
    """Return the calibrations that `scores` (dims, trials) of a `system` give.

    `sides` has for every dimension, in the order of `scores`, the quality measures of the names of the trials. The
    calibrations use `measures`, and know the limits of these and of the duration. Error rates have the intervals of
    `resamples` resamples. Raise the errors of `fit` with the description of the trials.
    """
    trials = trial_set.trials
    speakers = sorted(set(trial_set.speakers))
    prefixes = {}
    try:
        for dim, row in zip(sides, scores, strict=True):
            known = pairs_of(sides[dim], trial_set, dict.fromkeys((DURATION, *measures)))
            used = {name: known[name] for name in measures}
            calibration = fit(row, trials.labels, measures=used, speakers=len(speakers))
            llrs = calibration(row, used)
            prefixes[dim] = PrefixCalibration(
                calibration,
                metrics.eer_threshold(row, trials.labels),
                {name: (float(values.min()), float(values.max())) for name, values in known.items()},
                error_curve.measure(llrs, trial_set, trial_set.description, resamples=resamples, seed=seed),
            )
    except UserError as error:
        raise UserError(f"{trial_set.description} cannot be calibrated on: {error}") from error
    source = {"from": trial_set.description, "digest": digest(trials), "speakers": speakers}
    return SystemCalibration(prefixes, system, source)


def describe(model: SpeakerModel, windows: CropPolicy, score: str, enrolment: bool = False) -> dict[str, Any]:
    """Return what scores depend on, and so what a calibration of them belongs to.

    score: the kind of the scores. enrolment: whether trials compare models of several recordings.
    """
    return {
        "weights": native.checksum(native.flat(model.network)),
        "configuration": native.config_checksum(model.arch, model.model_config),
        "dtype": jnp.dtype(model.network.dtype).name,
        "windows": dataclasses.asdict(windows),
        "enrolment": enrolment,
        "score": score,
    }


def file_name(score: str) -> str:
    """Return the name of the file of a calibration of this kind of score."""
    return f"calibration-{score}.json"


def save(calibration: SystemCalibration, path: str | Path) -> Path:
    """Write `calibration` as JSON with a checksum, whole or not at all; return the path."""
    content = {
        "dims": {str(dim): dataclasses.asdict(each) for dim, each in calibration.prefixes.items()},
        "system": calibration.system,
        "trials": calibration.trials,
    }
    return report.write_json(path, content | {"sha256": _checksum(content)})


def load(path: str | Path) -> SystemCalibration:
    """Return the calibration in a file that `save` wrote; raise UserError if the file is something else."""
    try:
        content = files.parse_json(addresses.read(path))
        checksum = content.pop("sha256")
        prefixes = {int(dim): _prefix(entry) for dim, entry in content["dims"].items()}
        trials = {key: content["trials"][key] for key in ("from", "digest", "speakers")}
        system = dict(content["system"])
    except LookupError as error:
        raise UserError(f"{path} lacks {error} of a calibration; {_ADVICE}.") from error
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or files.first_line(error)
        raise UserError(f"{path} is not a calibration ({reason}); {_ADVICE}.") from error
    if checksum != _checksum(content):
        raise UserError(f"{path} does not match its checksum; {_ADVICE}.")
    for dim, each in prefixes.items():
        if not (0 < each.calibration.scale < math.inf):
            raise UserError(f"{path} has no usable calibration of dimension {dim}; {_ADVICE}.")
    if not isinstance(trials["speakers"], list) or not all(isinstance(name, str) for name in trials["speakers"]):
        raise UserError(f"{path} has something other than names in 'speakers'; {_ADVICE}.")
    return SystemCalibration(prefixes, system, trials)


def _prefix(entry: Mapping[str, Any]) -> PrefixCalibration:
    map_ = entry["calibration"]
    judged = entry["judged"]
    return PrefixCalibration(
        Calibration(float(map_["scale"]), float(map_["offset"]), _pairs(map_["weights"])),
        float(entry["threshold"]),
        _pairs(entry["limits"]),
        ErrorCurve(**_tuples(entry["fitted"])),
        None if judged is None else ErrorCurve(**_tuples(judged)),
    )


def _pairs(entry: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {name: (float(first), float(second)) for name, (first, second) in entry.items()}


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return {name: frozen(value) for name, value in entry.items()}


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode(errors="surrogatepass")).hexdigest()


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
