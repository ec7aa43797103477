"""The command `redimnet-jax enrol`: enrol a speaker in a gallery."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from redimnet_jax.cli.command import Parser, closes_quietly, run
from redimnet_jax.cli.gallery_options import (
    GallerySettings,
    as_json,
    as_text,
    gallery_option,
    model_options,
    times,
)
from redimnet_jax.errors import ArgumentError

HELP = """Enrol a speaker in a gallery by one or more recordings. A gallery that does not exist is made.

  redimnet-jax enrol alice a1.wav a2.wav --gallery=voices --checkpoint=runs/b2

All recordings are enrolled or none. A name that is enrolled already is refused; with --add it gets the recordings.

exit codes: 0 enrolled, 1 error, 2 wrong flag

docs/guides/gallery.md shows how to enrol a whole corpus.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnrolSettings(GallerySettings):
    """Who is enrolled by which files."""

    name: str
    files: Sequence[str]
    add: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            raise ArgumentError("The name is empty; give the speaker a name.")


def _parser() -> Parser:
    parser = Parser(
        "redimnet-jax enrol",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[gallery_option(), model_options()],
    )
    parser.add_argument("name", metavar="NAME", help="the speaker's name in the gallery")
    parser.add_argument("files", metavar="FILE", nargs="+", help="audio files of any format and sample rate")
    parser.add_argument("--add", action="store_true", help="add the recordings to a name that is enrolled already")
    return parser


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    json_wanted = given.pop("json")
    settings = parser.settings(EnrolSettings, given)

    def command() -> None:
        content = _enrol(settings)
        print(as_json(content) if json_wanted else _text(content))

    return run(command, parser.flags())


def _enrol(settings: EnrolSettings) -> dict[str, Any]:
    """Enrol the speaker; return the result as plain values."""
    started = time.perf_counter()
    from redimnet_jax.data import signal_quality
    from redimnet_jax.gallery import enrolment
    from redimnet_jax.gallery.changes import check_new, writing
    from redimnet_jax.gallery.manifest import Weights
    from redimnet_jax.verification.verify import embed_usable

    model = settings.open_model()
    weights = Weights.of(model)
    if not settings.add:  # Before the recordings are embedded, which takes longer.
        check_new(settings.gallery, weights, [settings.name])
    loaded = time.perf_counter()
    recordings = [embed_usable(model, file, settings.least_speech()) for file in settings.files]
    embedded = time.perf_counter()
    with writing(settings.gallery, weights) as writer:
        writer.enrol(enrolment.of_recordings(settings.name, recordings), add=settings.add)
        size = writer.size
    written = time.perf_counter()
    return {
        "model": settings.name,
        "recordings": [{"name": each.name, **dataclasses.asdict(each.quality)} for each in recordings],
        "gallery": {"path": str(settings.gallery), **size},
        "warnings": [
            f"{each.name}: {sentence}" for each in recordings for sentence in signal_quality.warnings(each.quality)
        ],
        "seconds": {"load": loaded - started, "embed": embedded - loaded, "write": written - embedded},
    }


def _text(content: dict[str, Any]) -> str:
    gallery = content["gallery"]
    lines = [
        f"{each['name']}: {each['speech_seconds']:.1f} s of speech in {each['seconds']:.1f} s"
        for each in content["recordings"]
    ]
    lines += [
        *(f"warning: {sentence}" for sentence in content["warnings"]),
        f"{content['model']} is enrolled in {gallery['path']}, which has {gallery['models']:,} models and "
        f"{gallery['utterances']:,} utterances",
        times(content["seconds"]),
    ]
    return as_text(lines)
