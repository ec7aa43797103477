"""Steps on cached features: which rows make a batch, that they train as waveforms do, however they are dispatched."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import Mesh
from refusals import refusal

from redimnet_jax import sharding
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.models import matryoshka
from redimnet_jax.training import cached as cached_steps
from redimnet_jax.training import optimizer
from redimnet_jax.training.cached import CachedSteps, Layout, Resident, Streamed, choose_strata
from redimnet_jax.training.step import Learner, Split, compile_step, initial_state, make_step

UTTERANCES, CROPS, CLASSES, BATCH = 37, 2, 5, 8
DIMS = (4, 8)
EPOCH_STEPS = UTTERANCES // BATCH


def mesh(devices: int = 1) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("data",))


def learner():
    """(split, step, new state by call)."""
    adapted = matryoshka.adapt(tiny.model(), DIMS, init="random")
    of = Split(Learner(adapted.network, Heads(CLASSES, DIMS, rngs=nnx.Rngs(1))), ("projection", "heads"))
    optimiser = optimizer.adamw(lambda step: 1e-2, weight_decay=1e-4, clip_norm=5.0)
    step = make_step(of, optimiser, Objective((1.0,) * len(DIMS), lambda step: 0.2), seed=0)
    return of, step, lambda: initial_state(of, optimiser)


@pytest.fixture(scope="module")
def learned():
    return learner()


def noise_features(width: int, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((CROPS * UTTERANCES, width)).astype(dtype)
    return features, rng.integers(0, CLASSES, len(features)).astype(np.int32)


def numpy(tree):
    return jax.tree.map(np.array, tree)


def trained(steps: CachedSteps, state, frozen, *ends: int):
    """(arrays of the state, figures by step) after dispatches that end at `ends`."""
    begin, found = 0, []
    for end in ends:
        while begin < end:
            state, figures, reached = steps.run(state, frozen, begin, end)
            found.append({name: array[: reached - begin] for name, array in numpy(figures).items()})
            begin = reached
    return numpy({**state.params, **state.stats}), {
        name: np.concatenate([figures[name] for figures in found]) for name in found[0]
    }


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []


@pytest.mark.parametrize(("strata", "per_epoch"), [(1, 1), (4, 1), (4, 2), (1, 3)])
def test_an_epoch_has_every_utterance_and_crops_take_turns(strata, per_epoch):
    layout = Layout(UTTERANCES, 3, strata, per_epoch)
    order_of = jax.jit(layout.order)
    epochs = []
    for epoch in range(3):
        order = np.asarray(order_of(5, epoch))
        own = [per_epoch * len(range(stratum, UTTERANCES, strata)) for stratum in range(strata)]
        # What is beyond a stratum's own utterances comes after them.
        rows = np.concatenate([layout.file_rows(s, order[s])[: own[s]] for s in range(strata)])
        assert sorted(rows % UTTERANCES) == sorted(list(range(UTTERANCES)) * per_epoch)
        for stratum in range(strata):
            assert (layout.file_rows(stratum, order[stratum])[: own[stratum]] % UTTERANCES % strata == stratum).all()
        epochs.append(rows)
    # In three epochs of one crop each, or in one of three, every crop once.
    assert len(np.unique(np.concatenate(epochs))) == 3 * UTTERANCES
    if per_epoch == 3:
        assert all(len(np.unique(rows)) == 3 * UTTERANCES for rows in epochs)
    assert (epochs[0] != epochs[1]).any() and (epochs[0] % UTTERANCES != epochs[1] % UTTERANCES).any()
    assert (np.asarray(order_of(6, 0)) != np.asarray(order_of(5, 0))).any()
    # Crops are mixed within an epoch.
    assert len(np.unique(epochs[0] // UTTERANCES)) == 3


def test_the_same_crops_give_what_waveforms_give(learned):
    """Eight steps over two epochs, live and from features of the same crops."""
    of, step, new_state = learned
    waveforms = tiny.batch(CROPS * UTTERANCES, classes=CLASSES)
    layout, frozen = Layout(UTTERANCES, CROPS, 1), of.arrays("frozen")
    network = of.merge(new_state().params, new_state().stats, frozen).network
    graph, variables = nnx.split(network)
    pooled = jax.jit(lambda v, x: (n := nnx.merge(graph, v)).pooled(*n.features(x)))
    features = np.concatenate(
        [np.asarray(pooled(variables, waveforms["waveform"][i : i + 37])) for i in range(0, 74, 37)]
    )
    steps = CachedSteps(step, mesh(), layout, features, waveforms["label"], batch_size=BATCH, seed=7)
    assert steps.epoch_steps == EPOCH_STEPS and steps.on_device
    cached, figures = trained(steps, new_state(), frozen, 2 * EPOCH_STEPS)
    state, live_figures, live = new_state(), [], None
    for number in range(2 * EPOCH_STEPS):
        order = layout.file_rows(0, np.asarray(layout.order(7, number // EPOCH_STEPS))[0])
        rows = order[number % EPOCH_STEPS * BATCH :][:BATCH]
        batch = {name: array[rows] for name, array in waveforms.items()}
        live = live or compile_step(step, mesh(), state, frozen, batch)
        state, found = live(state, frozen, batch)
        live_figures.append(numpy(found))
    assert int(state.step) == 2 * EPOCH_STEPS
    for name in figures:
        wanted = np.stack([found[name] for found in live_figures])
        np.testing.assert_allclose(figures[name], wanted, rtol=2e-4, atol=1e-5, err_msg=name)
    for name, array in {**state.params, **state.stats}.items():
        # Adam's steps are of the learning rate, 1e-2, whatever small difference is between gradients.
        np.testing.assert_allclose(cached[name], array, rtol=1e-4, atol=1e-4, err_msg=name)


def test_dispatches_of_any_length_and_features_read_from_disk_give_the_same_bits(learned, tmp_path, monkeypatch):
    of, step, new_state = learned
    frozen, layout = of.arrays("frozen"), Layout(UTTERANCES, CROPS, 1)
    features, labels = noise_features(24)
    features.tofile(tmp_path / "features")
    mapped = np.memmap(tmp_path / "features", np.float32, "r", shape=features.shape)
    options = {"batch_size": BATCH, "seed": 7}
    end = 3 * EPOCH_STEPS
    whole = CachedSteps(step, mesh(), layout, features, labels, **options)
    wanted, figures = trained(whole, new_state(), frozen, end)
    assert figures["loss"].shape == (end,) and np.isfinite(figures["loss"]).all() and figures["loss"].min() > 0
    for steps, ends in (
        (whole, (1, 2, 5, 9, end)),
        (CachedSteps(step, mesh(), layout, mapped, labels, memory_share=0.0, most=3, **options), (2, 7, end)),
    ):
        got, parts = trained(steps, new_state(), frozen, *ends)
        same_bits(got, wanted)
        same_bits(parts, figures)
    steps.close()
    assert not steps.on_device and steps.most == 3
    monkeypatch.setattr(cached_steps, "CHUNK_BYTES", 2 * BATCH * 24 * 4)
    assert CachedSteps(step, mesh(), layout, mapped, labels, memory_share=0.0, **options).most == 2


def test_impossible_numbers(learned):
    _, step, _ = learned
    features, labels = noise_features(24)

    def made(strata=1, batch_size=BATCH):
        CachedSteps(step, mesh(), Layout(UTTERANCES, CROPS, strata), features, labels, batch_size=batch_size, seed=0)

    assert "3" in refusal(made, 3)
    assert "exceeds the 37 crops" in refusal(made, 1, 64)
    assert "fewer than the 64" in refusal(made, 64, 64)
    assert [choose_strata(*numbers) for numbers in ((256, 8), (40, 1), (24, 3), (7, 1))] == [64, 8, 3, 1]
    layout = Layout(UTTERANCES, CROPS, 1)
    two = type("Mesh", (), {"size": 2})()
    assert "2 devices" in refusal(CachedSteps, step, two, layout, features, labels, batch_size=BATCH, seed=0)


def test_eight_devices_agree_with_one():
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    subprocess.run([sys.executable, __file__], env=environment, cwd=Path(__file__).parent, check=True)


def on_devices(learned, devices: int) -> dict[str, np.ndarray]:
    """State and figures after two epochs on `devices`, for the same batches."""
    of, step, new_state = learned
    features, labels = noise_features(24, jnp.bfloat16)
    layout, on = Layout(UTTERANCES, CROPS, 8), mesh(devices)
    steps = CachedSteps(step, on, layout, features, labels, batch_size=BATCH, seed=3)
    state, frozen = jax.device_put((new_state(), of.arrays("frozen")), sharding.replicated(on))
    arrays, figures = trained(steps, state, frozen, 2 * steps.epoch_steps)
    if devices > 1:
        # Nothing but sums over the batch goes from device to device.
        passed = re.findall(r"all-[a-z]+|collective-[a-z]+|reduce-scatter", steps._compiled.as_text())
        assert set(passed) == {"all-reduce"}
    return arrays | figures


def same_rows_from_disk(devices: int) -> None:
    """What is read from disk chunk by chunk is what the devices hold."""
    features, labels = noise_features(24, jnp.bfloat16)
    layout, on = Layout(UTTERANCES, CROPS, 8), mesh(devices)
    resident = Resident(layout, on, features, labels, 3)
    streamed = Streamed(layout, on, features, labels, 3, length=3, epoch_rows=4)
    for epoch in range(2):
        for begin in range(4):
            for source in (resident, streamed):
                (held, named, rows), place = source.at(epoch, begin)
                rows = np.asarray(rows)[:, place]
                got = [np.asarray(x)[np.arange(8), rows] for x in (held, named)]
                if source is resident:
                    wanted = got
            assert all((a == b).all() for a, b in zip(got, wanted, strict=True))
    streamed.close()


if __name__ == "__main__":
    made = learner()
    one, many = on_devices(made, 1), on_devices(made, 8)
    differences = {name: float(np.abs(one[name] - many[name]).max() / np.abs(one[name]).max()) for name in one}
    print(sorted(((value, name) for name, value in differences.items()), reverse=True)[:5])
    assert max(differences.values()) < 1e-3
    same_rows_from_disk(8)
