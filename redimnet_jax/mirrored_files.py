"""The files of a local folder and of a bucket, and the copying of what differs; `buckets` says in which order."""

import concurrent.futures
import dataclasses
import fnmatch
import functools
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redimnet_jax import addresses, files, locks
from redimnet_jax.errors import UserError

logger = logging.getLogger(__name__)

SEAL = ".sealed.json"
LINK = ".link"
BROKEN = json.dumps({"complete": False}).encode()
# A transfer waits for the network most of the time.
THREADS = 16
_BLOCK = 1 << 22


class Stamp(NamedTuple):
    """What tells that a local file was changed: its size and times; the text of a link."""

    size: int
    mtime_ns: int
    target: str = ""


UNKNOWN = Stamp(-1, -1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The kinds of files in a folder, as patterns of relative names.

    Folders of `whole` appear whole or not at all. Files of `apart` have nothing to do with each other, so that their
    order does not matter. Folders `skipped`, which are names, are left alone.
    """

    whole: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def skips(self, name: str) -> bool:
        """Return whether the file of a relative name is in a folder that is left alone."""
        return any(_is_below(name, folder) for folder in self.skipped)


@dataclasses.dataclass
class Snapshot:
    """What a local folder holds at one moment: single files, whole folders with their files, and links by target.

    `order` has the names of all of these in the order of their change; the files `apart` have none.
    """

    single: dict[str, Stamp]
    whole: dict[str, dict[str, Stamp]]
    links: dict[str, str]
    apart: list[str]
    order: list[str]

    def stamps(self) -> dict[str, Stamp]:
        """Return the stamps of all files and links by the name of their object."""
        inside = {f"{folder}/{name}": stamp for folder, found in self.whole.items() for name, stamp in found.items()}
        links = {f"{name}{LINK}": Stamp(0, 0, target) for name, target in self.links.items()}
        return self.single | inside | links


def scan(folder: Path, layout: Layout) -> Snapshot:
    """Return what is in `folder`, without hidden files, which are incomplete, and locks.

    Raise FileNotFoundError when a link's target is not there, since the folder is being changed.
    """
    found = Snapshot({}, {}, {}, [], [])
    changed: dict[str, tuple] = {}
    for root, folders, names in os.walk(folder):
        base = os.path.relpath(root, folder)
        prefix = "" if base == "." else f"{base}/"
        for name in list(folders):
            path = Path(root, name)
            if name.startswith(".") or prefix + name in layout.skipped:
                folders.remove(name)
            elif path.is_symlink():
                found.links[prefix + name] = os.readlink(path)
                changed[prefix + name] = path.lstat().st_ctime_ns, 2
                folders.remove(name)
            elif _matches(prefix + name, layout.whole):
                found.whole[prefix + name] = _inside(path)
                changed[prefix + name] = path.lstat().st_ctime_ns, 1
                folders.remove(name)
        for name in names:
            if not name.startswith(".") and name != locks.LOCK:
                facts = os.stat(os.path.join(root, name))
                found.single[prefix + name] = Stamp(facts.st_size, facts.st_mtime_ns)
                # A clock may tick slowly; what describes other files is written after them.
                changed[prefix + name] = facts.st_ctime_ns, 0, name.endswith(".json"), name
    for name, target in found.links.items():
        if os.path.join(os.path.dirname(name), target) not in found.whole:
            raise FileNotFoundError(target)
    found.apart = [name for name in found.single if _matches(name, layout.apart)]
    found.order = sorted(changed.keys() - set(found.apart), key=lambda name: changed[name])
    return found


def push(folder: Path, address: str, snapshot: Snapshot, known: dict[str, Stamp]) -> None:
    """Upload the files of `snapshot` that differ from the `known` ones below `address`, and keep `known` up to date.

    Raise FileNotFoundError when a file of the snapshot is gone.
    """
    upload = functools.partial(_upload, folder, address, known)

    def upload_single(name: str) -> None:
        if known.get(name) != snapshot.single[name]:
            upload(name)
            known[name] = snapshot.single[name]

    in_parallel(upload_single, snapshot.apart)
    for name in snapshot.order:
        if name in snapshot.whole:
            _upload_whole(folder, address, known, name, snapshot.whole[name])
        elif name in snapshot.links:
            stamp = Stamp(0, 0, snapshot.links[name])
            if known.get(f"{name}{LINK}") != stamp:
                addresses.write(f"{address}/{name}{LINK}", stamp.target.encode())
                known[f"{name}{LINK}"] = stamp
        else:
            upload_single(name)


def _upload(folder: Path, address: str, known: dict[str, Stamp], name: str) -> None:
    if not os.path.exists(folder / name):
        raise FileNotFoundError(name)
    known[name] = UNKNOWN
    addresses.upload(folder / name, f"{address}/{name}")


def _upload_whole(
    folder: Path, address: str, known: dict[str, Stamp], base: str, stamps: Mapping[str, Stamp]
) -> None:
    """Upload the folder `base`, whose files have the `stamps`, with its seal, unless all of it is known."""
    inside = {f"{base}/{name}": stamp for name, stamp in stamps.items()}
    before = {name: stamp for name, stamp in known.items() if _is_below(name, base)}
    if before == inside:
        return
    known.update(dict.fromkeys(inside, UNKNOWN))
    addresses.write(f"{address}/{base}/{SEAL}", BROKEN)
    in_parallel(functools.partial(_upload, folder, address, known), list(inside))
    sums = {name: [stamp.size, crc32(folder / base / name)] for name, stamp in stamps.items()}
    remove_objects(address, [name for name in before if name not in inside])
    addresses.write(f"{address}/{base}/{SEAL}", json.dumps({"complete": True, "files": sums}).encode())
    for name in before:
        del known[name]
    known.update(inside)


def remove(address: str, gone: Sequence[str], snapshot: Snapshot) -> None:
    """Remove the objects `gone`, names below `address`; the seal of a folder is broken first, and removed last."""
    folders = {folder for name in gone for folder in _parents(os.path.dirname(name))} - set(snapshot.whole)
    candidates = [f"{address}/{folder}/{SEAL}" for folder in sorted(folders)]
    there = in_parallel(addresses.is_file, candidates)
    seals = [seal for seal, is_there in zip(candidates, there, strict=True) if is_there]
    for seal in seals:
        addresses.write(seal, BROKEN)
    remove_objects(address, gone)
    in_parallel(addresses.remove, seals)


def remove_objects(address: str, names: Sequence[str]) -> None:
    """Remove objects by their names below `address`."""
    in_parallel(lambda name: addresses.remove(f"{address}/{name}"), names)


def pull(
    address: str,
    folder: Path,
    there: Mapping[str, addresses.Entry],
    known: Mapping[str, Stamp],
    versions: Mapping[str, str],
    layout: Layout,
) -> dict[str, Stamp]:
    """Make `folder` like the objects `there` below `address`; return the stamps of all its files.

    Files of the `known` stamps whose objects have the same `versions` are not downloaded again. Folders with broken
    seals are left out. Raise UserError for a folder that does not match its seal, FileNotFoundError when an object is
    gone.
    """
    seals = _read_seals(address, there)
    broken = [base for base, listed in seals.items() if listed is None]
    if "" in broken:
        raise UserError(f"{address} is incomplete, since what wrote it was interrupted; write it again.")
    for base in broken:
        logger.warning(f"{address}/{base} is incomplete, since what wrote it was interrupted; it is ignored")
    wanted = {
        name: entry
        for name, entry in there.items()
        if not any(_is_below(name, base) for base in broken) and os.path.basename(name) != SEAL
    }
    links = [name for name in wanted if name.endswith(LINK)]
    plain = [name for name in wanted if name not in links]
    expected = _expected(address, seals, there)

    def fetch(name: str) -> tuple[str, Stamp]:
        path = folder / name
        stamp = _stamp(path)
        if stamp is None or known.get(name) != stamp or versions.get(name) != there[name].version:
            download(f"{address}/{name}", path, there[name].size)
        if name in expected and crc32(path) != expected[name]:
            path.unlink()
            raise UserError(
                f"{address}/{name} is damaged: it does not match the checksum in {SEAL}; remove its folder, or "
                "restore it."
            )
        stamp = _stamp(path)
        assert stamp is not None
        return name, stamp

    folder.mkdir(parents=True, exist_ok=True)
    _remove_others(folder, set(plain), {name.removesuffix(LINK) for name in links}, layout)
    stamps = dict(in_parallel(fetch, plain))
    for name in links:
        target = addresses.read(f"{address}/{name}").decode()
        _link(folder / name.removesuffix(LINK), target)
        stamps[name] = Stamp(0, 0, target)
    return stamps


def _read_seals(address: str, there: Mapping[str, addresses.Entry]) -> dict[str, dict[str, Any] | None]:
    """Return the files of every sealed folder, and None for folders whose seal is broken."""
    names = [name for name in there if os.path.basename(name) == SEAL]
    contents = in_parallel(lambda name: addresses.read(f"{address}/{name}"), names)
    seals: dict[str, dict[str, Any] | None] = {}
    for name, content in zip(names, contents, strict=True):
        try:
            entries = files.parse_json(content)
            seals[os.path.dirname(name)] = dict(entries["files"]) if entries["complete"] else None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{address}/{name} is damaged ({files.first_line(error)}); remove its folder.") from error
    return seals


def _expected(
    address: str, seals: Mapping[str, dict[str, Any] | None], there: Mapping[str, addresses.Entry]
) -> dict[str, int]:
    """Return the checksums of all files of sealed folders; raise UserError where one is missing, or has changed."""
    expected: dict[str, int] = {}
    for base, listed in seals.items():
        for name, (size, checksum) in (listed or {}).items():
            full = f"{base}/{name}" if base else name
            if full not in there or there[full].size != size:
                found = f"has {there[full].size:,} bytes" if full in there else "is missing"
                raise UserError(
                    f"{address}/{full} is damaged: it {found} but had {size:,} bytes when its folder was complete; "
                    "remove the folder, or restore it."
                )
            expected[full] = checksum
    return expected


def download(address: str, path: Path, size: int) -> None:
    """Write the object at `address`, of `size` bytes, to `path`, atomically."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        addresses.download(address, part)
        if part.stat().st_size != size:
            raise UserError(f"{address} was not read whole ({part.stat().st_size:,} of {size:,} bytes); try again.")
        os.replace(part, path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be written ({files.reason(error)}); free some space.") from error
    finally:
        part.unlink(missing_ok=True)


def in_parallel(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return `function` of every item, by threads; raise the first error."""
    if len(items) < 2:
        return [function(item) for item in items]
    with concurrent.futures.ThreadPoolExecutor(min(THREADS, len(items))) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def crc32(path: Path) -> int:
    """Return the CRC-32 of a file."""
    checksum = 0
    with open(path, "rb") as file:
        while data := file.read(_BLOCK):
            checksum = zlib.crc32(data, checksum)
    return checksum


def _stamp(path: Path) -> Stamp | None:
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stamp(facts.st_size, facts.st_mtime_ns)


def _inside(folder: Path) -> dict[str, Stamp]:
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            facts = path.stat()
            found[str(path.relative_to(folder))] = Stamp(facts.st_size, facts.st_mtime_ns)
    if not folder.is_dir():  # It was renamed while it was listed, so that the list may be short.
        raise FileNotFoundError(folder)
    return dict(sorted(found.items()))


def _link(path: Path, target: str) -> None:
    """Make `path` a link to `target`, unless it is one already."""
    if not (path.is_symlink() and os.readlink(path) == target):
        files.replace_link(path, target)


def _remove_others(folder: Path, names: set[str], links: set[str], layout: Layout) -> None:
    """Remove everything from `folder` but the files `names`, the `links` and what the layout skips."""
    for root, folders, found in os.walk(folder, topdown=False):
        base = os.path.relpath(root, folder)
        prefix = "" if base == "." else f"{base}/"
        if layout.skips(f"{prefix}."):
            continue
        for name in found:
            if prefix + name not in names:
                os.unlink(os.path.join(root, name))
        for name in folders:
            path = Path(root, name)
            if path.is_symlink():
                if prefix + name not in links:
                    path.unlink()
            elif not any(path.iterdir()):
                shutil.rmtree(path)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a relative name has one of the `patterns`, in which * is part of one folder's name."""
    parts = name.split("/")
    return any(
        len(parts) == len(pattern.split("/"))
        and all(fnmatch.fnmatchcase(part, wanted) for part, wanted in zip(parts, pattern.split("/"), strict=True))
        for pattern in patterns
    )


def _is_below(name: str, base: str) -> bool:
    return not base or name.startswith(f"{base}/")


def _parents(folder: str) -> list[str]:
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
