"""From a config to its loss and margin schedule, and settings that no loss can have."""

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusal

from redimnet_jax.losses import objective
from redimnet_jax.losses.classification import AAMSoftmax, SphereFace2
from redimnet_jax.losses.doubt import Doubt
from redimnet_jax.losses.pairs import Triplet
from redimnet_jax.losses.prefixes import Durations
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
    off = (found.gradient_factors, found.sampled, found.durations, found.doubt)
    assert off == (None, 0, None, None)


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


def test_options_of_prefixes_and_doubt():
    made = config(
        **{
            "loss.name": "subcenter_aam",
            "loss.margins": (0.1, 0.2, 0.2, 0.3),
            "loss.margin_schedule": "linear",
            "loss.margin_ramp": (0.0, 2.0),
            "loss.scale_gradients": True,
            "loss.sampled_prefixes": 2,
            "loss.durations": (1.0, 2.0, 4.0, 4.0),
            "loss.duration_sharpness": 3.0,
            "loss.doubtful.trim": 0.1,
            "loss.doubtful.minor_weight": 0.0,
            "loss.doubtful.from_epoch": 0.5,
        }
    )
    train_config.check(made, 1)
    found = make_objective(settings(made), 10)
    assert [float(margin) for margin in found.margin(10)] == pytest.approx([0.05, 0.1, 0.1, 0.15])
    assert found.durations == Durations((1.0, 2.0, 4.0, 4.0), 3.0) and found.crop_seconds == 3.0
    assert found.doubt == Doubt(0.1, 0.0) and found.doubt_from == 5
    assert len(found.gradient_factors) == 4 and found.sampled == 2
    options = found.options(jnp.asarray(5), seed=0, crop_seconds=1.0)
    assert (np.asarray(options["weights"]) > 0).sum() == 2 and bool(options["doubt"].active)
    assert not found.options(jnp.asarray(4), seed=0)["doubt"].active
    # The prefixes follow from the seed and the step.
    drawn = [np.asarray(found.options(jnp.asarray(step), seed=0)["weights"]) for step in (1, 1, 2, 3, 4)]
    assert (drawn[0] == drawn[1]).all() and len(np.unique(np.stack(drawn) > 0, axis=0)) > 1


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
        ({"loss.margins": (0.2,)}, "config.loss.margins"),
        ({"loss.margins": (0.2, 0.2, 0.2, 1.6)}, "margins that loss.aam_softmax.margin can have"),
        ({"loss.margins": (0.2,) * 4, "loss.aam_softmax.margin": 0.3}, "config.loss.aam_softmax.margin is 0.3"),
        ({"loss.name": "ge2e", "data.crops_per_speaker": 2, "loss.margins": (0.2,) * 4}, "ge2e has no margin"),
        ({"loss.scale_gradients": True, "projection.mrl_dims": (64,)}, "config.loss.scale_gradients"),
        ({"loss.scale_gradients": True, "loss.weights": (1.0, 1.0, 1.0, 0.0)}, "config.loss.weights"),
        ({"loss.sampled_prefixes": 4}, "less than 4"),
        ({"loss.sampled_prefixes": 1, "loss.weights": (0.0, 0.0, 0.0, 1.0)}, "less than 1"),
        ({"loss.durations": (1.0, 2.0)}, "4 durations"),
        ({"loss.durations": (4.0, 2.0, 1.0, 1.0)}, "do not decrease"),
        ({"loss.durations": (0.0, 2.0, 1.0, 1.0)}, "config.loss.durations"),
        ({"loss.duration_sharpness": 2.0}, "without loss.durations"),
        ({"loss.doubtful.trim": 1.0}, "config.loss.doubtful.trim"),
        ({"loss.doubtful.trim": 0.001}, "one of the 256 examples"),
        ({"loss.doubtful.trim": 0.01, "optimizer.accumulate": 4}, "one of the 64 examples"),
        (PAIRS | {"loss.doubtful.trim": 0.1}, "whose losses are of pairs"),
        ({"loss.doubtful.minor_weight": 0.5}, "subcenter_aam"),
        (
            {"loss.doubtful.minor_weight": 0.5, "loss.name": "subcenter_aam", "loss.subcenter_aam.centers": 1},
            "two centers",
        ),
        (
            {"loss.doubtful.minor_weight": 0.5, "loss.name": "subcenter_aam", "heads.init": "random"},
            "first sub-center starts at the mean",
        ),
        ({"loss.doubtful.trim": 0.1, "loss.doubtful.from_epoch": 10.0}, "below the 10 epoch(s)"),
        ({"loss.doubtful.from_epoch": 2.0}, "leaves some out"),
        ({"loss.name": "triplet"}, "config.data.crops_per_speaker is 1"),
        ({"loss.name": "triplet", "data.crops_per_speaker": 256}, "two speakers"),
        (PAIRS | {"heads.shared": True}, "config.heads.shared"),
        (PAIRS | {"optimizer.accumulate": 2}, "optimizer.accumulate"),
        ({"data.crops_per_speaker": 0}, "config.data.crops_per_speaker"),
    ],
)
def test_settings_that_cannot_be(changes, told):
    assert told in refusal(train_config.check, config(**changes), 1)
