"""Files and folders that appear whole or not at all, with the permissions that the user's umask gives."""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redimnet_jax.errors import UserError

# Errors of numpy.load for bytes that are no array; those of its parser for headers are among them.
NOT_AN_ARRAY = (ValueError, TypeError, EOFError, ArithmeticError, MemoryError, SyntaxError, tokenize.TokenError)
_PART = re.compile(r"[a-z0-9_]{8}")  # the random end of an unfinished file or folder
_MAX_DEPTH = 64  # of JSON; no file of ours has more than ten levels
_SETTLED = 60.0  # seconds after which the maker of an unfinished folder has locked it, or is dead


def reason(error: Exception) -> str:
    """Return the cause of a failed write in a few words; TensorStore puts the system's among many others."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".").replace(". ", "; ")


def write(path: str | Path, data: bytes | str) -> Path:
    """Write `data` (text as UTF-8) to `path`, over what was there; make its folder; return the path.

    Raises UserError when it cannot be written; what was there before then stays as it was.
    """
    path = Path(path)
    part = _part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another output.") from error
    finally:
        with contextlib.suppress(OSError):  # It is not there when all went well, or when it could not be made.
            part.unlink()
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the hidden files and folders with random ends that a killed process left in `folder`.

    Nobody else may be writing there.
    """
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name):
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError as error:
                raise UserError(f"{path} cannot be removed ({error.strerror}); remove it and start again.") from error


@contextlib.contextmanager
def new_folder(path: str | Path, advice: str = "choose another output") -> Iterator[Path]:
    """Give an empty folder beside `path` to write into, and rename it to `path` when the block ends without error.

    The content is on the disk before it gets its name; after an error nothing is left of it, and what killed
    processes left of a folder of this name is removed. Raises UserError, which ends with `advice`, for every OSError
    in the block, and when `path` exists.
    """
    path = Path(path).absolute()
    check_new(path)
    part = _part_of(path)
    lock = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        part.mkdir()
        lock = _locked(part)
        yield part
        _sync(part)
        check_new(path)  # A rename would replace an empty folder.
        part.rename(path)
        _sync_one(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); {advice}.") from error
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(part, ignore_errors=True)


def replace_link(path: Path, target: str) -> None:
    """Make `path` a link to `target` at once, in place of the link that was there."""
    new = path.with_name(f".{path.name}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, under a hidden name, so that nobody sees a part of it."""
    hidden = _part_of(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(hidden)
        shutil.rmtree(hidden)


def check_new(path: str | Path) -> None:
    """Raise UserError when there is something at `path` already."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists already and is never overwritten; remove it or choose another output.")


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON in UTF-8; raise ValueError, with a reason of one line, for whatever is none."""
    try:
        value = json.loads(text)
        _check_depth(value, _MAX_DEPTH)
        return value
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8: {error.reason}") from error
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError("a number has too many digits" if "digits" in reason else reason) from error


def first_line(error: Exception) -> str:
    """Return the first line of what `error` says, of at most 300 characters, without its full stop, or its type."""
    return str(error).partition("\n")[0][:300].rstrip(".") or type(error).__name__


def _check_depth(value: Any, left: int) -> None:
    # What is only just read would be too deep for whoever walks through it.
    if left < 0:
        raise RecursionError
    for inside in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inside, left - 1)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _locked(folder: Path) -> int | None:
    """Locks `folder` until the returned descriptor is closed; None where another process has it, or nobody can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(path: Path) -> None:
    prefix = f".{path.name}."
    for name in os.listdir(path.parent):
        if not (name.startswith(prefix) and _PART.fullmatch(name.removeprefix(prefix))):
            continue
        part = path.with_name(name)
        # Another process may be at work on a folder of this name, or remove the same leftovers.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not part.is_dir() or time.time() - part.stat().st_mtime < _SETTLED:
                continue
            lock = _locked(part)
            if lock is not None:
                shutil.rmtree(part, ignore_errors=True)
                os.close(lock)


def _sync(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _sync_one(os.path.join(root, name))
        _sync_one(root)


def _sync_one(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some network file systems cannot do this to a folder.
            raise
    finally:
        os.close(descriptor)
