"""From a folder of downloaded archives to a folder of recordings for each part."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recipes.voxceleb import dataset, unpack
from recipes.voxceleb.dataset import Dataset, Part, TrialList
from redimnet_jax import files, names
from redimnet_jax.errors import UserError, some_of

# A file of `md5sum` in the folder of the archives; its sums replace the published ones.
CHECKSUMS = "checksums.md5"
_BLOCK = 1 << 22  # bytes


class Archives:
    """The archives in `folder`, or None, for a `workdir` whose `data` and `lists` they are unpacked to.

    Sums of files are kept in the workdir, so that a file is read for its sum once, as long as its size and time of
    change stay the same.
    """

    def __init__(self, content: Dataset, folder: Path | None, workdir: Path):
        self._content = content
        self._folder = folder
        self.data = workdir / "data"
        self.lists = workdir / "lists"
        self._sums_path = workdir / "done" / "checksums.json"
        self._published = dataset.MD5 | _own_sums(folder)

    def contents(self) -> dict[str, Any]:
        """Return what every part and list is unpacked from, as JSON: MD5 by file, or None of a part without archive.

        A part whose archive is gone is what it was unpacked from. Raise UserError for a part that is neither there
        as an archive nor as a folder, for a missing piece, and for a wrong checksum.
        """
        parts = {part.name: self._part_source(part) for part in self._content.parts}
        return parts | {each.file: self._list_source(each) for each in self._content.lists}

    def unpack(self, contents: Mapping[str, Any]) -> dict[str, int]:
        """Unpack what is not there yet; return the number of files of every part that came from an archive."""
        counts = {}
        for part in self._content.parts:
            source = contents[part.name]
            if source is None:
                continue
            known = self._unpacked_from(part)
            if known is not None and known["archives"] == source:
                counts[part.name] = known["files"]
            else:
                paths = self._find(part)
                assert paths is not None
                counts[part.name] = unpack.unpack(paths, self.data / part.name, part.pattern, source)
        for each in self._content.lists:
            path = self._list_path(each)
            if path.parent != self.lists:
                files.write(self.lists / each.file, path.read_bytes())
        return counts

    def _part_source(self, part: Part) -> dict[str, str] | None:
        known = self._unpacked_from(part)
        if known is None and (self.data / part.name).exists():
            return None  # It is the user's own, and never replaced.
        paths = self._find(part)
        if paths is not None:
            return self._checked_sums(paths)
        if known is not None:
            return known["archives"]
        if part.required:
            pieces = f", or its pieces {part.pieces[0]} to {part.pieces[-1]}," if part.pieces else ""
            raise UserError(
                f"{part.archive}{pieces} is not in {self._folder or 'a folder given by --archives'}; download it, or "
                f"make {self.data / part.name} a link to a folder of its speakers."
            )
        return None

    def _list_source(self, each: TrialList) -> dict[str, str]:
        path = self._list_path(each)
        # What is in the workdir was checked when it came there.
        return {path.name: self._sum(path)} if path.parent == self.lists else self._checked_sums([path])

    def _list_path(self, each: TrialList) -> Path:
        folders = [folder for folder in (self._folder, self.lists) if folder is not None]
        path = next((folder / each.file for folder in folders if (folder / each.file).is_file()), None)
        if path is None:
            raise UserError(
                f"The trial list {each.file} of VoxCeleb1-{each.name} is not in {self._folder or self.lists}; "
                "download it from the page of VoxCeleb1."
            )
        return path

    def _find(self, part: Part) -> list[Path] | None:
        """Return the archive of a part, whole or in pieces, or None."""
        if self._folder is None:
            return None
        whole = self._folder / part.archive
        if whole.is_file():
            return [whole]
        pieces = [self._folder / name for name in part.pieces]
        missing = [path.name for path in pieces if not path.is_file()]
        if len(missing) == len(pieces):
            return None
        if missing:
            raise UserError(
                f"{self._folder} has {len(pieces) - len(missing)} of the {len(pieces)} pieces of {part.archive} and "
                f"lacks {some_of(missing)}; download what is missing."
            )
        return pieces

    def _unpacked_from(self, part: Part) -> dict[str, Any] | None:
        folder = self.data / part.name
        if folder.is_symlink() or not (folder / unpack.MARKER).exists():
            return None
        return read_json(folder / unpack.MARKER, ("archives", "files"))

    def _checked_sums(self, paths: Sequence[Path]) -> dict[str, str]:
        """Return the MD5 of files by name; raise UserError when one is not the published one."""
        sums = {path.name: self._sum(path) for path in paths}
        for path in paths:
            published = self._published.get(path.name)
            if published not in (None, sums[path.name]):
                raise UserError(
                    f"{path} has the MD5 {sums[path.name]} where {published} is expected; download it again, or put "
                    f"the sum of another edition into {CHECKSUMS} beside it, as md5sum writes it."
                )
        return sums

    def _sum(self, path: Path) -> str:
        known = read_json(self._sums_path) if self._sums_path.exists() else {}
        facts = path.stat()
        state = [facts.st_size, facts.st_mtime_ns]
        entry = known.get(str(path.absolute()))
        if isinstance(entry, dict) and entry.get("state") == state:
            return entry["md5"]
        md5 = _md5(path)
        files.write(self._sums_path, json.dumps(known | {str(path.absolute()): {"state": state, "md5": md5}}) + "\n")
        return md5


def read_json(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Return the object in a file that the recipe wrote; raise UserError when it is none, or lacks one of `keys`."""
    try:
        value = files.parse_json(path.read_bytes())
        if not isinstance(value, dict) or not all(key in value for key in keys):
            raise ValueError("it has other content")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({files.first_line(error)}); remove it to do its stage again.") from error
    return value


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        size = path.stat().st_size
        options = {"unit": "B", "unit_scale": True, "leave": False, "disable": size <= _BLOCK}
        with path.open("rb") as file, tqdm(total=size, desc=f"MD5 of {path.name}", **options) as bar:
            while block := file.read(_BLOCK):
                digest.update(block)
                bar.update(len(block))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the file and its permissions.") from error
    return digest.hexdigest()


def _own_sums(folder: Path | None) -> dict[str, str]:
    if folder is None or not (folder / CHECKSUMS).exists():
        return {}
    sums = {}
    for number, line in enumerate(names.read_lines(folder / CHECKSUMS, "The list of checksums"), 1):
        cells = names.decode(line).split()
        if len(cells) == 2 and len(cells[0]) == 32:
            sums[cells[1].removeprefix("*")] = cells[0].lower()
        elif cells:
            raise UserError(f"Line {number} of {folder / CHECKSUMS} is no `MD5 file`; write it with md5sum.")
    return sums
