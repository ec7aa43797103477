"""Verification results of a checkpoint on a trial list.

python eval.py --checkpoint=runs/b2 --trials=veri_test2.txt --audio_root=/data/vox1 --output=report/
"""

import sys

from redimnet_jax import cli

if __name__ == "__main__":
    sys.exit(cli.evaluate())
