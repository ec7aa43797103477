"""Trains a Matryoshka speaker embedding; see configs/ for experiments and redimnet_jax/train.py for the run.

python train.py --config=configs/projection_only.py --workdir=runs/b2 --config.data.train=/data/vox2
"""

import sys

from redimnet_jax import cli

if __name__ == "__main__":
    sys.exit(cli.train(sys.argv))
