"""The calibration that an export holds: the one beside the model, or one that is given."""

import dataclasses
from pathlib import Path

import pytest
import tiny
from refusals import refusal

import redimnet_jax as rj
from redimnet_jax.checkpoints import native
from redimnet_jax.cli import main
from redimnet_jax.evaluation import system_calibration
from redimnet_jax.evaluation.calibration import Calibration
from redimnet_jax.evaluation.error_curve import ErrorCurve
from redimnet_jax.evaluation.system_calibration import PrefixCalibration, SystemCalibration
from redimnet_jax.export import card, metadata
from redimnet_jax.export.options import ExportOptions
from redimnet_jax.verification.verify import SCORE, WINDOWS

CURVE = ErrorCurve((-1.0, 1.0), (1.0, 0.0), (0.0, 1.0), ((1.0, 1.0),) * 2, ((0.0, 1.0),) * 2, 5, 5, 3, "a list")
PREFIX = PrefixCalibration(Calibration(10.0, -4.0), 0.4, {"duration": (1.0, 8.0)}, CURVE)
EXPORTED = {
    "scale": 10.0,
    "offset": -4.0,
    "threshold": 0.4,
    "limits": {"duration": [1.0, 8.0]},
    "fitted_on": "a list",
}
# One that needs more than the cosine.
WITH_NORM = dataclasses.replace(PREFIX, calibration=Calibration(10.0, -4.0, {"norm": (1.0, 0.5)}))


@pytest.fixture
def model(tmp_path) -> rj.SpeakerModel:
    native.save(tiny.model(mrl_dims=[4, 8]), tmp_path / "model")
    return rj.load(tmp_path / "model")


def save(model: rj.SpeakerModel, path: Path, prefix: PrefixCalibration = PREFIX) -> Path:
    """Write a calibration of `model` at four dimensions."""
    trials = {"from": "a list", "digest": "", "speakers": ["a", "b", "c"]}
    system = system_calibration.describe(model, WINDOWS, SCORE)
    return system_calibration.save(SystemCalibration({4: prefix}, system, trials), path)


def test_the_one_beside_the_model_is_exported(model):
    assert metadata.calibration(model, ExportOptions(dim=4)) is None
    save(model, model.folder / "calibration-cosine.json")
    assert metadata.describe(model, ExportOptions(dim=4))["calibration"] == EXPORTED
    assert "calibration" not in metadata.describe(model, ExportOptions(dim=8))
    assert "fitted on a list: log-likelihood ratio = 10 cosine -4;" in card.text(
        model, ExportOptions(dim=4), "onnx", "model.onnx"
    )


def test_one_beside_the_model_that_needs_more_is_left_out(model):
    save(model, model.folder / "calibration-cosine.json", WITH_NORM)
    assert metadata.calibration(model, ExportOptions(dim=4)) is None


def test_one_that_is_given_is_exported(model, tmp_path):
    path = save(model, tmp_path / "mine.json")
    assert metadata.calibration(model, ExportOptions(dim=4, calibration=path)) == EXPORTED
    arguments = ["export", str(tmp_path / "model"), "--format=safetensors", f"--calibration={path}"]
    assert main.main([*arguments, f"--output={tmp_path / 'out'}", "--dim=4"]) == 0
    assert "fitted on a list" in (tmp_path / "out.md").read_text()


def test_one_that_is_given_has_to_suit(model, tmp_path):
    path = save(model, tmp_path / "mine.json", WITH_NORM)
    assert "needs norm besides the cosine" in refusal(
        rj.export, model, tmp_path / "out.onnx", dim=4, calibration=path
    )
    assert "has no dimension 8" in refusal(rj.export, model, tmp_path / "out.onnx", calibration=path)
    assert not (tmp_path / "out.onnx").exists()
