"""Every file in configs/ is a whole, valid experiment, and so is each of its presets."""

import importlib.util
import pathlib

import numpy as np
import pytest

from redimnet_jax import settings
from redimnet_jax.errors import UserError
from redimnet_jax.models import config as model_config
from redimnet_jax.training import config as train_config
from redimnet_jax.training import optimizer
from redimnet_jax.training.objective_from_settings import make_objective
from redimnet_jax.training.settings import Settings

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
PRESETS = {
    "projection_only": [None, "demo"],
    "same_speaker_split": [None, "demo"],
    "from_scratch": [None, "small"],
    "two_stage": [None, "demo"],
    "large_margin": [None, "demo"],
    "distill": [None, "demo"],
    "redimnet": [None, *(f"b{i}{stage}" for i in (0, 1, 2, 3, 5, 6) for stage in ("", "_lm"))],
    "redimnet2": [
        None,
        *(f"b{i}{stage}" for i in range(7) for stage in ("", "_lm")),
        *(f"b{i}_mix{stage}" for i in (3, 6) for stage in ("", "_lm")),
    ],
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


# Of the public `ExponentialDecrease` and `MarginScheduler` with 100 steps an epoch: epochs, rates, margins.
LONG = (0, 1, 3, 6, 19, 24, 29, 38.99, 39, 119)
SHORT = (0, 0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4, 4.99)
RAMP = (0, 0, 0, 0, 0, 0.164434421, 0.193675448, 0.199799308, 0.2, 0.2)
FINE = (0, 2.3325825e-5, 4.3527528e-5, 7.5785828e-5, 6.5975396e-5, 5.7434918e-5, 5e-5, 4.3527528e-5, 3.2987698e-5)
GOLDEN = {
    ("redimnet2", "b2"): (
        LONG,
        (0, 0.047002533, 0.124607746, 0.207027872, 0.092681959, 0.068037995, 0.049946816, 0.026933258, 0.026916613)
        + (0.000191479041,),
        RAMP,
    ),
    ("redimnet", "b2"): (
        LONG,
        (0, 0.062574899, 0.165388095, 0.273532221, 0.120059605, 0.087468966, 0.063725181, 0.033845453, 0.033824022)
        + (0.000213077984,),
        RAMP,
    ),
    ("redimnet2", "b2_lm"): (SHORT, (*FINE, 2.5069411e-5), (0.3,) * 10),
    ("redimnet", "b2_lm"): (SHORT, (*FINE, 2.5069411e-5), (0.5,) * 10),
    ("redimnet2", "b6_mix_lm"): (
        (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.99),
        (0, 1.7494369e-5, 3.2645646e-5, 5.6839371e-5, 4.9481547e-5, 4.3076188e-5, 3.75e-5, 3.2645646e-5)
        + (2.4740773e-5, 1.901174e-5),
        (0.3,) * 10,
    ),
}


@pytest.mark.parametrize(("name", "preset"), GOLDEN)
def test_schedules_are_those_of_the_public_recipes(name, preset):
    epochs, rates, margins = GOLDEN[name, preset]
    chosen = settings.from_config_dict(Settings, load(name).get_config(preset))
    steps = np.array([round(100 * epoch) for epoch in epochs])
    own = chosen.optimizer
    schedule = optimizer.schedule(
        own.learning_rate,
        100 * chosen.epochs,
        round(100 * own.warmup_epochs),
        own.final_learning_rate,
        own.schedule,
    )
    np.testing.assert_allclose([float(schedule(step)) for step in steps], rates, rtol=2e-5)
    margin = make_objective(chosen, 100).margin
    np.testing.assert_allclose([float(margin(step)) for step in steps], margins, atol=1e-6)


@pytest.mark.parametrize(("preset", "end"), [("b3_mix", 0.00048828125), ("b6_mix", 0.00086564842)])
def test_the_rates_of_the_mixes_end_where_the_public_ones_do(preset, end):
    assert load("redimnet2").get_config(preset).optimizer.final_learning_rate == pytest.approx(end, rel=1e-6)


def test_the_fine_tuning_takes_the_prototypes_over():
    for name in ("redimnet", "redimnet2"):
        config = load(name).get_config("b3_lm")
        assert config.heads.run == "runs/b3" and config.heads.init == "run"
        assert config.model.checkpoint == "runs/b3/averaged"


def _keys(tree, prefix=""):
    for key, value in tree.items():
        if hasattr(value, "items") and prefix + key != "model.config":
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key
