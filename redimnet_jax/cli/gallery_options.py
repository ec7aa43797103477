"""Options that the commands with galleries share."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from redimnet_jax.cli.command import Parser
from redimnet_jax.cli.recording_options import RecordingSettings
from redimnet_jax.evaluation.settings import check_choice, check_number

if TYPE_CHECKING:
    from redimnet_jax.gallery.gallery import Method

EXHAUSTIVE = "exhaustive"
SHORTLISTS = ("float32", "int8", "binary", EXHAUSTIVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GallerySettings(RecordingSettings):
    """A gallery, and the model that embeds recordings for it."""

    gallery: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
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
