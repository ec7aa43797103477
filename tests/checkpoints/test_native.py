"""The native checkpoint: what is saved is what is loaded, all of it or nothing."""

import errno
import hashlib
import json
import re
import shutil
import sys
import types
from pathlib import Path

import checkpoint_files
import golden
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from refusals import refusal

from redimnet_jax import from_torch, load
from redimnet_jax.checkpoints import native

NAME = "v1_fc"
# What Orbax has begun when it fails reports to an event loop that is no more; it does no harm.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return checkpoint_files.save(tmp_path_factory.mktemp("source") / "b0-vb2 [1,  2].pt", NAME)


@pytest.fixture(scope="module")
def model(source):
    return from_torch(source)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    """Read-only: a test that changes a checkpoint takes `copy`."""
    folder = tmp_path_factory.mktemp("saved") / "new" / "b0"
    native.save(model, folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_loads_what_was_saved(model, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would fail
    loaded = load(saved)
    ours, theirs = native.flat(loaded.network), native.flat(model.network)
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert ours[key].dtype == array.dtype and ours[key].shape == array.shape
        assert np.asarray(ours[key]).tobytes() == np.asarray(array).tobytes(), key
    assert (loaded.model_config, loaded.source) == (model.model_config, model.source)
    assert (loaded.arch, loaded.embed_dim, loaded.mrl_dims) == (model.arch, model.embed_dim, model.mrl_dims)
    audio = golden.audio(1, 1, 8000)
    np.testing.assert_array_equal(loaded.embed(audio), model.embed(audio))


def test_dtype_at_load(model, saved):
    loaded = load(str(saved), dtype=jnp.bfloat16)
    assert loaded.network.dtype == jnp.bfloat16
    assert {array.dtype.name for array in native.flat(loaded.network).values()} == {"float32"}
    audio = golden.audio(1, 1, 8000)
    low, high = np.asarray(loaded.embed(audio)), np.asarray(model.embed(audio))
    assert low.dtype == np.float32 and low.shape == high.shape
    assert 0.99 < np.sum(low * high) < 1 and not np.array_equal(low, high)


def test_saved_again_is_the_same(saved, tmp_path):
    native.save(load(saved), tmp_path / "again")
    assert (tmp_path / "again" / "checkpoint.json").read_text() == (saved / "checkpoint.json").read_text()


def test_json_is_complete(model, saved, source):
    content = json.loads((saved / "checkpoint.json").read_text())
    assert re.fullmatch(r"redimnet_jax \d+\.\d+\.\d+.*", content.pop("tool"))
    assert content.pop("config_sha256") == native.config_checksum("redimnet", content["model_config"])
    assert content.pop("arrays_sha256") == native.checksum(native.flat(model.network))
    assert "CC BY-NC-SA 4.0" in content["source"].pop("licence")
    assert content == {
        "format": 1,
        "arch": "redimnet",
        "model_config": checkpoint_files.case(NAME).model_config,
        "source": {
            "file": "b0-vb2 [1,  2].pt",
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "layout": "redimnet",
        },
    }


def test_json_can_be_read_by_people(saved):
    lines = (saved / "checkpoint.json").read_text().splitlines()
    assert len(lines) < 30 and all(len(line) < 200 for line in lines)
    assert '  "arch": "redimnet",' in lines
    stages = "[[1, 2, 1, [[7, 1]], 7], [2, 1, 2, [[3, 3]], null], [1, 1, 1, [[3, 3]], 7]]"
    assert f'    "stages_setup": {stages},' in lines


def test_folder_is_readable_by_others(saved):
    assert saved.stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in saved.iterdir()) == ["arrays", "checkpoint.json"]
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_licence_is_null_without_a_note(tmp_path):
    plain = from_torch(checkpoint_files.save(tmp_path / "b0-vox2-ptn.pt", NAME))
    assert plain.source.licence is None


# Saving


def occupied(folder: Path, how: str) -> Path:
    path = folder / "out"
    if how == "folder":
        path.mkdir()
        (path / "mine").write_text("keep")
    elif how == "empty folder":
        path.mkdir()
    elif how == "file":
        path.write_text("keep")
    else:
        path.symlink_to(folder / "nowhere")
    return path


@pytest.mark.parametrize("how", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_is_overwritten(model, tmp_path, how):
    path = occupied(tmp_path, how)
    before = sorted(tmp_path.rglob("*"))
    for call in (lambda: native.save(model, path), lambda: native.check_output(path)):
        assert f"{path} exists already and is never overwritten" in refusal(call)
    assert sorted(tmp_path.rglob("*")) == before
    if how == "folder":
        assert (path / "mine").read_text() == "keep"
    elif how == "file":
        assert path.read_text() == "keep"


TENSORSTORE = "RESOURCE_EXHAUSTED: Failed writing: \"/x/d/7a\": No space left on device [os_error_code='28']"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "(No space left on device); free some space."),
        (ValueError(TENSORSTORE), "(No space left on device); free some space."),
        (PermissionError(errno.EACCES, "Permission denied"), "(Permission denied); choose another output."),
        (OSError(errno.EIO, "Input/output error"), "(Input/output error); choose another output."),
    ],
)
@pytest.mark.parametrize("written", [False, True])
def test_nothing_is_left_when_saving_fails(model, tmp_path, monkeypatch, error, told, written):
    save = ocp.Checkpointer.save

    def fail(self, path, item):
        if written:
            save(self, path, item)
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    out = tmp_path / "out"
    assert refusal(native.save, model, out) == f"{out} cannot be written {told}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_nothing_is_left_when_saving_is_stopped(model, tmp_path, monkeypatch, error):
    def fail(self, path, item):
        path.mkdir()
        (path / "half").write_text("")
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(type(error)):
        native.save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_room(model, tmp_path, monkeypatch):
    monkeypatch.setattr(native.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    text = refusal(native.save, model, tmp_path / "out")
    assert text.startswith("There is no room for 1 MB in ") and str(tmp_path) in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", ["x", "x/y"])
def test_output_inside_a_file(model, tmp_path, inside):
    (tmp_path / "file").write_text("keep")
    out = tmp_path / "file" / inside
    assert f"{out} cannot be written (" in refusal(native.save, model, out)
    assert (tmp_path / "file").read_text() == "keep"


# Loading


def test_no_checkpoint(source, saved, tmp_path):
    for path in (tmp_path / "nowhere", tmp_path, saved.parent, saved / "arrays", source / "x"):
        text = refusal(load, path)
        assert text == f"{path} is no native checkpoint: it has no checkpoint.json; check the path."


def test_torch_file_in_place_of_a_folder(source):
    assert refusal(load, source) == f"{source} is a file, not a native checkpoint; open a .pt with from_torch."


def rewrite(folder: Path, change) -> Path:
    path = folder / "checkpoint.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe\x00", b"{} {}"])
