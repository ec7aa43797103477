"""One training step against PyTorch's: loss, gradients, running statistics; and what train mode draws and updates."""

import checkpoint_files
import compiling
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from train_mode import training_step

from redimnet_jax.checkpoints import torch_mapping
from redimnet_jax.nn.layers import dropout

CASES = [name for name in golden.names() if checkpoint_files.case(name).train]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_step_agrees_with_pytorch(name):
    case = checkpoint_files.case(name)
    network = checkpoint_files.network(name)
    train, arrays = case.train, case.arrays
    loss, embeddings, prototypes_gradient, by_path = training_step(
        network,
        jnp.asarray(arrays["train_prototypes"]),
        golden.audio(*train["audio"]),
        jnp.asarray(train["labels"]),
        train["margin"],
        train["scale"],
    )
    assert float(loss) == pytest.approx(float(arrays["train_loss"]), rel=1e-4)
    np.testing.assert_allclose(
        embeddings, arrays["train_embedding"], rtol=0, atol=1e-4 * np.abs(arrays["train_embedding"]).max()
    )
    np.testing.assert_allclose(
        prototypes_gradient,
        arrays["train_prototype_grad"],
        rtol=0,
        atol=1e-3 * np.abs(arrays["train_prototype_grad"]).max(),
    )
    paths = {id(variable): path for path, variable in nnx.iter_graph(network) if isinstance(variable, nnx.Variable)}
    slots = torch_mapping.slots(network, case.arch)
    path_of = {key: paths[id(slot.variable)] for key, slot in slots.items() if slot.variable is not None}
    norms = np.array([np.linalg.norm(by_path[path_of[key]]) for key in train["grad_names"]])
    # Gradients that vanish in exact arithmetic (a bias before batch norm) are rounding noise on both sides.
    theirs = arrays["train_grad_norms"]
    np.testing.assert_allclose(norms, theirs, rtol=1e-3, atol=1e-5 * theirs.max())
    running = np.array([np.linalg.norm(by_path[path_of[key]]) for key in train["running_names"]])
    np.testing.assert_allclose(running, arrays["train_running_l2"], rtol=1e-4)


@pytest.mark.slow
def test_eval_mode_updates_nothing():
    network = checkpoint_files.network("v1_tstp")
    before = jax.tree.map(np.asarray, nnx.state(network))
    # What it changes comes back from a compiled call as well.
    nnx.jit(lambda network, audio: network(audio))(network, golden.audio(1, 2, 4000))
    after = nnx.state(network)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), before, after))


def test_dropout_needs_a_key_and_keeps_the_mean():
    x = jnp.ones((200, 300))
    with pytest.raises(ValueError, match="key"):
        dropout(x, 0.25, train=True, key=None)
    y = dropout(x, 0.25, train=True, key=jax.random.key(0))
    assert set(np.unique(np.asarray(y))) == {0.0, np.float32(1 / 0.75)}
    assert float(y.mean()) == pytest.approx(1.0, abs=0.01)
    assert dropout(x, 0.25, train=False, key=None) is x


@pytest.mark.slow
def test_feature_aggregation_dropout_and_spec_augment_come_from_the_key():
    """`v1_tanh` has feat_agg_dropout, class_dropout and SpecAugment in its config."""
    graph, state = nnx.split(checkpoint_files.network("v1_tanh"))
    audio = jnp.asarray(golden.audio(1, 3, 8000))
    embed = compiling.jit(lambda key: nnx.merge(graph, state, copy=True)(audio, train=True, key=key))
    one, again, other = embed(jax.random.key(0)), embed(jax.random.key(0)), embed(jax.random.key(1))
    assert np.array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 1e-3
    with pytest.raises(ValueError, match="key"):
        nnx.merge(graph, state, copy=True)(audio, train=True)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest_in_float32():
    @nnx.jit
    def run(network, audio):
        features, _ = network.features(audio)
        maps, _ = network.feature_maps(features)
        return features, maps, network(audio)

    network = checkpoint_files.network("v1_fc", dtype=jnp.bfloat16)
    audio = golden.audio(1, 2, 8000)
    features, maps, embedding = run(network, audio)
    assert features.dtype == jnp.float32
    assert {x.dtype for x in maps} == {jnp.dtype(jnp.bfloat16)}
    assert embedding.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network))} == {jnp.dtype(jnp.float32)}
    *_, exact = run(checkpoint_files.network("v1_fc"), audio)
    cosine = jnp.sum(embedding * exact, -1) / jnp.linalg.norm(embedding, axis=-1) / jnp.linalg.norm(exact, axis=-1)
    assert 0.9995 <= float(cosine.min()) < 1.0
