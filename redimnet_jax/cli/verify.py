"""The command `redimnet-jax verify`: whether two recordings are of one speaker."""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redimnet_jax import buckets, names
from redimnet_jax.cli.command import Parser, closes_quietly, run
from redimnet_jax.cli.operating_point_options import add_operating_point, take_operating_point
from redimnet_jax.errors import ArgumentError
from redimnet_jax.evaluation.settings import DTYPES, check_choice, check_number

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


@dataclasses.dataclass(frozen=True)
class VerifySettings:
    """What is compared and how; raise ArgumentError for values and combinations that no comparison can have."""

    a: str
    b: str
    checkpoint: Path
    operating_point: "OperatingPoint"
    calibration: Path | None = None
    dim: int | None = None
    min_speech: float | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dim is not None:
            check_number("dim", self.dim, minimum=1)
        if self.min_speech is not None and not 0 <= self.min_speech < float("inf"):
            raise ArgumentError(f"`min_speech` is {self.min_speech} but must be a number of seconds, 0 or more.")
        check_choice("dtype", self.dtype, DTYPES)


def _parser() -> Parser:
    parser = Parser("redimnet-jax verify", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="an audio file of any format and sample rate")
    parser.add_argument("b", metavar="B", help="the file to compare it with")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="PATH",
        help="native checkpoint, workdir of a run, or PyTorch file (.pt)",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="calibration (default: the one beside the checkpoint)"
    )
    parser.add_argument("--dim", type=int, metavar="N", help="compare the first N dimensions (default: all)")
    parser.add_argument(
        "--min_speech",
        type=float,
        metavar="S",
        help="refuse files with less speech, in seconds (default: 0.5)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="arithmetic (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_operating_point(parser)
    return parser


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    as_json = given.pop("json")
    settings = parser.settings(_settings, given)
    codes: list[int] = []

    def command() -> None:
        verification, load_seconds = _verify(settings)
        print(_json(verification, load_seconds) if as_json else _text(verification, load_seconds))
        codes.append({True: SAME, False: DIFFERENT, None: UNDECIDED}[verification.decision.same_speaker])

    return run(command, parser.flags()) or codes[0]


def _settings(**given: Any) -> VerifySettings:
    point = take_operating_point(given)
    return VerifySettings(operating_point=point, **given)


def _verify(settings: VerifySettings) -> "tuple[Verification, float]":
    """Return the result, and how many seconds opening the model took."""
    started = time.perf_counter()
    import jax.numpy as jnp

    from redimnet_jax.checkpoints.open import open_model
    from redimnet_jax.data import speech
    from redimnet_jax.verification.verify import verify

    model = open_model(settings.checkpoint, dtype=jnp.dtype(settings.dtype))
    loaded = time.perf_counter()
    verification = verify(
        model,
        settings.a,
        settings.b,
        settings.dim,
        operating_point=settings.operating_point,
        calibration=settings.calibration,
        min_speech=speech.MIN_SECONDS if settings.min_speech is None else settings.min_speech,
    )
    return verification, loaded - started


def _json(verification: "Verification", load_seconds: float) -> str:
    content = verification.to_json()
    content["seconds"] = {"load": load_seconds, **content["seconds"]}
    return buckets.readable(json.dumps(content, indent=2, allow_nan=False))


def _text(verification: "Verification", load_seconds: float) -> str:
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
    lines += [f"warning: {sentence}" for sentence in verification.warnings]
    seconds = {"load": load_seconds, **verification.seconds}
    lines.append(", ".join(f"{name} {value:.3f} s" for name, value in seconds.items()))
    return "\n".join(names.one_line(buckets.readable(line)) for line in lines)
