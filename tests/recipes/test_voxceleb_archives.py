"""Unpacking: cut, damaged and hostile archives, missing pieces, wrong sums, and a process that is killed."""

import hashlib
import io
import re
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import run_commands
from refusals import refusal

from recipes.voxceleb import dataset, dry, unpack
from recipes.voxceleb.archives import CHECKSUMS, Archives

ROOT = Path(__file__).parents[2]
SUMS = {"a.zip": "sum"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return dry.make_archives(tmp_path_factory.mktemp("voxceleb") / "archives")


@pytest.fixture
def folder(made, tmp_path):
    """A folder of links to the archives, which a test may change."""
    copied = tmp_path / "archives"
    copied.mkdir()
    for path in made.iterdir():
        (copied / path.name).symlink_to(path)
    return copied


def replace(folder: Path, name: str, content: bytes) -> None:
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    (folder / CHECKSUMS).unlink(missing_ok=True)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def zipped(path: Path, members: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != unpack.MARKER)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_pieces_are_one_archive(tmp_path):
    rng = np.random.default_rng(0)
    members = {f"wav/id{10000 + i}/session/{i:05}.wav": rng.bytes(1000 + i) for i in range(20)}
    whole = zipped(tmp_path / "whole.zip", members | {"wav/readme.txt": b"no recording"}).read_bytes()
    cuts = [0, 1, 7000, 7000, len(whole)]
    pieces = [tmp_path / f"part{number}" for number in range(4)]
    for piece, start, stop in zip(pieces, cuts, cuts[1:], strict=False):
        piece.write_bytes(whole[start:stop])
    count = unpack.unpack(pieces, tmp_path / "unpacked", dataset.SPEAKERS, SUMS)
    assert count == 20
    assert contents(tmp_path / "unpacked") == {name.removeprefix("wav/"): each for name, each in members.items()}


@pytest.mark.parametrize("name", ["../id10001/a/00001.wav", "/id10001/a/00001.wav", "x\\..\\id10001/a/00001.wav"])
def test_names_that_leave_the_folder_are_refused(name, tmp_path):
    archive = zipped(tmp_path / "a.zip", {name: b"content"})
    assert "leads out of the folder" in refusal(
        unpack.unpack, [archive], tmp_path / "out" / "in", dataset.SPEAKERS, SUMS
    )
    assert [path.name for path in tmp_path.rglob("*.wav")] == []


def test_links_are_refused(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"id10001/a/00001.wav": b"/etc/passwd"}, stat.S_IFLNK | 0o777)
    assert "is a link" in refusal(unpack.unpack, [archive], tmp_path / "out", dataset.SPEAKERS, SUMS)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("musan/noise/a/b.wav")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    assert "is a link" in refusal(unpack.unpack, [tmp_path / "b.tar.gz"], tmp_path / "out", dataset.NOISES, SUMS)
    assert not (tmp_path / "out").exists()


def test_a_cut_or_damaged_archive_is_one_sentence(made, tmp_path):
    whole = (made / "vox1_test_wav.zip").read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "cut or damaged" in refusal(unpack.unpack, [cut], tmp_path / "out", dataset.SPEAKERS, SUMS)
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 255
    cut.write_bytes(damaged)
    assert "cut or damaged" in refusal(unpack.unpack, [cut], tmp_path / "out", dataset.SPEAKERS, SUMS)
    tar = tmp_path / "cut.tar.gz"
    tar.write_bytes((made / "musan.tar.gz").read_bytes()[:40000])
    assert "cut or damaged" in refusal(unpack.unpack, [tar], tmp_path / "out", dataset.NOISES, SUMS)
    tar.write_bytes(b"no archive")
    assert str(tar) in refusal(unpack.unpack, [tar], tmp_path / "out", dataset.NOISES, SUMS)
    assert not (tmp_path / "out").exists()


def test_another_archive_is_refused(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"readme.txt": b"content"})
    assert "no recordings" in refusal(unpack.unpack, [archive], tmp_path / "out", dataset.SPEAKERS, SUMS)
    twice = zipped(tmp_path / "b.zip", {"a/id10001/a/1.wav": b"x", "b/id10001/a/1.wav": b"y"})
    assert "twice" in refusal(unpack.unpack, [twice], tmp_path / "out", dataset.SPEAKERS, SUMS)


def test_what_is_left_of_another_edition_is_not_used(tmp_path):
    first = zipped(tmp_path / "a.zip", {"id10001/a/1.wav": b"one", "../x": b""})
    refusal(unpack.unpack, [first], tmp_path / "out", dataset.SPEAKERS, {"a.zip": "first"})
    assert [path.read_bytes() for path in tmp_path.rglob("1.wav")] == [b"one"]
    second = zipped(tmp_path / "b.zip", {"id10001/a/1.wav": b"two"})
    unpack.unpack([second], tmp_path / "out", dataset.SPEAKERS, {"a.zip": "second"})
    assert [path.read_bytes() for path in tmp_path.rglob("1.wav")] == [b"two"]


