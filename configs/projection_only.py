"""Projection-only Matryoshka training: a frozen pretrained backbone, a new projection, a head for every dimension.

    python train.py --config=configs/projection_only.py --workdir=runs/b2 --config.data.train=/data/vox2 \\
        --config.validation.trials=veri_test2.txt --config.validation.audio_root=/data/vox1

The pooled features of two crops of every utterance are computed once, and the epochs take them in turn;
`cache.crops=0` makes new crops in every epoch (see docs/explanation/cached-training.md).

`model.checkpoint` is `weights/b2`, which the conversion tool writes (see README.md); any native checkpoint or `.pt`
will do. Without `validation.trials` some training speakers are kept out and validated on.

    python train.py --config=configs/projection_only.py:demo --workdir=runs/demo

is the same job in minutes on a CPU: the small backbone of the package, and voices that the package makes itself.

Hardware: any; made for a Cloud TPU slice or a few GPUs. Time and result on VoxCeleb: not yet measured. On real speech
on a CPU: see docs/explanation/results.md.
"""

from redimnet_jax.settings import Config
from redimnet_jax.training import config as train_config


def get_config(preset: str | None = None) -> Config:
    """Return the config, or that of the preset 'demo'."""
    config = train_config.default()
    config.model.checkpoint = "weights/b2"
    config.optimizer.learning_rate = 3e-4
    config.cache.crops = 2
    if train_config.is_preset(preset, "configs/projection_only.py"):
        train_config.use_demo(config)
        config.epochs = 5
    return config
