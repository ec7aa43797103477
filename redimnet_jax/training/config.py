"""The config of a training run: its defaults, its checks, and what may change when it is resumed.

`training_settings` declares the settings; `docs/settings.md` lists them. The files in `configs/` change some of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from redimnet_jax import settings
from redimnet_jax.checkpoints import pretrained
from redimnet_jax.errors import UserError
from redimnet_jax.training import rules
from redimnet_jax.training.settings import Settings

# An interrupted run may be resumed with another value of these: nothing here changes what is trained
# (of data elsewhere, the speakers and the digest are compared).
FREE_TO_CHANGE = (
    "data.train",
    "data.data_dir",
    "data.max_bad",
    "data.workers",
    "cache.folder",
    "cache.batch_size",
    "cache.memory_share",
    "checkpoint.",
    "log_every_steps",
    "validation.batch_seconds",
)


def default() -> ConfigDict:
    """Returns the projection-only recipe, without data; a key that is not there cannot be set."""
    return settings.to_config_dict(Settings())


def use_demo(config: ConfigDict) -> None:
    """Makes `config` a matter of minutes on a CPU: the small backbone and voices that the package makes itself."""
    config.model.checkpoint = str(pretrained.SMALL)
    config.data.train = "synthetic:60x3x4"
    config.data.crop_seconds = 2.0
    config.validation.tree = "synthetic:20x3x4@60"
    config.validation.generated_trials = 1000
    config.dtype = "float32"
    config.batch_size = 40
    config.projection.crops = 1500


def check(config: ConfigDict, devices: int, processes: int) -> None:
    """Raises UserError for a value that no run can have, or that would have no effect.

    `devices` and `processes` are what the run has.
    """
    rules.check(settings.from_config_dict(Settings, config), devices)


def check_resume(config: ConfigDict, saved: Mapping[str, Any], workdir: Path) -> None:
    """Raises UserError naming every setting that differs from the `saved` ones of `workdir` and matters."""
    # Settings that are newer than the run had no other value than their default.
    old, now = (_flat(json.loads(each.to_json_best_effort())) for each in (default(), config))
    old |= _flat(saved)
    changed = [
        f"{key} (was {old.get(key)!r}, is {now.get(key)!r})"
        for key in sorted(old.keys() | now.keys())
        if old.get(key) != now.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    if changed:
        raise UserError(
            f"The run in {workdir} was started with another config: {', '.join(changed)}; restore these, or give "
            "another --workdir."
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree of mappings by dotted key."""
    leaves = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves
