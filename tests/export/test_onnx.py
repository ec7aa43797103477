"""The format onnx gives what the public PyTorch code gives, alone and padded, in every golden case."""

import functools
import json

import checkpoint_files
import golden
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from onnx import TensorProto

import redimnet_jax as rj
from redimnet_jax.checkpoints import native
from redimnet_jax.errors import UserError
from redimnet_jax.export.graph.backbone import write_backbone
from redimnet_jax.export.graph.blocks import write_block
from redimnet_jax.export.graph.builder import Graph
from redimnet_jax.export.graph.frontend import log_mel
from redimnet_jax.export.graph.layers import activation
from redimnet_jax.export.graph.pooling import write_pooling
from redimnet_jax.models.config import BLOCKS_1D, BLOCKS_2D, POOLING_HEADS
from redimnet_jax.models.speaker_model import Source, SpeakerModel

# Other names or other outputs of parts that another case has too.
REPEATED = {"legacy", "legacy_mfa", "mrl", "v1_all_outputs", "v1_train_convnext", "v2_all_outputs", "v2_train"}
# Where the golden output is that of a classification head there is no embedding to compare.
CASES = [
    name
    for name in golden.names()
    if "num_classes" not in checkpoint_files.case(name).model_config and name not in REPEATED
]
audio = functools.cache(golden.audio)


