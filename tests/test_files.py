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
