"""Two stages: first the projection and the heads on a frozen pretrained backbone, then everything, gently.

    python train.py --config=configs/two_stage.py --workdir=runs/b2-two --config.data.train=/data/vox2 \\
        --config.validation.trials=veri_test2.txt --config.validation.audio_root=/data/vox1

Stage 1 is `configs/projection_only.py`. Stage 2 starts after `stage2.epoch`, or sooner when the EER has not become
better for `stage2.patience` validations: the backbone then trains too, at a tenth of the rate of projection and
heads, its earlier stages at less (`layer_decay`), after a fresh warm-up. Only the last two stages of b2:

    --config.stage2.parts="('backbone.stages.[45]','backbone.aggregate','pool','projection','heads')"

    python train.py --config=configs/two_stage.py:demo --workdir=runs/two-demo

is the same job on a CPU: the small backbone of the package, and voices that the package makes itself.

Hardware: made for a Cloud TPU slice or a few GPUs; the second stage keeps the backbone's activations, so it needs
more memory than the first (`stage2.optimizer.accumulate` works a batch off in pieces). Time and result: not yet
measured.
"""

from ml_collections import ConfigDict

from redimnet_jax.training import config as train_config


def get_config(preset: str | None = None) -> ConfigDict:
    """Return the config, or that of the preset 'demo'."""
    config = train_config.default()
    config.model.checkpoint = "weights/b2"
    config.epochs = 20
    config.optimizer.learning_rate = 3e-4
    config.stage2.epoch = 10
    config.stage2.patience = 3
    config.stage2.optimizer.learning_rate = 1e-4
    config.stage2.optimizer.learning_rates.backbone = 1e-5
    config.stage2.optimizer.layer_decay = 0.8
    config.stage2.optimizer.warmup_epochs = 1.0
    config.stage2.optimizer.final_learning_rate = 1e-7
    config.averaging.ema = 0.999
    config.averaging.last = 3
    config.validation.patience = 5
    config.validation.significant = True
    if train_config.is_preset(preset, "configs/two_stage.py"):
        train_config.use_demo(config)
        config.epochs = 6
        config.stage2.epoch = 3
        config.averaging.ema = 0.9
    return config
