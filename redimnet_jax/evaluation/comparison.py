"""Two systems on the same trials: does the EER differ by more than the choice of speakers explains."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import confidence, report, score_file
from redimnet_jax.names import normalised
from redimnet_jax.trials import Trials


@dataclasses.dataclass(frozen=True)
class Other:
    """The `scores` (dims, trials) of another system, in the order of the trials that are evaluated."""

    path: Path
    dims: tuple[int, ...]
    scores: np.ndarray


def read(path: Path, of: Trials) -> Other:
    """The scores in the file `path`; raises UserError unless they are of the trials `of`, in any order."""
    other, dims, scores = score_file.read(path)
    place = {trial: i for i, trial in enumerate(_named(other))}
    found = [place.get(trial) for trial in _named(of)]
    if None in found or len(of) != len(other):
        raise UserError(
            f"{path} has {len(other)} trials, of which {len(found) - found.count(None)} are among the {len(of)} "
            "evaluated here; give scores of the same trials."
        )
    return Other(path, dims, scores[:, found])


def common_dims(other: Other, dims: Sequence[int]) -> list[int]:
    """The `dims` that `other` has too; raises UserError when there are none."""
    common = [dim for dim in dims if dim in other.dims]
    if not common:
        theirs, ours = (", ".join(map(str, each)) for each in (other.dims, dims))
        raise UserError(f"{other.path} has scores of the dimensions {theirs}, none of {ours}; choose --dims.")
    return common


def compare(
    other: Other,
    scores: np.ndarray,
    labels: np.ndarray,
    dims: Sequence[int],
    sides: tuple[np.ndarray, np.ndarray],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Whether the EER of `scores` (dims, trials) is another than that of `other`: see `confidence.compare`.

    `sides` are the speakers' numbers of both sides of every trial. {"other": path, "resamples", "dims": {dim:
    {"difference", "ci95", "p_value", "differs"}}} for the dimensions that both have; the difference is the EER of
    `scores` minus the other's.
    """
    common = common_dims(other, dims)
    theirs = other.scores[[other.dims.index(dim) for dim in common]]
    ours = scores[[list(dims).index(dim) for dim in common]]
    found = confidence.compare(theirs, ours, labels, *sides, resamples=resamples, seed=seed)
    columns = zip(common, found.difference, found.interval, found.p_value, found.differs, strict=True)
    return {
        "other": str(other.path),
        "resamples": found.resamples,
        "dims": {
            str(dim): {"difference": float(d), "ci95": i.tolist(), "p_value": float(p), "differs": bool(differs)}
            for dim, d, i, p, differs in columns
        },
    }


def table(of: Mapping[str, Any]) -> report.Table:
    """What `compare` gives, a row a dimension."""
    header = ("dim", "EER difference %", "95 % interval", "p", "differs")
    rows = []
    for dim, entry in report.dims(of):
        low, high = (f"{100 * bound:+.2f}" for bound in entry["ci95"])
        differs = "yes" if entry["differs"] else "no"
        rows.append(
            [str(dim), f"{100 * entry['difference']:+.2f}", f"{low} to {high}", f"{entry['p_value']:.3f}", differs]
        )
    return report.Table(f"EER minus that of {of['other']}", header, rows)


def _named(of: Trials) -> list[tuple[str, str, bool]]:
    rows = zip(of.left.tolist(), of.right.tolist(), of.labels.tolist(), strict=True)
    named = list(map(normalised, of.names))
    return [(named[left], named[right], label) for left, right, label in rows]
