"""The recipe on a network of seconds: what `--dry` trains, with the settings of configs/redimnet2.py otherwise.

    python recipes/voxceleb/run.py --workdir=runs/voxceleb-dry --dry
"""

import importlib.util
from pathlib import Path

from redimnet_jax.settings import Config

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORK = {
    "F": 16,
    "C": 4,
    "hop_length": 320,
    "stages_setup": [[2, 1, 1, [[3, 3]], None]],
    "block_1d_type": "conv",
    "block_2d_type": "convnext_like_relu",
    "group_divisor": None,
    "pooling_func": "ASTP",
    "out_channels": 12,
}


def get_config(preset: str | None = None) -> Config:
    """Return the config of the preset 'tiny', by default, or 'tiny_lm'."""
    spec = importlib.util.spec_from_file_location("redimnet2_of_tiny", CONFIGS / "redimnet2.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config((preset or "tiny").replace("tiny", "b0"))
    config.dtype = "float32"
    config.batch_size = 8
    config.averaging.last = 2
    config.projection.mrl_dims = (8, 16)
    config.validation.bootstrap = 20
    config.optimizer.warmup_epochs = 0.5
    config.data.crop_seconds = 1.0
    if config.model.variant is None:
        config.projection.crops = 32
        config.epochs = 2
    else:
        config.epochs = 12
        config.validation.every_epochs = 6
        config.data.crops_per_utterance = 4
        config.model.variant = None
        with config.unlocked():
            config.model.config = NETWORK
        config.data.crop_seconds = 0.5
        config.loss.margin_ramp = (4.0, 8.0)
        config.optimizer.learning_rate = 0.1
        config.optimizer.final_learning_rate = 0.01
    return config
