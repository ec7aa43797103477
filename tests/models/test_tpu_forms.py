"""Whole networks in the forms that TPUs get, on a CPU: as exact as the plain ones."""

import checkpoint_files
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpu_forms
from flax import nnx
from golden import EMBEDDING, relative

from redimnet_jax import from_torch


def embeddings(model, audio, lengths):
    """What the network gives, compiled anew."""
    graph, state = nnx.split(model.network)
    return jax.jit(lambda state, *audio: nnx.merge(graph, state)(*audio))(state, audio, lengths)


def signals(case):
    first, second = (golden.audio(*arguments) for arguments in case.audio)
    padded = np.pad(second, ((0, 0), (0, first.shape[1] - second.shape[1])))
    return np.concatenate([first, padded]), np.array([first.shape[1]] * len(first) + [second.shape[1]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chip"), [("v1_base", "TPU v5 lite"), ("v1_base", "TPU v6 lite"), ("v2_base", "TPU v5 lite")]
)
def test_agrees_with_pytorch(name, chip, tmp_path, monkeypatch):
    case = checkpoint_files.case(name)
    model = from_torch(checkpoint_files.save(tmp_path / f"{name}.pt", name))
    with tpu_forms.chosen(monkeypatch, chip) as names:
        ours = embeddings(model, *signals(case))
    assert {"banded_1d", "_native_1d", "divided_twice"} <= set(names)
    assert relative(ours[:2], case.arrays["embedding0"]) <= EMBEDDING
    assert relative(ours[2:], case.arrays["embedding1"]) <= EMBEDDING


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "forms"), [("TPU v5 lite", {"_normal_cdf_by_tanh"}), ("TPU v6 lite", set())])
def test_bfloat16_is_as_close_as_in_the_plain_form(chip, forms, tmp_path, monkeypatch):
    case = checkpoint_files.case("v1_base")
    model = from_torch(checkpoint_files.save(tmp_path / "v1_base.pt", "v1_base"), dtype=jnp.bfloat16)
    plain = embeddings(model, *signals(case))
    with tpu_forms.chosen(monkeypatch, chip) as names:
        ours = embeddings(model, *signals(case))
    assert {"spliced", "divided_twice"} <= set(names)
    assert forms == set(names) & {"_normal_cdf_by_tanh"}
    exact = np.concatenate([case.arrays["embedding0"], case.arrays["embedding1"]])
    assert relative(ours, exact) <= 1.5 * relative(plain, exact)
