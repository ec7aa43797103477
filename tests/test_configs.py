"""Every file in configs/ is a whole, valid experiment, and so is each of its presets."""

import importlib.util
import pathlib

import pytest

from redimnet_jax import settings
from redimnet_jax.errors import UserError
from redimnet_jax.models import config as model_config
from redimnet_jax.training import config as train_config
from redimnet_jax.training.settings import Settings

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
PRESETS = {
    "projection_only": [None, "demo"],
    "same_speaker_split": [None, "demo"],
    "from_scratch": [None, "small"],
    "two_stage": [None, "demo"],
    "large_margin": [None, "demo"],
    "distill": [None, "demo"],
    "redimnet2": [None, *(f"b{i}" for i in range(7)), *(f"b{i}_lm" for i in range(7))],
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_is_known_here():
    assert {path.stem for path in CONFIGS.glob("*.py")} == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    for preset in PRESETS[name]:
        config = load(name).get_config(preset)
        for step in config.data.augment.values():
            if "folder" in step and step.p:
                step.folder = "given on the command line"
        train_config.check(config, devices=1)
        if config.model.checkpoint is None:
            width = {"embed_dim": config.projection.mrl_dims[-1]}
            arch, entries = settings.from_config_dict(Settings, config).model.untrained
            model_config.parse(arch, entries | width)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_are_those_of_the_default(name):
    """A key that only a file knows would be read by nobody."""
    default = train_config.default()
    for preset in PRESETS[name]:
        config = load(name).get_config(preset)
        known, found = (set(_keys(tree)) for tree in (default, config))
        assert found == known
        with pytest.raises(AttributeError):
            config.unknown = 1


@pytest.mark.parametrize("name", PRESETS)
def test_docstrings_give_the_command(name):
    assert f"python train.py --config=configs/{name}.py" in load(name).__doc__


@pytest.mark.parametrize("name", PRESETS)
def test_an_unknown_preset_is_refused(name):
    with pytest.raises(UserError, match=f"no preset 'other'; it has '?{PRESETS[name][1]}"):
        load(name).get_config("other")


def _keys(tree, prefix=""):
    for key, value in tree.items():
        if hasattr(value, "items") and prefix + key != "model.config":
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key
