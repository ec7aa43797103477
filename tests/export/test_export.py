"""What holds for every format: refusals, the model card and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

import redimnet_jax as rj
from redimnet_jax import optional
from redimnet_jax.checkpoints import native
from redimnet_jax.cli import main
from redimnet_jax.errors import UserError
from redimnet_jax.export import card
from redimnet_jax.export.options import ExportOptions


@pytest.fixture
def model(tmp_path) -> rj.SpeakerModel:
    native.save(tiny.model(mrl_dims=[4, 8]), tmp_path / "model")
    return rj.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"format": "tflite"}, "There is no format 'tflite'; choose one of onnx, "),
        ({"dim": 0}, "dim is 0 but must lie between 1 and 8, the width of the embedding."),
        ({"dim": 9}, "dim is 9 but must lie between 1 and 8, the width of the embedding."),
        ({"precision": "int4"}, "precision is 'int4' but must be one of float32, float16, int8, int8-static."),
        ({"precision": "int8-static"}, "precision 'int8-static' needs calibration_audio, "),
        ({"calibration_audio": "a"}, "calibration_audio has no effect on precision 'float32'; "),
        (
            {"precision": "int8-static", "calibration_audio": "nowhere"},
            "nowhere is no folder of recordings; check calibration_audio.",
        ),
    ],
)
def test_refusals(model, options, sentence, tmp_path):
    with pytest.raises(UserError) as error:
        rj.export(model, tmp_path / "out.onnx", **options)
    assert str(error.value).startswith(sentence)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("name", ["out.onnx", "out.onnx.md"])
def test_nothing_is_overwritten(model, name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} exists already"):
        rj.export(model, tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


def test_a_folder_without_recordings_is_refused(model, tmp_path):
    (tmp_path / "audio").mkdir()
    with pytest.raises(UserError, match=r"^There is no recording below .*audio; give a folder"):
        rj.export(model, tmp_path / "x", precision="int8-static", calibration_audio=tmp_path / "audio")


def test_silence_is_no_calibration(model, tmp_path):
    import soundfile

    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", np.zeros(16000, np.float32), 16000)
    with pytest.raises(UserError, match=r"^The recordings below .*audio are silent; give a folder with speech "):
        rj.export(model, tmp_path / "x", precision="int8-static", calibration_audio=tmp_path / "audio")


@pytest.mark.parametrize("output", ["", ".", ".."])
def test_an_output_without_a_name_is_refused(model, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"has no file name; give the path of a new file\.$|exists already"):
        rj.export(model, output)


def test_missing_packages_are_named(model, monkeypatch, tmp_path):
    monkeypatch.setitem(optional.PACKAGES, "export", ("no_such_package",))
    with pytest.raises(UserError, match=r"^no_such_package cannot .*redimnet_jax\[export\]'\.$"):
        rj.export(model, tmp_path / "out.onnx")


def test_the_card_knows_only_what_the_checkpoint_says(model):
    text = card.text(model, ExportOptions(dim=4, normalize=False), "onnx", "model.onnx")
    assert "- Source: tiny\n- SHA-256 of the source: unknown\n" in text
    assert native.checksum(native.flat(model.network)) in text
    assert "- Licence: unknown" in text
    assert "No results are stored" in text
    assert "of any length" in text


@pytest.mark.parametrize("place", ["model", "run"])
def test_the_card_has_the_results_beside_the_model(place, model, tmp_path):
    folder = model.folder
    if place == "run":
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "best").symlink_to("best-7")
        native.save(model, folder / "best-7")
        model = rj.load(folder)
    entry = {"eer": 0.0123, "eer_ci95": [0.01, 0.02], "trials": 4950}
    (folder / "results.json").write_text(
        json.dumps({"score": "cosine", "trials_from": "9 trials of list.txt", "dims": {"4": entry, "8": entry}})
    )
    text = card.text(model, ExportOptions(dim=4), "onnx", "model.onnx")
    assert "The score is cosine, on 9 trials of list.txt, of whole" in text
    assert "| 4 | 1.23 | 1.00 to 2.00 | 4,950 |" in text
    assert "| 8 |" not in text
    (folder / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json is not the results of an evaluation \('dims'\); "):
        card.text(model, ExportOptions(), "onnx", "model.onnx")


def test_the_command(model, tmp_path, capsys):
    arguments = ["export", str(tmp_path / "model"), "--format=onnx", f"--output={tmp_path / 'out.onnx'}"]
    assert main.main([*arguments, "--dim=4", "--raw", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["dim"], result["normalized"]) == (4, False)
    assert (tmp_path / "out.onnx.md").read_text().startswith("# out.onnx\n")
    weights = ["export", str(tmp_path / "model"), "--format=torch", f"--output={tmp_path / 'out.pt'}", "--json"]
    assert main.main(weights) == 0
    assert json.loads(capsys.readouterr().out)["normalized"] is False
    assert main.main([*arguments]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main.main([*arguments[:3], f"--output={tmp_path / 'b'}", "--dim=100"]) == 1
    assert capsys.readouterr().err.startswith("error: --dim is 100 but must lie between 1 and 8")


def test_an_export_may_go_to_an_address(model):
    import fsspec

    address = "memory://exports/out.onnx"
    rj.export(model, address)
    system = fsspec.filesystem("memory")
    assert sorted(Path(name).name for name in system.ls("/exports", detail=False)) == ["out.onnx", "out.onnx.md"]
    with pytest.raises(UserError, match=r"^memory://exports/out\.onnx exists already"):
        rj.export(model, address)
