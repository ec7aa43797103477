"""The options of commands that embed single recordings: the model, and how much speech a recording must have."""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from redimnet_jax.cli.command import add_checkpoint
from redimnet_jax.errors import ArgumentError
from redimnet_jax.evaluation.settings import DTYPES, check_choice

if TYPE_CHECKING:
    from redimnet_jax.models.speaker_model import SpeakerModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordingSettings:
    """The model that embeds recordings, and the least speech of one, in seconds."""

    checkpoint: Path
    dtype: str = "float32"
    min_speech: float | None = None

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)
        if self.min_speech is not None and not 0 <= self.min_speech < math.inf:
            raise ArgumentError(f"`min_speech` is {self.min_speech} but must be a number of seconds, 0 or more.")

    def least_speech(self) -> float:
        """Return the seconds of speech that a recording must have."""
        from redimnet_jax.data import speech

        return speech.MIN_SECONDS if self.min_speech is None else self.min_speech

    def open_model(self) -> "SpeakerModel":
        """Return the model at `checkpoint`."""
        import jax.numpy as jnp

        from redimnet_jax.checkpoints.open import open_model

        return open_model(self.checkpoint, dtype=jnp.dtype(self.dtype))


def model_options() -> argparse.ArgumentParser:
    """Return a parent parser with the options of commands that embed single recordings."""
    parser = argparse.ArgumentParser(add_help=False)
    add_checkpoint(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="arithmetic (default: %(default)s)")
    parser.add_argument(
        "--min_speech", type=float, metavar="S", help="refuse files with less speech, in seconds (default: 0.5)"
    )
    return parser
