"""Unpack archives, also those cut into pieces: only recordings, never outside of the folder, and resumable.

A file gets its name when it is complete, and the folder gets its name when all files are. What a killed process left
is completed by the next one. No archive may hold links or names that leave the folder.
"""

import bisect
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from redimnet_jax import files
from redimnet_jax.errors import UserError, shown

_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, struct.error),
    *(NotImplementedError, RuntimeError, ValueError, UnicodeError, OverflowError),
)
# In a folder that was unpacked: the archives with their checksums, and the number of files.
MARKER = ".unpacked.json"
_BLOCK = 1 << 20  # bytes


class Member(NamedTuple):
    """An entry of an archive; `special` is True of links and devices."""

    name: str
    size: int
    folder: bool
    special: bool
    open: Callable[[], IO[bytes]]


class Joined(io.RawIOBase):
    """Files one after another as one file that can be read and sought in."""

    def __init__(self, paths: Sequence[Path]):
        self._files = [path.open("rb") for path in paths]
        sizes = [path.stat().st_size for path in paths]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        if origin + offset < 0:
            raise ValueError("a place before the start")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer) -> int:
        if self._position >= self._starts[-1]:
            return 0
        index = bisect.bisect_right(self._starts, self._position) - 1
        file = self._files[index]
        file.seek(self._position - self._starts[index])
        count = file.readinto(buffer)
        self._position += count
        return count

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def unpack(paths: Sequence[Path], folder: Path, pattern: re.Pattern[str], sums: Mapping[str, str]) -> int:
    """Unpack the archive in `paths` to `folder`, which appears when it is complete; return the number of files.

    `paths` are the pieces of one zip file, or one tar.gz file. Members are unpacked under the name that the group of
    `pattern` finds; others are left out. An interrupted call goes on if `sums`, the checksums of `paths` by name, are
    the same; the folder keeps them in the hidden file `MARKER`. Raise UserError when the archive is cut or damaged,
    holds something that is unsafe, or holds nothing of that pattern, and when the disk is full.
    """
    label = str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
    edition = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:8]
    part = folder.with_name(f".{folder.name}.{edition}")
    for other in set(folder.parent.glob(f".{folder.name}.*")) - {part}:
        shutil.rmtree(other)
    try:
        with _members(paths) as (members, total):
            bar = tqdm(members, total=total, desc=f"unpack {paths[0].name}", unit="file")
            count = _extract(bar, part, pattern, label)
    except OSError as error:
        # Errors of writing are UserErrors by now; gzip reports damage as an OSError without a number.
        reason = error.strerror or files.first_line(error)
        raise UserError(f"{label} cannot be read ({reason}); check the file, or download it again.") from error
    except _DAMAGED as error:
        raise UserError(f"{label} is cut or damaged ({files.first_line(error)}); download it again.") from error
    if not count:
        raise UserError(f"{label} holds no recordings such as {pattern.pattern}; check that it is the right archive.")
    files.write(part / MARKER, json.dumps({"archives": sums, "files": count}, indent=1) + "\n")
    # One flush for a million files, before anything says that they are there.
    os.sync()
    files.remove_folder(folder)
    part.rename(folder)
    return count


def _extract(members: Iterable[Member], part: Path, pattern: re.Pattern[str], label: str) -> int:
    """Write the members that `pattern` finds and that are not there yet to `part`; return how many there are."""
    unpacked: set[str] = set()
    for member in members:
        _check_safe(member, label)
        match = pattern.search(member.name)
        if member.folder or match is None:
            continue
        name = match[1]
        if name in unpacked:
            raise UserError(f"{label} holds {shown(name)} twice; check that it is the right archive.")
        unpacked.add(name)
        path = part / name
        if not (path.is_file() and path.stat().st_size == member.size):
            _write(member, path)
    return len(unpacked)


def _check_safe(member: Member, label: str) -> None:
    name = member.name
    if member.special:
        raise UserError(f"{label} holds {shown(name)}, which is a link or a device; do not use this archive.")
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise UserError(f"{label} holds {shown(name)}, which leads out of the folder; do not use this archive.")


def _write(member: Member, path: Path) -> None:
    incomplete = path.with_name(f".{path.name}.part")
    with member.open() as source:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            target = incomplete.open("wb")
        except OSError as error:
            raise _unwritable(path, error) from error
        with target:
            while block := source.read(_BLOCK):
                try:
                    target.write(block)
                except OSError as error:
                    raise _unwritable(path, error) from error
            size = target.tell()
    if size != member.size:
        raise EOFError(f"{member.name} has {size} of {member.size} bytes")
    incomplete.rename(path)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror or error}); free space and repeat the command.")


@contextlib.contextmanager
def _members(paths: Sequence[Path]) -> Iterator[tuple[Iterator[Member], int | None]]:
    """Give the members of an archive and how many there are, or None where only reading tells."""
    if paths[0].name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(paths[0], "r:gz") as archive:
            yield _of_tar(archive), None
        return
    with io.BufferedReader(Joined(paths), _BLOCK) as file, zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        yield _of_zip(archive, infos), len(infos)


def _of_zip(archive: zipfile.ZipFile, infos: Sequence[zipfile.ZipInfo]) -> Iterator[Member]:
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        special = kind not in (0, stat.S_IFREG, stat.S_IFDIR)
        yield Member(info.filename, info.file_size, info.is_dir(), special, lambda info=info: archive.open(info))


def _of_tar(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:

        def opened(info: tarfile.TarInfo = info) -> IO[bytes]:
            file = archive.extractfile(info)
            assert file is not None
            return file

        yield Member(info.name, info.size, info.isdir(), not (info.isreg() or info.isdir()), opened)
