"""What a user does with a model: `embed` with every kind of input, and what it says of wrong ones."""

import pathlib

import checkpoint_files
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from redimnet_jax import from_torch
from redimnet_jax.models import buckets
from redimnet_jax.models import config as model_config
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel

CLOSE = 1e-5  # of the length of a normalised embedding


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SpeakerModel:
    return from_torch(checkpoint_files.save(tmp_path_factory.mktemp("model") / "v1_fc.pt", "v1_fc"))


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    """Two signals of half a second, a size that is not padded."""
    return golden.audio(3, 2, 8000)


@pytest.fixture(scope="module")
def embedded(model, audio) -> np.ndarray:
    return np.asarray(model.embed(audio))


def test_facts(model):
    assert (model.arch, model.embed_dim, model.mrl_dims, model.sample_rate) == ("redimnet", 32, None, 16000)
    assert model.min_samples == 257 and model.source.file == "v1_fc.pt" and model.source.layout == "redimnet"


def test_batch(embedded):
    assert embedded.shape == (2, 32) and embedded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        lambda x: jnp.asarray(x),
        lambda x: x.astype(np.float64),
        lambda x: (x * 32768).astype(np.int16),  # golden audio stands on 16-bit steps
        lambda x: jnp.asarray((x * 32768).astype(np.int16)),
        lambda x: x[:, ::-1][:, ::-1],
        list,
        tuple,
        lambda x: [x[0], jnp.asarray(x[1])],
    ],
    ids=["jax", "float64", "int16", "jax int16", "strided", "list", "tuple", "mixed list"],
)
def test_kinds_of_input(model, audio, embedded, kind):
    result = model.embed(kind(audio))
    assert isinstance(result, jax.Array) and result.dtype == jnp.float32
    np.testing.assert_allclose(result, embedded, atol=CLOSE)


def test_half_precision_input(model, audio, embedded):
    assert (model.embed(audio.astype(np.float16)) * embedded).sum(1).min() > 0.999


def test_one_signal(model, audio, embedded):
    result = model.embed(audio[1])
    assert result.shape == (32,)
    np.testing.assert_allclose(result, embedded[1], atol=CLOSE)


def test_dim_cuts_before_it_normalises(model, audio):
    raw = np.asarray(model.embed(audio, normalize=False))
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    for dim in (1, 8, 24, np.int64(31), 32, None):
        cut = raw[:, :dim]
        np.testing.assert_allclose(model.embed(audio, dim=dim, normalize=False), cut, rtol=1e-6)
        unit = cut / np.linalg.norm(cut, axis=1, keepdims=True)
        np.testing.assert_allclose(model.embed(audio, dim=dim), unit, atol=1e-6)
    for dim in (0, -1, 33, 8.0, "8"):
        assert f"dim is {dim} but must be an integer between 1 and 32" in refusal(model.embed, audio, dim=dim)


@pytest.mark.slow
def test_classification_head(tmp_path, audio):
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((11, 32)).astype(np.float32), rng.standard_normal(11).astype(np.float32)
    state = checkpoint_files.state_dict("v1_fc") | {"cls_head.2.weight": weight, "cls_head.2.bias": bias}
    config = checkpoint_files.case("v1_fc").model_config | {"num_classes": 11, "head_activation": "nn.Tanh()"}
    model = from_torch(checkpoint_files.save(tmp_path / "head.pt", "v1_fc", state=state, config=config))
    embedding = np.asarray(model.embed(audio, normalize=False))
    classes = np.asarray(model.classify(audio))
    assert embedding.shape == (2, 32) and classes.shape == (2, 11) and model.embed_dim == 32
    np.testing.assert_allclose(classes, np.tanh(np.maximum(embedding, 0) @ weight.T + bias), atol=1e-5)
    np.testing.assert_allclose(model.classify(audio[1]), classes[1], atol=1e-5)
    assert model.embed(audio, dim=12).shape == (2, 12)
    assert "call classify" in refusal(model.embed, audio, head=True)
    assert "11 classes" in repr(model)


def test_a_model_without_a_head_classifies_nothing(model, audio):
    assert "no classification head" in refusal(model.classify, audio)


def test_a_model_says_what_it_is(model):
    first, second = repr(model).split("\n")
    arrays = nnx.to_flat_state(nnx.state(model.network, nnx.Param))
    count = sum(np.asarray(variable.get_value()).size for _, variable in arrays)
    assert first == f"SpeakerModel(redimnet, {count:,} parameters, 32 dimensions, float32)"
    assert "v1_fc.pt" in second and model.source.sha256[:16] in second and second.endswith("licence: unknown")


@pytest.fixture
def changeable(audio):
    """A small model of its own, which has run once, and a signal."""
    model = tiny.model()
    return model, audio[0], np.asarray(model.embed(audio[0], normalize=False))