def session(path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(model, waveforms, lengths) -> np.ndarray:
    (embedding,) = model.run(None, {"waveforms": waveforms, "lengths": np.asarray(lengths, np.int64)})
    return embedding


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_pytorch(name, tmp_path):
    case = checkpoint_files.case(name)
    model = SpeakerModel(checkpoint_files.network(name), case.model_config, Source(name, "", "redimnet"))
    rj.export(model, tmp_path / "model.onnx", normalize=False)
    embed = session(tmp_path / "model.onnx")
    signals = [audio(*arguments) for arguments in case.audio]
    for index, signal in enumerate(signals):
        alone = run(embed, signal, [signal.shape[1]] * len(signal))
        assert golden.relative(alone, case.arrays[f"embedding{index}"]) < golden.EMBEDDING
    # Whatever stands in the padding, and however much of it there is.
    rows = [row for signal in signals for row in signal]
    batch = np.random.default_rng(0).normal(0, 1, (len(rows), max(map(len, rows)) + 1234)).astype(np.float32)
    for row, signal in zip(batch, rows, strict=True):
        row[: len(signal)] = signal
    together = run(embed, batch, list(map(len, rows)))
    expected = np.concatenate([case.arrays["embedding0"], case.arrays["embedding1"]])
    for ours, theirs in zip(together, expected, strict=True):
        assert golden.relative(ours, theirs) < golden.EMBEDDING


def test_the_cases_have_every_part():
    configs = [checkpoint_files.case(name).model_config for name in CASES]
    for entry, values in (
        ("pooling_func", POOLING_HEADS),
        ("block_1d_type", BLOCKS_1D),
        ("block_2d_type", BLOCKS_2D),
        ("emb_bn", (True, False)),
    ):
        assert {config.get(entry, False) for config in configs} >= set(values)
    fronts = [config.get("spec_params") or {} for config in configs]
    assert {front.get("spec_norm", "mn") for front in fronts} == {"mn", "mvn", "bn"}


@pytest.fixture(scope="module")
def model() -> rj.SpeakerModel:
    return tiny.model(mrl_dims=[4, 8])


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> onnxruntime.InferenceSession:
    path = tmp_path_factory.mktemp("onnx") / "whole.onnx"
    rj.export(model, path, "onnx", normalize=False)
    return session(path)


def check_against_embed(model, exported) -> None:
    for seed, samples in enumerate((model.min_samples, 4801, 8000)):
        signal = golden.audio(seed, 1, samples)
        # In one shape, which XLA compiles once.
        padded = np.pad(signal, ((0, 0), (0, 8000 - samples)), constant_values=0.5)
        expected = model.embed(padded, [samples], normalize=False)
        assert golden.relative(run(exported, signal, [samples]), expected) < 1e-5
        assert golden.relative(run(exported, padded, [samples]), expected) < 1e-5


def test_agrees_with_embed(model, whole):
    check_against_embed(model, whole)


@pytest.mark.slow
def test_features_of_kaldi(tmp_path):
    model = tiny.model(feat_type="kaldi", pool_bn=False)
    rj.export(model, tmp_path / "model.onnx", normalize=False)
    kaldi = session(tmp_path / "model.onnx")
    check_against_embed(model, kaldi)
    # An offset, which every frame loses, must not cost the precision of a soft signal.
    soft = 1e-4 * golden.audio(0, 1, 8000)
    expected = model.embed(soft + np.float32(0.1), normalize=False)
    assert golden.relative(run(kaldi, soft + np.float32(0.1), [8000]), expected) < 2e-5


def test_prefixes_are_cut_and_then_normalised(model, whole, tmp_path):
    rj.export(model, tmp_path / "prefix.onnx", dim=4)
    signal = golden.audio(0, 2, 8000)
    prefix = run(session(tmp_path / "prefix.onnx"), signal, [8000, 7000])
    raw = run(whole, signal, [8000, 7000])[:, :4]
    np.testing.assert_allclose(prefix, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)


def test_unusable_lengths_give_nan_in_their_row_alone(model, whole):
    signal = golden.audio(0, 4, 8000)
    found = run(whole, signal, [8000, model.min_samples - 1, 8001, model.min_samples])
    assert np.isnan(found).all(axis=1).tolist() == [False, True, True, False]
    assert np.isfinite(found[[0, 3]]).all()


def test_the_file_says_what_it_is(model, tmp_path):
    rj.export(model, tmp_path / "model.onnx", dim=4)
    proto = onnx.load(tmp_path / "model.onnx")
    facts = json.loads(next(entry.value for entry in proto.metadata_props if entry.key == "redimnet_jax"))
    assert (facts["dim"], facts["prefixes"], facts["sample_rate"], facts["normalized"]) == (4, [4], 16000, True)
    assert facts["weights_sha256"] == native.checksum(native.flat(model.network))
    # onnxruntime 1.20 reads up to version 10 of the format, and up to opset 21.
    assert proto.ir_version <= 10
    assert [opset.version for opset in proto.opset_import if not opset.domain] == [17]


@pytest.mark.parametrize(("precision", "least"), [("float16", 0.99999), ("int8", 0.99)])
def test_precisions(model, whole, precision, least, tmp_path):
    path = tmp_path / "model.onnx"
    rj.export(model, path, precision=precision, normalize=False)
    check_precision(session(path), whole, least)
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert {"float16": TensorProto.FLOAT16, "int8": TensorProto.UINT8}[precision] in types


@pytest.mark.slow
def test_static_ranges_are_those_of_the_recordings(model, whole, tmp_path):
    import soundfile

    for index in range(3):
        folder = tmp_path / "audio" / str(index)
        folder.mkdir(parents=True)
        soundfile.write(folder / "a.wav", golden.audio(index, 1, 16000)[0], 16000)
    path = tmp_path / "model.onnx"
    rj.export(model, path, precision="int8-static", calibration_audio=tmp_path / "audio", normalize=False)
    check_precision(session(path), whole, 0.99)
    graph = onnx.load(path).graph
    assert "QuantizeLinear" in {node.op_type for node in graph.node}
    # Signed weights saturate on CPUs without VNNI, whatever the CPU of this test does.
    assert TensorProto.INT8 not in {tensor.data_type for tensor in graph.initializer}


def check_precision(ours, exact, least: float) -> None:
    signal = golden.audio(0, 2, 8000)
    a, b = (run(each, signal, [8000, 7000]) for each in (ours, exact))
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    assert least < cosines.min() < 1 + 1e-6
    assert not np.array_equal(a, b)


class Unknown:
    """A module of a later version."""


@pytest.mark.parametrize("write", [write_block, write_backbone, write_pooling, log_mel])
def test_unknown_modules_are_refused_by_name(write):
    with pytest.raises(UserError, match=r"^The format onnx has no form of the .* Unknown; choose another format\.$"):
        write(Unknown(), Graph(), "x", None)


def test_unknown_activations_are_refused_by_name():
    with pytest.raises(UserError, match=r"^The format onnx has no form of the activation tanh; "):
        activation(Graph(), "x", np.tanh)
