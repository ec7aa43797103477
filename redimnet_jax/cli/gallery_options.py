"""Options that the commands with galleries share, and what they print."""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from redimnet_jax import buckets, names
from redimnet_jax.cli.command import Parser, run
from redimnet_jax.errors import ArgumentError
from redimnet_jax.evaluation.settings import DTYPES, check_choice, check_number

if TYPE_CHECKING:
    from redimnet_jax.gallery.gallery import Method
    from redimnet_jax.models.speaker_model import SpeakerModel

T = TypeVar("T")

EXHAUSTIVE = "exhaustive"
SHORTLISTS = ("float32", "int8", "binary", EXHAUSTIVE)


@dataclasses.dataclass(frozen=True)
class GallerySettings:
    """A gallery, the model that embeds recordings for it, and the least speech of a recording, in seconds."""

    gallery: Path
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


@dataclasses.dataclass(frozen=True)
class SearchSettings(GallerySettings):
    """How the gallery is searched: `dim`, `top`, `shortlist` and `candidates` are those of the options."""

    dim: int | None = None
    top: int = 5
    shortlist: str = "float32"
    candidates: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dim", "top", "candidates"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), minimum=1)
        check_choice("shortlist", self.shortlist, SHORTLISTS)

    def method(self, width: int) -> "Method":
        """Return how candidates are found in a gallery of `width` dimensions."""
        from redimnet_jax.embedding.codes import FORMS
        from redimnet_jax.gallery.gallery import Method

        if self.shortlist == EXHAUSTIVE:
            return Method("float32", self.dim or width, self.candidates)
        return Method(next(form for form in FORMS if form == self.shortlist), None, self.candidates)


def gallery_option() -> Parser:
    """Return a parent parser with --gallery and --json."""
    parser = Parser(add_help=False)
    parser.add_argument("--gallery", type=Path, required=True, metavar="DIR", help="folder or address of the gallery")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def model_options() -> argparse.ArgumentParser:
    """Return a parent parser with the options of commands that embed single recordings."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="PATH",
        help="native checkpoint, workdir of a run, or PyTorch file (.pt)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="arithmetic (default: %(default)s)")
    parser.add_argument(
        "--min_speech", type=float, metavar="S", help="refuse files with less speech, in seconds (default: 0.5)"
    )
    return parser


def search_options(top: int) -> argparse.ArgumentParser:
    """Return a parent parser with the options of commands that search a gallery; `top` is the default of --top."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("search")
    group.add_argument("--top", type=int, default=top, metavar="N", help="results (default: %(default)s)")
    group.add_argument("--dim", type=int, metavar="N", help="compare the first N dimensions (default: all)")
    group.add_argument(
        "--shortlist",
        choices=SHORTLISTS,
        default="float32",
        help="find candidates by 64 dimensions in float32 or int8, or by binary codes; or compare all (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--candidates", type=int, default=512, metavar="N", help="length of the shortlist (default: %(default)s)"
    )
    return parser


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command found: plain values with `seconds`, the same as lines of text, and the exit code."""

    content: Mapping[str, Any]
    lines: Sequence[str]
    code: int = 0


def run_command(
    parser: Parser, arguments: Sequence[str] | None, make: Callable[..., T], work: Callable[[T], Result]
) -> int:
    """Print the result of `work` on the settings that `make` gives; return the exit code."""
    given = vars(parser.parse_args(arguments))
    as_json = given.pop("json")
    settings = parser.settings(make, given)
    codes: list[int] = []

    def command() -> None:
        result = work(settings)
        seconds = ", ".join(f"{name} {value:.3f} s" for name, value in result.content["seconds"].items())
        if as_json:
            print(buckets.readable(json.dumps(result.content, indent=2, allow_nan=False)))
        else:
            print("\n".join(names.one_line(buckets.readable(line)) for line in [*result.lines, seconds]))
        codes.append(result.code)

    return run(command, parser.flags()) or codes[0]
