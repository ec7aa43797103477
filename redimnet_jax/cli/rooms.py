"""The command `redimnet-jax rooms`: write artificial room impulse responses."""

import argparse
from collections.abc import Sequence

from redimnet_jax import buckets
from redimnet_jax.cli.command import Parser, run

HELP = """Write artificial room impulse responses, for reverberation where no recorded ones are at hand.

  redimnet-jax rooms --output=rooms --count=300
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("redimnet-jax rooms", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder that does not exist yet")
    parser.add_argument("--count", type=int, default=300, help="number of rooms (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random rooms (default: %(default)s)")
    args = parser.parse_args(arguments)
    return run(lambda: _write(args), parser.flags())


def _write(args: argparse.Namespace) -> None:
    from redimnet_jax.data.synthetic import rooms

    with buckets.new_folder(args.output) as output:
        rooms.write_rooms(output, args.count, args.seed)
