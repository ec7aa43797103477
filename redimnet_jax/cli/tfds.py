"""The command `redimnet-jax tfds`: write a corpus to a TFDS data set."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from redimnet_jax import addresses
from redimnet_jax.cli.command import Parser, run

HELP = """Write a TFDS data set (ArrayRecord) from a tree speaker/[session/]utterance or a list of files.

  redimnet-jax tfds --source=/data/vox2 --data_dir=/data/tfds --name=vox2
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("redimnet-jax tfds", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, metavar="PATH", help="a folder, or a file of `path speaker` lines")
    parser.add_argument("--data_dir", required=True, type=Path, metavar="DIR", help="where TFDS keeps data sets")
    parser.add_argument("--name", default="default", help="write speaker_corpus/NAME (default: %(default)s)")
    parser.add_argument("--split", default="train", help="name of the split (default: %(default)s)")
    parser.add_argument("--audio_root", metavar="DIR", help="what the paths in a list are relative to")
    parser.add_argument("--cache_dir", type=Path, metavar="DIR", help="where to keep the index (default: nowhere)")
    parser.add_argument(
        "--min_seconds", type=float, default=0.5, metavar="S", help="leave out shorter files (default: %(default)s)"
    )
    parser.add_argument(
        "--max_bad",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="how many files may be unusable (default: %(default)s)",
    )
    parser.add_argument(
        "--beam_options", metavar="A=B,...", help="write with Apache Beam and these options, such as runner=..."
    )
    args = parser.parse_args(arguments)
    return run(lambda: _write(args), parser.flags())


def _write(args: argparse.Namespace) -> None:
    from redimnet_jax.data import tfds

    source = tfds.build(
        args.source,
        args.data_dir,
        args.name,
        split=args.split,
        beam_options=None if args.beam_options is None else args.beam_options.split(","),
        audio_root=args.audio_root,
        cache_dir=args.cache_dir,
        min_seconds=args.min_seconds,
        max_bad=args.max_bad,
    )
    print(f"Written: {source}, with data_dir {addresses.repaired(str(args.data_dir))}")
