"""Trains a whole network from nothing, on the same trainer: every part trains.

    redimnet-jax rooms --output=rooms
    python train.py --config=configs/from_scratch.py:small --workdir=runs/small --config.data.train=TREE \\
        --config.validation.trials=trials.txt --config.validation.audio_root=UNSEEN \\
        --config.data.augment.reverberation.folder=rooms --config.data.augment.noise_folder.folder=noise

where `noise/speech` holds the training speech again, for babble.

`:small` is the backbone `pretrained/librispeech` that comes with the package, made for a CPU and an hour of speech;
see docs/explanation/results.md for what it reached and at what cost. Without a preset it is b2 with the public
recipe's crops, margin and schedule; not yet measured.
"""

from redimnet_jax.settings import Config
from redimnet_jax.training import config as train_config

SMALL = {
    "F": 40,
    "C": 8,
    # No 1-D blocks: on a CPU they cost more than they give.
    "stages_setup": [[2, 1, 1, [[3, 3]], None], [2, 1, 1, [[3, 3]], None]],
    "block_2d_type": "convnext_like_relu",
    "group_divisor": None,
    "hop_length": 320,
    "pooling_func": "ASTP",
    "global_context_att": True,
    "spec_params": {"win_length": 512},
}


def get_config(preset: str | None = None) -> Config:
    """Return the config, or that of the preset 'small'."""
    config = train_config.default()
    config.model.checkpoint = None
    config.parts = ("backbone", "projection", "heads")
    config.projection.mrl_dims = (192,)
    config.heads.init = "random"
    config.data.augment.speed.factors = (1.0, 0.9, 1.1)
    config.data.crop_seconds = 2.0
    config.unlock()
    if train_config.is_preset(preset, "configs/from_scratch.py", "small"):
        config.model.config = SMALL
        config.dtype = "float32"
        # Small batches of short crops and light augmentation: with more, it stays at chance for a thousand steps.
        config.batch_size = 32
        config.epochs = 100
        config.data.crop_seconds = 1.0
        config.data.crops_per_utterance = 8
        config.loss.margin_schedule = "linear"
        config.loss.margin_ramp = (10.0, 50.0)
        config.optimizer.learning_rate = 2e-3
        config.optimizer.warmup_epochs = 3.0
        config.optimizer.weight_decay = 0.05
        config.data.augment.reverberation.p = 0.1
        config.data.augment.noise_folder.p = 0.1
        config.data.augment.noise_folder.speech = (5.0, 20.0)
        config.data.augment.noise_folder.talkers = (1, 3)
        config.data.augment.gaussian_noise.p = 0.1
        config.data.augment.channel.p = 0.2
        config.data.augment.gain.p = 0.5
        config.validation.every_epochs = 10
    else:
        config.model.variant = "b2"
        config.epochs = 120
        config.loss.aam_softmax.scale = 32.0
        config.loss.margin_schedule = "exponential"
        config.loss.margin_ramp = (20.0, 40.0)
    config.lock()
    return config
