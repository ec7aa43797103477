"""Trains a ReDimNet (the first version) from nothing by WeSpeaker's recipe, and fine-tunes it with a large margin.

    MUSAN="--config.data.augment.noise.folder=/data/musan/noise --config.data.augment.music.folder=/data/musan/music
        --config.data.augment.speech.folder=/data/musan/speech --config.data.augment.reverberation.folder=/data/rirs"

    python train.py --config=configs/redimnet.py:b2 --workdir=runs/b2 --config.data.train=/data/vox2 \\
        --config.validation.trials=veri_test2.txt --config.validation.audio_root=/data/vox1 $MUSAN

    python train.py --config=configs/redimnet.py:b2_lm --workdir=runs/b2-lm --config.data.train=/data/vox2 \\
        --config.validation.trials=veri_test2.txt --config.validation.audio_root=/data/vox1 $MUSAN

Presets are b0, b1, b2, b3, b5 and b6, those of `model.variant`, and with _lm their fine-tuning, which starts from
the mean model and the prototypes of the run in `runs/` and the variant's name (`model.checkpoint`, `heads.run`).
The recipe is that of `redimnet.yaml` (for b2) and, for the fine-tuning, of `resnet_lm.yaml` in WeSpeaker's
examples/voxceleb/v2: 120 epochs on crops of 2 s with three speeds as classes, AAM-Softmax (scale 32) whose margin
grows to 0.2 over the 20th to the 40th epoch, SGD from 0.1 to 5e-5 and the mean of the last 10 epochs; then 5 epochs
on crops of 6 s with a margin of 0.5. With SphereFace2 in its place:

    --config.loss.name=sphereface2 --config.loss.aam_softmax.scale=30      # in the fine-tuning, with
    --config.loss.aam_softmax.margin=0.2 --config.loss.sphereface2.margin=0.3

The batch is that of one GPU. As in WeSpeaker the learning rate is proportional to the batch: multiply
`optimizer.learning_rate` and `optimizer.final_learning_rate` by what you multiply `batch_size` by.

It differs from the recipe in these points:

- The front end is the network's own, mel bands with a hop of 15 ms (hop_length 240), as in the released weights; the
  recipe computes Kaldi's filter banks with 10 ms and dither.
- Reverberation keeps the direct path in its place and the power, and takes the first 5 s of a response; the recipe's
  begins with the response. Levels are not normalised after it: the front end removes the mean.
- The recipe cuts utterances to a random stretch of 8 s before it draws a crop; here a crop is of the whole utterance.
- The fine-tuning has the prototypes of the speakers as they are; the recipe's also keeps those of the changed speeds,
  of which it has no crops. It starts from the mean of the last 10 epochs and ends with that of its 5; the recipe's
  ends with the last epoch.
- The arithmetic is bfloat16 in place of float32; --config.dtype=float32 is the recipe's.

Hardware, time and result: not yet measured here; the authors publish an EER of 0.57% on VoxCeleb1-O for b2.
"""

from redimnet_jax.settings import Config
from redimnet_jax.training import config as train_config

VARIANTS = ("b0", "b1", "b2", "b3", "b5", "b6")
# The batch of a GPU, and the batch that the learning rates of the recipe are for.
TRAINING_BATCH, FINE_TUNING_BATCH, BATCH = 256, 64, 64
# The files of MUSAN, from all of which the recipe draws one evenly.
FILES = {"noise": 930, "music": 660, "speech": 426}


def get_config(preset: str | None = None) -> Config:
    """Return the config of a preset, by default 'b2'."""
    presets = [*VARIANTS, *(f"{name}_lm" for name in VARIANTS)]
    preset = train_config.chosen(preset, presets, "configs/redimnet.py", "b2")
    variant = preset.removesuffix("_lm")
    config = train_config.default()
    config.parts = ("backbone", "projection", "heads")
    config.projection.mrl_dims = (192,)
    config.data.min_seconds = 1.0
    config.loss.aam_softmax.scale = 32.0
    config.optimizer.name = "sgd"
    config.optimizer.schedule = "exponential"
    config.optimizer.clip_norm = None
    _augment(config)
    if preset == variant:
        _training(config, variant)
    else:
        _fine_tuning(config, variant)
    return config


def _training(config: Config, variant: str) -> None:
    config.model.checkpoint = None
    config.model.variant = variant
    config.heads.init = "random"
    config.epochs = 120
    config.batch_size = TRAINING_BATCH
    config.data.crop_seconds = 2.0
    config.data.augment.speed.factors = (1.0, 0.9, 1.1)
    config.loss.aam_softmax.margin = 0.2
    config.loss.margin_schedule = "exponential"
    config.loss.margin_ramp = (19.0, 39.0)  # The recipe counts epochs from 1.
    config.optimizer.learning_rate = 0.1 * TRAINING_BATCH / BATCH
    config.optimizer.final_learning_rate = 5e-5 * TRAINING_BATCH / BATCH
    config.optimizer.warmup_epochs = 6.0
    config.optimizer.weight_decay = 2e-5
    config.averaging.last = 10


def _fine_tuning(config: Config, variant: str) -> None:
    config.model.checkpoint = f"runs/{variant}/averaged"
    config.projection.init = "keep"
    config.heads.init = "run"
    config.heads.run = f"runs/{variant}"
    config.epochs = 5
    config.batch_size = FINE_TUNING_BATCH
    config.data.crop_seconds = 6.0
    config.loss.aam_softmax.margin = 0.5
    config.optimizer.learning_rate = 1e-4 * FINE_TUNING_BATCH / BATCH
    config.optimizer.final_learning_rate = 2.5e-5 * FINE_TUNING_BATCH / BATCH
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 1e-4
    config.averaging.last = 5


def _augment(config: Config) -> None:
    """Augment 0.6 of the crops: reverberation (one half), or one file of MUSAN at the ratio of its kind."""
    augment = config.data.augment
    for name in ("reverberation", *FILES):
        augment[name].p = 1.0
    augment.speech.snr = (10.0, 30.0)
    augment.draw.p = 0.6
    augment.draw.one_of = ("reverberation", *FILES)
    augment.draw.weights = (0.5, *(0.5 * count / sum(FILES.values()) for count in FILES.values()))
