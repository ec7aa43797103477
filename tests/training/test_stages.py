"""Stages: their settings, what trains in a partly frozen network, and a run that goes through both and is resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import training_runs
from flax import nnx
from jax.sharding import Mesh
from refusals import refusal
from training_runs import config, history, same_bits, same_runs, saved, stop_at

import redimnet_jax as rj
from redimnet_jax.checkpoints import native
from redimnet_jax.evaluation import html_report, plots
from redimnet_jax.losses import objective
from redimnet_jax.losses.heads import Heads
from redimnet_jax.nn.normalization import BatchNorm
from redimnet_jax.training import averaging, optimizer, preemption, saved_run, stages, trainer
from redimnet_jax.training import config as train_config
from redimnet_jax.training import run as training_run
from redimnet_jax.training.partition import TrainableModel, TrainablePartition
from redimnet_jax.training.settings import LearningRates
from redimnet_jax.training.step import compile_step, initial_state, make_step

TOP = ("backbone.mfa", "pool", "projection", "heads")  # all that follows the only stage of the tiny network
NORMS = {"backbone.stages.0.blocks.0.norm", "backbone.mfa.norm", "bn"}
LOSS = objective.LOSSES["aam_softmax"]()


def learner() -> TrainableModel:
    heads = Heads(5, (8,), LOSS, rngs=nnx.Rngs(1))
    return TrainableModel(tiny.model().network, heads)


def settings(**changes):
    return training_runs.settings({"data.train": "x", "model.checkpoint": "y"}, **changes)


# Settings


def test_one_stage_unless_something_starts_another():
    (only,) = stages.stages(settings(parts=("heads", "projection")))
    assert only.filters == ("heads", "projection") and only.key == "parts"
    assert stages.stages(settings(epochs=5))[0].last_epoch == 5


def test_what_the_second_stage_leaves_open_is_as_in_the_first():
    wanted = settings(
        stage2__epoch=1,
        optimizer__clip_norm=3.0,
        optimizer__learning_rates__heads=0.5,
        stage2__optimizer__learning_rate=1e-4,
        stage2__optimizer__learning_rates__backbone=1e-5,
    )
    first, second = stages.stages(wanted)
    assert first.optimizer.learning_rate == 1e-2 and second.optimizer.learning_rate == 1e-4
    assert second.optimizer.clip_norm == 3.0 and second.key == "stage2.parts"
    # But for the rates of the parts, which are of the stage.
    assert second.optimizer.learning_rates == LearningRates(backbone=1e-5)
    assert (first.last_epoch, second.last_epoch) == (1, 3)


@pytest.mark.parametrize(
    ("stage", "epoch", "stale", "wanted"),
    [(0, 3, 1, False), (0, 3, 2, True), (0, 4, 0, True), (1, 9, 2, False), (1, 9, 3, True), (1, 10, 0, True)],
)
def test_a_stage_ends_by_its_epoch_or_its_patience(stage, epoch, stale, wanted):
    both = settings(epochs=10, stage2__epoch=4, stage2__patience=2, validation__patience=3)
    assert stages.stages(both)[stage].ends(epoch, stale) is wanted


def test_rates_by_part_and_depth():
    names = [
        "network.backbone.stem.conv.kernel",
        *(f"network.backbone.stages.{index}.patch.kernel" for index in range(3)),
        "network.pool.linear1.kernel",
        "network.linear.kernel",
        "heads.prototypes.0",
    ]
    changes = {
        "learning_rate": 0.1,
        "learning_rates__backbone": 0.01,
        "learning_rates__heads": 0.2,
        "layer_decay": 0.5,
    }
    (stage,) = stages.stages(settings(**{f"optimizer__{key}": value for key, value in changes.items()}))
    found = stages.rate_factors(stage, names, names)
    assert [found[name] for name in names] == pytest.approx([0.0125, 0.025, 0.05, 0.1, 0.1, 1.0, 2.0])
    params = {name: jnp.ones((2, 2)) for name in names}
    updates = []
    for factors in (None, found):
        of = optimizer.adamw(optax.constant_schedule(0.1), weight_decay=0.5, clip_norm=1.0, factors=factors)
        updates.append(of.update(params, of.init(params), params)[0])
    for name in names:
        np.testing.assert_allclose(updates[1][name], found[name] * updates[0][name], rtol=1e-6)


def test_a_stage_decays_heads_and_vectors_as_its_optimizer_says():
    params = {
        "network.linear.kernel": jnp.ones((2, 2)),
        "network.linear.bias": jnp.ones(2),
        "heads.w": jnp.ones((2, 2)),
    }
    changes = {"optimizer__weight_decay": 0.1, "optimizer__heads_weight_decay": 0.4, "optimizer__clip_norm": None}
    zero = jax.tree.map(jnp.zeros_like, params)

    def moved(**more) -> list[float]:
        (stage,) = stages.stages(settings(**changes, **more))
        made = stages.stage_optimizer(stage, optax.constant_schedule(1.0), params.keys(), params.keys())
        return [float(update.ravel()[0]) for update in made.update(zero, made.init(params), params)[0].values()]

    assert sorted(moved(optimizer__name="sgd", optimizer__momentum=0.0)) == pytest.approx([-0.4, -0.1, -0.1])
    assert sorted(moved()) == pytest.approx([-0.4, -0.1, 0.0])


BAD = {
    "epoch": ({"stage2__epoch": 3}, "config.stage2.epoch is 3"),
    "patience": ({"stage2__patience": 0}, "stage2.patience"),
    "nothing starts it": (
        {"stage2__optimizer__learning_rate": 1e-4},
        "stage2.optimizer.learning_rate is 0.0001 but has no effect",
    ),
    "statistics": ({"batch_stats": "some"}, "batch_stats"),
    "statistics of the second": ({"stage2__epoch": 1, "stage2__batch_stats": "some"}, "stage2.batch_stats"),
    "no rate": ({"optimizer__learning_rate": 0.0}, "optimizer.learning_rate"),
    "rate of a part": ({"optimizer__learning_rates__heads": 0.0}, "optimizer.learning_rates.heads"),
    "decay": ({"stage2__epoch": 1, "stage2__optimizer__layer_decay": 1.5}, "stage2.optimizer.layer_decay"),
    "pieces": ({"stage2__epoch": 1, "stage2__optimizer__accumulate": 3}, "stage2.optimizer.accumulate"),
    "nothing trains": ({"stage2__epoch": 1, "stage2__parts": ()}, "stage2.parts"),
    "untrained and frozen": ({"parts": ("backbone", "heads")}, "start untrained"),
    "average": ({"averaging__ema": 1.0}, "averaging.ema"),
}


@pytest.mark.parametrize("kind", BAD)
def test_settings_that_cannot_be(kind):
    changes, told = BAD[kind]
    data = {"data.train": "x", "model.checkpoint": "y"}
    assert told in refusal(train_config.check, config(data, **changes), 1)


# What trains


def frozen_norms(of: TrainablePartition) -> set[str]:
    groups = [of.arrays(key) for key in ("params", "stats", "frozen")]
    nodes = nnx.iter_graph(of.merge(*groups, training=True).network)
    return {".".join(map(str, path)) for path, node in nodes if isinstance(node, BatchNorm) and node.frozen}


def test_batch_norms_are_frozen_one_by_one():
    of = nnx.eval_shape(learner)
    assert frozen_norms(TrainablePartition(of, ("backbone", "projection", "heads"))) == set()
    assert frozen_norms(TrainablePartition(of, ("projection", "heads"))) == NORMS - {"bn"}
    assert frozen_norms(TrainablePartition(of, TOP)) == {"backbone.stages.0.blocks.0.norm"}
    assert frozen_norms(TrainablePartition(of, ("*.bias", "heads"))) == NORMS
    everything = TrainablePartition(of, ("*",), batch_stats="frozen")
    assert frozen_norms(everything) == NORMS and everything.names["stats"] == []
    assert "network.bn.scale" in everything.names["params"] and "network.bn.mean" in everything.arrays("frozen")
    # The learner that was split, and what is evaluated, know nothing of it.
    for network in (
        of.network,
        TrainablePartition(of, ("heads",)).merge(*map(everything.arrays, ("params", "frozen"))).network,
    ):
        assert not any(node.frozen for _, node in nnx.iter_graph(network) if isinstance(node, BatchNorm))


@pytest.mark.slow
def test_a_partly_frozen_backbone_and_the_averages_of_what_trains():
    of, decay = TrainablePartition(learner(), TOP), 0.5
    assert of.backbone_trains
    optimiser = optimizer.adamw(optax.constant_schedule(1e-2), weight_decay=1e-4, clip_norm=5.0)
    state, frozen = initial_state(of, optimiser, step=40, ema=True), of.arrays("frozen")
    batch = tiny.batch(8)
    wanted = objective.Objective((1.0,), lambda step: 0.2)
    step = make_step(of, optimiser, wanted, seed=0, ema=decay)
    compiled = compile_step(step, Mesh(np.array(jax.devices()[:1]), ("data",)), state, frozen, batch)
    before = {name: np.array(value) for name, value in (state.params | state.stats).items()}
    assert not {name for name in before if name.startswith(("network.backbone.stages", "network.backbone.stem"))}

    # The first norm that trains sees what the frozen ones make of the batch in eval mode.
    graph, variables = nnx.split(learner().network)

    @jax.jit
    def seen_by_mfa(variables):
        network = nnx.merge(graph, variables)
        maps, _ = network.feature_maps(network.features(batch["waveform"])[0])
        return network.backbone.mfa.conv(network.backbone.aggregate(maps))

    seen = seen_by_mfa(variables)
    averages = {name: value.copy() for name, value in before.items()}
    for number in range(2):
        state, _ = compiled(state, frozen, batch)
        now = {name: np.array(value) for name, value in (state.params | state.stats).items()}
        averages = {name: (1 - decay) * now[name] + decay * averages[name] for name in now}
        if number == 0:
            moved = 0.9 * before["network.backbone.mfa.norm.mean"] + 0.1 * np.asarray(seen).mean(axis=(0, 1))
            np.testing.assert_allclose(now["network.backbone.mfa.norm.mean"], moved, rtol=1e-4, atol=1e-5)
    assert {name for name in now if name.endswith((".kernel", ".mean"))} <= {
        name for name in now if (now[name] != before[name]).any()
    }
    assert int(state.step) == 42
    for name, value in averages.items():
        np.testing.assert_allclose(state.ema[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


# Runs


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(plots, "save", lambda *_: None)
    monkeypatch.setattr(html_report, "write", lambda *_: None)


# No EER gets better by 100%, so that the first stage ends after an epoch and the second one after two.
TWO = {
    "epochs": 9,
    "stage2__patience": 1,
    "stage2__parts": TOP,
    "stage2__optimizer__learning_rate": 1e-3,
    "stage2__optimizer__warmup_epochs": 1.0,
    "validation__patience": 2,
    "validation__min_improvement": 1.0,
    "averaging__ema": 0.9,
    "averaging__last": 3,
    "projection__mrl_dims": (8,),
    "projection__init": "keep",
    "checkpoint__keep": 20,
}


def kill_at(patch, step: int) -> None:
    """The process is gone while that step is on its way."""

    def compile_step(*arguments):
        compiled = original(*arguments)

        def run(state, *inputs):
            if int(state.step) == step - 1:
                raise Killed
            return compiled(state, *inputs)

        return run

    original = trainer.compile_step
    patch.setattr(trainer, "compile_step", compile_step)


@pytest.mark.slow
def test_two_stages_stopped_before_at_and_after_the_switch(data, tmp_path, monkeypatch, caplog):
    whole, other, programs = tmp_path / "whole", tmp_path / "other", []
    with monkeypatch.context() as patch:
        original = trainer.compile_step
        patch.setattr(trainer, "compile_step", lambda *a: programs.append(a) or original(*a))
        training_run.train(config(data, **TWO), whole)
    assert len(programs) == 2
    out = caplog.text
    assert "stage 2 starts after epoch 1: backbone.mfa, pool, projection, heads" in out and "stopped early" in out
    entries = history(whole)
    assert [(entry["step"], entry["stage"]) for entry in entries] == [(0, 1), (4, 1), (8, 2), (12, 2)]

    for stop, step, stage in ((stop_at, 3, 0), (kill_at, 5, 1), (stop_at, 6, 1)):
        with monkeypatch.context() as patch, pytest.raises((preemption.Preempted, Killed)):
            stop(patch, step)
            training_run.train(config(data, **TWO), other)
        # Killed at step 5, it has the checkpoint of the switch.
        assert saved(other, 4 if stop is kill_at else step)[1]["progress"]["stage"] == stage
    caplog.clear()
    training_run.train(config(data, **TWO), other)
    assert "resumed at step 6 in stage 2" in caplog.text
    for step in (4, 12):
        same_bits(saved(whole, step)[0], saved(other, step)[0])
    same_runs(whole, other, 12)
    check_what_trained(data, whole)
    check_average(whole)
    check_opened(whole)


def check_what_trained(data, workdir) -> None:
    start = native.flat(rj.load(data["model.checkpoint"]).network)
    (switch, _), (end, _) = saved(workdir, 4), saved(workdir, 12)
    # The second stage begins with what was validated: the averages are the weights.
    averages = {key.removeprefix("['ema']"): value for key, value in switch.items() if key.startswith("['ema']")}
    weights = {key[key.index("]") + 1 :]: value for key, value in switch.items() if key[2:7] in ("param", "stats")}
    same_bits(averages, weights)
    assert all(not value.any() for key, value in switch.items() if key.startswith("['opt']"))

    def bits(arrays, name) -> bytes:
        (found,) = (
            value
            for key, value in arrays.items()
            if key.endswith(f"['network.{name}']") and "opt" not in key[:6] and "ema" not in key[:6]
        )
        return found.tobytes()

    for name, value in start.items():
        backbone = name.startswith(("frontend", "backbone", "pool"))
        above = name.startswith(("backbone.mfa", "pool"))
        if backbone:
            assert bits(switch, name) == np.asarray(value).tobytes()
        if backbone and not above:
            assert bits(end, name) == np.asarray(value).tobytes()
        if above and name.endswith(("kernel", "mean", "var")):
            assert bits(end, name) != np.asarray(value).tobytes()


def check_opened(workdir) -> None:
    """A checkpoint opens with the averages that were validated, or with the weights that train."""
    assert saved_run.saved_steps(workdir) == [4, 8, 12]
    arrays, progress = saved(workdir, 8)
    for averaged, group in ((True, "ema"), (False, "params")):
        run = saved_run.open_run(workdir, 8, averaged=averaged)
        assert run.step == 8 and run.speakers == progress["speakers"] and run.settings.averaging.ema == 0.9
        kernel = run.model.network.linear.kernel.get_value()
        assert np.array_equal(kernel, arrays[f"['{group}']['network.linear.kernel']"])
        (prototypes,) = (arrays[key] for key in arrays if key.startswith(f"['{group}']['heads.") and "proto" in key)
        assert np.array_equal(run.heads.parameters[0]["prototypes"].get_value(), prototypes)
    assert saved_run.open_run(workdir).step == 12
    assert "step 5" in refusal(saved_run.open_run, workdir, 5)
    assert "no training checkpoint" in refusal(saved_run.open_run, workdir / "epochs")


def check_average(workdir) -> None:
    """Of the second stage alone, whatever number was asked for; it is written, and a row of the table."""
    assert averaging.snapshots(workdir, -1) == [8, 12]
    models = [native.flat(rj.load(workdir / "epochs" / step).network) for step in ("8", "12")]
    found = native.flat(rj.load(workdir / "averaged").network)
    for name, value in found.items():
        np.testing.assert_allclose(value, (models[0][name] + models[1][name]) / 2, rtol=1e-5, atol=1e-6)
    assert (found["linear.kernel"] != models[1]["linear.kernel"]).any()
    assert "average (epochs 2 to 3)" in (workdir / "results.md").read_text()
    # What is validated are the averages within the step.
    arrays, _ = saved(workdir, 12)
    kernel = arrays["['ema']['network.linear.kernel']"]
    assert np.array_equal(kernel, models[1]["linear.kernel"])
    assert (kernel != arrays["['params']['network.linear.kernel']"]).any()


def test_a_filter_that_matches_nothing_is_refused_before_long_work(data, tmp_path, monkeypatch):
    def long_work(*_, **__):
        raise AssertionError("long work was started")

    monkeypatch.setattr(training_run, "open_data", long_work)
    changes = {"stage2__epoch": 1, "stage2__parts": ("backbone.stage.0", "heads")}
    told = refusal(training_run.train, config(data, **changes), tmp_path)
    assert "config.stage2.parts has 'backbone.stage.0'" in told and "backbone.stages.0" in told
    told = refusal(training_run.train, config(data, optimizer__learning_rates__backbone=1e-5), tmp_path)
    assert "config.optimizer.learning_rates.backbone" in told and "trains nothing of the backbone" in told
    told = refusal(training_run.train, config(data, projection__init="keep"), tmp_path)
    assert "projection.init 'keep' has 8 pretrained dimensions" in told
