"""The config of a training run: its defaults and presets, its checks, and what may change when it is resumed.

`training.settings` declares the settings. The files in `configs/` change some of them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from redimnet_jax import settings
from redimnet_jax.checkpoints import pretrained
from redimnet_jax.errors import UserError
from redimnet_jax.training import rules
from redimnet_jax.training.settings import Settings

# An interrupted run may be resumed with another value of these: nothing here changes what is trained
# (data in another place must have the same speakers and the same digest).
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


def default() -> settings.Config:
    """Return the config of the projection-only recipe, without data; unknown keys cannot be set."""
    return settings.to_config_dict(Settings())


def use_demo(config: settings.Config) -> None:
    """Change `config` to a run of minutes on a CPU: the small backbone of the package, and artificial voices."""
    config.model.checkpoint = str(pretrained.SMALL)
    config.data.train = "synthetic:60x3x4"
    config.data.crop_seconds = 2.0
    config.validation.tree = "synthetic:20x3x4@60"
    config.validation.generated_trials = 1000
    config.dtype = "float32"
    config.batch_size = 40
    config.projection.crops = 1500


def is_preset(preset: str | None, config_file: str, name: str = "demo") -> bool:
    """Return whether `preset` is the one called `name`; raise UserError unless it is that or None."""
    if preset not in (None, name):
        raise UserError(f"{config_file} has no preset {preset!r}; it has {name!r}.")
    return preset is not None


def chosen(preset: str | None, names: Sequence[str], config_file: str, default: str) -> str:
    """Return `preset`, or `default` without one; raise UserError unless it is one of `names`."""
    if preset not in (None, *names):
        raise UserError(f"{config_file} has no preset {preset!r}; it has {', '.join(names)}.")
    return preset or default


def check(config: Settings | ConfigDict, devices: int) -> Settings:
    """Return the settings of a run on that many `devices`.

    Raise UserError for a value that no run can have, or that would have no effect.
    """
    checked = config if isinstance(config, Settings) else settings.from_config_dict(Settings, config)
    rules.check(checked, devices)
    return checked


def lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a `config`, as JSON, by dotted key, without those that a resumed run may change."""
    return {key: value for key, value in _flat(config).items() if not key.startswith(FREE_TO_CHANGE)}


def check_resume(config: Settings, saved: Mapping[str, Any], workdir: Path) -> None:
    """Raise UserError naming every setting that differs from the `saved` ones of `workdir` and matters."""
    # A setting that is newer than the run had its default value.
    old = lasting(_plain(Settings())) | lasting(saved)
    new = lasting(_plain(config))
    changed = [
        f"{key} (was {old.get(key)!r}, is {new.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(
            f"The run in {workdir} was started with another config: {', '.join(changed)}; restore these, or choose "
            "another workdir."
        )


def _plain(values: Settings) -> dict[str, Any]:
    return json.loads(settings.to_config_dict(values).to_json_best_effort())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree of mappings by dotted key."""
    leaves = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves
