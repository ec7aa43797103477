"""Decoding every recording of a training run before it starts, to know what could not be read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from redimnet_jax.data.examples import read_stretch
from redimnet_jax.data.recordings import Recordings
from redimnet_jax.data.tree import parallel
from redimnet_jax.errors import UserError
from redimnet_jax.training import config as train_config
from redimnet_jax.training.data import open_data
from redimnet_jax.training.unreadable import printable

# Samples that are decoded at once, which bounds the memory.
_PIECE = 600 * 16000
_CHUNK = 16  # recordings a task
_NAMED = 3


def check(config: Any, workdir: Path, *, workers: int = 8) -> None:
    """Decodes all training and validation recordings of `config`, and prints those that cannot be read, with reasons.

    Raises UserError when of the training recordings more than `data.max_bad` cannot be read, or any of those that the
    run is judged by, for which nothing else can stand in.
    """
    train_config.check(config, jax.device_count(), jax.process_count())
    data = open_data(config, Path(workdir).absolute())
    parts: list[tuple[str, Recordings, float]] = [("training", data.corpus, config.data.max_bad)]
    parts.append(("validation", data.validation.recordings, 0.0))
    if data.seen is not None:
        parts.append(("seen speakers", data.seen.recordings, 0.0))
    problems = []
    for what, recordings, allowed in parts:
        bad = _unreadable(what, recordings, workers)
        print(f"{what}: {len(bad):,} of {len(recordings):,} recordings cannot be read")
        if len(bad) > allowed * len(recordings):
            names = ", ".join(bad[:_NAMED]) + (f", ... and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else "")
            limit = f"more than data.max_bad={allowed:g} allows" if allowed else "where all are needed"
            problems.append(
                f"{len(bad):,} of {len(recordings):,} {what} recordings cannot be read, {limit} ({names})"
            )
    if problems:
        raise UserError(f"{'; '.join(problems)}; mend or remove these.")


def _unreadable(what: str, recordings: Recordings, workers: int) -> list[str]:
    """Names of the `recordings` that cannot be decoded to their end, each printed with the reason."""

    def chunk(part: range) -> list[tuple[str, str]]:
        found = ((recordings.name(i), _problem(recordings, i)) for i in part)
        return [(name, problem) for name, problem in found if problem is not None]

    count = len(recordings)
    parts: Sequence[range] = [range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]
    names = []
    for found in parallel(chunk, parts, workers, jax.process_index() == 0, what, len):
        for name, problem in found:
            tqdm.write(printable(f"{name}: {problem}"))
            names.append(printable(name))
    return names


def _problem(recordings: Recordings, index: int) -> str | None:
    """Why a recording cannot be decoded to its end, or None."""
    length = int(recordings.samples[index])
    try:
        for start in range(0, max(length, 1), _PIECE):
            read_stretch(recordings, index, start, min(_PIECE, length - start))
    except UserError as error:
        return str(error)
    return None
