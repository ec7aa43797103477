"""A test whether the EER of two systems on the same trials differs by more than the choice of speakers explains."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax.errors import ArgumentError, UserError
from redimnet_jax.evaluation import confidence, report, score_file
from redimnet_jax.names import normalised
from redimnet_jax.trials import Trials


@dataclasses.dataclass(frozen=True)
class SystemScores:
    """The `scores` (dims, trials) of another system, in the order of the trials that are evaluated."""

    path: Path
    dims: tuple[int, ...]
    scores: np.ndarray


def read(path: Path, trials: Trials) -> SystemScores:
    """Return the scores of `trials` in the file `path`; raise UserError unless it has these trials, in any order."""
    other, dims, scores = score_file.read(path)
    position = {trial: index for index, trial in enumerate(_named(other))}
    positions = [position.get(trial) for trial in _named(trials)]
    common = [index for index in positions if index is not None]
    if len(common) < len(positions) or len(trials) != len(other):
        raise UserError(
            f"{path} has {len(other)} trials, of which {len(common)} are among the {len(trials)} "
            "evaluated here; give scores of the same trials."
        )
    return SystemScores(path, dims, scores[:, common])


def common_dims(other: SystemScores, dims: Sequence[int]) -> list[int]:
    """Return those of `dims` that `other` has; raise UserError when there are none."""
    common = [dim for dim in dims if dim in other.dims]
    if not common:
        theirs, ours = (", ".join(map(str, each)) for each in (other.dims, dims))
        raise ArgumentError(
            f"{other.path} has scores of the dimensions {theirs}, none of {ours}; choose other `dims`."
        )
    return common


def compare(
    other: SystemScores,
    scores: np.ndarray,
    labels: np.ndarray,
    dims: Sequence[int],
    speakers: tuple[np.ndarray, np.ndarray],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Test whether the EER of `scores` (dims, trials) differs from that of `other`, see `confidence.compare`.

    `labels` are bool (trials,), `speakers` the numbers of the speakers on either side of every trial. Return
    {"other": path, "resamples", "dims": {dim: {"difference", "ci95", "p_value", "differs"}}} for the dimensions that
    both systems have; the difference is the EER of `scores` minus that of `other`.
    """
    common = common_dims(other, dims)
    theirs = other.scores[[other.dims.index(dim) for dim in common]]
    ours = scores[[list(dims).index(dim) for dim in common]]
    test = confidence.compare(theirs, ours, labels, *speakers, resamples=resamples, seed=seed)
    columns = zip(common, test.difference, test.interval, test.p_value, test.differs, strict=True)
    return {
        "other": str(other.path),
        "resamples": test.resamples,
        "dims": {
            str(dim): {"difference": float(d), "ci95": i.tolist(), "p_value": float(p), "differs": bool(differs)}
            for dim, d, i, p, differs in columns
        },
    }


def table(results: Mapping[str, Any]) -> report.Table:
    """Return the results of `compare`, a row for every dimension."""
    header = ("dim", "EER difference %", "95 % interval", "p", "differs")
    rows = []
    for dim, entry in report.dims(results):
        low, high = (f"{100 * bound:+.2f}" for bound in entry["ci95"])
        differs = "yes" if entry["differs"] else "no"
        rows.append(
            [str(dim), f"{100 * entry['difference']:+.2f}", f"{low} to {high}", f"{entry['p_value']:.3f}", differs]
        )
    return report.Table(f"EER minus that of {results['other']}", header, rows)


def _named(trials: Trials) -> list[tuple[str, str, bool]]:
    """Return (left name, right name, label) of every trial, the names normalised."""
    rows = zip(trials.left.tolist(), trials.right.tolist(), trials.labels.tolist(), strict=True)
    named = list(map(normalised, trials.names))
    return [(named[left], named[right], label) for left, right, label in rows]
