"""The command `redimnet-jax enrol`: enrol a speaker in a gallery."""

import argparse
import dataclasses
import time
from collections.abc import Sequence

from redimnet_jax.cli.command import Parser, closes_quietly
from redimnet_jax.cli.gallery_options import GallerySettings, gallery_option
from redimnet_jax.cli.recording_options import model_options
from redimnet_jax.cli.result import Result, run_command
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
    return run_command(_parser(), arguments, EnrolSettings, _enrol)


def _enrol(settings: EnrolSettings) -> Result:
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
    warnings = [f"{each.name}: {line}" for each in recordings for line in signal_quality.warnings(each.quality)]
    content = {
        "model": settings.name,
        "recordings": [{"name": each.name, **dataclasses.asdict(each.quality)} for each in recordings],
        "gallery": size,
        "warnings": warnings,
        "seconds": {"load": loaded - started, "embed": embedded - loaded, "write": written - embedded},
    }
    lines = [
        f"{each.name}: {each.quality.speech_seconds:.1f} s of speech in {each.quality.seconds:.1f} s"
        for each in recordings
    ]
    lines += [f"warning: {sentence}" for sentence in warnings]
    lines.append(
        f"{settings.name} is enrolled in {settings.gallery} (models: {size['models']:,}, utterances: "
        f"{size['utterances']:,})"
    )
    return Result(content, lines)
