"""The training step: what it changes, what it leaves alone to the bit, and that it is the same on many devices."""

import cpu_devices
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from jax.sharding import Mesh

from redimnet_jax.losses import margin_schedule
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.models import matryoshka
from redimnet_jax.nn.layers import Constant
from redimnet_jax.training import optimizer
from redimnet_jax.training.partition import TrainableModel, TrainablePartition
from redimnet_jax.training.step import TrainState, compile_step, initial_state, make_step

STEPS, CLASSES = 24, 5
PROJECTION = {"network.linear.kernel", "network.linear.bias", "network.bn.scale", "network.bn.bias"}
STATISTICS = {"network.bn.mean", "network.bn.var"}


def objective(margin=lambda step: 0.2) -> Objective:
    return Objective((1.0,) * len(tiny.DIMS), margin)


def split(*parts: str, pretrained=None) -> TrainablePartition:
    pretrained = pretrained or tiny.model()
    adapted = matryoshka.adapt(pretrained, tiny.DIMS, init="random")
    return TrainablePartition(TrainableModel(adapted.network, Heads(CLASSES, tiny.DIMS, rngs=nnx.Rngs(1))), parts)


def adamw(rate: float = 1e-2, weight_decay: float = 1e-4) -> optax.GradientTransformation:
    return optimizer.adamw(optax.constant_schedule(rate), weight_decay=weight_decay, clip_norm=5.0)