def test_invalid_json(copy, content):
    path = copy / "checkpoint.json"
    path.write_bytes(content)
    text = refusal(load, copy)
    assert text.startswith(f"{path} is damaged (") and text.endswith("); convert the checkpoint again.")


@pytest.mark.parametrize("key", ["format", "arch", "model_config", "source", "config_sha256", "arrays_sha256"])
def test_missing_or_wrong_keys(copy, key):
    told = f"{copy / 'checkpoint.json'} is damaged (missing or wrong: {key}); convert the checkpoint again."
    for value in ([], None):
        rewrite(copy, lambda content, value=value: content.update({key: value}))
        assert refusal(load, copy) == told
    rewrite(copy, lambda content: content.pop(key))
    assert refusal(load, copy) == told


@pytest.mark.parametrize(
    "entries", [{}, {"file": "x"}, {"file": "x", "sha256": "", "layout": "", "licence": "", "x": 1}]
)
def test_wrong_source(copy, entries):
    path = rewrite(copy, lambda content: content.update(source=entries))
    assert f"{path} is damaged (missing or wrong: source)" in refusal(load, copy)


def test_newer_format(copy):
    path = rewrite(copy, lambda content: content.update(format=2, model_config="of the future"))
    assert refusal(load, copy) == f"{path} has format 2, not 1; update redimnet_jax."


