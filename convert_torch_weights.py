"""Converts a PyTorch ReDimNet checkpoint into a native one; see `--help`."""

import sys

from redimnet_jax.cli import convert

if __name__ == "__main__":
    sys.exit(convert())