def compiled(of: TrainablePartition, optimiser, batch, devices: int = 1, **options):
    """(compiled step, state, frozen); the state's arrays are nobody else's."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    state, frozen = initial_state(of, optimiser), of.arrays("frozen")
    options = {"seed": 0} | options
    step = make_step(of, optimiser, options.pop("objective", objective()), **options)
    return compile_step(step, mesh, state, frozen, batch), state, frozen


def numpy(tree):
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def changed(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


@pytest.fixture(scope="module")
def batches():
    return [tiny.batch(8, classes=CLASSES, seed=seed) for seed in range(STEPS)]


@pytest.fixture(scope="module")
def projection_run(batches):
    """(split, everything before, everything after, pooled before, pooled after, state, step) of many steps."""
    of = split("projection", "heads")
    step, state, frozen = compiled(of, adamw(), batches[0])
    everything = numpy({**state.params, **state.stats, **frozen})

    @jax.jit
    def pooled(params, stats, frozen):
        network = of.merge(params, stats, frozen).network
        return network.pooled(*network.features(batches[0]["waveform"]))

    pooled_before = np.asarray(pooled(state.params, state.stats, frozen))
    for batch in batches:
        state, _ = step(state, frozen, batch)
    pooled_after = np.asarray(pooled(state.params, state.stats, frozen))
    return of, everything, numpy({**state.params, **state.stats, **frozen}), pooled_before, pooled_after, state, step


def test_a_frozen_backbone_stays_to_the_bit(projection_run):
    of, before, after, pooled_before, pooled_after, *_ = projection_run
    backbone = {name for name in before if name.startswith(("network.frontend", "network.backbone", "network.pool"))}
    assert any(name.endswith("norm.mean") for name in backbone)
    assert not changed(before, after) & backbone
    assert pooled_before.tobytes() == pooled_after.tobytes()


def test_projection_statistics_and_every_prototype_train(projection_run):
    of, before, after, *_ = projection_run
    prototypes = {name for name in before if name.startswith("heads.")}
    assert len(prototypes) == len(tiny.DIMS)
    assert changed(before, after) == PROJECTION | STATISTICS | prototypes
    for name in prototypes:
        assert (before[name] != after[name]).any(axis=1).all()


def test_the_optimizer_knows_only_what_trains(projection_run):
    of, *_, state, _ = projection_run
    paths = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt) if leaf.ndim]
    assert len(paths) == 2 * len(state.params)
    assert set(state.params) == PROJECTION | {name for name in of.variables if name.startswith("heads.")}
    assert not any("backbone" in path or "frontend" in path or "pool" in path for path in paths)


@pytest.mark.slow
def test_a_backbone_that_trains_changes(batches):
    of = split("backbone", "projection", "heads")
    step, state, frozen = compiled(of, adamw(), batches[0])
    before = numpy({**state.params, **state.stats})
    assert all(isinstance(of.variables[name][1], Constant) for name in frozen)
    state, _ = step(state, frozen, batches[0])
    after = numpy({**state.params, **state.stats})
    assert {name for name in before if name.endswith((".mean", ".var"))} <= changed(before, after)
    # All kernels, and not one left out (a bias before batch norm has no gradient).
    assert {name for name in before if name.endswith("kernel")} <= changed(before, after)


def test_no_other_shape_and_no_used_up_state(projection_run, batches):
    of, *_, state, step = projection_run
    frozen = of.arrays("frozen")
    for other in (tiny.batch(9), tiny.batch(8, samples=4801)):
        with pytest.raises(TypeError, match="compiled with"):
            step(state, frozen, other)
    copy = jax.tree.map(jnp.copy, state)
    step(copy, frozen, batches[0])
    # The counts of the optimizer may be shared with the step's output; what is large is given up.
    assert all(array.is_deleted() for array in (*copy.params.values(), *copy.stats.values()))
    assert not any(array.is_deleted() for array in frozen.values())


def plain_step(of, optimiser, **options):
    return jax.jit(make_step(of, optimiser, options.pop("objective", objective()), seed=0, **options))


@pytest.mark.slow
def test_weight_decay_spares_vectors_and_all_that_is_frozen(batches):
    """Without gradients (a loss of weight zero but for rounding) decay alone would move matrices."""
    of = split("projection", "heads")
    rate, decay = 0.1, 0.5
    optimiser = optimizer.adamw(optax.constant_schedule(rate), weight_decay=decay, clip_norm=None)
    params = of.arrays("params")
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimiser.update(zeros, optimiser.init(params), params)
    for name, value in params.items():
        wanted = -rate * decay * value if value.ndim > 1 else jnp.zeros_like(value)
        np.testing.assert_allclose(updates[name], wanted, rtol=1e-6)
    assert {value.ndim for value in params.values()} == {1, 2}


@pytest.mark.slow
def test_accumulated_pieces_that_are_equal_give_what_one_gives(batches):
    of, optimiser = split("projection", "heads"), adamw()
    # Piece k takes every second row from k on.
    double = {name: np.repeat(array, 2, axis=0) for name, array in batches[0].items()}
    state, frozen = initial_state(of, optimiser), of.arrays("frozen")
    once, figures = plain_step(of, optimiser)(state, frozen, batches[0])
    twice, same = plain_step(of, optimiser, accumulate=2)(state, frozen, double)
    for name in figures:
        np.testing.assert_allclose(figures[name], same[name], rtol=1e-5, err_msg=name)
    for name in once.params:
        # Adam's first step is the gradient's sign, so that only what is no rounding noise can be compared.
        np.testing.assert_allclose(once.params[name], twice.params[name], atol=2e-4, err_msg=name)
    # The second piece moves the running statistics once more.
    moved = once.stats["network.bn.mean"] - state.stats["network.bn.mean"]
    np.testing.assert_allclose(
        twice.stats["network.bn.mean"] - state.stats["network.bn.mean"], 1.9 * moved, rtol=1e-3, atol=1e-6
    )


@pytest.mark.slow
def test_the_margin_schedule_reaches_the_loss(batches):
    of, optimiser = split("projection", "heads"), adamw(rate=0.0)
    ramp = plain_step(of, optimiser, objective=objective(margin_schedule.ramp(0.4, 10, 20)))
    state, frozen = initial_state(of, optimiser), of.arrays("frozen")

    def loss(step: int) -> float:
        at = TrainState(jnp.asarray(step, jnp.int32), state.params, state.stats, state.opt)
        return float(ramp(at, frozen, batches[0])[1]["loss"])

    @jax.jit
    def loss_at(margin):
        learner = of.merge(state.params, state.stats, frozen)
        embedding = learner.embed(batches[0]["waveform"], jax.random.key(0), train_backbone=False)
        return learner.heads.loss(embedding, batches[0]["label"], weights=(1, 1, 1), margin=margin)[0]

    def wanted(margin: float) -> float:
        return pytest.approx(float(loss_at(margin)), rel=1e-5)

    assert loss(0) == loss(10) == wanted(0.0)
    assert loss(15) == wanted(0.2)
    assert loss(20) == loss(30) == wanted(0.4)
    assert loss(10) + 0.1 < loss(15) < loss(20) - 0.1


def test_learning_rate_and_margin_by_step():
    rate = optimizer.schedule(1e-3, 100, 10, 1e-6)
    assert [float(rate(step)) for step in (0, 5, 10, 100, 120)] == pytest.approx([0, 5e-4, 1e-3, 1e-6, 1e-6])
    assert float(rate(55)) == pytest.approx((1e-3 + 1e-6) / 2)
    margin = margin_schedule.ramp(0.2, 10, 30)
    assert [float(margin(step)) for step in (0, 10, 20, 30, 90)] == pytest.approx([0, 0, 0.1, 0.2, 0.2])
    assert float(margin_schedule.ramp(0.3, 0, 0)(0)) == pytest.approx(0.3)
    assert float(margin_schedule.ramp(0.3, 10, 30, "constant")(0)) == pytest.approx(0.3)


def test_exponential_schedules_are_the_public_ones():
    # WeSpeaker's ExponentialDecrease(num_epochs=10, epoch_iter=7, initial_lr=0.1, final_lr=6e-5, warm_up_epoch=2,
    # warm_from_zero=True) and MarginScheduler(increase_start_epoch=3, fix_start_epoch=6, final_margin=0.2), which
    # count epochs from 1, as the authors of ReDimNet2 use them.
    rates = {0: 0.0, 1: 0.006424592, 7: 0.0238114109, 13: 0.0234138039, 14: 0.0226793316, 35: 0.00244948974}
    rate = optimizer.schedule(0.1, 70, 14, 6e-5, "exponential")
    assert [float(rate(step)) for step in rates] == pytest.approx(list(rates.values()), rel=1e-6)
    assert float(rate(69)) == pytest.approx(6.670796e-05, rel=1e-6) and float(rate(90)) == pytest.approx(6e-5)
    margins = {0: 0.0, 13: 0.0, 15: 0.0560628723, 20: 0.172210098, 28: 0.198000001, 34: 0.199722101, 35: 0.2, 69: 0.2}
    margin = margin_schedule.ramp(0.2, 14, 35, "exponential")
    assert [float(margin(step)) for step in margins] == pytest.approx(list(margins.values()), abs=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_torch(nesterov):
    # Algorithm of torch.optim.SGD: the decay enters the gradient, the buffer takes the gradient undamped.
    params = {"network.w": jnp.array([[1.0, -2.0]]), "heads.w": jnp.array([3.0])}
    decays = {"network.w": 0.1, "heads.w": 0.4}
    sgd = optimizer.sgd(
        optax.constant_schedule(0.5), momentum=0.9, nesterov=nesterov, weight_decay=decays, clip_norm=None
    )
    state, buffer, expected = (
        sgd.init(params),
        dict.fromkeys(params, 0.0),
        {k: np.array(v) for k, v in params.items()},
    )
    for step in range(3):
        gradients = {name: jnp.sin(step + value) for name, value in params.items()}
        updates, state = sgd.update(gradients, state, params)
        for name, decay in decays.items():
            gradient = np.array(gradients[name]) + decay * expected[name]
            buffer[name] = 0.9 * buffer[name] + gradient
            expected[name] = expected[name] - 0.5 * (gradient + 0.9 * buffer[name] if nesterov else buffer[name])
        params = optax.apply_updates(params, updates)
        for name in params:
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-6)


def on_devices(devices: int, accumulate: int) -> dict[str, np.ndarray]:
    """Figures, parameters and statistics after two steps of everything on a batch over `devices`."""
    of, optimiser = split("backbone", "projection", "heads"), optax.sgd(0.01)
    batches = [tiny.batch(32, classes=CLASSES, seed=seed) for seed in range(2)]
    step, state, frozen = compiled(of, optimiser, batches[0], devices, accumulate=accumulate)
    for batch in batches:
        state, figures = step(state, frozen, batch)
    assert {len(array.sharding.device_set) for array in jax.tree.leaves((state, figures))} == {devices}
    return numpy({**state.params, **state.stats, **figures})


@pytest.mark.slow
def test_eight_devices_agree_with_one():
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    cpu_devices.run(__file__, devices=8)


if __name__ == "__main__":
    # A piece is spread over all devices, and its batch statistics are of all of it.
    one, many = on_devices(1, accumulate=2), on_devices(8, accumulate=2)
    differences = {name: float(np.abs(one[name] - many[name]).max() / np.abs(one[name]).max()) for name in one}
    print(sorted(((value, name) for name, value in differences.items()), reverse=True)[:5])
    assert max(differences.values()) < 1e-4
