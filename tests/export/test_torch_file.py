"""Exports in the published PyTorch layouts."""

import pickletools
import zipfile

import checkpoint_files
import golden
import numpy as np
import pytest
import tiny
from refusals import refusal

from redimnet_jax import export, from_torch
from redimnet_jax.checkpoints import native, torch_file, torch_weights
from redimnet_jax.models import config as model_config
from redimnet_jax.models.speaker_model import Source, SpeakerModel

KEYS = {"redimnet_mrl": "model_state_dict"}


def model_of(name: str) -> SpeakerModel:
    """The model of a golden case."""
    case = checkpoint_files.case(name)
    return SpeakerModel(checkpoint_files.network(name), case.model_config, Source(name, "", case.arch))


def exported(tmp_path, model: SpeakerModel, **options) -> dict:
    """What an export holds."""
    path = tmp_path / "model.pt"
    export(model, path, "torch", **options)
    return torch_file.read(path)


# One of every layout, and of the parts whose axes change: convolutions, attention, poolings, DFT kernels.
@pytest.mark.parametrize("name", ["v1_mqmhastp", "v2_dual", "mrl"])
def test_an_official_file_comes_back_with_the_same_tensors(tmp_path, name):
    case = checkpoint_files.case(name)
    content = exported(tmp_path, model_of(name))
    stored = content[KEYS.get(case.arch, "state_dict")]
    assert list(stored) == [tensor for tensor, _ in case.manifest]
    for tensor, expected in checkpoint_files.state_dict(name).items():
        found = stored[tensor]
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), tensor
        assert tensor.endswith("num_batches_tracked") or np.array_equal(found, expected), tensor
    assert content["model_config"] == case.model_config


@pytest.mark.parametrize("changes", [{}, {"mrl_dims": [4, 8]}, {"emb_bn": True, "num_classes": 5}])
def test_a_native_model_comes_back_to_the_bit(tmp_path, changes):
    model = tiny.model(**changes)
    export(model, tmp_path / "model.pt", "torch")
    back = from_torch(tmp_path / "model.pt")
    assert back.model_config == model.model_config
    assert native.checksum(native.flat(back.network)) == native.checksum(native.flat(model.network))


def test_one_prefix_is_a_plain_model(tmp_path):
    model = tiny.model(mrl_dims=[4, 8], emb_bn=True, num_classes=5)
    export(model, tmp_path / "model.pt", "torch", dim=4)
    back = from_torch(tmp_path / "model.pt")
    assert (back.embed_dim, back.mrl_dims, back.source.layout) == (4, None, "redimnet")
    pooled = np.random.default_rng(0).standard_normal((3, model.network.pool.features)).astype(np.float32)
    expected = np.asarray(model.network.embed(pooled))[:, :4]
    assert golden.relative(back.network.embed(pooled), expected) < 1e-6


def test_the_file_is_that_of_torch_save(tmp_path):
    export(tiny.model(), tmp_path / "model.pt", "torch")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        assert archive.read("archive/version") == b"3\n" and archive.read("archive/byteorder") == b"little"
        program = list(pickletools.genops(archive.read("archive/data.pkl")))
        for entry in archive.infolist():
            header = (tmp_path / "model.pt").read_bytes()[entry.header_offset :][:30]
            lengths = np.frombuffer(header[26:30], "<u2").sum()
            assert (entry.header_offset + 30 + int(lengths)) % 64 == 0, entry.filename
    assert program[0][1] == 2
    named = {argument for code, argument, _ in program if code.name == "GLOBAL"}
    assert named == {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch FloatStorage",
        "torch LongStorage",
    }


def test_torch_opens_it(tmp_path):
    torch = pytest.importorskip("torch")
    model = tiny.model()
    export(model, tmp_path / "model.pt", "torch")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content["model_config"] == tiny.CONFIG
    ours = torch_weights.state_dict(model.network, "redimnet")
    assert list(content["state_dict"]) == list(ours)
    assert all(np.array_equal(tensor.numpy(), ours[name]) for name, tensor in content["state_dict"].items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mrl_dims": [4, 8], "emb_bn": True}, "mrl_dims [4, 8] together with emb_bn"),
        ({"mrl_dims": [4, 8], "num_classes": 5}, "mrl_dims [4, 8] together with num_classes"),
        ({"pool_bn": False}, "pool_bn false"),
        ({"feat_type": "kaldi"}, "feat_type 'kaldi'"),
    ],
)
def test_what_the_layouts_lack_is_refused_by_name(tmp_path, changes, named):
    model = tiny.model(**changes)
    assert f"have no {named} of model_config" in refusal(export, model, tmp_path / "model.pt", "torch")
    assert not list(tmp_path.iterdir())


def test_prefixes_of_redimnet2_are_refused_by_name(tmp_path):
    model = model_of("v2_plain")
    entries = model.model_config | {"mrl_dims": [8, model.embed_dim]}
    model.network.config = model_config.parse("redimnet2", entries)
    model = SpeakerModel(model.network, entries, model.source)
    text = refusal(export, model, tmp_path / "model.pt", "torch")
    assert f"mrl_dims [8, {model.embed_dim}] of a ReDimNet2" in text and "dim" in text


@pytest.mark.parametrize(
    ("options", "named"), [({"precision": "float16"}, "precision 'float16'"), ({"dim": 9}, "dim is 9")]
)
def test_options_without_effect_are_refused(tmp_path, options, named):
    assert named in refusal(export, tiny.model(), tmp_path / "model.pt", "torch", **options)
