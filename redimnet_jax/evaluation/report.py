"""Tables and JSON of evaluation results.

Results have the form of `results.json`: {"dims": {"64": {"eer", "eer_ci95": [lo, hi], "threshold", "accuracy",
"min_dcf": {"0.01", "0.05"}, "target_mean", "nontarget_mean", "trials"}, ...}}. EER and interval are fractions.
"""

import json
from collections.abc import Collection, Mapping, Sequence
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
    """A table of text cells; the first column has names, the others figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table in Markdown, without the title."""
        rows = [[one_line(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        rule = ["-" if column == 0 else "-:" for column in range(len(self.header))]
        return "".join(f"| {' | '.join(row)} |\n" for row in [self.header, rule, *rows])

    def text(self) -> str:
        """Return the table for a terminal, without the title."""
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
    """Return a table of named systems, a row for each system and dimension; raise UserError on missing entries.

    The minDCF have target priors of 0.01 and 0.05. Threshold and accuracy belong to the EER; the means are of scores.
    """
    return Table("Results", HEADER, _rows(results))


def write_json(path: str | Path, results: Results) -> Path:
    """Write `results`, which may have NumPy numbers, as indented JSON, whole or not at all; return the path.

    Raise UserError when the file cannot be written, and on NaN and Inf, which JSON does not have.
    """
    try:
        text = json.dumps(results, indent=2, allow_nan=False, default=_plain)
    except ValueError as error:
        raise UserError(
            f"{path} was not written because the results hold NaN or Inf; find the scores that are not finite."
        ) from error
    return files.write(path, text + "\n")


def need_logarithmic_axis(dims: Collection[int]) -> bool:
    """Return whether narrow `dims` would lie upon one another on a linear axis."""
    return max(dims) > 16 * min(dims)


def dims(results: Results) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the dimensions in rising order, each with its entries."""
    return sorted((int(dim), entries) for dim, entries in results["dims"].items())


def percent(rate: float | None) -> str:
    """Return a fraction as percent for a table; a dash where there is none."""
    return "–" if rate is None else f"{100 * rate:.2f}"


def interval(bounds: Sequence[float] | None) -> str:
    """Return an interval of fractions as percents for a table; a dash where there is none."""
    return "–" if bounds is None else f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"


def _rows(results: Mapping[str, Results]) -> list[list[str]]:
    return [[system, *_cells(system, dim, entry)] for system, each in results.items() for dim, entry in dims(each)]


def _cells(system: str, dim: int, entry: Mapping[str, Any]) -> list[str]:
    try:
        return [
            str(dim),
            percent(entry["eer"]),
            interval(entry["eer_ci95"]),
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
    """Return a NumPy or JAX array or number as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
