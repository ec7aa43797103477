"""Identification from the embeddings of a verification list: rank-1 accuracy, and FNIR at a fixed FPIR.

docs/reference/metrics.md defines gallery, searches and figures with their sources.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from redimnet_jax import scoring
from redimnet_jax.errors import ArgumentError
from redimnet_jax.evaluation import report
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.numerics import unit

FPIRS = (0.01, 0.1)
BLOCK = 8192  # searches that are scored at once
RESAMPLES_AT_ONCE = 64
_ROUNDING = 1e-9  # an FPIR times the number of searches may be a little below a whole number


@dataclasses.dataclass(frozen=True)
class Searches:
    """Who is enrolled, and which recordings are searched for.

    `entries`, `recordings`, int (members,): the gallery's entry `entries[i]` has the recording `recordings[i]`;
    `entries` counts from 0. `entry_speakers`, int (entries,), rising. `probes`, int (searches,), are recordings,
    `probe_speakers`, int (searches,), their speakers, each of whom is enrolled.
    """

    entries: np.ndarray
    recordings: np.ndarray
    entry_speakers: np.ndarray
    probes: np.ndarray
    probe_speakers: np.ndarray

    @property
    def gallery(self) -> int:
        """The number of speakers who are enrolled."""
        return len(np.unique(self.entry_speakers))


def searches(trial_set: TrialSet, enrol_utterances: int) -> Searches | str:
    """Return the searches that the trials' recordings allow, or the reason why there are none.

    With enrolment models, these are the gallery. Without them every speaker is enrolled by their first
    `enrol_utterances` recordings in the order of the names, and all other recordings are searched for.
    """
    numbers = np.unique(trial_set.speakers, return_inverse=True)[1]
    enrolment = trial_set.enrolment
    if enrolment is None:
        names = np.array(trial_set.trials.names, dtype=object)
        order = np.lexsort((np.argsort(np.argsort(names)), numbers))
        place = np.arange(len(order)) - np.searchsorted(numbers[order], numbers[order])
        recordings = order[place < enrol_utterances]
        probes = order[place >= enrol_utterances]
        speakers, entries = np.unique(numbers[recordings], return_inverse=True)
        probe_speakers = numbers[probes]
    else:
        member = enrolment.is_model[enrolment.names]
        models, entries = np.unique(enrolment.names[member], return_inverse=True)
        recordings = enrolment.recordings[member]
        rank = np.argsort(np.argsort(numbers[models], kind="stable"))
        speakers, entries = np.sort(numbers[models]), rank[entries]
        free = ~member & ~np.isin(enrolment.recordings, recordings)
        probes = enrolment.recordings[free]
        probe_speakers = numbers[enrolment.names[free]]
        known = np.isin(probe_speakers, speakers)
        probes, probe_speakers = probes[known], probe_speakers[known]
    if len(np.unique(speakers)) < 2:
        return "fewer than two speakers are enrolled"
    if not len(probes):
        return "no enrolled speaker has a recording beyond those of the enrolment"
    return Searches(entries, recordings, speakers, probes, probe_speakers)


def figures(
    embeddings: np.ndarray,
    trial_set: TrialSet,
    dims: Sequence[int],
    *,
    enrol_utterances: int = 1,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the figures of raw `embeddings` (recordings, crops, embed_dim), as `results.json` has them.

    Where there are no searches they are {"reason": why}; where an FPIR needs more searches, its figures are None.
    """
    if enrol_utterances < 1:
        raise ArgumentError(f"`enrol_utterances` is {enrol_utterances} but must be at least 1.")
    chosen = searches(trial_set, enrol_utterances)
    if isinstance(chosen, str):
        return {"reason": chosen}
    few = [f"{fpir:g}" for fpir in FPIRS if len(chosen.probes) * fpir < 1]
    results: dict[str, Any] = {
        "gallery": chosen.gallery,
        "searches": len(chosen.probes),
        "enrolment": "models" if trial_set.enrolment is not None else _first(enrol_utterances),
    }
    if few:
        results["reason"] = f"an FPIR of {', '.join(few)} needs at least {round(1 / min(FPIRS))} searches"
    speakers, own_speaker = np.unique(chosen.probe_speakers, return_inverse=True)
    draws = np.random.default_rng(seed).integers(0, len(speakers), (resamples, len(speakers)))
    results["dims"] = {}
    for dim in dims:
        own, other = _best_scores(embeddings, chosen, dim)
        every = _rates(own, other, np.ones((1, len(own)), np.int32))
        sampled = []
        for start in range(0, resamples, RESAMPLES_AT_ONCE):
            block = draws[start : start + RESAMPLES_AT_ONCE]
            counts = np.stack([np.bincount(row, minlength=len(speakers)) for row in block])
            sampled.append(_rates(own, other, counts[:, own_speaker]))
        low, high = np.quantile(np.concatenate(sampled), [0.025, 0.975], axis=0)
        entry: dict[str, Any] = {
            "rank1": float(every[0, 0]),
            "rank1_ci95": [float(low[0]), float(high[0])],
            "fnir": {},
            "fnir_ci95": {},
            "threshold": {},
        }
        for column, fpir in enumerate(FPIRS, 1):
            key, possible = f"{fpir:g}", f"{fpir:g}" not in few
            entry["fnir"][key] = float(every[0, column]) if possible else None
            entry["fnir_ci95"][key] = [float(low[column]), float(high[column])] if possible else None
            entry["threshold"][key] = _threshold(own, other, fpir) if possible else None
        results["dims"][str(dim)] = entry
    return results


