"""Trains a ReDimNet2 from nothing by the recipe of its authors (July 2026), and fine-tunes it with a large margin.

    python train.py --config=configs/redimnet2.py:b2 --workdir=runs/b2 --config.data.train=/data/vox2 \\
        --config.validation.trials=veri_test2.txt --config.validation.audio_root=/data/vox1 \\
        --config.data.augment.reverberation.folder=/data/rirs --config.data.augment.noise_folder.folder=/data/musan

    python train.py --config=configs/redimnet2.py:b2_lm --workdir=runs/b2-lm \\
        --config.model.checkpoint=runs/b2/averaged --config.data.train=/data/vox2 \\
        --config.validation.trials=veri_test2.txt --config.validation.audio_root=/data/vox1 \\
        --config.data.augment.reverberation.folder=/data/rirs --config.data.augment.noise_folder.folder=/data/musan

Presets are b0 to b6, and b0_lm to b6_lm. 120 epochs on crops of 2 s with three speeds as classes, SphereFace2 whose
margin grows over the 20th to the 40th epoch, SGD whose rate falls exponentially, and the mean of the last 10 epochs;
then 5 epochs on crops of 6 s with a margin of 0.3. The batch is that of one GPU of the authors. As in their code the
learning rate is proportional to the batch: multiply `optimizer.learning_rate` and `optimizer.final_learning_rate` by
what you multiply `batch_size` by.

It differs from the recipe in four points:

- An augmentation is reverberation or noise with a probability of 0.6; here either has 0.3, and both can meet.
- Noise, music and babble have the signal-to-noise ratios of `NoiseFolder`'s defaults.
- The classes of the fine-tuning start at the means of their embeddings, not at their rows of the first classifier.
- The arithmetic is bfloat16 in place of float16 with scaled losses.

Hardware, time and result: not yet measured here; the authors publish an EER of 0.57% on VoxCeleb1-O for b2.
"""

from redimnet_jax.errors import UserError
from redimnet_jax.settings import Config
from redimnet_jax.training import config as train_config

# Variant -> (batch of a GPU, weight decay, that of the classifier over it, batch of a GPU in the fine-tuning).
TRAINING = {
    "b0": (512, 2e-5, 5, 160),
    "b1": (224, 5e-6, 2, 64),
    "b2": (192, 1.5e-5, 4, 64),
    "b3": (224, 2e-5, 5, 64),
    "b4": (160, 2e-5, 5, 64),
    "b5": (128, 2e-5, 5, 48),
    "b6": (140, 2e-5, 5, 48),
}
# The batch that the learning rates of the recipes are for.
BATCH = 64


def get_config(preset: str | None = None) -> Config:
    """Return the config of a preset, by default 'b2'."""
    variant, _, stage = (preset or "b2").partition("_")
    if variant not in TRAINING or stage not in ("", "lm"):
        names = ", ".join([*TRAINING, *(f"{name}_lm" for name in TRAINING)])
        raise UserError(f"configs/redimnet2.py has no preset {preset!r}; it has {names}.")
    config = train_config.default()
    config.parts = ("backbone", "projection", "heads")
    config.projection.mrl_dims = (192,)
    config.loss.name = "sphereface2"
    config.optimizer.name = "sgd"
    config.optimizer.schedule = "exponential"
    config.optimizer.clip_norm = None
    config.data.augment.reverberation.p = 0.3
    config.data.augment.noise_folder.p = 0.3
    if stage == "lm":
        _fine_tuning(config, variant)
    else:
        _training(config, variant)
    return config


def _training(config: Config, variant: str) -> None:
    batch, decay, heads, _ = TRAINING[variant]
    config.model.checkpoint = None
    config.model.variant = f"redimnet2-{variant}"
    config.heads.init = "random"
    config.epochs = 120
    config.batch_size = batch
    config.data.crop_seconds = 2.0
    config.data.augment.speed.factors = (1.0, 0.9, 1.1)
    config.loss.margin_schedule = "exponential"
    config.loss.margin_ramp = (19.0, 39.0)  # The recipe counts epochs from 1.
    config.optimizer.learning_rate = 0.1 * batch / BATCH
    config.optimizer.final_learning_rate = 6e-5 * batch / BATCH
    config.optimizer.warmup_epochs = 6.0
    config.optimizer.weight_decay = decay
    config.optimizer.heads_weight_decay = heads * decay
    config.averaging.last = 10


def _fine_tuning(config: Config, variant: str) -> None:
    batch = TRAINING[variant][-1]
    config.model.checkpoint = f"runs/{variant}/averaged"
    config.projection.init = "keep"
    config.epochs = 5
    config.batch_size = batch
    config.data.crop_seconds = 6.0
    config.loss.sphereface2.margin = 0.3
    config.optimizer.learning_rate = 1e-4 * batch / BATCH
    config.optimizer.final_learning_rate = 2.5e-5 * batch / BATCH
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 1e-4
    config.averaging.last = 5
