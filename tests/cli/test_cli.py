"""`convert_torch_weights.py`: what it prints, what it returns, and what it leaves behind."""

import functools
import hashlib
import http.server
import json
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import checkpoint_files
import numpy as np
import pytest
import torch_format

from redimnet_jax import load
from redimnet_jax.checkpoints import download
from redimnet_jax.cli import convert as cli
from redimnet_jax.models.config import parse
from redimnet_jax.models.frontend import TorchMel

SCRIPT = Path(__file__).parents[2] / "convert_torch_weights.py"
FLAGS = ("checkpoint", "model", "train_type", "dataset", "download_dir", "output", "arch", "model_config", "sha256")


def run(*arguments, **flags) -> int:
    return cli.main([*arguments, *(f"--{name}={value}" for name, value in flags.items())])


def fails(capsys, *told, **flags) -> None:
    """The conversion ends with exit code 1 and one sentence, which has all of `told`; nothing is written."""
    output = Path(flags["output"])
    beside = sorted(output.parent.rglob("*")) if output.parent.exists() else None
    assert run(**flags) == 1
    out, err = capsys.readouterr()
    assert out == "" or out.startswith("Source: ") and out.count("\n") == 1
    assert re.fullmatch(r"error: [^\n]+\.\n", err) and ". " not in err
    for part in told:
        assert str(part) in err
    assert (sorted(output.parent.rglob("*")) if output.parent.exists() else None) == beside


def facts(text: str) -> dict[str, str]:
    """The report as printed, a fact a line."""
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines())


