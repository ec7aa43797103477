"""Every setting of a run: described, checked, kept through a config, and printed; and values that are refused."""

import dataclasses
import json
import typing
from pathlib import Path

import pytest
import yaml
from refusals import refusal

from redimnet_jax import setting_values, settings
from redimnet_jax.cli import train as train_command
from redimnet_jax.data import augment
from redimnet_jax.losses.objective import LOSSES
from redimnet_jax.training import config as train_config
from redimnet_jax.training import settings_reference
from redimnet_jax.training.settings import Settings

LEAVES = list(settings.leaves(Settings))
NAN, INF = float("nan"), float("inf")
SCRATCH = {"model.checkpoint": None, "heads.init": "random", "parts": ("backbone", "projection", "heads")}


def config(**changes):
    made = train_config.default()
    made.model.checkpoint = "weights/b2"
    for key, value in changes.items():
        if key == "model.config":
            with made.unlocked():
                made.model.config = value
        else:
            made.update_from_flattened_dict({key: value})
    return made


def element(kind):
    inner = setting_values.without_none(kind)
    if setting_values.several(inner):
        return setting_values.single(inner)
    return typing.get_args(inner)[0] if typing.get_origin(inner) is tuple else inner


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.key)
def test_every_setting_is_described(leaf):
    assert leaf.about.help.endswith(".") and leaf.about.help[0].isupper() and " " in leaf.about.help
    if element(leaf.kind) in (int, float):
        assert leaf.about.range()


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if element(leaf.kind) is float], ids=lambda leaf: leaf.key)
def test_no_number_is_nan_or_infinite(leaf):
    inner = setting_values.without_none(leaf.kind)
    args = typing.get_args(inner)
    for value in (NAN, INF, -INF):
        wrong = (value,) if args[1:] == (...,) else (value,) * len(args) or value
        assert f"config.{leaf.key} is" in refusal(train_config.check, config(**{leaf.key: wrong}), 1)


def test_options_are_those_of_losses_and_augmentations():
    made = Settings()
    for name, cls in LOSSES.items():
        assert cls(**vars(getattr(made.loss, name))) == cls()
    for name, cls in augment.STEPS.items():
        known = {field.name for field in dataclasses.fields(cls) if field.init}
        assert set(vars(getattr(made.data.augment, name))) == known


IMPOSSIBLE = {
    "seed": [-1, 2**31, 2**40],
    "epochs": [0, -3],
    "batch_size": [0],
    "dtype": ["float16"],
    "batch_stats": ["some"],
    "parts": [("projection",), ()],
    "model.arch": ["foo"],
    "model.config": [{"C": NAN}, {"spec_params": {"win_length": INF}}],
    "data.crop_seconds": [0.0, -1.0, 1e-9, 1e9, (), (2.0, 0.0), (2.0, 2.0), "long", True],
    "data.augment.draw.p": [0.0, 1.5],
    "data.augment.draw.one_of": [("gain",), ("gian",)],
    "data.augment.draw.weights": [(1.0,)],
    "data.crops_per_utterance": [0],
    "data.min_seconds": [-0.5],
    "data.max_bad": [7.0, -0.1],
    "data.workers": [-1],
    "data.augment.gain.p": [1.5, -0.5],
    "data.augment.gain.decibels": [(3.0, -3.0), (0.0,), (0.0, 1.0, 2.0), (0.0, 1e6)],
    "data.augment.channel.low": [(0.0, 300.0)],
    "data.augment.noise_folder.talkers": [(0, 3), (1.5, 2.5)],
    "data.augment.speed.factors": [(1.0, 1.0), (0.0, 1.0), (9.0,), ("fast",)],
    "cache.crops": [-1],
    "cache.batch_size": [0],
    "cache.memory_share": [1.5],
    "projection.mrl_dims": [(), (8, 4), (0, 8), (8, 8), (8.5,)],
    "projection.init": ["other"],
    "projection.crops": [0],
    "heads.init": ["mean"],
    "loss.name": ["softmax"],
    "loss.weights": [(1.0,), (-1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0)],
    "loss.margin_ramp": [(-1.0, 2.0), (1.0,)],
    "loss.consistency": [-1.0],
    "loss.aam_softmax.margin": [-0.1, 1.5],
    "loss.aam_softmax.scale": [0.0],
    "loss.triplet.mining": ["soft"],
    "loss.sphereface2.balance": [0.0, 1.0],
    "distillation.scores": [-9.0],
    "optimizer.learning_rate": [0.0, -1e-3, 1e-7],
    "optimizer.learning_rates.heads": [0.0],
    "optimizer.layer_decay": [0.0, 1.5],
    "optimizer.final_learning_rate": [-1e-6, 1.0],
    "optimizer.warmup_epochs": [-1.0, 10.0],
    "optimizer.weight_decay": [-1e-4],
    "optimizer.heads_weight_decay": [-1e-4],
    "optimizer.name": ["adam"],
    "optimizer.schedule": ["linear"],
    "optimizer.momentum": [-0.1, 1.0],
    "optimizer.clip_norm": [0.0, -5.0],
    "optimizer.accumulate": [0, 3],
    "stage2.epoch": [0, 10],
    "stage2.patience": [0],
    "averaging.ema": [1.0, -0.1],
    "averaging.last": [-1],
    "validation.holdout": [2.0, 0.0, 1.0],
    "validation.generated_trials": [0],
    "validation.same_sex": [True],
    "validation.every_epochs": [0],
    "validation.crop_seconds": [0.0],
    "validation.crops": [0],
    "validation.max_seconds": [0.0],
    "validation.batch_seconds": [-1.0],
    "validation.dim": [100, 0],
    "validation.bootstrap": [0],
    "validation.patience": [0, -1],
    "validation.min_improvement": [-0.01],
    "classification.share": [1.0, -0.1],
    "classification.gap_seconds": [-1.0],
    "classification.max_recordings": [0],
    "checkpoint.keep": [0],
    "checkpoint.every_steps": [0],
    "log_every_steps": [0],
}
NAMED_BY_ANOTHER = {
    "optimizer.learning_rate=1e-07": "optimizer.final_learning_rate",
    "optimizer.accumulate=3": "batch_size",
    "validation.same_sex=True": "validation.metadata",
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in IMPOSSIBLE.items() for value in values])
def test_an_impossible_value_is_refused(key, value):
    told = refusal(train_config.check, config(**{key: value}), 1)
    assert told.startswith(f"config.{NAMED_BY_ANOTHER.get(f'{key}={value}', key)} is ") and " but must be " in told


