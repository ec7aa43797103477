"""Options that the commands with galleries share, and how they print what they found."""

import argparse
import json
from pathlib import Path
from typing import Any

from redimnet_jax.cli.command import say
from redimnet_jax.evaluation.settings import DTYPES


def gallery_option() -> argparse.ArgumentParser:
    """Return a parent parser with --gallery and --json."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--gallery", type=Path, required=True, metavar="DIR", help="folder or address of the gallery")
    parser.add_argument("--json", action="store_true", help="print JSON, one line for each result")
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
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="arithmetic of the network (default: %(default)s)"
    )
    parser.add_argument(
        "--min_speech",
        type=float,
        metavar="S",
        help="refuse recordings with less than S seconds of speech (default: %(default)s)",
    )
    return parser


def search_options() -> argparse.ArgumentParser:
    """Return a parent parser with the options of commands that search a gallery."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("search")
    group.add_argument("--dim", type=int, metavar="N", help="compare the first N dimensions (default: all)")
    group.add_argument(
        "--shortlist",
        choices=("float32", "int8", "binary", "exhaustive"),
        default="float32",
        help="form of the embeddings by which candidates are found: 64 dimensions in float32 or int8, all in binary, "
        "or no shortlist (default: %(default)s)",
    )
    group.add_argument(
        "--candidates", type=int, default=512, metavar="N", help="length of the shortlist (default: %(default)s)"
    )
    return parser


def show(entries: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result: `entries` as a line of JSON, or else `text`."""
    say(json.dumps(entries) if as_json else text)
