"""The command `redimnet-jax export`: write a model in the format of another runtime or toolkit."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from redimnet_jax.cli.command import Parser, closes_quietly
from redimnet_jax.cli.result import Result, run_command
from redimnet_jax.export import FORMATS, WEIGHTS
from redimnet_jax.export.options import PRECISIONS

HELP = """Write a model in the format of another runtime or toolkit: one file, and a model card beside it.

  redimnet-jax export runs/b2 --format=onnx --output=b2.onnx
  redimnet-jax export runs/b2 --format=onnx --dim=64 --precision=int8 --output=b2-64-int8.onnx

docs/guides/export.md shows how to use each format.
"""


def _parser() -> Parser:
    parser = Parser("redimnet-jax export", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="native checkpoint, workdir of a run, or PyTorch file (.pt)"
    )
    parser.add_argument("--format", required=True, choices=tuple(FORMATS), help="what to write")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file that does not exist yet")
    parser.add_argument("--dim", type=int, metavar="N", help="export the first N dimensions (default: all)")
    parser.add_argument("--raw", action="store_true", help="leave embeddings as they are (default: length one)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="arithmetic (default: %(default)s)"
    )
    parser.add_argument(
        "--calibration_audio", type=Path, metavar="DIR", help="folder of recordings, which int8-static needs"
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="calibration (default: the one beside the model)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    return run_command(_parser(), arguments, argparse.Namespace, _export)


def _export(given: argparse.Namespace) -> Result:
    from redimnet_jax.checkpoints.open import open_model
    from redimnet_jax.export import export

    started = time.perf_counter()
    model = open_model(given.model)
    loaded = time.perf_counter()
    export(
        model,
        given.output,
        given.format,
        dim=given.dim,
        normalize=not given.raw,
        precision=given.precision,
        calibration_audio=given.calibration_audio,
        calibration=given.calibration,
    )
    exported = time.perf_counter()
    content = {
        "output": str(given.output),
        "card": f"{given.output}.md",
        "format": given.format,
        "dim": given.dim or model.embed_dim,
        "normalized": not given.raw and given.format not in WEIGHTS,
        "precision": given.precision,
        "seconds": {"load": loaded - started, "export": exported - loaded},
    }
    line = f"{given.output}: {content['dim']} dimensions, {given.format}, {given.precision}"
    return Result(content, [line, f"{given.output}.md is its model card"])
