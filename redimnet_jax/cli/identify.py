"""The command `redimnet-jax identify`: who of a gallery speaks in a recording."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redimnet_jax.cli.command import Parser, closes_quietly
from redimnet_jax.cli.gallery_options import SearchSettings, gallery_option, search_options
from redimnet_jax.cli.operating_point_options import add_operating_point, take_operating_point
from redimnet_jax.cli.recording_options import model_options
from redimnet_jax.cli.result import Result, run_command
from redimnet_jax.evaluation.settings import check_number

if TYPE_CHECKING:
    from redimnet_jax.gallery.identification import Identification
    from redimnet_jax.verification.operating_point import OperatingPoint

IDENTIFIED = 0
UNKNOWN = 3
UNDECIDED = 4

HELP = """Find who of a gallery speaks in a recording, or that nobody of them does.

  redimnet-jax identify x.wav --gallery=voices --checkpoint=runs/b2 --far=0.0001
  redimnet-jax identify x.wav --gallery=voices --checkpoint=runs/b2 --threshold=0.55 --json

The decision about the nearest model is that of `redimnet-jax verify`: it needs a calibration of the model, or
--threshold. The more models there are, the lower the rate of false acceptances of one comparison must be.

exit codes: 0 identified, 3 unknown speaker, 4 no decision, 1 error, 2 wrong flag

docs/guides/gallery.md explains the search, the decision and the JSON.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentifySettings(SearchSettings):
    """Which recording is identified, and how it is decided."""

    file: str
    operating_point: "OperatingPoint"
    calibration: Path | None = None
    best: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best is not None:
            check_number("best", self.best, minimum=1)


def _parser() -> Parser:
    parser = Parser(
        "redimnet-jax identify",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[gallery_option(), model_options(), search_options(top=5)],
    )
    parser.add_argument("file", metavar="FILE", help="an audio file of any format and sample rate")
    parser.add_argument(
        "--best",
        type=int,
        metavar="K",
        help="score a model by its K utterances nearest to the recording (default: by the mean of all)",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="calibration (default: the one beside the checkpoint)"
    )
    add_operating_point(parser)
    return parser


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    return run_command(_parser(), arguments, _settings, _identify)


def _settings(**given: Any) -> IdentifySettings:
    point = take_operating_point(given)
    return IdentifySettings(operating_point=point, **given)


def _identify(settings: IdentifySettings) -> Result:
    started = time.perf_counter()
    from redimnet_jax.gallery.gallery import Gallery
    from redimnet_jax.gallery.identification import IdentifyOptions, identify

    model = settings.open_model()
    gallery = Gallery.open(settings.gallery, model)
    options = IdentifyOptions(
        dim=settings.dim,
        best=settings.best,
        top=settings.top,
        method=settings.method(gallery.weights.dim),
        operating_point=settings.operating_point,
        calibration=settings.calibration,
        min_speech=settings.least_speech(),
    )
    loaded = time.perf_counter()
    found = identify(model, settings.file, gallery, options)
    content = found.to_json()
    content["seconds"] = {"load": loaded - started, **found.seconds}
    code = {True: IDENTIFIED, False: UNKNOWN, None: UNDECIDED}[found.decision.same_speaker]
    return Result(content, _lines(found), code)


def _lines(found: "Identification") -> list[str]:
    decision = found.decision
    answer = {True: found.matches[0].model, False: "unknown speaker", None: "no decision"}[decision.same_speaker]
    lines = [answer, f"nearest of {found.models:,} models at {found.dim} dimensions:"]
    lines += [f"  {match.score:.4f}  {match.model}" for match in found.matches]
    if decision.llr is not None:
        lines.append(f"log-likelihood ratio of the nearest {decision.llr:.2f}")
    if decision.threshold is not None:
        lines.append(f"threshold {decision.threshold:.4f}, for {decision.operating_point}")
    quality = found.recording.quality
    lines.append(f"{found.recording.name}: {quality.speech_seconds:.1f} s of speech in {quality.seconds:.1f} s")
    return [*lines, *(f"warning: {sentence}" for sentence in found.warnings)]
