"""Leases that keep two machines from writing to one folder of a bucket, where no operating system keeps locks.

A lease is an object that its holder renews. Only its content is compared, and only by one clock, that of whoever
waits: a lease that does not change for `LEASE_SECONDS` has run out. The lease of a dead process of the same machine
has run out at once.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redimnet_jax import addresses
from redimnet_jax.errors import UserError

logger = logging.getLogger(__name__)

LEASE_SECONDS = 45.0
RENEW_SECONDS = 10.0
POLL_SECONDS = 1.0


class LostError(UserError):
    """Another process has taken the lease, and may have written to the folder."""


class Lease:
    """The lease of this process on `folder`, an address, in the object `address`."""

    def __init__(self, folder: str, address: str):
        self.folder = folder
        self.address = address
        self._token = secrets.token_hex(8)
        self._renewals = 0

    def acquire(self) -> None:
        """Take the lease; raise UserError when another process holds it."""
        with self._bucket():
            while not self._create():
                holder = _read(self.address)
                if holder is not None:
                    self._wait_until_free(holder)
                    # Another process that waited may have it by now.
                    if _read(self.address) == holder:
                        addresses.remove(self.address)

    def check(self) -> None:
        """Raise LostError when another process has taken the lease, since this one could not renew it in time."""
        holder = _read(self.address)
        if holder is None or holder.get("token") != self._token:
            raise LostError(
                f"{self.folder} was taken over by another process{_name(holder)} while this one could not reach the "
                "bucket; let that one go on, or stop it and start this command again."
            )

    def renew(self) -> None:
        """Change the lease, so that those who wait see that this process is alive."""
        self._renewals += 1
        addresses.write(self.address, self._content())

    def release(self) -> None:
        """Give the lease back, unless another process has it."""
        holder = _read(self.address)
        if holder is not None and holder.get("token") == self._token:
            addresses.remove(self.address)

    def _create(self) -> bool:
        try:
            addresses.write(self.address, self._content(), new=True)
        except FileExistsError:
            return False
        return True

    def _content(self) -> bytes:
        entries = _this_process() | {"token": self._token, "renewals": self._renewals}
        return json.dumps(entries).encode()

    def _wait_until_free(self, holder: dict[str, Any]) -> None:
        """Return when the lease that `holder` wrote has run out; raise UserError when it is renewed."""
        if _is_dead(holder):
            return
        here = holder.get("machine") == _machine()
        if not here:
            logger.info(
                f"{self.folder} was being written by another process{_name(holder)}; waiting for up to "
                f"{LEASE_SECONDS:.0f} s to see whether it still is"
            )
        limit = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < limit:
            now = _read(self.address)
            if here or (now is not None and now != holder):
                raise UserError(
                    f"{self.folder} is being written by another process{_name(now or holder)}; wait until it has "
                    "ended, or choose another folder."
                )
            if now is None:
                return
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def _bucket(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            bucket = addresses.bucket_of(self.folder)
            raise UserError(f"There is no bucket {bucket}; make it, or correct {self.folder}.") from error
        except UserError as error:
            raise UserError(str(error).replace(self.address, self.folder)) from error


@contextlib.contextmanager
def held(folder: str, address: str) -> Iterator[Lease]:
    """Hold the lease on `folder` during the block, in the object `address`; raise UserError when it is taken."""
    lease = Lease(folder, address)
    lease.acquire()
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(lease, done), name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(UserError):  # It runs out by itself.
            lease.release()


def _renew(lease: Lease, done: threading.Event) -> None:
    while not done.wait(RENEW_SECONDS):
        try:
            lease.check()
            lease.renew()
        except UserError as error:
            # The next push raises it when it still holds then.
            logger.warning(f"The lease on {lease.folder} was not renewed: {error}")


def _read(address: str) -> dict[str, Any] | None:
    try:
        entries = json.loads(addresses.read(address))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return entries if isinstance(entries, dict) else {}


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _started(pid)}


def _machine() -> str:
    """Return what no two running machines share; process numbers mean the same where it is the same."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """Return when the process `pid` of this machine began, in the kernel's units; None when there is none."""
    try:
        # The name of the program, in brackets, may hold blanks.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return None


def _is_dead(holder: dict[str, Any]) -> bool:
    if holder.get("machine") != _machine() or not isinstance(holder.get("pid"), int):
        return False
    return _started(holder["pid"]) != holder.get("started")


def _name(holder: dict[str, Any] | None) -> str:
    if not holder or "pid" not in holder:
        return ""
    return f" ({holder['pid']} on {holder.get('host')})"
