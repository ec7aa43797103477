"""Large-margin fine-tuning of a trained model: longer crops, a larger margin, little else.

    python train.py --config=configs/large_margin.py --workdir=runs/b2-lm --config.model.checkpoint=runs/b2 \\
        --config.data.train=/data/vox2 --config.validation.trials=veri_test2.txt \\
        --config.validation.audio_root=/data/vox1

`model.checkpoint` is the workdir of a trained model, or any checkpoint. Its projection is kept as it is
(`projection.init`), so `projection.mrl_dims` must not end beyond its width; the heads start at the means of the
classes, or with `heads.init=run` at the prototypes of the run `heads.run`. Everything trains for a few epochs at a
low rate, on crops of 6 s, with a margin of 0.5 (Thienpondt et al., ICASSP 2021, arXiv 2010.11255) and without speed
perturbation.

    python train.py --config=configs/large_margin.py:demo --workdir=runs/lm-demo

is the same job on a CPU: the small backbone of the package, and voices that the package makes itself.

Hardware: made for a Cloud TPU slice or a few GPUs; crops twice as long need twice the memory, so half the batch, or
`optimizer.accumulate`. Time and result: not yet measured.
"""

from redimnet_jax.settings import Config
from redimnet_jax.training import config as train_config


def get_config(preset: str | None = None) -> Config:
    """Return the config, or that of the preset 'demo'."""
    config = train_config.default()
    config.model.checkpoint = "runs/b2"
    config.parts = ("backbone", "projection", "heads")
    config.projection.init = "keep"
    config.epochs = 5
    config.batch_size = 128
    config.data.crop_seconds = 6.0
    config.loss.aam_softmax.margin = 0.5
    config.optimizer.learning_rate = 5e-5
    config.optimizer.learning_rates.backbone = 1e-5
    config.optimizer.final_learning_rate = 1e-7
    config.averaging.last = 3
    if train_config.is_preset(preset, "configs/large_margin.py"):
        train_config.use_demo(config)
        config.projection.mrl_dims = (64, 128, 192)
        config.batch_size = 20
        config.epochs = 2
        config.data.crop_seconds = 3.0
        config.averaging.last = 2
    return config