def table(results: dict[str, Any]) -> report.Table:
    """Return the figures, a row for every dimension."""
    header = ["dim", "rank-1 %", "95 % interval"]
    for fpir in FPIRS:
        header += [f"FNIR % at FPIR {100 * fpir:g} %", "95 % interval", "threshold"]
    rows = []
    for dim, entry in report.dims(results):
        row = [str(dim), report.percent(entry["rank1"]), report.interval(entry["rank1_ci95"])]
        for fpir in (f"{fpir:g}" for fpir in FPIRS):
            threshold = entry["threshold"][fpir]
            row += [report.percent(entry["fnir"][fpir]), report.interval(entry["fnir_ci95"][fpir])]
            row.append("–" if threshold is None else f"{threshold:.4f}")
        rows.append(row)
    title = (
        f"Identification by cosine: {results['searches']:,} searches among {results['gallery']:,} speakers, enrolled "
        f"by {results['enrolment']}"
    )
    return report.Table(title, header, rows)


def _first(count: int) -> str:
    return "their first recording" if count == 1 else f"their first {count} recordings"


def _best_scores(embeddings: np.ndarray, chosen: Searches, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best score of every search with its own speaker and with any other, float32 (searches,) each."""
    crops = embeddings.shape[1]
    members = embeddings[chosen.recordings].reshape(-1, embeddings.shape[-1])
    gallery = np.asarray(unit(scoring.group_means(members, np.repeat(chosen.entries, crops), dim)))
    speakers, first = np.unique(chosen.entry_speakers, return_index=True)
    column = np.searchsorted(speakers, chosen.probe_speakers)
    own, other = [], []
    for start in range(0, len(chosen.probes), BLOCK):
        block = slice(start, start + BLOCK)
        probes = np.asarray(unit(jnp.asarray(embeddings[chosen.probes[block], :, :dim])).mean(axis=1))
        # A speaker with several models has the score of the best one.
        scores = np.maximum.reduceat(probes @ gallery.T, first, axis=1)
        rows = np.arange(len(scores))
        own.append(scores[rows, column[block]].copy())
        scores[rows, column[block]] = -np.inf
        other.append(scores.max(axis=1))
    return np.concatenate(own), np.concatenate(other)


def _rates(own: np.ndarray, other: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rank-1 accuracy and the FNIR at each of `FPIRS`, float64 (resamples, 1 + FPIRS).

    `counts`, int (resamples, searches), says how often every search occurs.
    """
    total = counts.sum(axis=1)
    first = own > other
    columns = [(counts * first).sum(axis=1) / total]
    falling = np.argsort(-other)
    accepted = np.cumsum(counts[:, falling], axis=1)
    for fpir in FPIRS:
        # A search is accepted above the highest score that would accept too many others.
        limit = other[falling][np.argmax(accepted > fpir * total[:, None] + _ROUNDING, axis=1)]
        columns.append((counts * ~(first & (own > limit[:, None]))).sum(axis=1) / total)
    return np.stack(columns, axis=1)


def _threshold(own: np.ndarray, other: np.ndarray, fpir: float) -> float | None:
    """Return the lowest score of any search with at most this FPIR; None where no score has it."""
    limit = np.sort(other)[::-1][int(fpir * len(other) + _ROUNDING)]
    scores = np.concatenate([own, other])
    above = scores[scores > limit]
    return float(above.min()) if len(above) else None