def test_an_array_that_is_changed_counts_in_the_next_call(changeable):
    model, signal, before = changeable
    kernel = model.network.linear.kernel
    kernel.set_value(2 * kernel.get_value())
    bias = np.asarray(model.network.linear.bias.get_value())
    np.testing.assert_allclose(model.embed(signal, normalize=False), 2 * (before - bias) + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whole", [False, True])
def test_a_part_or_network_that_is_replaced_counts_in_the_next_call(changeable, whole):
    model, signal, before = changeable
    other = tiny.model(embed_dim=8)
    other.network.linear.bias.set_value(other.network.linear.bias.get_value() + 1)
    if whole:
        model.network = other.network
    else:
        model.network.linear = other.network.linear
    np.testing.assert_allclose(model.embed(signal, normalize=False), before + 1, rtol=1e-4, atol=1e-4)


def test_a_setting_that_is_changed_counts_in_the_next_call(changeable):
    model, signal, before = changeable
    model.network.bn.eps = 10.0
    assert np.abs(model.embed(signal, normalize=False) - before).max() > 1e-3


@pytest.mark.parametrize("what", ["a.wav", pathlib.Path("a.wav"), b"a.wav", ["a.wav", "b.wav"]])
def test_names_of_files_are_no_signals(model, what):
    assert "redimnet_jax.data.audio.read" in refusal(model.embed, what)


# Lengths and padding


def cosines(a, b) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.fixture(scope="module")
def signals() -> list[np.ndarray]:
    return [golden.audio(seed, 1, length)[0] for seed, length in enumerate([8000, 5003, 7900, 300])]


@pytest.fixture(scope="module")
def alone(model, signals) -> np.ndarray:
    return np.stack([model.embed(signal) for signal in signals])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [list, np.asarray, lambda x: np.asarray(x, np.uint16), jnp.asarray])
def test_garbage_in_the_padding(model, signals, alone, kind):
    batch = 1e3 * np.random.default_rng(0).standard_normal((4, 8000)).astype(np.float32)
    for row, signal in zip(batch, signals, strict=True):
        row[: len(signal)] = signal
    before = batch.copy()
    result = model.embed(batch, kind([len(signal) for signal in signals]))
    np.testing.assert_array_equal(batch, before)
    assert cosines(result, alone).min() >= 0.999999


def test_nan_in_the_padding_is_refused(model, signals):
    """The padding must be finite: a NaN there tells of wrong lengths or of a broken file."""
    batch = np.zeros((2, 8000), np.float32)
    batch[1, 7999] = np.nan
    assert "Signal 1 has NaN or Inf" in refusal(model.embed, batch + signals[0], [8000, 5000])


def test_list_of_different_lengths(model, signals, alone):
    result = model.embed(signals)
    assert result.shape == (4, 32) and cosines(result, alone).min() >= 0.999999
    reversed_order = model.embed(signals[::-1])[::-1]
    np.testing.assert_allclose(reversed_order, result, atol=CLOSE)


@pytest.mark.slow
def test_batch_size_does_not_matter(model, audio, embedded):
    batch = np.concatenate([audio, audio[:1]])
    expected = embedded[[0, 1, 0]]
    np.testing.assert_allclose(model.embed(batch), expected, atol=CLOSE)
    for batch_size in (1, 2, 3, 100):
        np.testing.assert_allclose(model.embed(list(batch), batch_size=batch_size), expected, atol=CLOSE)


@pytest.mark.slow
def test_compilations_are_bounded():
    """Their number is that of padded sizes, not that of lengths."""
    entries = {"F": 8, "C": 4, "stages_setup": [[1, 0, 1, [[3, 3]], None]], "pooling_func": "TAP", "embed_dim": 8}
    network = SpeakerNetwork(model_config.parse("redimnet", entries), rngs=nnx.Rngs(0))
    model = SpeakerModel(network, entries, Source("none", "", "redimnet"))
    lengths, audio = list(range(8001, 32000, 599)), golden.audio(0, 1, 32000)[0]
    sizes = {buckets.samples(length) for length in lengths}
    assert len(lengths) == 41 and not sizes & set(lengths) and len(sizes) == 6
    before = model._program.forward.jitted()._cache_size()
    for length in lengths:
        model.embed(audio[:length])
    assert model._program.forward.jitted()._cache_size() - before <= len(sizes)
    model.embed(audio[None, :9000], dim=4, normalize=False)  # neither is a program of its own
    assert model._program.forward.jitted()._cache_size() - before <= len(sizes)


# Mistakes


def test_wrong_sample_rate(model, audio):
    text = refusal(model.embed, audio, sample_rate=8000)
    assert "8000 Hz" in text and "16000 Hz" in text and "resample" in text


@pytest.mark.parametrize(
    ("length", "told"), [(0, "Signal 0 is empty"), (1, "Signal 0 has 1 samples, too short"), (256, "has 256 samples")]
)
def test_too_short(model, length, told):
    for waveforms in (np.zeros(length, np.float32), np.zeros((2, length), np.float32)):
        text = refusal(model.embed, waveforms)
        assert told in text and "at least 257 samples (0.016 s)" in text


def test_shortest(model):
    assert np.isfinite(model.embed(golden.audio(0, 1, 257)[0])).all()


