"""Scores of trials as a text file: a header `label left right DIM...`, then a trial a line, columns apart by tabs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from redimnet_jax import files, trials
from redimnet_jax.errors import UserError
from redimnet_jax.trials import Trials


def write(path: str | Path, of: Trials, dims: Sequence[int], scores: np.ndarray) -> Path:
    """Writes `scores` (dims, trials), whole or not at all, with as many digits as float32 has; returns the path."""
    rows = zip(of.labels.astype(int).tolist(), of.left.tolist(), of.right.tolist(), scores.T.tolist(), strict=True)
    lines = ["\t".join(["label", "left", "right", *map(str, dims)])]
    for label, left, right, values in rows:
        lines.append("\t".join([str(label), of.names[left], of.names[right], *(f"{value:.9g}" for value in values)]))
    return files.write(path, "\n".join([*lines, ""]))


def read(path: str | Path) -> tuple[Trials, tuple[int, ...], np.ndarray]:
    """(trials, dims, scores float32 (dims, trials)) of a file that `write` wrote; UserError when it is none."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as scores ({error}); give a scores.tsv.") from error
    header = lines[0].split("\t") if lines else []
    if header[:3] != ["label", "left", "right"] or not all(cell.isdecimal() for cell in header[3:]) or not header[3:]:
        raise UserError(f"{path} does not begin with 'label left right DIM...'; give a scores.tsv.")
    rows = [line.split("\t") for line in lines[1:]]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header) or row[0] not in ("0", "1"):
            raise UserError(
                f"Line {number} of {path} has no label and {len(header) - 3} scores; write the file anew."
            )
    labels, left, right, *values = zip(*rows, strict=True) if rows else ((),) * len(header)
    try:
        scores = np.array(values, np.float32)
    except ValueError as error:
        raise UserError(f"{path} holds a score that is no number ({error}); write the file anew.") from error
    of = trials.from_pairs(list(left), list(right), (label == "1" for label in labels))
    return of, tuple(map(int, header[3:])), scores
