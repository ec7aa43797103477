"""Steps on cached features: they train as waveforms do, however they are dispatched and wherever the features lie."""

import re

import cpu_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.data.crop_order import CropOrder
from redimnet_jax.losses.doubt import Doubt
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.losses.prefixes import Durations
from redimnet_jax.models import matryoshka
from redimnet_jax.training import feature_source, optimizer
from redimnet_jax.training.feature_source import CachedCrops, DeviceFeatures, HostFeatures, open_features
from redimnet_jax.training.partition import TrainableModel, TrainablePartition
from redimnet_jax.training.sampler import EpochSampler
from redimnet_jax.training.step import compile_step, initial_state, make_step
from redimnet_jax.training.steppers import CachedStepper

UTTERANCES, CROPS, CLASSES, BATCH = 37, 2, 5, 8
DIMS = (4, 8)
SAMPLER = EpochSampler(UTTERANCES, CROPS, BATCH, seed=7)
EPOCH_STEPS = UTTERANCES // BATCH


def mesh(devices: int = 1) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("data",))


def make_training(**options):
    """(partition, step, new state by call); `options` are those of the objective."""
    network = matryoshka.adapt(tiny.model(), DIMS, init="random").network
    model = TrainableModel(network, Heads(CLASSES, DIMS, rngs=nnx.Rngs(1)))
    partition = TrainablePartition(model, ("projection", "heads"))
    adamw = optimizer.adamw(lambda step: 1e-2, weight_decay=1e-4, clip_norm=5.0)
    step = make_step(partition, adamw, Objective((1.0,) * len(DIMS), lambda step: 0.2, **options), seed=0)
    return partition, step, lambda: initial_state(partition, adamw)


@pytest.fixture(scope="module")
def training():
    return make_training()


def noise_crops(dtype=np.float32) -> CachedCrops:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((CROPS * UTTERANCES, 24)).astype(dtype)
    return CachedCrops(features, rng.integers(0, CLASSES, len(features)).astype(np.int32))


def numpy(tree):
    return jax.tree.map(np.array, tree)


def train(stepper: CachedStepper, state, frozen, *ends: int):
    """(arrays of the state, figures by step) after dispatches that end at `ends`."""
    begin, dispatches = 0, []
    for end in ends:
        while begin < end:
            state, figures, reached = stepper.run(state, frozen, begin, end)
            dispatches.append({name: array[: reached - begin] for name, array in numpy(figures).items()})
            begin = reached
    figures = {name: np.concatenate([each[name] for each in dispatches]) for name in dispatches[0]}
    return numpy({**state.params, **state.stats}), figures


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []


