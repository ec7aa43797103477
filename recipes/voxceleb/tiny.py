"""The recipe on a network of seconds: what `--dry` trains, with the settings of configs/redimnet2.py otherwise.

    python recipes/voxceleb/run.py --workdir=runs/voxceleb-dry --dry

The first training starts from the small backbone of the package, since nothing is learnt from nothing in seconds.
"""

import importlib.util
from pathlib import Path

from redimnet_jax.checkpoints import pretrained
from redimnet_jax.settings import Config

CONFIGS = Path(__file__).parents[2] / "configs"


def get_config(preset: str | None = None) -> Config:
    """Return the config of the preset 'tiny', by default, or 'tiny_lm'."""
    spec = importlib.util.spec_from_file_location("redimnet2_of_tiny", CONFIGS / "redimnet2.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config((preset or "tiny").replace("tiny", "b0"))
    config.dtype = "float32"
    config.batch_size = 8
    config.epochs = 2
    config.averaging.last = 2
    config.projection.mrl_dims = (16, 32)
    config.projection.init = "keep"
    config.optimizer.warmup_epochs = 0.5
    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_learning_rate = 1e-4
    config.validation.bootstrap = 20
    config.validation.players = False
    config.data.crop_seconds = 1.0
    if config.model.variant is not None:
        config.model.variant = None
        config.model.checkpoint = str(pretrained.SMALL)
        config.data.crop_seconds = 0.5
        config.loss.margin_ramp = (0.5, 1.5)
    return config
