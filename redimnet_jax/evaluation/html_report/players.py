"""Recordings in the report: embedded as MP3, which every browser plays, or linked to their files."""

import base64
import dataclasses
import io
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from redimnet_jax import addresses
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.recordings import Recordings
from redimnet_jax.errors import ArgumentError, UserError

SECONDS = 6.0  # that are embedded of a recording
MAX_BYTES = 1_500_000  # of all embedded recordings together, before base64 makes them a third larger
COMPRESSION = 0.75  # in libsndfile, from 0 to 1: about 32 kbit/s

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Player:
    """A recording's `source`, an address for an audio element, or the `problem` why there is none."""

    source: str = ""
    problem: str = ""


def players(recordings: Recordings, indices: Sequence[int], kind: str) -> dict[int, Player]:
    """Return a player for each of the recordings `indices`, of the `kind` "embed" or "link"; none for "none".

    A recording that cannot be read any more gets its reason as a problem, and a warning counts them.
    """
    if kind == "none":
        return {}
    make: Callable[[int], Player] = (
        (lambda i: _embedded(recordings, i)) if kind == "embed" else (lambda i: Player(_uri(recordings, i)))
    )
    with ThreadPoolExecutor() as pool:
        found = dict(zip(indices, pool.map(make, indices), strict=True))
    problems = [player.problem for player in found.values() if player.problem]
    if problems:
        logger.warning(
            f"{len(problems)} of {len(found)} recordings of the hardest trials have no player: {problems[0]}"
        )
    return _within_limit(found) if kind == "embed" else found


def check_links(recordings: Recordings) -> None:
    """Raise ArgumentError when recordings are not files of this machine, to which a page could link."""
    source = getattr(recordings, "source", None)
    first = source(0) if source is not None else b""
    if isinstance(first, bytes) or addresses.of(first) is not None:
        raise ArgumentError(
            "`players` is link, but the recordings are not files of this machine; choose embed or none."
        )


def encoded(signal: np.ndarray) -> bytes:
    """Return a mono `signal` (samples,) at 16 kHz as MP3."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(signal, -1, 1), SAMPLE_RATE, format="MP3", compression_level=COMPRESSION)
    return buffer.getvalue()


def _embedded(recordings: Recordings, index: int) -> Player:
    try:
        data = encoded(recordings.read(index, 0, round(SECONDS * SAMPLE_RATE)))
    except (UserError, OSError) as error:
        return Player(problem=str(error))
    return Player("data:audio/mpeg;base64," + base64.b64encode(data).decode())


def _uri(recordings: Recordings, index: int) -> str:
    return Path(recordings.source(index)).absolute().as_uri()  # type: ignore[attr-defined] (checked by check_links)


def _within_limit(found: dict[int, Player]) -> dict[int, Player]:
    """Return the players without the sources beyond `MAX_BYTES`."""
    kept, size = {}, 0
    for index, player in found.items():
        size += len(player.source) * 3 // 4
        kept[index] = player if size <= MAX_BYTES else Player(problem="It was left out to keep this file small.")
    return kept
