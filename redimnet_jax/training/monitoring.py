"""Signs of overfitting in a history of validations, and the rule by which a lower EER is an improvement.

Overfitting has four signs, for every dimension: the mean cosine of target trials falls, that of non-target trials
rises, the EER rises, and the training loss falls. Only all four together are overfitting.
docs/explanation/overfitting.md has the exact rule.
"""

import io
import itertools
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import files
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import confidence
from redimnet_jax.evaluation.protocol import TrialSet

# The latest validations that are looked at, and the fewest that say anything.
WINDOW = 5
MIN_VALIDATIONS = 4
# The fraction of the pairs of validations that must agree.
AGREEMENT = 0.9
# Which figures rise (True) or fall (False) with overfitting.
RISES = {"target_mean": False, "nontarget_mean": True, "eer": True, "loss": False}
NAMES = {
    "target_mean": "mean cosine of target trials falls",
    "nontarget_mean": "mean cosine of non-target trials rises",
    "eer": "EER rises",
    "loss": "training loss falls",
}
# The folder of the workdir with the scores of the validations that were the best so far.
SCORES = "scores"


def overfitting_signs(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return {dim: {"epochs": [first, last], "signs": {figure: holds}, "overfitting": all hold}}.

    `history` has entries {"step", "epoch", "loss", "dims": {dim: {"eer", "target_mean", "nontarget_mean"}}}; those
    that lack "loss" (before the first step) or "dims" (not validated) do not count. The last five of the rest are
    looked at; fewer than four say nothing, and the result is empty. A figure falls (rises) when the later value is
    lower (higher) in at least 90% of the pairs of these validations.
    """
    entries = [entry for entry in history if entry.get("dims") and entry.get("loss") is not None][-WINDOW:]
    if len(entries) < MIN_VALIDATIONS:
        return {}
    dims = [dim for dim in entries[-1]["dims"] if all(dim in entry["dims"] for entry in entries)]
    return {dim: _signs_at(entries, dim) for dim in dims}


def overfitting_warnings(signs: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every dimension of `overfitting_signs` at which any sign but a falling loss holds."""
    sentences = []
    for dim, figures in signs.items():
        holding = [name for name, holds in figures["signs"].items() if holds]
        if set(holding) - {"loss"}:
            first, last = figures["epochs"]
            named = ", ".join(NAMES[name] for name in holding)
            conclusion = "overfitting" if figures["overfitting"] else "not overfitting, but"
            sentences.append(f"dimension {dim}, epochs {first} to {last}: {conclusion}: {named}")
    return sentences


def improvement(
    scores: np.ndarray, reference: np.ndarray, validation: TrialSet, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return {"difference", "ci95", "beyond_noise"} of the EER of `scores` (trials,) minus that of `reference`.

    The interval is that of the paired speaker bootstrap, see `confidence.compare`; a difference is beyond noise when
    its interval lies below zero.
    """
    compared = confidence.compare(
        reference,
        scores,
        validation.trials.labels,
        *validation.speaker_numbers(),
        resamples=resamples,
        seed=seed,
    )
    interval = compared.interval[0].tolist()
    return {"difference": float(compared.difference[0]), "ci95": interval, "beyond_noise": interval[1] < 0}


def is_improvement(
    eer: float, reference: float, *, beyond_noise: bool, min_improvement: float, significant: bool
) -> bool:
    """Return whether `eer` is enough below that of the `reference` to start patience anew; all are fractions.

    With `significant` the difference must also be `beyond_noise`.
    """
    return eer < reference - min_improvement and (beyond_noise or not significant)


def keep_scores(workdir: Path, step: int, scores: np.ndarray) -> None:
    """Write the `scores` (dims, trials) of a validation that was the best so far, atomically."""
    (workdir / SCORES).mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, scores=scores)
    files.write(workdir / SCORES / f"{step}.npz", buffer.getvalue())


def read_scores(workdir: Path, step: int) -> np.ndarray:
    """Return the scores (dims, trials) that were kept at `step`; raise UserError when they cannot be read."""
    path = workdir / SCORES / f"{step}.npz"
    try:
        with np.load(path, allow_pickle=False) as saved:
            return saved["scores"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, tokenize.TokenError) as error:
        raise UserError(
            f"{path}, which the run needs to continue, cannot be read; restore it, or train in another workdir."
        ) from error


def _signs_at(entries: Sequence[Mapping[str, Any]], dim: str) -> dict[str, Any]:
    columns = {
        name: [entry["loss"] if name == "loss" else entry["dims"][dim][name] for entry in entries] for name in RISES
    }
    signs = {name: _has_trend(values, rising=RISES[name]) for name, values in columns.items()}
    epochs = [entries[0]["epoch"], entries[-1]["epoch"]]
    return {"epochs": epochs, "signs": signs, "overfitting": all(signs.values())}


def _has_trend(values: Sequence[float], *, rising: bool) -> bool:
    pairs = list(itertools.combinations(values, 2))
    agreeing = sum(later > earlier if rising else later < earlier for earlier, later in pairs)
    return agreeing >= AGREEMENT * len(pairs)
