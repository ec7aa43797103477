"""Every golden case of the public PyTorch code, from a `.pt` file to the embedding, with the maps in between."""

import checkpoint_files
import compiling
import golden
import numpy as np
import pytest
from flax import nnx
from golden import EMBEDDING, MAPS, MEL, POOLED, relative

from redimnet_jax import from_torch
from redimnet_jax.checkpoints import torch_weights


def cut(x) -> np.ndarray:
    """The first utterance's map as (channels, frames), thinned as the golden maps are."""
    return np.asarray(x[0].T)[::29, ::7]


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.names())
def test_agrees_with_pytorch(name, tmp_path):
    case = checkpoint_files.case(name)
    model = from_torch(checkpoint_files.save(tmp_path / f"{name}.pt", name))
    assert model.source.layout == case.arch
    graph, state = nnx.split(model.network)

    @compiling.jit
    def everything(state, audio):
        network = nnx.merge(graph, state)
        features, _ = network.features(audio)
        maps, _ = network.feature_maps(features)
        backbone = network.backbone.combine(maps, None)
        pooled = network.pool(backbone[:, network.config.before_pool_offset :], None)
        return features, maps, backbone, pooled, network.embed(pooled)

    first, second = (golden.audio(*arguments) for arguments in case.audio)
    features, maps, backbone, pooled, embedding = everything(state, first)
    assert relative(features[0].T, case.arrays["mel0"]) <= MEL
    stages = sorted(key for key in case.arrays if key.startswith(("stage", "map")) and key.endswith("_0"))
    offset = 1 if stages[0].startswith("stage") else 0
    for index, key in enumerate(stages):
        assert relative(cut(maps[index + offset]), case.arrays[key]) <= MAPS, key
    assert relative(cut(backbone), case.arrays["backbone0"]) <= MAPS
    assert relative(pooled, case.arrays["pooled0"]) <= POOLED
    if model.network.classifier is None:
        assert relative(embedding, case.arrays["embedding0"]) <= EMBEDDING
    # 11,777 samples are padded to 12,000 and masked.
    output = model.embed(second, normalize=False) if model.network.classifier is None else model.classify(second)
    assert relative(output, case.arrays["embedding1"]) <= EMBEDDING


@pytest.mark.parametrize(
    "name", [n for n in golden.names() if "tf" in checkpoint_files.case(n).model_config.get("feat_type", "")]
)
def test_dft_kernels_are_those_of_the_public_code(name):
    for key, sample in checkpoint_files.case(name).arrays.items():
        if key.startswith("constant_sample:"):
            ours = checkpoint_files.state_dict(name)[key.removeprefix("constant_sample:")]
            np.testing.assert_allclose(ours.ravel()[::97], sample, atol=1e-6)


def test_every_layout_and_pooling_is_covered():
    cases = [checkpoint_files.case(name) for name in golden.names()]
    wespeaker = {"wespeaker_redimnet", "wespeaker_redimnet2"}  # See tests/checkpoints/test_wespeaker.py.
    assert {case.arch for case in cases} == torch_weights.LAYOUTS.keys() - wespeaker
    poolings = {case.model_config.get("pooling_func", "ASTP") for case in cases}
    assert poolings == {"TAP", "TMAP", "TSDP", "TSTP", "ASTP", "MHASTP", "MQMHASTP"}
