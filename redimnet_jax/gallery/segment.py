"""A part of a gallery: a folder that is written once, whole, and never changed.

    utterances.tsv          model, name, seconds and seconds of speech of each row
    utterances-FORM.npy     embeddings of the utterances: float32 as the network gives them, int8 and binary codes
    models-FORM.npy         embeddings of the models in the same forms: means of unit embeddings of their utterances

Whoever refers to a segment keeps the checksums of its files.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from redimnet_jax import file_checksums, files, names, scoring
from redimnet_jax.embedding import codes
from redimnet_jax.embedding.codes import Form
from redimnet_jax.errors import UserError
from redimnet_jax.gallery.utterances import Utterances, groups

Level: TypeAlias = Literal["utterances", "models"]

LEVELS: tuple[Level, ...] = ("utterances", "models")
INDEX = "utterances.tsv"
COLUMNS = ("model", "utterance", "seconds", "speech_seconds")
MEND = "restore it from a copy, or remove the gallery and enrol again"


@dataclasses.dataclass(frozen=True)
class Segment:
    """A segment that is read: its utterances, and every array, mapped.

    Model number i is `models[i]`; its utterances are the rows from `bounds[i]` to `bounds[i + 1]`.
    """

    utterances: Utterances
    models: list[str]
    bounds: np.ndarray
    arrays: Mapping[tuple[Level, Form], np.ndarray]


def write(folder: Path, utterances: Utterances) -> dict[str, Any]:
    """Make the segment `folder` of `utterances`, one at least, those of a model side by side.

    Return the checksums of its files. Raises UserError when it cannot be written.
    """
    models, bounds = groups(utterances.models)
    dim = utterances.vectors.shape[1]
    numbers = np.repeat(np.arange(len(models)), np.diff(bounds))
    means = np.asarray(scoring.group_means(utterances.vectors, numbers, dim))
    with files.new_folder(folder, "free some space, or choose another gallery") as part:
        (part / INDEX).write_text(_table(utterances), encoding="utf-8")
        for level, vectors in zip(LEVELS, (utterances.vectors, means), strict=True):
            for form in codes.FORMS:
                np.save(part / _file(level, form), codes.encode(vectors, dim, form), allow_pickle=False)
        return {path.name: file_checksums.of(path) for path in sorted(part.iterdir())}


def read(folder: Path, checksums: Mapping[str, Any], dim: int, verify: bool = True) -> Segment:
    """Return the segment in `folder`, whose files must match the `checksums` that `write` returned.

    `verify` False leaves out the checksums of the arrays, which take a pass over all of them. Raises UserError when a
    file is damaged, and FileNotFoundError when the whole segment is gone.
    """
    try:
        if checksums.keys() != {INDEX, *(_file(level, form) for level in LEVELS for form in codes.FORMS)}:
            raise UserError(f"The description of {folder} lists other files than a segment has; {MEND}.")
        for name, checksum in checksums.items():
            if verify or name == INDEX:
                file_checksums.verify(folder / name, checksum, MEND)
        arrays = _arrays(folder)
        utterances = _utterances((folder / INDEX).read_text(encoding="utf-8"), arrays["utterances", "float32"])
        models, bounds = groups(utterances.models)
        for (level, form), array in arrays.items():
            rows = len(models) if level == "models" else len(utterances)
            if array.shape != (rows, codes.code_width(dim, form)):
                raise ValueError(f"{_file(level, form)} has the shape {array.shape}")
    except (*files.NOT_AN_ARRAY, OSError, UserError) as error:
        if not folder.is_dir():  # A writer replaced it.
            raise FileNotFoundError(folder) from error
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder} is damaged ({files.first_line(error)}); {MEND}.") from error
    return Segment(utterances, models, bounds, arrays)


def read_models(folder: Path, checksums: Mapping[str, Any]) -> set[str]:
    """Return the models in the segment in `folder` from its table alone; errors as in `read`."""
    file_checksums.verify(folder / INDEX, checksums[INDEX], MEND)
    lines = (folder / INDEX).read_text(encoding="utf-8").splitlines()[1:]
    return {names.unquote(quoted) for quoted in {line.partition("\t")[0] for line in lines}}


def _arrays(folder: Path) -> dict[tuple[Level, Form], np.ndarray]:
    arrays: dict[tuple[Level, Form], np.ndarray] = {}
    for level in LEVELS:
        for form in codes.FORMS:
            arrays[level, form] = np.load(folder / _file(level, form), mmap_mode="r", allow_pickle=False)
    return arrays


def _file(level: Level, form: Form) -> str:
    return f"{level}-{form}.npy"


def _table(utterances: Utterances) -> str:
    lines = ["\t".join(COLUMNS)]
    columns = (utterances.models, utterances.names, utterances.seconds.tolist(), utterances.speech_seconds.tolist())
    for model, name, seconds, speech in zip(*columns, strict=True):
        lines.append(f"{names.quote(model)}\t{names.quote(name)}\t{_number(seconds)}\t{_number(speech)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _utterances(text: str, vectors: np.ndarray) -> Utterances:
    header, *lines = text.splitlines()
    if tuple(header.split("\t")) != COLUMNS:
        raise ValueError(f"{INDEX} has other columns")
    models, utterances, seconds, speech = zip(*(line.split("\t") for line in lines), strict=True)
    return Utterances(
        [names.unquote(model) for model in models],
        [names.unquote(name) for name in utterances],
        np.array([value or "nan" for value in seconds], np.float64),
        np.array([value or "nan" for value in speech], np.float64),
        vectors,
    )
