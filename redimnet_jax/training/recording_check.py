"""Decoding every recording of a training run before it starts, to know which ones cannot be read."""

import logging
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from redimnet_jax import addresses, buckets
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.recordings import Recordings, read_stretch
from redimnet_jax.data.tree import parallel
from redimnet_jax.errors import UserError
from redimnet_jax.training import config as train_config
from redimnet_jax.training.data import Data, open_data
from redimnet_jax.training.log import shows_progress
from redimnet_jax.training.settings import Settings
from redimnet_jax.training.unreadable_list import printable
from redimnet_jax.training.workdir import LAYOUT

logger = logging.getLogger(__name__)

# Samples that are decoded at once, which bounds the memory.
_PIECE = 600 * SAMPLE_RATE
# Recordings of a task.
_CHUNK = 16
# Recordings that an error names.
_NAMED = 3


def check(settings: Settings | ConfigDict, workdir: Path, *, workers: int = 8) -> None:
    """Decode all training and validation recordings, and log those that cannot be read, with reasons.

    Raise UserError when more than `data.max_bad` of the training recordings cannot be read, or any of those that the
    run is judged by, which nothing can replace.
    """
    checked = train_config.check(settings, jax.device_count())
    with buckets.writing_together(addresses.absolute(workdir), LAYOUT) as mirror:
        _check(checked, open_data(checked, mirror.local), workers)


def _check(checked: Settings, data: Data, workers: int) -> None:
    groups: list[tuple[str, Recordings, float]] = [
        ("training", data.corpus, checked.data.max_bad),
        ("validation", data.validation.recordings, 0.0),
    ]
    if data.seen is not None:
        groups.append(("seen speakers", data.seen.recordings, 0.0))
    problems = []
    for name, recordings, allowed in groups:
        bad = _unreadable(name, recordings, workers)
        logger.info(f"{name}: {len(bad):,} of {len(recordings):,} recordings cannot be read")
        if len(bad) > allowed * len(recordings):
            shown = ", ".join(bad[:_NAMED]) + (f", ... and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else "")
            limit = f"more than data.max_bad={allowed:g} allows" if allowed else "where all are needed"
            problems.append(
                f"{len(bad):,} of {len(recordings):,} {name} recordings cannot be read, {limit} ({shown})"
            )
    if problems:
        raise UserError(f"{'; '.join(problems)}; mend or remove these.")


def _unreadable(name: str, recordings: Recordings, workers: int) -> list[str]:
    """Return the names of the `recordings` that cannot be decoded to their end, and log each with the reason."""

    def chunk(part: range) -> list[tuple[str, str]]:
        decoded = ((recordings.name(i), _problem(recordings, i)) for i in part)
        return [(recording, problem) for recording, problem in decoded if problem is not None]

    count = len(recordings)
    parts: Sequence[range] = [range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]
    bad = []
    for problems in parallel(chunk, parts, workers, shows_progress(), name, len):
        for recording, problem in problems:
            logger.info(printable(f"{recording}: {problem}"))
            bad.append(printable(recording))
    return bad


def _problem(recordings: Recordings, index: int) -> str | None:
    """Return why a recording cannot be decoded to its end, or None."""
    length = int(recordings.samples[index])
    try:
        for start in range(0, max(length, 1), _PIECE):
            read_stretch(recordings, index, start, min(_PIECE, length - start))
    except UserError as error:
        return str(error)
    return None