def test_too_short_among_others(model, audio):
    assert "Signal 2 has 100 samples" in refusal(model.embed, [audio[0], audio[1], audio[0, :100]])
    assert "Signal 1 has 100 samples" in refusal(model.embed, audio, [8000, 100])
    assert "Signal 1 is empty" in refusal(model.embed, audio, [8000, 0])
    assert "Signal 0 is empty" in refusal(model.embed, audio, [-5, 8000])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(model, audio, value):
    batch = np.concatenate([audio, audio])
    batch[2, 17] = value
    for waveforms in (batch, jnp.asarray(batch), list(batch)):
        assert refusal(model.embed, waveforms).startswith("Signal 2 has NaN or Inf; ")
    assert "Signal 0 has NaN or Inf" in refusal(model.embed, batch[2])


def test_not_finite_in_a_list_that_is_sorted_by_length(model, audio):
    bad = golden.audio(0, 1, 5000)[0]
    bad[0] = np.nan
    assert "Signal 3 has NaN or Inf" in refusal(model.embed, [audio[0], audio[1], audio[0], bad])


@pytest.mark.parametrize("shape", [(), (1, 1, 8000), (2, 1, 8000), (0, 8000)])
def test_wrong_shape(model, shape):
    text = refusal(model.embed, np.zeros(shape, np.float32))
    assert f"waveforms has shape {shape} but must be (batch, samples) or (samples,)" in text


def test_wrong_shape_in_a_list(model, audio):
    assert "Signal 1 of the list has shape (2, 8000)" in refusal(model.embed, [audio[0], audio])
    assert "Signal 0 of the list has shape ()" in refusal(model.embed, [0.0, 0.1])


@pytest.mark.parametrize(
    "dtype", [np.int32, np.int64, np.uint8, np.int8, np.uint16, np.bool_, np.complex64, object, "U1"]
)
def test_wrong_dtype(model, dtype):
    text = refusal(model.embed, np.ones(8000).astype(dtype))
    assert f"Samples are {np.dtype(dtype)} but must be int16 or float in [-1, 1]" in text


@pytest.mark.parametrize(
    "lengths",
    [[8000], [8000, 8000, 8000], 8000, [[8000, 8000]], [0.5, 1.0], np.ones(2, bool), [], ["a", "b"], [[1], [2, 3]]],
)
def test_wrong_lengths(model, audio, lengths):
    text = refusal(model.embed, audio, lengths)
    assert text.startswith("lengths ") and "must be 2 integers, one a signal" in text


def test_lengths_beyond_the_batch(model, audio):
    assert "lengths goes up to 8001 but the batch has 8000 samples" in refusal(model.embed, audio, [8000, 8001])


def test_lengths_where_none_belong(model, audio):
    assert "with a list of signals leave it out" in refusal(model.embed, list(audio), [8000, 8000])
    assert "with one signal leave it out" in refusal(model.embed, audio[0], [8000])


def test_empty_list(model):
    assert "list of signals is empty" in refusal(model.embed, [])


@pytest.mark.parametrize("batch_size", [0, -1])
def test_wrong_batch_size(model, audio, batch_size):
    assert f"batch_size is {batch_size} but must be at least 1" in refusal(
        model.embed, list(audio), batch_size=batch_size
    )


def test_silence_has_an_embedding(model):
    assert np.isfinite(model.embed(np.zeros(8000, np.float32))).all()


# Buckets

counts = st.integers(1, 10**9)


@given(counts)
def test_rounded_up_wastes_a_quarter_at_most(n):
    rounded = buckets.round_up(n)
    assert n <= rounded <= 1.25 * n and buckets.round_up(rounded) == rounded


@given(counts, counts)
def test_rounding_up_is_monotone(a, b):
    assert buckets.round_up(min(a, b)) <= buckets.round_up(max(a, b))


@given(counts, st.integers(1, 8))
def test_sizes_an_octave_bound_the_waste(n, sizes):
    rounded = buckets.round_up(n, sizes)
    assert n <= rounded <= (1 + 1 / sizes) * n and buckets.round_up(rounded, sizes) == rounded
    assert len({buckets.round_up(i, sizes) for i in range(65, 129)}) <= sizes


@given(st.integers(3, 16))
def test_few_sizes(exponent):
    sizes = {buckets.round_up(n) for n in range(1, 2**exponent + 1)}
    assert len(sizes) <= 4 * exponent
    assert {1, 2, 3, 4, 5, 6, 7, 8} <= sizes


@given(st.integers(0, 10**8), st.integers(1, 10**6))
def test_padded_lengths(length, least):
    size = buckets.samples(length, least)
    assert size >= max(length, least) and size % buckets.SAMPLES_STEP == 0
    assert size - max(length, least) < max(0.25 * size, buckets.SAMPLES_STEP)


@given(st.lists(st.integers(1, 10**6), max_size=50), st.integers(1, 8))
def test_batches_hold_every_signal_once(lengths, batch_size):
    batches = list(buckets.batches(lengths, batch_size))
    assert sorted(index for _, indices in batches for index in indices) == list(range(len(lengths)))
    for size, indices in batches:
        assert 1 <= len(indices) <= batch_size
        assert all(buckets.samples(lengths[index]) == size for index in indices)
    assert len({size for size, _ in batches}) <= len({buckets.samples(length) for length in lengths})
