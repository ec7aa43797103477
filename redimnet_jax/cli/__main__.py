"""Run `redimnet-jax` as `python -m redimnet_jax.cli`."""

import sys

from redimnet_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
