"""From a config to its loss and margin schedule, and settings that no loss can have."""

import pytest
from refusals import refusal

from redimnet_jax.losses import objective
from redimnet_jax.losses.classification import AAMSoftmax, SphereFace2
from redimnet_jax.losses.pairs import Triplet
from redimnet_jax.settings import from_config_dict
from redimnet_jax.training import config as train_config
from redimnet_jax.training.objective_from_settings import make_objective
from redimnet_jax.training.settings import Settings

PAIRS = {"loss.name": "triplet", "data.crops_per_speaker": 2}


def config(**changes):
    made = train_config.default()
    made.model.checkpoint = "weights/b2"
    made.update_from_flattened_dict(changes)
    return made


def settings(made) -> Settings:
    return from_config_dict(Settings, made)


def test_the_default_is_aam_softmax_at_its_full_margin():
    made = config()
    assert settings(made).chosen_loss == AAMSoftmax(margin=0.2, scale=30.0)
    found = make_objective(settings(made), 10)
    assert found.weights == (1.0,) * 4 and float(found.margin(0)) == pytest.approx(0.2) and not found.consistency


@pytest.mark.parametrize("name", objective.LOSSES)
def test_every_loss_by_its_name_with_its_own_defaults(name):
    changes = {"data.crops_per_speaker": 2, "loss.name": name}
    train_config.check(config(**changes), 1)
    assert settings(config(**changes)).chosen_loss == objective.LOSSES[name]()


def test_options_and_schedule():
    made = config(
        **{
            "loss.name": "sphereface2",
            "loss.sphereface2.margin_type": "A",
            "loss.sphereface2.scale": 40.0,
            "loss.weights": (1.0, 1.0, 1.0, 2.0),
            "loss.margin_schedule": "linear",
            "loss.margin_ramp": (1.0, 3.0),
            "loss.consistency": 0.5,
        }
    )
    train_config.check(made, 1)
    assert settings(made).chosen_loss == SphereFace2(margin=0.15, scale=40.0, margin_type="A")
    found = make_objective(settings(made), 10)
    assert [float(found.margin(step)) for step in (10, 20, 30)] == pytest.approx([0.0, 0.075, 0.15])
    assert found.weights == (1.0, 1.0, 1.0, 2.0) and found.consistency == 0.5
    hard = config(**PAIRS, **{"loss.triplet.mining": "hard"})
    assert settings(hard).chosen_loss == Triplet(mining="hard")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss.name": "softmax"}, "config.loss.name is 'softmax'"),
        ({"loss.aam_softmax.margin": 2.0}, "config.loss.aam_softmax.margin is 2.0"),
        ({"loss.weights": (1.0,)}, "config.loss.weights"),
        ({"loss.margin_schedule": "cosine"}, "config.loss.margin_schedule"),
        ({"loss.margin_ramp": (1.0, 2.0)}, "config.loss.margin_ramp"),
        ({"loss.margin_schedule": "linear"}, "config.loss.margin_ramp"),
        (
            {
                "loss.name": "ge2e",
                "data.crops_per_speaker": 2,
                "loss.margin_schedule": "linear",
                "loss.margin_ramp": (0.0, 1.0),
            },
            "ge2e has no margin",
        ),
        ({"loss.consistency": -1.0}, "config.loss.consistency"),
        ({"loss.consistency": 1.0, "projection.mrl_dims": (64,)}, "config.loss.consistency"),
        ({"loss.name": "triplet"}, "config.data.crops_per_speaker is 1"),
        ({"loss.name": "triplet", "data.crops_per_speaker": 256}, "two speakers"),
        (PAIRS | {"heads.shared": True}, "config.heads.shared"),
        (PAIRS | {"optimizer.accumulate": 2}, "optimizer.accumulate"),
        ({"data.crops_per_speaker": 0}, "config.data.crops_per_speaker"),
    ],
)
def test_settings_that_cannot_be(changes, told):
    assert told in refusal(train_config.check, config(**changes), 1)