def test_a_killed_process_is_gone_on_with(tmp_path):
    members = {f"id10001/session/{i:05}.wav": bytes([i % 256]) * 3000 for i in range(1500)}
    archive = zipped(tmp_path / "a.zip", members)
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from recipes.voxceleb import dataset, unpack\n"
        "unpack.unpack([Path(sys.argv[1])], Path(sys.argv[2]), dataset.SPEAKERS, {'a.zip': 'sum'})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(archive), str(out)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    run_commands.wait_until(lambda: list(tmp_path.glob(".out.*/*/*/00050.wav")), "the first files")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    (first,) = tmp_path.glob(".out.*/*/*/00050.wav")
    # A file that was cut, as after a loss of power, is unpacked again; a whole one is not touched.
    first.with_name("00001.wav").write_bytes(b"cut")
    untouched = first.stat().st_ino, first.stat().st_mtime_ns
    assert unpack.unpack([archive], out, dataset.SPEAKERS, SUMS) == 1500
    assert contents(out) == members
    after = out / "id10001" / "session" / "00050.wav"
    assert (after.stat().st_ino, after.stat().st_mtime_ns) == untouched


def opened(folder: Path | None, tmp_path: Path) -> Archives:
    return Archives(dry.DATASET, folder, tmp_path / "work")


def test_unpacked_parts_stay_and_changed_ones_are_unpacked_anew(folder, tmp_path):
    archives = opened(folder, tmp_path)
    first = archives.contents()
    assert archives.unpack(first) == {"vox1_test": 20, "vox1_dev": 12, "vox2_dev": 40, "musan": 3, "rirs": 3}
    kept = tmp_path / "work" / "data" / "vox2_dev"
    before = kept.stat().st_ino
    content = zipped(tmp_path / "new.zip", {"wav/id10270/s/00001.wav": b"sound"}).read_bytes()
    sums = (folder / CHECKSUMS).read_text().replace(first["vox1_test"]["vox1_test_wav.zip"], md5(content))
    replace(folder, "vox1_test_wav.zip", content)
    (folder / CHECKSUMS).write_text(sums)
    second = opened(folder, tmp_path).contents()
    assert second["vox1_test"] != first["vox1_test"] and second["vox2_dev"] == first["vox2_dev"]
    assert opened(folder, tmp_path).unpack(second)["vox1_test"] == 1
    assert kept.stat().st_ino == before


def test_archives_may_go_when_they_are_unpacked(folder, tmp_path):
    archives = opened(folder, tmp_path)
    first = archives.contents()
    archives.unpack(first)
    again = opened(None, tmp_path)
    assert again.contents() == first
    assert again.unpack(first) == archives.unpack(first)


def test_a_folder_of_speakers_serves_without_archives(folder, tmp_path):
    archives = opened(folder, tmp_path)
    archives.unpack(archives.contents())
    other = Archives(dry.DATASET, None, tmp_path / "other")
    (tmp_path / "other").mkdir()
    assert "vox1_test_wav.zip is not in a folder" in refusal(other.contents)
    other.data.mkdir()
    for name in ("vox1_test", "vox1_dev", "vox2_dev"):
        (other.data / name).symlink_to(archives.data / name)
    assert "trial list veri_test2.txt of VoxCeleb1-O is not in" in refusal(other.contents)
    other.lists.symlink_to(archives.lists)
    assert other.contents()["vox2_dev"] is None


def test_a_folder_that_is_there_is_never_replaced(folder, tmp_path):
    archives = opened(folder, tmp_path)
    own = archives.data / "vox1_test"
    own.mkdir(parents=True)
    (own / "mine").touch()
    contents = archives.contents()
    assert contents["vox1_test"] is None
    assert "vox1_test" not in archives.unpack(contents)
    assert [path.name for path in own.iterdir()] == ["mine"]


def test_missing_pieces_and_lists_are_one_sentence(folder, tmp_path):
    (folder / "vox2_dev_aac_partac").unlink()
    (folder / "vox2_dev_aac_partag").unlink()
    told = refusal(opened(folder, tmp_path).contents)
    assert "6 of the 8 pieces of vox2_dev_aac.zip" in told and "vox2_dev_aac_partac, vox2_dev_aac_partag" in told
    for path in folder.glob("vox2_dev*"):
        path.unlink()
    assert "vox2_dev_aac.zip, or its pieces" in refusal(opened(folder, tmp_path).contents)


def test_a_missing_list_is_one_sentence(folder, tmp_path):
    (folder / "list_test_hard2.txt").unlink()
    assert "list_test_hard2.txt of VoxCeleb1-H" in refusal(opened(folder, tmp_path).contents)


def test_a_wrong_sum_is_one_sentence(folder, tmp_path):
    sums = (folder / CHECKSUMS).read_text()
    replace(folder, "vox1_test_wav.zip", b"something else")
    (folder / CHECKSUMS).write_text(sums)
    told = refusal(opened(folder, tmp_path).contents)
    assert re.search(r"vox1_test_wav.zip has the MD5 \w{32} where \w{32} is expected", told)


def test_published_sums_hold_without_own_ones(folder, tmp_path):
    (folder / CHECKSUMS).unlink()
    assert dataset.MD5["vox1_test_wav.zip"] in refusal(opened(folder, tmp_path).contents)


def test_a_part_after_another_reads_as_one_file(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, content in zip(paths, (b"0123", b"", b"456789"), strict=True):
        path.write_bytes(content)
    with io.BufferedReader(unpack.Joined(paths)) as joined:
        assert joined.read() == b"0123456789"
        assert joined.seek(-7, io.SEEK_END) == 3 and joined.read(3) == b"345"
        assert joined.seek(20) == 20 and joined.read(1) == b""
