"""Train a Matryoshka speaker embedding; see configs/ for experiments and redimnet_jax/training/run.py for the run.

python train.py --config=configs/projection_only.py --workdir=runs/b2 --config.data.train=/data/vox2
"""

import os
import signal
import sys


def leave(number: int, frame: object) -> None:
    """End the process while nothing runs yet, or when nothing runs any more."""
    code, word = (0, b"Stopped") if number == signal.SIGTERM else (130, b"Interrupted")
    os.write(2 if code else 1, word + b" outside of training; start the same command again.\n")
    os._exit(code)


if __name__ == "__main__":
    # Before the imports, which take seconds.
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as Ctrl-C is by jobs in the background
            signal.signal(number, leave)

    from redimnet_jax.cli import supervisor

    supervisor.split(sys.argv[1:])
    from redimnet_jax.cli.train import main

    code = main()
    # All is done; what ends the interpreter needs no handler, and must not change the exit code.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
