"""The format stablehlo gives what the model gives, for any batch and length, and is read by JAX alone."""

import json
import zipfile

import golden
import jax
import numpy as np
import pytest
import tiny
from jax import export as jax_export

import redimnet_jax as rj
from redimnet_jax.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize("front_end", ["pt", "tf"])
def test_agrees_with_embed(front_end, tmp_path):
    model = tiny.model(feat_type=front_end)
    path = tmp_path / "model.stablehlo"
    rj.export(model, path, "stablehlo", dim=4)
    exported = jax_export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    facts = json.loads(zipfile.ZipFile(path).read("metadata.json"))
    assert (facts["dim"], facts["normalized"], facts["min_samples"]) == (4, True, model.min_samples)
    embed = jax.jit(exported.call)
    signal = golden.audio(0, 1, 9000)
    alone = embed(signal, np.array([9000], np.int32))
    assert golden.relative(alone, model.embed(signal, dim=4)) < 1e-5
    batch = np.random.default_rng(0).normal(0, 1, (3, 10001)).astype(np.float32)
    batch[:2, :9000] = signal
    found = np.asarray(embed(batch, np.array([9000, model.min_samples - 1, 10002], np.int32)))
    assert golden.relative(found[:1], alone) < 1e-5
    assert np.isnan(found).all(axis=1).tolist() == [False, True, True]


def test_has_no_other_precision(tmp_path):
    with pytest.raises(UserError, match=r"^The format stablehlo cannot have precision 'int8'; leave it out\.$"):
        rj.export(tiny.model(), tmp_path / "model", "stablehlo", precision="int8")
    assert not list(tmp_path.iterdir())
