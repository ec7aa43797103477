"""Trains a ReDimNet2 from nothing by the recipes of its authors (July 2026), and fine-tunes it with a large margin.

    MUSAN="--config.data.augment.noise.folder=/data/musan/noise --config.data.augment.music.folder=/data/musan/music
        --config.data.augment.speech.folder=/data/musan/speech --config.data.augment.babble.folder=/data/musan/speech
        --config.data.augment.reverberation.folder=/data/rirs"

    python train.py --config=configs/redimnet2.py:b2 --workdir=runs/b2 --config.data.train=/data/vox2 \\
        --config.validation.trials=veri_test2.txt --config.validation.audio_root=/data/vox1 $MUSAN

    python train.py --config=configs/redimnet2.py:b2_lm --workdir=runs/b2-lm --config.data.train=/data/vox2 \\
        --config.validation.trials=veri_test2.txt --config.validation.audio_root=/data/vox1 $MUSAN

Presets are b0 to b6 for VoxCeleb2, b3_mix and b6_mix for VoxBlink2, VoxCeleb2 and CN-Celeb together, and with _lm
their fine-tuning, which starts from the mean model and the prototypes of the run in `runs/` and the preset's name
(`model.checkpoint`, `heads.run`). The mixes have no `speech`, so leave its folder out. 120 epochs (b3_mix 110) on
crops of 2 s with three speeds as classes, SphereFace2 whose margin grows exponentially, SGD, and the mean of the
last 10 epochs; then 5 epochs on crops of 6 s (mixes 1 on 5 s) with a margin of 0.3, without speeds. The batch is
that of one GPU of the authors. As in their code the learning rate is proportional to the batch: multiply
`optimizer.learning_rate` and `optimizer.final_learning_rate` by what you multiply `batch_size` by.

It differs from the recipes in these points:

- Reverberation keeps the direct path in its place and the power, and takes the first 5 s of a response; theirs begins
  with the response. Babble without a folder is of the training corpus; theirs is MUSAN's.
- The gain of every crop, -18 to 6 dB, is left out: the front end normalises the level.
- A crop has exactly 2, 5 or 6 s; theirs has 15 ms more.
- The fine-tuning starts from the mean of the last epochs (theirs from the last one) and takes the bias of the
  classifier over with its rows (theirs starts the bias at 0). A speaker without a row is refused; theirs copies one.
- In the mixes, the room comes before the noise. The rate falls exponentially from the first step to where theirs
  ends, which it holds for 45 (b3_mix 32) epochs after the warm-up before it halves every 10 epochs. Speakers of the
  fine-tuning who have no recording of 5 s are left out by `data.min_seconds`, as theirs.
- Codecs are off, as in the mixes, where they are commented out; --config.data.augment.codec.p=0.25 codes crops.
- The arithmetic is bfloat16 in place of float16 with scaled losses.

Hardware, time and result: not yet measured here; the authors publish an EER of 0.57% on VoxCeleb1-O for b2.
"""

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
    "b3_mix": (160, 2e-5, 0.1, 48),
    "b6_mix": (96, 2e-5, 0.5, 48),
}
# Mix -> (epochs, learning rate of its first and of its last step). The rate halves every 10 epochs at the end: from
# the 41st to the 110th epoch, and from the 54th to the 120th.
MIXES = {"b3_mix": (110, 0.025, 0.025 * 0.5**7), "b6_mix": (120, 0.06, 0.06 * 0.5**6.7)}
# The batch that the learning rates of the recipes are for.
BATCH = 64
NOISES = ("noise", "music", "speech", "babble")


def get_config(preset: str | None = None) -> Config:
    """Return the config of a preset, by default 'b2'."""
    presets = [*TRAINING, *(f"{name}_lm" for name in TRAINING)]
    preset = train_config.chosen(preset, presets, "configs/redimnet2.py", "b2")
    name = preset.removesuffix("_lm")
    config = train_config.default()
    config.parts = ("backbone", "projection", "heads")
    config.projection.mrl_dims = (192,)
    config.loss.name = "sphereface2"
    config.optimizer.name = "sgd"
    config.optimizer.schedule = "exponential"
    config.optimizer.clip_norm = None
    if preset == name:
        _training(config, name)
    else:
        _fine_tuning(config, name)
    if name in MIXES:
        _augment_mix(config, 0.9 if preset == name else 0.7)
    else:
        _augment(config)
    return config


def _training(config: Config, name: str) -> None:
    batch, decay, heads, _ = TRAINING[name]
    epochs, rate, final = MIXES.get(name, (120, 0.1, 6e-5))
    config.model.checkpoint = None
    config.model.variant = f"redimnet2-{name.replace('_', '-')}"
    config.heads.init = "random"
    config.epochs = epochs
    config.batch_size = batch
    config.data.crop_seconds = 2.0
    config.data.augment.speed.factors = (1.0, 0.9, 1.1)
    config.loss.margin_schedule = "exponential"
    # The recipes count epochs from 1.
    config.loss.margin_ramp = (14.0, 29.0) if name in MIXES else (19.0, 39.0)
    config.optimizer.learning_rate = rate * batch / BATCH
    config.optimizer.final_learning_rate = final * batch / BATCH
    config.optimizer.warmup_epochs = 8.0 if name in MIXES else 6.0
    config.optimizer.weight_decay = decay
    config.optimizer.heads_weight_decay = heads * decay
    config.averaging.last = 10


def _fine_tuning(config: Config, name: str) -> None:
    batch = TRAINING[name][-1]
    config.model.checkpoint = f"runs/{name}/averaged"
    config.projection.init = "keep"
    config.heads.init = "run"
    config.heads.run = f"runs/{name}"
    config.batch_size = batch
    config.loss.sphereface2.margin = 0.3
    config.optimizer.learning_rate = 1e-4 * batch / BATCH
    config.optimizer.final_learning_rate = 2.5e-5 * batch / BATCH
    if name in MIXES:
        config.epochs = 1
        config.data.crop_seconds = 5.0
        config.data.min_seconds = 5.0
        config.optimizer.warmup_epochs = 0.2
        config.optimizer.weight_decay = 4e-5
        config.optimizer.heads_weight_decay = 1e-5
    else:
        config.epochs = 5
        config.data.crop_seconds = 6.0
        config.optimizer.warmup_epochs = 1.0
        config.optimizer.weight_decay = 1e-4
        config.averaging.last = 5


def _augment(config: Config) -> None:
    """Augment 0.6 of the crops: a noise (0.65), reverberation (0.1), or both (0.25); four kinds of noise, evenly."""
    augment = config.data.augment
    for name in (*NOISES, "reverberation"):
        augment[name].p = 1.0
    augment.babble.talkers = (3, 6)
    augment.draw.p = 0.6
    augment.draw.one_of = (*NOISES, "reverberation", *(f"reverberation+{name}" for name in NOISES))
    augment.draw.weights = (*(0.65 / 4 for _ in NOISES), 0.1, *(0.25 / 4 for _ in NOISES))


def _augment_mix(config: Config, p: float) -> None:
    """Augment a fraction `p` of the crops: a noise (0.8), reverberation (0.2), low-pass (0.25), each on its own."""
    augment = config.data.augment
    augment.draw.p = p
    augment.draw.one_of = ("noise", "music", "babble")
    for name, snr in (("noise", (0.0, 12.0)), ("music", (2.0, 12.0)), ("babble", (7.0, 18.0))):
        augment[name].p = 0.8
        augment[name].snr = snr
    augment.babble.talkers = (3, 6)
    augment.reverberation.p = 0.2
    augment.low_pass.p = 0.25
