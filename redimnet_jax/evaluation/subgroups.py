"""EER by duration, by seconds of speech, or by any column of a table such as sex and age.

docs/reference/metrics.md defines groups and figures.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from redimnet_jax import metrics
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.errors import ArgumentError, shown, some_of
from redimnet_jax.evaluation import confidence, metadata, report
from redimnet_jax.evaluation.metadata import Metadata
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.evaluation.quality_measures import DURATION, SPEECH
from redimnet_jax.evaluation.trial_measures import speech_seconds

SECONDS = (DURATION, SPEECH)  # the groupings that need no table
MAX_GROUPS = 20
# Numbers of more values than this are cut at edges.
MAX_NUMERIC_VALUES = 8
# A group with fewer is marked as small.
MIN_SPEAKERS = 10
MIN_TRIALS = 100  # of each class

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Grouping:
    """A partition of trials: `groups`, int (trials,), has the index in `labels` of each one's group, or -1."""

    name: str
    labels: tuple[str, ...]
    groups: np.ndarray


def groupings(
    trial_set: TrialSet,
    table: Metadata | None,
    columns: Sequence[str] | None,
    edges: Mapping[str, Sequence[float]],
) -> list[Grouping]:
    """Return the groupings of the trials by `columns`, by default all of the `table`.

    `edges` has the bounds of the groups of numeric columns; by default they are the quartiles. Raise UserError for
    what is unknown, has a single group or too many, and for edges of a column that is not grouped by or not numeric.
    """
    of_table = list(table.columns) if table else []
    known = [*SECONDS, *of_table]
    chosen = of_table if columns is None else list(columns)
    for argument, given in (("by", chosen), ("edges", edges)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ArgumentError(
                f"`{argument}` has {shown(unknown[0])} but the columns are {some_of(known, 20)}; correct it, or give "
                "the `metadata` that has it."
            )
    unused = [name for name in edges if name not in chosen]
    if unused:
        raise ArgumentError(f"`edges` has {shown(unused[0])}, which `by` leaves out; add it there.")
    return [_grouping(trial_set, table, name, edges.get(name)) for name in chosen]


def figures(
    scores: np.ndarray,
    trial_set: TrialSet,
    dims: Sequence[int],
    thresholds: Sequence[float],
    grouping: Grouping,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return the figures of every group of `scores` (dims, trials), as `results.json` has them.

    `thresholds` (dims,) are those at which the false acceptances and rejections of the groups are counted. EER and
    interval are None where a group lacks a class, or speakers for an interval.
    """
    labels = trial_set.trials.labels
    left, right = trial_set.speaker_numbers()
    groups: dict[str, Any] = {}
    for index, value in enumerate(grouping.labels):
        inside = grouping.groups == index
        targets = int(labels[inside].sum())
        nontargets = int(inside.sum()) - targets
        speakers = len(np.union1d(left[inside], right[inside]))
        both = targets > 0 and nontargets > 0
        intervals = (
            confidence.bootstrap_within(scores, labels, left, right, inside, resamples=resamples, seed=seed)
            if both
            else None
        )
        entries = {}
        for row, (dim, threshold) in enumerate(zip(dims, thresholds, strict=True)):
            far, frr = metrics.error_rates(scores[row][inside], labels[inside], threshold) if both else (None, None)
            entries[str(dim)] = {
                "eer": metrics.eer(scores[row][inside], labels[inside]) if both else None,
                "eer_ci95": None if intervals is None else intervals[row].tolist(),
                "far": far,
                "frr": frr,
            }
        groups[value] = {
            "trials": targets + nontargets,
            "target_trials": targets,
            "speakers": speakers,
            "small": speakers < MIN_SPEAKERS or min(targets, nontargets) < MIN_TRIALS,
            "dims": entries,
        }
    return {"outside": int((grouping.groups < 0).sum()), "groups": groups}


def table(name: str, results: Mapping[str, Any]) -> report.Table:
    """Return the figures of one grouping, a row for every group and dimension."""
    header = (name, "dim", "EER %", "95 % interval", "FAR %", "FRR %", "trials", "target", "speakers", "")
    rows = []
    for value, group in results["groups"].items():
        counts = [f"{group['trials']:,}", f"{group['target_trials']:,}", str(group["speakers"])]
        for dim, entry in report.dims(group):
            rates = [report.percent(entry[key]) for key in ("eer", "far", "frr")]
            interval = report.interval(entry["eer_ci95"])
            mark = "small" if group["small"] else ""
            rows.append([value, str(dim), rates[0], interval, *rates[1:], *counts, mark])
    outside = f"; {results['outside']:,} trials are in no group" if results["outside"] else ""
    return report.Table(f"EER by {name}{outside}", header, rows)


def _grouping(trial_set: TrialSet, table: Metadata | None, name: str, edges: Sequence[float] | None) -> Grouping:
    if name in SECONDS:
        seconds = _seconds(trial_set, name)
        bounds = _bounds(name, seconds, edges)
        shorter = np.minimum(seconds[trial_set.trials.left], seconds[trial_set.trials.right])
        return Grouping(name, _interval_labels(bounds, " s"), np.digitize(shorter, bounds))
    assert table is not None
    by_speaker = table.key == "speaker"
    names = trial_set.speakers if by_speaker else trial_set.trials.names
    cells = table.values(name, names)
    unknown = len({each for each, cell in zip(names, cells, strict=True) if not cell})
    if unknown:
        logger.warning(
            f"{table.path} has no {name} for {unknown:,} of {len(set(names)):,} {table.key}s; their trials are in no "
            "group"
        )
    values = metadata.numbers(cells)
    distinct = sorted({cell for cell in cells if cell})
    if edges is not None and values is None:
        raise ArgumentError(
            f"`edges` has {shown(name)}, whose cells in {table.path} are not all numbers; leave it out."
        )
    if values is not None and (edges is not None or len(distinct) > MAX_NUMERIC_VALUES):
        numbers = np.array(values)
        bounds = _bounds(name, numbers, edges)
        labels = _interval_labels(bounds)
        of_names = np.where(np.isnan(numbers), -1, np.digitize(numbers, bounds))
    else:
        key: Callable[[str], Any] = str if values is None else float
        labels = tuple(sorted(distinct, key=key))
        of_names = np.array([labels.index(cell) if cell else -1 for cell in cells])
    if not 1 < len(labels) <= MAX_GROUPS:
        what = f"the one value {shown(labels[0])}" if len(labels) == 1 else f"{len(labels)} values"
        raise ArgumentError(
            f"The column {shown(name)} of {table.path} has {what} in the trials but must have 2 to {MAX_GROUPS}; "
            "leave it out of `by`."
        )
    left, right = of_names[trial_set.trials.left], of_names[trial_set.trials.right]
    return Grouping(name, labels, np.where(left == right, left, -1))


def _seconds(trial_set: TrialSet, name: str) -> np.ndarray:
    """Return the seconds, or those of speech, of every name of the trials; of a model, those of its recordings."""
    samples = np.asarray(trial_set.recordings.samples)
    seconds = speech_seconds(trial_set.recordings, samples) if name == SPEECH else samples / SAMPLE_RATE
    enrolment = trial_set.enrolment
    return seconds if enrolment is None else np.bincount(enrolment.names, seconds[enrolment.recordings])


def _bounds(name: str, values: np.ndarray, edges: Sequence[float] | None) -> np.ndarray:
    """Return the rising bounds between groups of `values`: `edges`, or the quartiles of the known values."""
    known = values[~np.isnan(values)]
    bounds = np.unique(np.quantile(known, (0.25, 0.5, 0.75), method="nearest")) if edges is None else np.array(edges)
    # A bound that no value lies below would make an empty group.
    bounds = bounds[bounds > known.min()] if edges is None else bounds
    if not len(bounds):
        raise ArgumentError(f"The column {shown(name)} has the one value {known[0]:g} in the trials; leave it out.")
    return bounds


def _interval_labels(bounds: np.ndarray, unit: str = "") -> tuple[str, ...]:
    texts = [f"{bound:.4g}" for bound in bounds]
    between = [f"{low} to {high}{unit}" for low, high in itertools.pairwise(texts)]
    return (f"below {texts[0]}{unit}", *between, f"{texts[-1]}{unit} or more")