def test_an_integer_that_python_does_not_print_is_refused():
    assert "config.epochs is an enormous number" in refusal(train_config.check, config(epochs=10**5000), 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"projection.order": "energy", "projection.init": "random"},
        {"projection.order": "energy", "projection.init": "keep"},
        {"projection.crops": 9, "projection.init": "random", "heads.init": "random"},
        {"projection.crops": 9, **SCRATCH, "model.config": {"C": 8}},
        {"heads.init": "random", "loss.name": "triplet", "data.crops_per_speaker": 2},
        {"loss.am_softmax.margin": 0.3},
        {"loss.aam_softmax.margin": 0.3, "loss.name": "am_softmax"},
        {"loss.ge2e.bias": 1.0, "loss.name": "ge2e", "data.crops_per_speaker": 2},
        {"loss.subcenter_aam.penalty": 0.1, "loss.name": "subcenter_aam", "loss.subcenter_aam.top_k": 0},
        {"model.arch": "redimnet2"},
        {"model.config": {"C": 8}},
        {"distillation.scores": 2.0},
        {"distillation.embeddings": 1.0},
        {"data.data_dir": "tfds"},
        {"data.one_utterance": True},
        {"data.augment.gain.decibels": (-3.0, 3.0)},
        {"data.augment.draw.p": 0.6},
        {"data.augment.reverberation.folder": "rooms"},
        {"data.augment.speed.new_speakers": False},
        {"cache.folder": "features"},
        {"cache.batch_size": 8},
        {"cache.memory_share": 0.1},
        {"validation.audio_root": "audio"},
        {"validation.utt2spk": "utt2spk"},
        {"validation.speaker_pattern": "(id[0-9]+)"},
        {"validation.speaker_pattern": "(id[0-9]+)", "validation.tree": "tree", "validation.trials": "trials"},
        {"validation.audio_root": "audio", "validation.tree": "tree", "validation.trials": "trials"},
        {"validation.holdout": 0.1, "validation.tree": "tree"},
        {"validation.holdout": 0.1, "validation.trials": "trials"},
        {"validation.generated_trials": 9, "validation.trials": "trials"},
        {"validation.same_sex": True, "validation.trials": "trials", "validation.metadata": "table"},
        {"validation.metadata": "table"},
        {"validation.crops": 2},
        {"validation.max_seconds": 9.0, "validation.crop_seconds": 2.0},
        {"validation.allow_shared_speakers": True},
        {"classification.gap_seconds": 2.0},
        {"classification.max_recordings": 9},
        {"optimizer.layer_decay": 0.5},
        {"stage2.parts": ("heads",)},
        {"stage2.optimizer.learning_rates.heads": 1e-3},
        {"stage2.optimizer.layer_decay": 0.5, "stage2.parts": ("heads",), "stage2.epoch": 2},
        {"remat": True},
    ],
)
def test_a_setting_without_effect_is_refused(changes):
    told = refusal(train_config.check, config(**changes), 1)
    assert told.startswith(f"config.{next(iter(changes))} is ") and " but has no effect " in told


