"""Overfitting as verification shows it: training gets better while unseen speakers are told apart worse.

Four signs, for every dimension: the mean cosine of target trials falls, that of non-target trials rises, the EER
rises, and the training loss falls. Only all four together are overfitting. docs/overfitting.md has the exact rule.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW, LEAST = 5, 4
SHARE = 0.9  # of the pairs of validations that must agree
RISES = {"target_mean": False, "nontarget_mean": True, "eer": True, "loss": False}
NAMES = {
    "target_mean": "mean cosine of target trials falls",
    "nontarget_mean": "mean cosine of non-target trials rises",
    "eer": "EER rises",
    "loss": "training loss falls",
}


def signs(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{dim: {"epochs": [first, last], "signs": {figure: holds}, "overfitting": all hold}} of the latest validations.

    `history`: entries {"step", "epoch", "loss", "dims": {dim: {"eer", "target_mean", "nontarget_mean"}}}; those that
    lack "loss" (before the first step) or "dims" (not validated) do not count. Of the rest the last five are judged;
    fewer than four say nothing, and the result is empty. A figure falls (rises) when the later value is lower
    (higher) in at least 90% of the pairs of these validations.
    """
    entries = [entry for entry in history if entry.get("dims") and entry.get("loss") is not None][-WINDOW:]
    if len(entries) < LEAST:
        return {}
    return {dim: _signs(entries, dim) for dim in entries[-1]["dims"] if all(dim in each["dims"] for each in entries)}


def warnings(of: Mapping[str, Any]) -> list[str]:
    """A sentence for every dimension of `signs` at which unseen speakers are told apart worse, naming the signs."""
    sentences = []
    for dim, each in of.items():
        held = [name for name, holds in each["signs"].items() if holds]
        if set(held) - {"loss"}:
            named = ", ".join(NAMES[name] for name in held)
            verdict = "overfitting" if each["overfitting"] else "not overfitting, but"
            sentences.append(
                f"dimension {dim}, epochs {each['epochs'][0]} to {each['epochs'][1]}: {verdict}: {named}"
            )
    return sentences


def _signs(entries: Sequence[Mapping[str, Any]], dim: str) -> dict[str, Any]:
    columns = {
        name: [entry["loss"] if name == "loss" else entry["dims"][dim][name] for entry in entries] for name in RISES
    }
    held = {name: _trends(values, RISES[name]) for name, values in columns.items()}
    return {"epochs": [entries[0]["epoch"], entries[-1]["epoch"]], "signs": held, "overfitting": all(held.values())}


def _trends(values: Sequence[float], up: bool) -> bool:
    pairs = list(itertools.combinations(values, 2))
    return sum(later > earlier if up else later < earlier for earlier, later in pairs) >= SHARE * len(pairs)
