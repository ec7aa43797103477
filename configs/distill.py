"""Distillation: a small student learns the scores of a large frozen teacher, with a Matryoshka projection of its own.

    python train.py --config=configs/distill.py --workdir=runs/b0-distilled --config.data.train=/data/vox2 \\
        --config.validation.trials=veri_test2.txt --config.validation.audio_root=/data/vox1

The teacher is `distillation.teacher`, any converted variant, and hears the same augmented crops. Beside the loss of
the heads, the student's cosines between the crops of a batch follow the teacher's, at every prefix and whatever the
widths; with `distillation.embeddings` above 0 its first elements follow the teacher's embedding too. The student is
b0 from nothing; `model.checkpoint` starts from a trained one, and `model.variant` is another network.

    python train.py --config=configs/distill.py:demo --workdir=runs/distill-demo

is the same job on a CPU: the small backbone of the package teaches a smaller one on voices that the package makes.

Hardware: made for a Cloud TPU slice or a few GPUs; a step costs the student's forward and backward and the teacher's
forward. Time and result: not yet measured.
"""

from redimnet_jax.checkpoints import pretrained
from redimnet_jax.settings import Config
from redimnet_jax.training import config as train_config

TINY = {
    "F": 40,
    "C": 4,
    "stages_setup": [[2, 1, 1, [[3, 3]], None]],
    "block_2d_type": "convnext_like_relu",
    "group_divisor": None,
    "hop_length": 320,
    "pooling_func": "ASTP",
    "spec_params": {"win_length": 512},
}


def get_config(preset: str | None = None) -> Config:
    """Return the config, or that of the preset 'demo'."""
    config = train_config.default()
    config.model.checkpoint = None
    config.parts = ("backbone", "projection", "heads")
    config.heads.init = "random"
    config.epochs = 60
    config.data.crop_seconds = 2.0
    config.loss.margin_schedule = "linear"
    config.loss.margin_ramp = (10.0, 20.0)
    config.distillation.teacher = "weights/b6"
    config.distillation.scores = 10.0
    config.model.variant = "b0"
    config.unlock()
    if train_config.is_preset(preset, "configs/distill.py"):
        train_config.use_demo(config)
        config.model.checkpoint = None
        config.projection.crops = train_config.default().projection.crops  # No pretrained projection is rotated.
        config.model.variant = None
        config.model.config = TINY
        config.distillation.teacher = str(pretrained.SMALL)
        config.epochs = 5
        config.loss.margin_ramp = (1.0, 3.0)
    config.lock()
    return config
