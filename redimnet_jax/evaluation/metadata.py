"""Facts about utterances or speakers in a table: sex, age, device, or whatever its columns hold."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from redimnet_jax import names as name_forms
from redimnet_jax.errors import UserError, shown

KEYS = ("utterance", "speaker")


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The table in the file `path`: `columns` has the text of every cell, by column and then by name.

    `key`, one of `KEYS`, says what the names in its first column are. An empty cell says that a value is unknown.
    """

    path: str
    key: str
    columns: Mapping[str, Mapping[str, str]]

    def values(self, column: str, names: Sequence[str]) -> list[str]:
        """Return the cell of a column for each of `names`, as written or normalised.

        Raise UserError when a name is not in the table.
        """
        table = self.columns[column]
        normalised = {name_forms.normalised(name): value for name, value in table.items()}
        cells = [table.get(name, normalised.get(name_forms.normalised(name))) for name in names]
        missing = [name for name, cell in zip(names, cells, strict=True) if cell is None]
        if missing:
            raise UserError(
                f"{self.path} lacks {len(set(missing))} of {len(set(names))} {self.key}s of the trials, the first "
                f"{shown(missing[0])}; add them."
            )
        return [cell for cell in cells if cell is not None]


def read(path: str | Path) -> Metadata:
    """Return the table in a file with a header `utterance|speaker COLUMN...`; tabs separate columns.

    Names and cells may be quoted as by `names.quote`. Raise UserError for a file without that header or without a
    row, and for the first line of another number of columns or of a name that an earlier line has.
    """
    lines = name_forms.read_lines(path, "The metadata")
    rows = [(number, _cells(line)) for number, line in enumerate(lines, 1) if line.strip()]
    header = rows[0][1] if rows else []
    if len(header) < 2 or header[0] not in KEYS:
        found = shown("\t".join(header)) if header else "nothing"
        raise UserError(
            f"The metadata {path} begins with {found} but needs a header: 'utterance' or 'speaker', then the names "
            "of its columns, apart by tabs."
        )
    if len(set(header)) < len(header) or not all(header):
        raise UserError(f"The header of {path} has a column twice or without a name; correct it.")
    if len(rows) == 1:
        raise UserError(f"The metadata {path} has a header but no rows; add one for every {header[0]} of the trials.")
    columns: dict[str, dict[str, str]] = {column: {} for column in header[1:]}
    for number, cells in rows[1:]:
        if len(cells) != len(header) or not cells[0]:
            raise UserError(
                f"Line {number} of {path} has {len(cells)} columns but the header has {len(header)}, the first of "
                "them a name; correct the line."
            )
        try:
            name, *values = map(name_forms.unquote, cells)
        except UserError as error:
            raise UserError(f"Line {number} of {path} cannot be read: {error}") from error
        if name in columns[header[1]]:
            raise UserError(f"Line {number} of {path} repeats the {header[0]} {shown(name)}; remove one of its rows.")
        for column, value in zip(header[1:], values, strict=True):
            columns[column][name] = value
    return Metadata(str(path), header[0], columns)


def numbers(cells: Sequence[str]) -> list[float] | None:
    """Return `cells` as numbers, NaN for empty ones; None when one is something else, or all are empty."""
    try:
        values = [float(cell) if cell else math.nan for cell in cells]
    except ValueError:
        return None
    infinite = any(cell and not math.isfinite(value) for cell, value in zip(cells, values, strict=True))
    return None if infinite or not any(cells) else values


def _cells(line: bytes) -> list[str]:
    return [name_forms.decode(cell.strip()) for cell in line.split(b"\t")]
