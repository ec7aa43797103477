"""A zero-padded batch gives what each utterance gives alone, whatever stands in the padding."""

import checkpoint_files
import compiling
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from redimnet_jax.models import frontend, pooling
from redimnet_jax.nn import normalization

# Together they have every block, both front ends, every normalisation over time, and both networks.
NETWORKS = ["v1_att", "v1_mqmhastp", "v1_conv", "v2_dual", "v2_offset"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_padding_does_not_reach_the_embedding(name):
    graph, state = nnx.split(checkpoint_files.network(name))
    lengths = [9000, 16000, 12345]
    signals = [golden.audio(seed, 1, length)[0] for seed, length in enumerate(lengths)]
    batch = np.random.default_rng(0).normal(0, 100, (3, 16000)).astype(np.float32)
    for row, signal in zip(batch, signals, strict=True):
        row[: len(signal)] = signal
    embed = compiling.jit(lambda state, x, n=None: nnx.merge(graph, state)(x, n))
    together = embed(state, batch, np.array(lengths))
    # The whole-length utterance alone, without lengths, is one more program; the others run padded by silence.
    alone = embed(state, signals[1][None])[0]
    relative = np.linalg.norm(together[1] - alone) / np.linalg.norm(alone)
    assert relative < 1e-5
    quiet = np.zeros_like(batch)
    for row, signal in zip(quiet, signals, strict=True):
        row[: len(signal)] = signal
    np.testing.assert_array_equal(together, embed(state, quiet, np.array(lengths)))


# Compiled as a whole, which is quicker than operation by operation.
REFLECT = jax.jit(frontend.reflect, static_argnums=1)
FRAME = jax.jit(frontend.frame, static_argnums=(1, 2, 3))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=30)
def test_reflection_at_each_end(data):
    pad = data.draw(st.integers(1, 6))
    total = data.draw(st.sampled_from((7, 24)))
    length = data.draw(st.integers(pad + 1, total))
    signal = np.arange(1.0, length + 1)
    padded = np.full((1, total), -1.0, np.float32)
    padded[0, :length] = signal
    ours = REFLECT(padded, pad, np.array([length]))[0]
    np.testing.assert_array_equal(ours[: length + 2 * pad], np.pad(signal, pad, mode="reflect"))


@pytest.mark.slow
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 9))
@settings(max_examples=50)
def test_frames(samples, size, hop):
    x = np.arange(1.0, samples + 1)
    count = max(1, (samples - size) // hop + 1)
    ours = FRAME(x[None], size, hop, count)[0]
    padded = np.pad(x, (0, size))
    np.testing.assert_array_equal(ours, [padded[i * hop : i * hop + size] for i in range(count)])


@jax.jit
def mean_and_variances(x, mask):
    mean = normalization.masked_mean(x, mask, (1,), keepdims=True)
    return mean, *(normalization.masked_variance(x, mask, (1,), mean, ddof) for ddof in (0, 1))


@given(st.integers(2, 9), st.integers(0, 5), st.integers(0, 2**31))
@settings(max_examples=25)
def test_masked_statistics(length, extra, seed):
    x = np.random.default_rng(seed).standard_normal((1, length + extra, 3)).astype(np.float32)
    mean, *variances = mean_and_variances(x, np.arange(length + extra)[None] < length)
    np.testing.assert_allclose(mean[0, 0], x[0, :length].mean(0), atol=1e-6)
    for ddof, variance in enumerate(variances):
        np.testing.assert_allclose(variance[0, 0], x[0, :length].var(0, ddof=ddof), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(pooling.POOLINGS))
def test_poolings_of_a_masked_map(name):
    pool = pooling.POOLINGS[name](16, True, rngs=nnx.Rngs(0))
    run = jax.jit(lambda x, mask: pool(x, mask))
    x = jax.random.normal(jax.random.key(0), (2, 12, 16))
    mask = jnp.arange(12)[None] < jnp.array([[7], [12]])
    ours = run(x.at[0, 7:].set(1e3), mask)
    assert ours.shape == (2, pool.features)
    np.testing.assert_allclose(ours[0], run(x[:1, :7], None)[0], atol=1e-5)
    np.testing.assert_allclose(ours[1], run(x[1:], None)[0], atol=1e-5)


def test_batch_norm_counts_only_frames_inside():
    x = jax.random.normal(jax.random.key(0), (2, 6, 3))
    mask = jnp.arange(6)[None] < jnp.array([[4], [6]])
    kept = jnp.concatenate([x[0, :4], x[1]])
    ours, alone = normalization.BatchNorm(3), normalization.BatchNorm(3)
    y = ours(x.at[0, 4:].set(100.0), mask, train=True)
    np.testing.assert_allclose(jnp.concatenate([y[0, :4], y[1]]), alone(kept, train=True), atol=1e-5)
    np.testing.assert_allclose(ours.mean[...], 0.1 * kept.mean(0), atol=1e-6)
    np.testing.assert_allclose(ours.var[...], 0.9 + 0.1 * kept.var(0, ddof=1), atol=1e-6)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=20)
def test_one_and_two_dimensional_maps_are_reshapes(freqs, channels, frames):
    """PyTorch's to1d is (b, c, f, t) -> (b, f, c, t) -> (b, f * c, t)."""
    torch_2d = np.arange(channels * freqs * frames).reshape(1, channels, freqs, frames)
    torch_1d = torch_2d.transpose(0, 2, 1, 3).reshape(1, freqs * channels, frames)
    ours_2d = torch_2d.transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(ours_2d.reshape(1, frames, -1), torch_1d.transpose(0, 2, 1))
