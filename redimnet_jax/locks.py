"""Locks that keep two processes from writing to one folder at the same time."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from redimnet_jax.errors import UserError

logger = logging.getLogger(__name__)

LOCK = "lock"
# What `flock` fails with where the file system has no locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextlib.contextmanager
def locked(folder: str | Path, *, name: str = LOCK, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `name` in `folder`, which is made if needed, during the block.

    The operating system releases the lock of a process that ends, however it ends. On a file system without locks a
    warning says so, and the block runs unprotected. Raises UserError when another process holds
    the lock, or when `folder` cannot be written.
    """
    path = Path(folder) / name
    new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _acquire(path, wait)
    except BlockingIOError as error:
        raise UserError(
            f"{folder} is being written by another process{_holder(path)}; wait until it has ended, or choose "
            "another folder."
        ) from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another folder.") from error
    try:
        yield
    finally:
        # While the lock is still held, so that nobody else's file is removed.
        with contextlib.suppress(OSError):
            path.unlink()
            if new:
                path.parent.rmdir()  # Fails, as it should, when something was written there.
        file.close()


def _acquire(path: Path, wait: bool) -> BinaryIO:
    """Return the open, locked file; BlockingIOError when another process has it and `wait` is False."""
    import fcntl

    while True:
        file = open(path, "a+b")  # noqa: SIM115 (it stays open as long as the lock is held)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise
            logger.warning(
                f"The file system of {path.parent} has no locks ({error.strerror}), so nothing prevents a second "
                "process from writing there."
            )
            return file
        # The last holder may have removed the file between the two calls above.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}\n".encode())
            file.flush()
            return file
        file.close()


def _holder(path: Path) -> str:
    """Return the process that wrote the lock file, in brackets, or nothing."""
    try:
        holder = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return f" ({holder})" if holder and holder.isprintable() else ""
