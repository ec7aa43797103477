"""When a lower EER is an improvement: by how much, and whether by more than the choice of validation speakers."""

import io
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import files
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import confidence
from redimnet_jax.evaluation.protocol import TrialSet

SCORES = "scores"


def improvement(
    scores: np.ndarray, before: np.ndarray, validation: TrialSet, *, resamples: int, seed: int
) -> dict[str, Any]:
    """{"difference", "ci95", "beyond_noise"} of the EER of `scores` (trials,) minus that of `before` (trials,).

    The interval is of the paired speaker bootstrap, see `confidence.compare`; beyond noise is a difference whose
    interval lies below zero.
    """
    found = confidence.compare(
        before,
        scores,
        validation.trials.labels,
        *validation.speaker_numbers(),
        resamples=resamples,
        seed=seed,
    )
    interval = found.interval[0].tolist()
    return {"difference": float(found.difference[0]), "ci95": interval, "beyond_noise": interval[1] < 0}


def counts(of: dict[str, Any], eer: float, reference: float, *, min_improvement: float, significant: bool) -> bool:
    """Whether `eer` is better than the `reference` by what starts patience anew; `of` is `improvement`'s."""
    return eer < reference - min_improvement and (of["beyond_noise"] or not significant)


def keep_scores(workdir: Path, step: int, scores: np.ndarray) -> None:
    """Keeps `scores` (dims, trials) of a validation that was the best so far, whole or not at all."""
    (workdir / SCORES).mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, scores=scores)
    files.write(workdir / SCORES / f"{step}.npz", buffer.getvalue())


def read_scores(workdir: Path, step: int) -> np.ndarray:
    """The scores that were kept at `step`; UserError when they cannot be read."""
    path = workdir / SCORES / f"{step}.npz"
    try:
        with np.load(path, allow_pickle=False) as saved:
            return saved["scores"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, tokenize.TokenError) as error:
        raise UserError(
            f"{path}, which the run needs to go on, cannot be read; put it back, or start in another workdir."
        ) from error
