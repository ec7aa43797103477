"""The format onnx gives what the public PyTorch code gives, alone and padded, for every golden case."""

import json

import checkpoint_files
import golden
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import redimnet_jax as rj
from redimnet_jax.checkpoints import torch_weights
from redimnet_jax.errors import UserError


def session(path) -> "ort.InferenceSession":
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(model, waveforms, lengths) -> np.ndarray:
    (embedding,) = model.run(None, {"waveforms": waveforms, "lengths": np.asarray(lengths, np.int64)})
    return embedding


def golden_model(name, tmp_path):
    return torch_weights.from_torch(checkpoint_files.save(tmp_path / f"{name}.pt", name))


@pytest.mark.parametrize("name", golden.names())
def test_agrees_with_pytorch(name, tmp_path):
    case = checkpoint_files.case(name)
    model = golden_model(name, tmp_path)
    if model.network.classifier is not None:
        pytest.skip("the golden output of this case is that of its classification head")
    path = tmp_path / "model.onnx"
    rj.export(model, path, normalize=False)
    embed = session(path)
    signals = [golden.audio(*arguments) for arguments in case.audio]
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