@pytest.mark.parametrize(
    "changes",
    [
        {"projection.crops": 9, "projection.init": "random"},
        {**SCRATCH, "model.config": {"C": 8}, "model.arch": "redimnet2", "remat": True},
        {"validation.same_sex": True, "validation.metadata": "table", "validation.generated_trials": 9},
        {"validation.trials": "trials", "validation.tree": "tree"},
        {"data.data_dir": "tfds", "validation.tree": "tfds:voxceleb"},
        {"data.augment.gain.p": 0.5, "data.augment.gain.decibels": (-3.0, 3.0)},
        {"data.augment.gain.p": 1.0, "data.augment.draw.one_of": ("gain",), "data.augment.draw.p": 0.6},
        {"data.crop_seconds": (2.0, 3.0, 4)},
        {"stage2.patience": 2, "stage2.optimizer.layer_decay": 0.5, "remat": True},
        {"loss.name": "sphereface2", "loss.sphereface2.margin": 0.3},
    ],
)
def test_a_setting_with_an_effect_is_accepted(changes):
    train_config.check(config(**changes), 1)


def test_a_config_and_back():
    made = settings.to_config_dict(Settings())
    assert settings.from_config_dict(Settings, made) == Settings()
    made.update_from_flattened_dict(
        {"validation.dim": 64, "optimizer.learning_rates.heads": 1, "loss.weights": (1, 2)}
    )
    found = settings.from_config_dict(Settings, made)
    assert found.validation.dim == 64 and found.loss.weights == (1.0, 2.0)
    assert isinstance(found.optimizer.learning_rates.heads, float)
    assert settings.from_config_dict(Settings, settings.to_config_dict(found)) == found
    with pytest.raises(AttributeError):
        made.optimizer.unknown = 1
    with pytest.raises(TypeError):
        made.validation.dim = "wide"


def test_json_of_a_config_is_read_back():
    made = config(**{"data.augment.noise_folder.talkers": (1, 3)})
    found = settings.from_config_dict(Settings, json.loads(made.to_json_best_effort()))
    assert found == settings.from_config_dict(Settings, made) and found.data.augment.noise_folder.talkers == (1, 3)


def test_one_crop_length_or_several():
    """Also from the command line's text and from JSON; a list of one is the number."""
    for given, kept in ((2, 2.0), ((2, 3.5), (2.0, 3.5)), ([2.0, 3.0], (2.0, 3.0)), ((2.5,), 2.5)):
        made = config(**{"data.crop_seconds": given})
        found = train_config.check(made, 1).data
        assert found.crop_seconds == kept and found.crop_lengths == (kept if isinstance(kept, tuple) else (kept,))
        read = settings.from_config_dict(Settings, json.loads(made.to_json_best_effort()))
        assert read.data.crop_seconds == kept
    several = config(**{"data.crop_seconds": (2.0, 3.0), "cache.crops": 2})
    assert "cache.crops" in refusal(train_config.check, several, 1)


def test_a_config_prints_as_plain_yaml():
    made = config()
    for text in (str(made), made.to_yaml()):
        assert "!!" not in text and yaml.safe_load(text) == json.loads(made.to_json_best_effort())
    assert list(yaml.safe_load(str(made))) == [field.name for field in dataclasses.fields(Settings)]


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"learning_rate": 1e-3}, "no setting learning_rate; the nearest are optimizer.learning_rate"),
        ({"epoch": 3}, "no setting epoch; the nearest are"),
        ({"data": {"augment": {"gian": {"p": 1.0}}}}, "data.augment.gian; the nearest"),
        ({"optimizer": {"learning_rate": "fast"}}, "config.optimizer.learning_rate is 'fast' but must be a number"),
        ({"optimizer": 3}, "config.optimizer is 3 but must be a section"),
        ({"epochs": True}, "config.epochs is True but must be a whole number"),
        ({"remat": 1}, "config.remat is 1 but must be True or False"),
        (
            {"validation": {"dim": 64.5}},
            "config.validation.dim is 64.5 but must be a whole number at least 1, or None",
        ),
    ],
)
def test_an_unknown_or_wrong_entry_is_named(tree, told):
    assert told in refusal(settings.from_config_dict, Settings, tree)


def typed(made) -> Settings:
    return settings.from_config_dict(Settings, made)


def test_a_run_goes_on_when_there_are_more_settings_than_it_knew(tmp_path):
    saved = json.loads(config(epochs=4).to_json_best_effort())
    del saved["validation"]["significant"], saved["averaging"], saved["log_every_steps"]
    train_config.check_resume(typed(config(epochs=4)), saved, tmp_path)
    changed = config(**{"epochs": 4, "averaging.last": 2})
    assert "averaging.last (was 0, is 2)" in refusal(train_config.check_resume, typed(changed), saved, tmp_path)
    scratch = config(**{"model.config": {"C": 8}})
    saved = json.loads(scratch.to_json_best_effort())
    assert "model.config.C" in refusal(train_config.check_resume, typed(config()), saved, tmp_path)
    train_config.check_resume(typed(scratch), saved, tmp_path)


def test_the_page_is_what_is_generated():
    page = Path(__file__).parents[2] / settings_reference.PAGE
    assert page.read_text() == settings_reference.markdown(), (
        f"run `python -m redimnet_jax.training.settings_reference --output={settings_reference.PAGE}`"
    )
    assert all(f"| `{leaf.key}` |" in page.read_text() for leaf in LEAVES)


def test_the_command_prints_all_settings(capsys):
    assert train_command.main(["--settings"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{leaf.key} = " in "\n" + out for leaf in LEAVES)
