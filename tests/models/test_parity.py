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
    def everything(state, audio, lengths):
        network = nnx.merge(graph, state)
        features, frames = network.features(audio, lengths)
        maps, mask = network.feature_maps(features, frames)
        backbone = network.backbone.combine(maps, mask)
        offset = network.config.before_pool_offset
        pooled = network.pool(backbone[:, offset:], mask[:, offset:])
        embedding = network.embed(pooled)
        output = embedding if network.classifier is None else network.classify(embedding)
        return features, maps, backbone, pooled, embedding, output

    # One program for both signals: the second one, of 11,777 samples, is padded and masked.
    first, second = (golden.audio(*arguments) for arguments in case.audio)
    padded = np.pad(second, ((0, 0), (0, first.shape[1] - second.shape[1])))
    lengths = np.array([first.shape[1]] * len(first) + [second.shape[1]])
    features, maps, backbone, pooled, embedding, output = everything(state, np.concatenate([first, padded]), lengths)
    assert relative(features[0].T, case.arrays["mel0"]) <= MEL
    stages = sorted(key for key in case.arrays if key.startswith(("stage", "map")) and key.endswith("_0"))
    offset = 1 if stages[0].startswith("stage") else 0
    for index, key in enumerate(stages):
        assert relative(cut(maps[index + offset]), case.arrays[key]) <= MAPS, key
    assert relative(cut(backbone), case.arrays["backbone0"]) <= MAPS
    assert relative(pooled[:2], case.arrays["pooled0"]) <= POOLED
    if model.network.classifier is None:
        assert relative(embedding[:2], case.arrays["embedding0"]) <= EMBEDDING
    assert relative(output[2:], case.arrays["embedding1"]) <= EMBEDDING


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mrl", "v1_fc"])
def test_the_model_gives_what_pytorch_gives(name, tmp_path):
    """A signal of whole length and one that `embed` pads, through the public functions."""
    case = checkpoint_files.case(name)
    model = from_torch(checkpoint_files.save(tmp_path / f"{name}.pt", name))
    for index, arguments in enumerate(case.audio):
        audio = golden.audio(*arguments)
        if model.network.classifier is None:
            assert relative(model.embed(audio, normalize=False), case.arrays[f"embedding{index}"]) <= EMBEDDING
        elif index:
            assert relative(model.classify(audio), case.arrays[f"embedding{index}"]) <= EMBEDDING


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
