"""Convert a PyTorch ReDimNet checkpoint into a native one; see `--help`."""

import signal
import sys

if __name__ == "__main__":
    # During the imports, which take seconds, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from redimnet_jax.cli.convert import main

    sys.exit(main())
