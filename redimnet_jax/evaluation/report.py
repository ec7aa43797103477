"""Results of an evaluation as tables and as JSON.

Results are what `results.json` holds: {"dims": {"64": {"eer", "eer_ci95": [lo, hi], "threshold", "accuracy",
"min_dcf": {"0.01", "0.05"}, "target_mean", "nontarget_mean", "trials"}, ...}}, the EER and its interval as fractions.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redimnet_jax import files
from redimnet_jax.errors import UserError
from redimnet_jax.names import one_line

Results = Mapping[str, Any]

HEADER = (
    "system",
    "dim",
    "EER %",
    "95 % interval",
    "minDCF 0.01",
    "minDCF 0.05",
    "threshold",
    "accuracy %",
    "target mean",
    "non-target mean",
    "trials",
)


class Table(NamedTuple):
    """Rows of text below a header; the first column is a name, the others are figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """A Markdown table, without the title."""
        rows = [[one_line(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        rule = ["-" if column == 0 else "-:" for column in range(len(self.header))]
        return "".join(f"| {' | '.join(row)} |\n" for row in [self.header, rule, *rows])

    def text(self) -> str:
        """Columns for a terminal, without the title."""
        rows = [list(map(one_line, row)) for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], ""])


def table(results: Mapping[str, Results]) -> Table:
    """Named systems, a row for each system and dimension; raises UserError on missing entries.

    The minDCF are those of P_target 0.01 and 0.05; threshold and accuracy belong to the EER; means are of scores.
    """
    return Table("Results", HEADER, _rows(results))


def markdown_table(results: Mapping[str, Results]) -> str:
    """`table` in Markdown."""
    return table(results).markdown()


def text_table(results: Mapping[str, Results]) -> str:
    """`table` for a terminal."""
    return table(results).text()


def write_json(path: str | Path, results: Results) -> Path:
    """Writes `results`, NumPy numbers included, as indented JSON, whole or not at all; returns the path.

    Raises UserError when the file cannot be written, and on NaN and Inf, which JSON does not have.
    """
    try:
        text = json.dumps(results, indent=2, allow_nan=False, default=_plain)
    except ValueError as error:
        raise UserError(
            f"{path} was not written because the results hold NaN or Inf; find the scores that are not finite."
        ) from error
    return files.write(path, text + "\n")


def read_json(path: str | Path) -> Results:
    """The results in a file that `write_json` wrote; raises UserError when there are none."""
    try:
        results = files.parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read as results ({reason}); give a results.json.") from error
    if not isinstance(results, dict) or not isinstance(results.get("dims"), dict):
        raise UserError(f"{path} has no entry 'dims'; give a results.json.")
    if not all(re.fullmatch("[0-9]{1,9}", dim) and isinstance(each, dict) for dim, each in results["dims"].items()):
        raise UserError(f"{path} has something other than dimensions in 'dims'; give a results.json.")
    return results


def dims(results: Results) -> list[tuple[int, Mapping[str, Any]]]:
    """Dimensions in rising order, each with its entries."""
    return sorted((int(dim), entries) for dim, entries in results["dims"].items())


def _rows(results: Mapping[str, Results]) -> list[list[str]]:
    return [[system, *_cells(system, dim, entry)] for system, each in results.items() for dim, entry in dims(each)]


def _cells(system: str, dim: int, entry: Mapping[str, Any]) -> list[str]:
    try:
        low, high = entry["eer_ci95"]
        return [
            str(dim),
            f"{100 * entry['eer']:.2f}",
            f"{100 * low:.2f} to {100 * high:.2f}",
            f"{entry['min_dcf']['0.01']:.4f}",
            f"{entry['min_dcf']['0.05']:.4f}",
            f"{entry['threshold']:.4f}",
            f"{100 * entry['accuracy']:.2f}",
            f"{entry['target_mean']:.3f}",
            f"{entry['nontarget_mean']:.3f}",
            str(entry["trials"]),
        ]
    except KeyError as error:
        raise UserError(
            f"The results of {system} at dimension {dim} have no {error.args[0]!r}; evaluate them again."
        ) from error


def _plain(value: Any) -> Any:
    """NumPy and JAX arrays and numbers as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
