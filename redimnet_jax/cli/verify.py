"""The command `redimnet-jax verify`: whether two recordings are of one speaker."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redimnet_jax.cli.command import Parser, closes_quietly
from redimnet_jax.cli.operating_point_options import add_operating_point, take_operating_point
from redimnet_jax.cli.recording_options import RecordingSettings, model_options
from redimnet_jax.cli.result import Result, run_command
from redimnet_jax.evaluation.settings import check_number

if TYPE_CHECKING:
    from redimnet_jax.verification.operating_point import OperatingPoint
    from redimnet_jax.verification.verify import Verification

SAME = 0
DIFFERENT = 3
UNDECIDED = 4

HELP = """Decide whether two recordings are of one speaker.

  redimnet-jax verify a.wav b.wav --checkpoint=runs/b2
  redimnet-jax verify a.wav b.wav --checkpoint=runs/b2 --far=0.01 --json

A decision needs a calibration of the model, which `redimnet-jax eval --calibrate_half` makes, or --threshold. The
operating point is a prior with costs (the default), a false acceptance rate (--far), or a score (--threshold).

exit codes: 0 same speaker, 3 different speakers, 4 no decision, 1 error, 2 wrong flag

docs/guides/verify.md explains operating points, calibration and the JSON.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifySettings(RecordingSettings):
    """What is compared and how; raise ArgumentError for values and combinations that no comparison can have."""

    a: str
    b: str
    operating_point: "OperatingPoint"
    calibration: Path | None = None
    dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim is not None:
            check_number("dim", self.dim, minimum=1)


def _parser() -> Parser:
    parser = Parser(
        "redimnet-jax verify",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[model_options()],
    )
    parser.add_argument("a", metavar="A", help="an audio file of any format and sample rate")
    parser.add_argument("b", metavar="B", help="the file to compare it with")
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="calibration (default: the one beside the checkpoint)"
    )
    parser.add_argument("--dim", type=int, metavar="N", help="compare the first N dimensions (default: all)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_operating_point(parser)
    return parser


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    return run_command(_parser(), arguments, _settings, _verify)


def _settings(**given: Any) -> VerifySettings:
    point = take_operating_point(given)
    return VerifySettings(operating_point=point, **given)


def _verify(settings: VerifySettings) -> Result:
    started = time.perf_counter()
    from redimnet_jax.verification.verify import verify

    model = settings.open_model()
    loaded = time.perf_counter()
    verification = verify(
        model,
        settings.a,
        settings.b,
        settings.dim,
        operating_point=settings.operating_point,
        calibration=settings.calibration,
        min_speech=settings.least_speech(),
    )
    content = verification.to_json()
    content["seconds"] = {"load": loaded - started, **content["seconds"]}
    code = {True: SAME, False: DIFFERENT, None: UNDECIDED}[verification.decision.same_speaker]
    return Result(content, _lines(verification), code)


def _lines(verification: "Verification") -> list[str]:
    decision = verification.decision
    answer = {True: "same speaker", False: "different speakers", None: "no decision"}[decision.same_speaker]
    lines = [answer, f"score {decision.score:.4f} at {verification.dim} dimensions"]
    if decision.llr is not None:
        lines[-1] += f", log-likelihood ratio {decision.llr:.2f}"
    if decision.threshold is not None:
        lines.append(f"threshold {decision.threshold:.4f}, for {decision.operating_point}")
    if decision.errors is not None and decision.measured is not None:
        errors, measured = decision.errors, decision.measured
        rates = [
            f"{name} {100 * rate:.2f}% [{100 * low:.2f}, {100 * high:.2f}]"
            for name, rate, (low, high) in (
                ("false acceptances", errors.far, errors.far_ci95),
                ("false rejections", errors.frr, errors.frr_ci95),
            )
        ]
        lines += [", ".join(rates), f"measured on {measured.description} ({measured.speakers} speakers)"]
    for each in verification.recordings:
        quality = each.quality
        lines.append(f"{each.name}: {quality.speech_seconds:.1f} s of speech in {quality.seconds:.1f} s")
    return [*lines, *(f"warning: {sentence}" for sentence in verification.warnings)]