def written(folder: Path) -> dict:
    return json.loads((folder / "checkpoint.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return checkpoint_files.save(tmp_path_factory.mktemp("checkpoint") / "b0-vox2-ptn.pt", "v1_fc")


@pytest.mark.slow
def test_report(checkpoint, tmp_path, capsys):
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    output = tmp_path / "new" / "b0"
    assert run(checkpoint=checkpoint, output=output, sha256=sha256.upper()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    told, state = facts(out), checkpoint_files.state_dict("v1_fc")
    norm = float(told.pop("embedding norm of the reference signal"))
    assert 0.1 < norm < 100
    content = written(output)
    counters = sum(key.endswith("num_batches_tracked") for key in state)
    assert told == {
        "source file": checkpoint.name,
        "SHA-256": f"{sha256} (not a known release)",
        "licence note": "none known; see the source's release page",
        "architecture": "redimnet (layout redimnet)",
        "tensors read": str(len(state)),
        "tensors mapped": str(len(state) - counters - 1),
        "constants checked": "1",
        "counters dropped": str(counters),
        "left over": "0",
        "parameters": "39,613",
        "elements": f"{sum(array.size for array in state.values()):,}",
        "subnormals flushed": "0",
        "prefix removed": "none",
        "embedding": "32 dimensions",
        "array checksum": content["arrays_sha256"],
        "written to": str(output),
    }
    assert content["source"]["sha256"] == sha256
    model = load(output)
    assert cli.reference_norm(model) == pytest.approx(norm, abs=1e-5)


@pytest.mark.slow
def test_model_of_another_sample_rate(tmp_path, capsys):
    config = checkpoint_files.case("v1_fc").model_config | {"spec_params": {"sample_rate": 8000, "f_max": 3800}}
    parsed = parse("redimnet", config)
    filters = TorchMel(parsed.F, parsed.hop_length, parsed.spec_params).filter_bank.get_value()
    state = checkpoint_files.state_dict("v1_fc") | {"spec.torchfbank.2.mel_scale.fb": np.asarray(filters)}
    path = checkpoint_files.save(tmp_path / "telephone.pt", "v1_fc", state=state, config=config)
    assert run(checkpoint=path, output=tmp_path / "out") == 0
    assert float(facts(capsys.readouterr().out)["embedding norm of the reference signal"]) > 0


@pytest.fixture
def quick(monkeypatch):
    """Without the embedding of the reference signal, which takes a compilation."""
    monkeypatch.setattr(cli, "reference_norm", lambda model: 1.0)


def test_licence_and_prefixes_are_reported(tmp_path, capsys, quick, monkeypatch):
    path = checkpoint_files.save(tmp_path / "S-vb2-ptn.pt", "mrl")
    known = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(download.KNOWN_SHA256, "https://somewhere/S-vb2-ptn.pt", known)
    assert run(checkpoint=path, output=tmp_path / "out") == 0
    told = facts(capsys.readouterr().out)
    assert "CC BY-NC-SA 4.0" in told["licence note"] and told["SHA-256"] == f"{known} (a known release)"
    assert told["embedding"] == "32 dimensions, prefixes 8, 16, 24, 32"
    assert told["architecture"] == "redimnet (layout redimnet_mrl)"


def test_bare_state_dict_with_a_config(tmp_path, capsys, quick):
    bare = torch_format.save_zip(tmp_path / "bare.pt", checkpoint_files.state_dict("v1_fc"))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(checkpoint_files.case("v1_fc").model_config))
    assert run(checkpoint=bare, output=tmp_path / "out", model_config=config, arch="redimnet") == 0
    assert written(tmp_path / "out")["model_config"] == checkpoint_files.case("v1_fc").model_config


# Wrong flags


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--output=o"], "either --checkpoint=FILE or --model=NAME"),
        (["--output=o", "--train_type=ptn"], "either --checkpoint=FILE or --model=NAME"),
        (
            ["--output=o", "--checkpoint=a.pt", "--model=b2", "--train_type=ptn"],
            "either --checkpoint=FILE or --model",
        ),
        (["--output=o", "--model=b2"], "--model needs --train_type"),
        (["--checkpoint=a.pt"], "--output"),
        (["--output=o", "--checkpoint=a.pt", "--overwrite"], "unrecognized arguments: --overwrite"),
        (["--output=o", "--checkpoint=a.pt", "b.pt"], "unrecognized arguments: b.pt"),
        (["--output=o", "--checkpoint=a.pt", "--arch=ecapa"], "invalid choice: 'ecapa'"),
        (["--output=o", "--checkpoint"], "expected one argument"),
        ([], "--output"),
    ],
)
def test_wrong_flags(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2 and list(tmp_path.iterdir()) == []
    out, err = capsys.readouterr()
    assert out == "" and told in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.slow
def test_help_of_the_script():
    ended = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert all(f"--{flag} " in ended.stdout for flag in FLAGS)
    assert "PyTorch is not needed" in ended.stdout


# Files that cannot be converted


class Hostile:
    def __reduce__(self):
        return (exec, ("open('pwned', 'w')",))


def write(path: Path, how: str, good: bytes) -> str:
    """Writes a bad checkpoint; returns what is to be told of it."""
    if how == "empty":
        path.write_bytes(b"")
        return "is empty"
    if how == "truncated":
        path.write_bytes(good[: len(good) // 2])
        return "is damaged or cut short"
    if how == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
        return "is not a checkpoint"
    if how == "web page":
        path.write_text("<!DOCTYPE html><html>Not found</html>")
        return "is a web page"
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(Hostile(), 2))
        return "is a plain pickle"
    if how == "hostile zip":
        torch_format.write_zip(path, pickle.dumps({"state_dict": Hostile()}, 2))
    else:
        torch_format.write_legacy(path, pickle.dumps({"state_dict": Hostile()}, 2))
    return "which is refused"


HOW = ["empty", "truncated", "text", "web page", "plain pickle", "hostile zip", "hostile legacy"]


@pytest.mark.parametrize("how", HOW)
def test_bad_files(how, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    told = write(path, how, checkpoint.read_bytes())
    fails(capsys, path, told, checkpoint=path, output=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pt"]


def test_missing_file(tmp_path, capsys):
    fails(capsys, tmp_path / "no.pt", "does not exist", checkpoint=tmp_path / "no.pt", output=tmp_path / "out")
    fails(capsys, tmp_path, "is not a file", checkpoint=tmp_path, output=tmp_path / "out")


def test_tensors_that_do_not_fit(tmp_path, capsys):
    state = {k: v for k, v in checkpoint_files.state_dict("v1_fc").items() if k != "bn.bias"}
    path = checkpoint_files.save(tmp_path / "x.pt", "v1_fc", state=state)
    fails(capsys, path, "1 missing (bn.bias)", checkpoint=path, output=tmp_path / "new" / "out")


def test_arch_that_does_not_fit(checkpoint, tmp_path, capsys):
    fails(capsys, "redimnet_legacy", checkpoint=checkpoint, output=tmp_path / "out", arch="redimnet_legacy")


def test_wrong_sum(checkpoint, tmp_path, capsys):
    sha256, other = hashlib.sha256(checkpoint.read_bytes()).hexdigest(), "0" * 64
    told = f"{checkpoint} has the SHA-256 {sha256} in place of {other}"
    fails(capsys, told, checkpoint=checkpoint, output=tmp_path / "out", sha256=other)


@pytest.mark.parametrize("how", ["folder", "file", "dangling link"])
def test_output_exists(checkpoint, tmp_path, capsys, how):
    output = tmp_path / "out"
    if how == "folder":
        output.mkdir()
    elif how == "file":
        output.write_text("keep")
    else:
        output.symlink_to(tmp_path / "nowhere")
    fails(capsys, output, "exists already and is never overwritten", checkpoint=checkpoint, output=output)


def test_output_inside_a_file(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("keep")
    fails(capsys, "file/out cannot be written", checkpoint=checkpoint, output=tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "There is no file"),
        (b"", "is not readable JSON"),
        (b"F: 72", "is not readable JSON"),
        (b"\xff\xfe", "is not readable JSON"),
        (b"[1, 2]", "holds a list, not an object"),
        (b'"b2"', "holds a str, not an object"),
        (b'{"hop": 3}', "'hop'"),
    ],
)
def test_bad_config(content, told, checkpoint, tmp_path, capsys):
    config = tmp_path / "config.json"
    if content is not None:
        config.write_bytes(content)
    told = (told,) if told == "'hop'" else (config, told)
    fails(capsys, *told, checkpoint=checkpoint, output=tmp_path / "out", model_config=config)


def test_config_that_is_a_folder(checkpoint, tmp_path, capsys):
    fails(
        capsys, tmp_path, "is not readable JSON", checkpoint=checkpoint, output=tmp_path / "o", model_config=tmp_path
    )


def test_file_without_config(tmp_path, capsys):
    bare = torch_format.save_zip(tmp_path / "bare.pt", checkpoint_files.state_dict("v1_fc"))
    fails(capsys, bare, "--model_config=FILE", checkpoint=bare, output=tmp_path / "out")


def test_interruption(checkpoint, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.torch_weights, "convert", interrupt)
    assert run(checkpoint=checkpoint, output=tmp_path / "out") == 130
    assert capsys.readouterr().err == "Interrupted.\n" and list(tmp_path.iterdir()) == []


# Downloads


@pytest.fixture
def releases(tmp_path, monkeypatch):
    """A folder that is served in place of the published releases."""
    folder = tmp_path / "releases"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(download, "_BASES", {"redimnet": base, "redimnet2": base + "2/"})
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_ends_in_a_checkpoint(releases, tmp_path, capsys, quick):
    path = checkpoint_files.save(releases / "b0-vox2-ptn.pt", "v1_fc")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    flags = {"model": "b0", "train_type": "ptn", "download_dir": tmp_path / "kept", "sha256": sha256}
    assert run(output=tmp_path / "out", **flags) == 0
    source, _, report = capsys.readouterr().out.partition("\n")
    assert source == f"Source: {download.release_url('b0', 'ptn')}" and source.endswith("/b0-vox2-ptn.pt")
    assert facts(report)["source file"] == "b0-vox2-ptn.pt" and facts(report)["left over"] == "0"
    assert written(tmp_path / "out")["source"]["sha256"] == sha256
    path.unlink()  # what was downloaded is kept
    assert run(output=tmp_path / "again", **flags) == 0
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["b0-vox2-ptn.pt"]


def test_download_of_redimnet2(releases, tmp_path, capsys, quick):
    (releases / "2").mkdir()
    checkpoint_files.save(releases / "2" / "b6-vox2-lm.pt", "v2_plain")
    flags = {"model": "b6", "train_type": "lm", "arch": "redimnet2", "download_dir": tmp_path / "kept"}
    assert run(output=tmp_path / "out", **flags) == 0
    assert "/2/b6-vox2-lm.pt\n" in capsys.readouterr().out and written(tmp_path / "out")["arch"] == "redimnet2"


def test_download_with_another_sum(releases, tmp_path, capsys):
    checkpoint_files.save(releases / "b0-vox2-ptn.pt", "v1_fc")
    flags = {
        "model": "b0",
        "train_type": "ptn",
        "download_dir": tmp_path / "kept",
        "output": tmp_path / "new" / "out",
    }
    fails(capsys, "in place of " + "0" * 64, sha256="0" * 64, **flags)
    assert list((tmp_path / "kept").iterdir()) == []


def test_download_that_does_not_exist(releases, tmp_path, capsys):
    flags = {
        "model": "b1",
        "train_type": "ptn",
        "download_dir": tmp_path / "kept",
        "output": tmp_path / "new" / "out",
    }
    fails(capsys, "b1-vox2-ptn.pt does not exist", **flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"model": "b9", "train_type": "ptn"},
        {"model": "b2", "train_type": "lm"},
        {"model": "b2", "train_type": "ft_lm", "arch": "redimnet2"},
        {"model": "b2", "train_type": "ft_lm", "dataset": "vox1"},
    ],
)
def test_what_was_never_published(flags, tmp_path, capsys):
    flags |= {"download_dir": tmp_path / "kept", "output": tmp_path / "out"}
    fails(capsys, f"model {flags['model']!r}", "choose model b0 or b1", **flags)
    assert list(tmp_path.iterdir()) == []