@pytest.mark.parametrize(
    "entries",
    [{"embed_dim": 48}, {"num_classes": 5}, {"C": 16}, {"pooling_func": "TSTP"}, {"block_1d_type": "att", "C": 16}],
)
def test_config_that_does_not_fit(copy, entries):
    if "block_1d_type" in entries:
        entries = entries | {"stages_setup": [[1, 1, 1, [[3, 3]], 8]]}
    path = rewrite(copy, lambda content: content["model_config"].update(entries))
    text = refusal(load, copy)
    assert text.startswith(f"The arrays in {copy / 'arrays'} do not fit the model_config in {path}; ")


@pytest.mark.parametrize("entries", [{"hop_length": 200}, {"spec_params": {"f_max": 7000}}])
def test_config_that_fits_but_was_changed(copy, entries):
    path = rewrite(copy, lambda content: content["model_config"].update(entries))
    assert refusal(load, copy).startswith(f"The model_config in {path} was changed after it was written; ")


def test_config_that_is_wrong(copy):
    rewrite(copy, lambda content: content["model_config"].update(hop=3))
    assert "unknown entries for redimnet: 'hop'" in refusal(load, copy)
    rewrite(copy, lambda content: content.update(arch="redimnet2", model_config={"F": 0}))
    assert "'F' is 0" in refusal(load, copy)
    rewrite(copy, lambda content: content.update(arch="ecapa"))
    assert "'ecapa'; choose one of redimnet, redimnet2" in refusal(load, copy)


def test_missing_arrays(copy):
    shutil.rmtree(copy / "arrays")
    told = f"The arrays in {copy / 'arrays'} cannot be read; convert the checkpoint again."
    assert refusal(load, copy) == told
    (copy / "arrays").mkdir()
    assert refusal(load, copy) == told


def largest(folder: Path) -> Path:
    return max((path for path in (folder / "arrays").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA", None])
def test_truncated_arrays(copy, name):
    path = largest(copy) if name is None else copy / "arrays" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"The arrays in {copy / 'arrays'} cannot be read" in refusal(load, copy)


def test_changed_arrays(copy):
    path = largest(copy)
    content = bytearray(path.read_bytes())
    for position in range(0, len(content), 1000):
        content[position] ^= 255
    path.write_bytes(content)
    assert re.match(f"The arrays in {copy / 'arrays'} (cannot be read|do not match)", refusal(load, copy))


def test_arrays_of_another_checkpoint(copy, model):
    arrays = native.flat(model.network)
    arrays["linear.bias"] = arrays["linear.bias"].at[5].add(1e-6)
    shutil.rmtree(copy / "arrays")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(copy / "arrays", arrays)
    assert f"The arrays in {copy / 'arrays'} do not match their checksum" in refusal(load, copy)


@pytest.mark.parametrize("entries", [{"stages_setup": [[1, 900, 1, [[3, 3]], 7]]}, {"embed_dim": 10**6}])
def test_a_network_that_the_arrays_cannot_fill_is_not_built(copy, entries, monkeypatch):
    monkeypatch.setattr(native, "SpeakerNetwork", None)

    def change(content):
        content["model_config"].update(entries)
        content["config_sha256"] = native.config_checksum(content["arch"], content["model_config"])

    rewrite(copy, change)
    assert "asks for at least" in refusal(load, copy)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format": ' + b"1" * 5000 + b"}", b" " * (1 << 21)])
def test_json_that_nobody_wrote(copy, content):
    (copy / "checkpoint.json").write_bytes(content)
    assert re.search("is damaged (.*); convert the checkpoint again", refusal(load, copy))


def test_arrays_that_are_said_to_be_huge(copy, monkeypatch):
    monkeypatch.setattr(native, "_LARGEST_COMPRESSION", 0)
    monkeypatch.setattr(ocp.Checkpointer, "restore", None)
    assert "cannot be read" in refusal(load, copy)


def test_a_path_that_is_too_long(tmp_path):
    assert "cannot be read (File name too long)" in refusal(load, tmp_path / ("x" * 300))
