"""safetensors: exports, files of others, and files that lie."""

import json
import struct

import checkpoint_files
import ml_dtypes
import numpy as np
import pytest
import tiny
from refusals import refusal

import redimnet_jax as rj
from redimnet_jax.checkpoints import native, safetensors_file, torch_weights

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "count": np.array(7, np.int64),
    "half": np.ones((2, 2), np.float16),
    "brain": np.ones(3, ml_dtypes.bfloat16),
    "none": np.zeros((0, 4), np.float32),
}


def packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_arrays_come_back_with_their_order_and_types(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_file.dumps(ARRAYS, {"k": "v"}))
    tensors, metadata = safetensors_file.read(path)
    assert metadata == {"k": "v"} and list(tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert tensors[name].dtype == array.dtype and tensors[name].shape == array.shape
        assert np.array_equal(tensors[name], array)
        assert tensors[name].flags.aligned


def test_the_package_safetensors_agrees(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    arrays = {name: array for name, array in ARRAYS.items() if name != "brain"}
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_file.dumps(arrays, {"k": "v"}))
    theirs = package.load_file(path)
    assert all(np.array_equal(theirs[name], array) for name, array in arrays.items())
    package.save_file(arrays, path, {"k": "v"})
    ours, metadata = safetensors_file.read(path)
    assert metadata == {"k": "v"} and all(np.array_equal(ours[name], array) for name, array in arrays.items())


@pytest.mark.parametrize("changes", [{"mrl_dims": [4, 8]}, {"feat_type": "kaldi", "pool_bn": False}])
def test_a_native_model_comes_back_to_the_bit(tmp_path, changes):
    model = tiny.model(**changes)
    # A number so small that conversions from PyTorch flush it.
    model.network.linear.bias.set_value(model.network.linear.bias[...].at[0].set(1e-42))
    path = tmp_path / "model.safetensors"
    rj.export(model, path, "safetensors")
    back = rj.load(path)
    assert (back.model_config, back.source, back.arch) == (model.model_config, model.source, model.arch)
    assert native.checksum(native.flat(back.network)) == native.checksum(native.flat(model.network))


def test_one_prefix_can_be_exported(tmp_path):
    rj.export(tiny.model(mrl_dims=[4, 8]), tmp_path / "model.safetensors", "safetensors", dim=4)
    back = rj.load(tmp_path / "model.safetensors")
    assert (back.embed_dim, back.mrl_dims) == (4, None)


def save_case(path, metadata: dict) -> None:
    path.write_bytes(safetensors_file.dumps(checkpoint_files.state_dict("v1_fc"), metadata))


def test_the_files_of_others_are_converted(tmp_path):
    case = checkpoint_files.case("v1_fc")
    path = tmp_path / "model.safetensors"
    save_case(path, {"model_config": json.dumps(case.model_config)})
    model = rj.load(path)
    assert model.source.layout == "redimnet" and len(model.source.sha256) == 64
    path = path.rename(tmp_path / "without_suffix")
    assert torch_weights.read_checkpoint(path).layout == "redimnet"
    save_case(path, {})
    assert "--model_config" in refusal(rj.from_torch, path)
    assert rj.from_torch(path, model_config=case.model_config).embed_dim == case.model_config["embed_dim"]
    save_case(path, {"model_config": "{"})
    assert "is not JSON" in refusal(rj.from_torch, path)


def test_what_was_changed_after_it_was_written_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    rj.export(tiny.model(), path, "safetensors")
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert "were changed" in refusal(rj.load, path)
    rj.export(tiny.model(), tmp_path / "other.safetensors", "safetensors")
    path.write_bytes(
        (tmp_path / "other.safetensors").read_bytes().replace(b'hop_length\\": 320', b'hop_length\\": 321')
    )
    assert "were changed" in refusal(rj.load, path)


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path):
    case = checkpoint_files.case("v1_fc")
    state = checkpoint_files.state_dict("v1_fc") | {"linear.bias": np.zeros(3, np.float32), "x": np.zeros(1)}
    del state["bn.weight"]
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_file.dumps(state, {"model_config": json.dumps(case.model_config)}))
    text = refusal(rj.load, path)
    for part in ("1 missing (bn.weight)", "1 unexpected (x)", "1 misshapen (linear.bias is [3], not [32])"):
        assert part in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        packed({}, length=2**31),
        packed({}, length=2**64 - 1),
        packed({}, length=100),
        packed(b"[" * 100_000),
        packed(b'{"a": ' + b"9" * 5000 + b"}"),
        packed(b"\xff{}"),
        packed([]),
        packed({"a": 1}, b"12345678"),
        packed({"a": entry("F33")}, b"12345678"),
        packed({"a": entry(["F32"])}, b"12345678"),
        packed({"a": entry(shape=(3,))}, b"12345678"),
        packed({"a": entry(shape=(-2,), offsets=(8, 0))}, b"12345678"),
        packed({"a": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}, b""),
        packed({"a": entry(shape=(True, 2))}, b"12345678"),
        packed({"a": entry(shape=(1,) * 64 + (2,))}, b"12345678"),
        packed({"a": entry(offsets=(8, 16))}, b"12345678" * 2),
        packed({"a": entry(), "b": entry(offsets=(4, 12))}, b"12345678" * 2),
        packed({"a": entry()}, b"1234"),
        packed({"a": entry()}, b"12345678" * 2),
        packed({"__metadata__": {"a": 1}}),
        packed({"__metadata__": []}),
    ],
)
def test_a_file_that_lies_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert "is not an intact safetensors file" in refusal(rj.load, path)


def test_a_missing_file_is_named(tmp_path):
    assert "does not exist" in refusal(rj.load, tmp_path / "x.safetensors")
