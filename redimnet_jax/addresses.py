"""Files and folders at addresses such as gs://bucket/run, through fsspec.

Wherever a path is expected, an address may stand: `of` tells the two apart, also after `pathlib` has made
"gs:/bucket" of "gs://bucket". A file system is opened on first use, in every process anew, because its connections do
not survive a fork. What is absent raises FileNotFoundError; everything else that fails raises UserError, within about
a minute.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redimnet_jax.errors import UserError

# One slash suffices, see above. One letter would be a drive, and "tfds:NAME" has no slash.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_MANGLED = re.compile(r"\b([a-z][a-z0-9+.-]+):/(?![/\s])")
# The extra of this package that installs what fsspec needs for a protocol.
_EXTRAS = {"gs": "redimnet_jax[gcs]", "gcs": "redimnet_jax[gcs]", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}
_DENIED = re.compile(r"forbidden|anonymous|unauthori[sz]ed|credential|permission|access.?denied|\b40[13]\b", re.I)
# Seconds for a connection and between two parts of an answer; gcsfs tries six times.
_CONNECT_SECONDS = 5.0
_READ_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file at an address: its size in bytes, and a `version` that changes when it is replaced."""

    size: int
    version: str


def of(path: Any) -> str | None:
    """Return the address that `path` is, such as "gs://bucket/run" without a slash at its end; None for a path."""
    match = _ADDRESS.fullmatch(str(path))
    if match is None:
        return None
    protocol = match[1].lower()
    return f"{protocol}:///{match[2].rstrip('/')}" if protocol == "file" else f"{protocol}://{match[2].rstrip('/')}"


def absolute(path: str | Path) -> Path:
    """Return the absolute path of a local file or folder; an address stays what it is."""
    return Path(path) if of(path) else Path(path).expanduser().absolute()


def repaired(text: str) -> str:
    """Return `text` with "gs://bucket" where `pathlib` made "gs:/bucket" of it."""
    return _MANGLED.sub(r"\1://", text)


def read(path: str | Path) -> bytes:
    """Return the content of the file at a path or an address; raise OSError when a local one cannot be read."""
    address = of(path)
    if address is None:
        return Path(path).read_bytes()
    with reached(address) as (system, name):
        return system.cat_file(name)


def write(address: str, data: bytes, *, new: bool = False) -> None:
    """Write an object, whole or not at all; with `new` raise FileExistsError when there is one already."""
    with reached(address) as (system, name):
        if new:
            system.pipe_file(name, data, mode="create")
        else:
            system.pipe_file(name, data)


def download(address: str, path: Path) -> None:
    """Write the object at `address` to the file `path`."""
    with reached(address) as (system, name):
        system.get_file(name, str(path))


def upload(path: Path, address: str) -> None:
    """Write the file `path` to the object at `address`."""
    with reached(address) as (system, name):
        system.put_file(str(path), name)


def remove(address: str) -> None:
    """Remove the object at `address`, if there is one."""
    with contextlib.suppress(FileNotFoundError), reached(address) as (system, name):
        system.rm_file(name)


def stat(address: str) -> Entry:
    """Return size and version of the object at `address`."""
    with reached(address) as (system, name):
        facts = system.info(name)
        if facts["type"] != "file":
            raise FileNotFoundError(name)
        return _entry(facts)


def is_file(path: str | Path) -> bool:
    """Return whether there is a file at a path or an address."""
    address = of(path)
    if address is None:
        # Path.is_file would raise an error for names that no file can have.
        return os.path.isfile(path)
    try:
        stat(address)
    except FileNotFoundError:
        return False
    return True


def is_folder(path: str | Path) -> bool:
    """Return whether there is a folder at a path, or any object below an address."""
    address = of(path)
    if address is None:
        return os.path.isdir(path)
    try:
        return any(children(address))
    except FileNotFoundError:
        return False


def files_below(address: str) -> dict[str, Entry]:
    """Return all objects below `address`, at any depth, by their name relative to it."""
    with reached(address) as (system, name):
        found = system.find(name, detail=True)
    prefix = f"{name.rstrip('/')}/"
    return {
        path.removeprefix(prefix): _entry(facts)
        for path, facts in sorted(found.items())
        if path.startswith(prefix) and facts["type"] == "file" and not path.endswith("/")
    }


def children(address: str) -> tuple[list[str], list[str]]:
    """Return the names of (folders, files) directly below `address`, sorted."""
    with reached(address) as (system, name):
        found = system.ls(name, detail=True)
    prefix = f"{name.rstrip('/')}/"
    names = [(facts["name"].rstrip("/"), facts["type"]) for facts in found]
    below = sorted((path.removeprefix(prefix), kind) for path, kind in names if path.startswith(prefix))
    return [path for path, kind in below if kind == "directory"], [path for path, kind in below if kind == "file"]


@contextlib.contextmanager
def reached(address: str) -> Iterator[tuple[Any, str]]:
    """Give the file system of `address` and the name in it; raise UserError for what it raises but absence."""
    protocol = address.partition("://")[0]
    try:
        system = _file_system(protocol, os.getpid())
        yield system, system._strip_protocol(address)
    except (FileExistsError, UserError):
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from error
    except ImportError as error:
        package = _EXTRAS.get(protocol, f"what fsspec needs for {protocol}://")
        raise UserError(f"{address} cannot be opened ({_line(error)}); run pip install '{package}'.") from error
    except Exception as error:  # Every file system raises its own kinds; the cause stays attached.
        if isinstance(error, ValueError) and "Protocol not known" in str(error):
            raise UserError(
                f"{address} begins with {protocol}://, which fsspec does not know; give a path, or an address such "
                "as gs://bucket/folder."
            ) from error
        if _DENIED.search(f"{type(error).__name__} {error}"):
            advice = "log in with `gcloud auth application-default login`, or have the bucket's owner allow it"
            advice = advice if protocol in ("gs", "gcs") else "check the credentials and the permissions"
            raise UserError(f"{address} may not be accessed ({_line(error)}); {advice}.") from error
        raise UserError(
            f"{address} cannot be reached ({_line(error)}); check the network and the name of the bucket."
        ) from error


def bucket_of(address: str) -> str:
    """Return the address of the bucket that `address` is in."""
    protocol, _, rest = address.partition("://")
    return f"{protocol}://{rest.partition('/')[0]}"


def _entry(facts: dict[str, Any]) -> Entry:
    keys = ("generation", "etag", "ETag", "md5Hash", "LastModified", "mtime", "created")
    version = next((facts[key] for key in keys if facts.get(key)), "")
    return Entry(int(facts["size"]), str(version))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


@functools.lru_cache(maxsize=8)
def _file_system(protocol: str, _process: int) -> Any:
    if protocol not in ("gs", "gcs"):
        import fsspec

        return fsspec.filesystem(protocol, skip_instance_cache=True)
    import aiohttp

    # The class that fsspec would choose asks Google for the kind of every bucket, which an emulator cannot tell.
    from gcsfs.core import GCSFileSystem

    # It logs tracebacks of what it raises as well.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
    # An emulator has no accounts either, and the search for one would take long.
    options: dict[str, Any] = {"token": "anon"} if os.environ.get("STORAGE_EMULATOR_HOST") else {}
    options |= {"use_listings_cache": False, "session_kwargs": {"timeout": timeout}}
    return GCSFileSystem(skip_instance_cache=True, **options)
