"""Evaluate a checkpoint on verification trials; see `--help`.

python eval.py --checkpoint=runs/b2 --trials=veri_test2.txt --audio_root=/data/vox1 --output=report/
"""

import signal
import sys

if __name__ == "__main__":
    # During the imports, which take seconds, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from redimnet_jax.cli.evaluate import main

    sys.exit(main())
