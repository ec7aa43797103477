"""Score files: text with a header `label left right DIM...`, then a line for every trial; tabs separate columns.

Names are written as by `names.quote`. The checksum of FILE is in FILE.sha256, in the format of `sha256sum`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from redimnet_jax import addresses, files, names
from redimnet_jax.errors import UserError
from redimnet_jax.trials import Trials, from_pairs


def checksum_path(path: str | Path) -> Path:
    """Return the path of the checksum of the scores in `path`."""
    path = Path(path)
    return path.with_name(f"{path.name}.sha256")


def write(path: str | Path, trials: Trials, dims: Sequence[int], scores: np.ndarray) -> Path:
    """Write `scores` (dims, trials), with as many digits as float32 has, and their checksum; return the path.

    Each file is written whole or not at all. Raise UserError when one cannot be written.
    """
    path = Path(path)
    quoted = list(map(names.quote, trials.names))
    labels = trials.labels.astype(int).tolist()
    rows = zip(labels, trials.left.tolist(), trials.right.tolist(), scores.T.tolist(), strict=True)
    lines = ["\t".join(["label", "left", "right", *map(str, dims)])]
    for label, left, right, values in rows:
        lines.append("\t".join([str(label), quoted[left], quoted[right], *(f"{value:.9g}" for value in values)]))
    data = "\n".join([*lines, ""]).encode()
    try:
        # Scores without a checksum can be read; scores beside the checksum of other scores cannot.
        checksum_path(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another output.") from error
    files.write(path, data)
    files.write(checksum_path(path), f"{hashlib.sha256(data).hexdigest()}  {names.quote(path.name)}\n")
    return path


def read(path: str | Path) -> tuple[Trials, tuple[int, ...], np.ndarray]:
    """Return (trials, dims, scores float32 (dims, trials)) of a file that `write` wrote.

    Raise UserError when it is something else, does not match the checksum beside it (if there is one), or holds NaN
    or Inf.
    """
    path = Path(path)
    lines = names.read_lines(path, "The file of scores")
    _verify(path)
    while lines and not lines[-1]:
        lines.pop()
    rows = [names.decode(line).split("\t") for line in lines]
    header = rows.pop(0) if rows else []
    dims = header[3:]
    # int() itself refuses thousands of digits with an error of its own.
    if header[:3] != ["label", "left", "right"] or not dims or not all(map(_is_dim, dims)):
        raise UserError(f"{path} does not begin with 'label left right DIM...'; give a scores.tsv.")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header) or row[0] not in ("0", "1"):
            raise UserError(f"Line {number} of {path} has no label and {len(dims)} scores; write the file anew.")
    labels, left, right, *values = zip(*rows, strict=True) if rows else ((),) * len(header)
    try:
        with np.errstate(over="ignore"):  # Infinities are refused below.
            scores = np.array([list(map(float, column)) for column in values]).astype(np.float32)
    except ValueError as error:
        raise UserError(f"{path} holds a score that is no number ({error}); write the file anew.") from error
    if not np.isfinite(scores).all():
        line = 2 + int(np.argmax(~np.isfinite(scores).all(axis=0)))
        raise UserError(f"Line {line} of {path} holds a score that is not finite; write the file anew.")
    listed = from_pairs(
        list(map(names.unquote, left)), list(map(names.unquote, right)), [label == "1" for label in labels]
    )
    return listed, tuple(map(int, dims)), scores


def _is_dim(cell: str) -> bool:
    return cell.isascii() and cell.isdecimal() and len(cell) < 10


def _verify(path: Path) -> None:
    """Raise UserError unless the scores in `path` match the checksum beside them, if there is one."""
    beside = checksum_path(path)
    if not addresses.is_file(beside):
        return
    try:
        expected = addresses.read(beside).split(maxsplit=1)[:1]
        actual = hashlib.sha256(addresses.read(path)).hexdigest().encode()
    except OSError as error:
        raise UserError(f"{beside} cannot be read ({error.strerror or error}); check its permissions.") from error
    if expected != [actual]:
        raise UserError(
            f"{path} does not match its checksum in {beside.name}; write the scores anew, or remove {beside.name} if "
            "they were changed on purpose."
        )