@pytest.mark.slow
def test_the_same_crops_give_what_waveforms_give(training):
    """Eight steps over two epochs, live and from features of the same crops."""
    partition, step, new_state = training
    waveforms = tiny.batch(CROPS * UTTERANCES, classes=CLASSES)
    frozen = partition.arrays("frozen")
    network = partition.merge(new_state().params, new_state().stats, frozen).network
    graph, variables = nnx.split(network)
    pooled = jax.jit(lambda v, x: (n := nnx.merge(graph, v)).pooled(*n.features(x)))
    features = np.concatenate(
        [np.asarray(pooled(variables, waveforms["waveform"][i : i + 37])) for i in range(0, 74, 37)]
    )
    source = open_features(SAMPLER, mesh(), CachedCrops(features, waveforms["label"]))
    assert source.on_device
    cached, figures = train(CachedStepper(step, mesh(), source), new_state(), frozen, 2 * EPOCH_STEPS)
    state, live_figures, live = new_state(), [], None
    for number in range(2 * EPOCH_STEPS):
        order = SAMPLER.crop_numbers(0, np.asarray(SAMPLER.permutation(number // EPOCH_STEPS))[0])
        rows = order[number % EPOCH_STEPS * BATCH :][:BATCH]
        batch = {name: array[rows] for name, array in waveforms.items()}
        live = live or compile_step(step, mesh(), state, frozen, batch)
        state, step_figures = live(state, frozen, batch)
        live_figures.append(numpy(step_figures))
    assert int(state.step) == 2 * EPOCH_STEPS
    for name in figures:
        expected = np.stack([each[name] for each in live_figures])
        np.testing.assert_allclose(figures[name], expected, rtol=2e-4, atol=1e-5, err_msg=name)
    for name, array in {**state.params, **state.stats}.items():
        # Adam's steps are of the learning rate, 1e-2, whatever small difference is between gradients.
        np.testing.assert_allclose(cached[name], array, rtol=1e-4, atol=1e-4, err_msg=name)


def test_dispatches_of_any_length_and_features_on_the_host_give_the_same_bits(training, tmp_path, monkeypatch):
    partition, step, new_state = training
    frozen, crops = partition.arrays("frozen"), noise_crops()
    crops.features.tofile(tmp_path / "features")
    mapped = np.memmap(tmp_path / "features", np.float32, "r", shape=crops.features.shape)
    end = 3 * EPOCH_STEPS
    on_device = CachedStepper(step, mesh(), open_features(SAMPLER, mesh(), crops))
    expected, figures = train(on_device, new_state(), frozen, end)
    assert figures["loss"].shape == (end,) and np.isfinite(figures["loss"]).all() and figures["loss"].min() > 0
    on_host = open_features(SAMPLER, mesh(), CachedCrops(mapped, crops.labels), memory_share=0.0, max_steps=3)
    assert not on_host.on_device and on_host.max_steps == 3
    numbers = [CropOrder(UTTERANCES, (CROPS,)).number(row) for row in range(len(crops.labels))]
    assert numbers != sorted(numbers)
    in_passes = CachedCrops(crops.features[numbers], crops.labels[numbers], (CROPS,))
    for stepper, ends in (
        (on_device, (1, 2, 5, 9, end)),
        (CachedStepper(step, mesh(), on_host), (2, 7, end)),
        (CachedStepper(step, mesh(), open_features(SAMPLER, mesh(), in_passes)), (end,)),
        (CachedStepper(step, mesh(), open_features(SAMPLER, mesh(), in_passes, memory_share=0.0)), (end,)),
    ):
        arrays, parts = train(stepper, new_state(), frozen, *ends)
        same_bits(arrays, expected)
        same_bits(parts, figures)
        stepper.close()
    monkeypatch.setattr(feature_source, "CHUNK_BYTES", 2 * BATCH * 24 * 4)
    assert open_features(SAMPLER, mesh(), crops, memory_share=0.0).max_steps == 2


@pytest.mark.slow
def test_eight_devices_agree_with_one():
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    cpu_devices.run(__file__, devices=8, JAX_DISABLE_MOST_OPTIMIZATIONS="1")


def on_devices(training, devices: int, strata: int, *, options: bool = False) -> dict[str, np.ndarray]:
    """State and figures after two epochs on `devices`, for the same batches."""
    partition, step, new_state = training
    sampler, on = EpochSampler(UTTERANCES, CROPS, BATCH, seed=3, strata=strata), mesh(devices)
    stepper = CachedStepper(step, on, open_features(sampler, on, noise_crops(jnp.bfloat16)))
    state, frozen = jax.device_put((new_state(), partition.arrays("frozen")), sharding.replicated(on))
    arrays, figures = train(stepper, state, frozen, 2 * sampler.steps_per_epoch)
    if devices > 1 and not options:
        # Nothing but sums over the batch, and the batch statistics of each device, goes from device to device.
        text = stepper._compiled.as_text()
        passed = re.findall(r"all-[a-z]+|collective-[a-z]+|reduce-scatter", text)
        assert set(passed) == {"all-reduce"}
        assert f"f32[{devices},3,24]" in " ".join(re.findall(r".* all-reduce\(.*", text))
    return arrays | figures


def same_rows_from_host(devices: int, strata: int) -> None:
    """What the host gathers chunk by chunk is what the devices hold."""
    sampler, on = EpochSampler(UTTERANCES, CROPS, BATCH, seed=3, strata=strata), mesh(devices)
    crops = noise_crops(jnp.bfloat16)
    sources = [DeviceFeatures(sampler, on, crops), HostFeatures(sampler, on, crops, max_steps=3)]
    per_step = BATCH // sources[0].streams
    for epoch in range(2):
        for step in range(EPOCH_STEPS):
            gathered = []
            for source in sources:
                chunk = source.chunk(epoch, step)
                rows = np.asarray(chunk.rows)[:, chunk.first * per_step : (chunk.first + 1) * per_step]
                streams = np.arange(len(rows))[:, None]
                gathered.append([np.asarray(x)[streams, rows] for x in (chunk.features, chunk.labels)])
            assert all((a == b).all() for a, b in zip(*gathered, strict=True))
    sources[1].close()


if __name__ == "__main__":
    made = make_training()
    by_options = make_training(
        sampled=1,
        gradient_factors=(0.5, 2.0),
        durations=Durations((1.0, 2.0)),
        crop_seconds=1.0,
        doubt=Doubt(trim=0.25),
        doubt_from=2,
    )
    # Eight strata, one a device; and two, which the devices do not divide.
    for strata, training, options in ((8, made, False), (2, made, False), (8, by_options, True)):
        one, many = (on_devices(training, devices, strata, options=options) for devices in (1, 8))
        differences = {name: float(np.abs(one[name] - many[name]).max() / np.abs(one[name]).max()) for name in one}
        print(sorted(((value, name) for name, value in differences.items()), reverse=True)[:5])
        assert max(differences.values()) < 1e-3
        if not options:
            same_rows_from_host(8, strata)
