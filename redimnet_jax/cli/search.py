"""The command `redimnet-jax search`: the utterances of a gallery that are nearest to a recording."""

import argparse
import dataclasses
import time
from collections.abc import Sequence

from redimnet_jax.cli.command import Parser, closes_quietly
from redimnet_jax.cli.gallery_options import SearchSettings, gallery_option, search_options
from redimnet_jax.cli.recording_options import model_options
from redimnet_jax.cli.result import Result, run_command

HELP = """Find the utterances of a gallery that are nearest to a recording.

  redimnet-jax search x.wav --gallery=voices --checkpoint=runs/b2 --top=20

exit codes: 0 found, 1 error, 2 wrong flag
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSearchSettings(SearchSettings):
    """Which recording is searched for."""

    file: str


def _parser() -> Parser:
    parser = Parser(
        "redimnet-jax search",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[gallery_option(), model_options(), search_options(top=10)],
    )
    parser.add_argument("file", metavar="FILE", help="an audio file of any format and sample rate")
    return parser


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    return run_command(_parser(), arguments, FileSearchSettings, _search)


def _search(settings: FileSearchSettings) -> Result:
    started = time.perf_counter()
    from redimnet_jax.data import signal_quality
    from redimnet_jax.gallery.gallery import Gallery
    from redimnet_jax.verification.verify import embed_usable

    model = settings.open_model()
    gallery = Gallery.open(settings.gallery, model)
    loaded = time.perf_counter()
    recording = embed_usable(model, settings.file, settings.least_speech())
    embedded = time.perf_counter()
    method = settings.method(gallery.weights.dim)
    (matches,) = gallery.search(recording.vector[None], top=settings.top, dim=settings.dim, method=method)
    seconds = {
        "load": loaded - started,
        "decode": recording.decode_seconds,
        "embed": recording.embed_seconds,
        "search": time.perf_counter() - embedded,
    }
    warnings = [f"{recording.name}: {sentence}" for sentence in signal_quality.warnings(recording.quality)]
    dim = settings.dim or gallery.weights.dim
    content = {
        "matches": [dataclasses.asdict(match) for match in matches],
        "utterances": gallery.utterances,
        "dim": dim,
        "recording": {"name": recording.name, **dataclasses.asdict(recording.quality)},
        "warnings": warnings,
        "seconds": seconds,
    }
    lines = [f"nearest of {gallery.utterances:,} utterances at {dim} dimensions:"]
    lines += [f"  {match.score:.4f}  {match.model}  {match.utterance}" for match in matches]
    return Result(content, [*lines, *(f"warning: {sentence}" for sentence in warnings)])
