"""Files appear whole or not at all."""

import os

import pytest
from refusals import refusal

from redimnet_jax import files


def test_write(tmp_path):
    path = tmp_path / "a" / "b.txt"
    assert files.write(path, "höher\n") == path
    assert path.read_bytes() == "höher\n".encode()
    assert files.write(str(path), b"\x00\n") == path
    assert path.read_bytes() == b"\x00\n"
    assert [file.name for file in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, step):
    path = tmp_path / "a.txt"
    files.write(path, "before")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    assert "a.txt cannot be written (No space left on device)" in refusal(files.write, path, "after")
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_in_place_of_the_folder(tmp_path):
    files.write(tmp_path / "a", "")
    assert "cannot be written" in refusal(files.write, tmp_path / "a" / "b", "")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        file = files.write(tmp_path / "a" / "b.txt", "")
        with files.new_folder(tmp_path / "c") as part:
            (part / "d").write_text("")
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "c" / "d").stat().st_mode & 0o777 == 0o666 & ~umask
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in "ac"} == {0o777 & ~umask}


def test_new_folder(tmp_path):
    with files.new_folder(str(tmp_path / "a" / "b")) as part:
        (part / "c").write_text("x")
        assert not (tmp_path / "a" / "b").exists() and part.parent == tmp_path / "a"
    assert (tmp_path / "a" / "b" / "c").read_text() == "x"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def fill(path, error=None, during=lambda: None):
    with files.new_folder(path, advice="choose another place") as part:
        (part / "c").write_text("x")
        during()
        if error is not None:
            raise error


def test_a_failure_leaves_no_folder(tmp_path):
    text = refusal(fill, tmp_path / "a", OSError(28, "No space left on device"))
    assert text == f"{tmp_path / 'a'} cannot be written (No space left on device); choose another place."
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "a", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_replaced(tmp_path):
    assert "exists already" in refusal(fill, tmp_path / "a", during=(tmp_path / "a").mkdir)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert "exists already" in refusal(fill, tmp_path / "a")


def test_what_killed_processes_left_is_removed(tmp_path):
    dead, fresh, other = (tmp_path / name for name in (".a.0123abcd", ".a.4567abcd", ".b.0123abcd"))
    for path in (dead, fresh, other):
        path.mkdir()
        (path / "half").write_text("")
    for path in (dead, other):
        os.utime(path, (1, 1))
    with files.new_folder(tmp_path / "a") as part:
        os.utime(part, (1, 1))
        fill(tmp_path / "a.b")  # another folder
        with files.new_folder(tmp_path / "a2"):
            pass
        assert part.exists()
        # A second process that makes the same folder leaves the part of the first, which is alive, in peace.
        files._remove_leftovers(tmp_path / "a")
        assert part.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.4567abcd", ".b.0123abcd", "a", "a.b", "a2"]


def test_impossible_names(tmp_path):
    name = "x" * 300
    assert "cannot be written" in refusal(files.write, tmp_path / name, "")
    assert "cannot be written" in refusal(fill, tmp_path / name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 200_000 + b"]" * 200_000, "it is nested too deeply"),
        (b"[" * 100 + b"]" * 100, "it is nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "a number has too many digits"),
        (b"\xff\xff\xff", "it is not text in UTF-8: "),
        (b'{"a": ', "Expecting value"),
    ],
)
def test_what_is_no_json(text, reason):
    with pytest.raises(ValueError, match=reason):
        files.parse_json(text)
