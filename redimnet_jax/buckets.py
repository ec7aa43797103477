"""Folders in buckets: local copies of what is read, and local folders of what is written, pushed at given points.

Code that writes, renames, appends, locks and maps files does so in a local folder. `writing` gives one for a path or
an address; `Mirror.push` makes the bucket like it. For a local path the folder is the path itself and a push does
nothing. `staged` gives a local copy of a file or folder to read. Copies are below `staging_root`.

A push changes a bucket in the order in which the folder changed, so that a push that is interrupted leaves what an
interruption at some moment would have left in the folder:

1. Files, folders and links are uploaded in the order in which they were written or renamed.
2. A folder of `Layout.whole`, which appears whole or not at all, gets an object `.sealed.json` that says it is not
   complete, then its files, and then the seal: the sizes and checksums of all files. A folder with a broken seal is
   ignored; one that does not match its seal is refused. A folder without a seal was put there by another program.
3. A link, such as `best`, becomes an object `best.link` with the name of its target, which is complete by then.
4. What is gone from the folder is removed.

`.mirror/revision` says which push was the last: the machine that made it goes on from its own folder, and others copy
the bucket. `.mirror/lease` keeps other machines from writing to the folder at the same time.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from redimnet_jax import addresses, files, hosts, leases, locks, mirrored_files
from redimnet_jax.errors import UserError
from redimnet_jax.leases import Lease, LostError
from redimnet_jax.mirrored_files import BROKEN, LINK, SEAL, UNKNOWN, Layout, Snapshot, Stamp

logger = logging.getLogger(__name__)

STAGING = "REDIMNET_JAX_STAGING"
CONTROL = ".mirror"
LEASE = f"{CONTROL}/lease"
REVISION = f"{CONTROL}/revision"
STATE = "state.json"
# How often a folder that changes while it is copied is looked at again.
ATTEMPTS = 5
MAX_LINKS = 8

# The addresses of local folders, for messages.
_shown: dict[str, str] = {}


def staging_root() -> Path:
    """Return the folder of all copies: that in REDIMNET_JAX_STAGING, or ~/.cache/redimnet_jax/staging."""
    chosen = os.environ.get(STAGING)
    return Path(chosen).absolute() if chosen else Path.home() / ".cache" / "redimnet_jax" / "staging"


def readable(text: str) -> str:
    """Return `text` with addresses in place of the local folders that stand for them in this process."""
    for local, address in _shown.items():
        text = text.replace(local, address)
    return addresses.repaired(text)


@dataclasses.dataclass
class State:
    """What a local copy had in common with the bucket when the two were last compared.

    `revisions` are those that the bucket may have if this machine was the last to push: two where the push was
    interrupted. `files` are the stamps of the files that are in the bucket, `versions` those of the objects that
    were downloaded.
    """

    revisions: list[str] = dataclasses.field(default_factory=list)
    files: dict[str, Stamp] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "State":
        """Return the state in a file; an empty one, with which everything is copied, when there is none."""
        try:
            entries = json.loads(path.read_bytes())
            stamps = {name: Stamp(*stamp) for name, stamp in entries["files"].items()}
            return cls(entries["revisions"], stamps, entries["versions"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        """Write the state to a file, atomically."""
        files.write(path, json.dumps(dataclasses.asdict(self)))


class Mirror:
    """A folder that is written: `local`, and the `address` that it stands for; None for a local folder.

    Only a mirror with a `lease` pushes. Raise UserError, in all methods, when the bucket cannot be reached.
    """

    def __init__(self, local: Path, address: str | None, layout: Layout, lease: Lease | None = None):
        self.local = local
        self.address = address
        self._layout = layout
        self._lease = lease
        self._pushing = threading.Lock()
        self._state_path = local.parent / STATE
        if address is not None:
            _shown[str(local)] = address

    def push(self) -> None:
        """Make the bucket like the local folder, from any thread; do nothing without a bucket or a lease."""
        if self.address is None or self._lease is None:
            return
        with self._pushing:
            self._lease.check()
            for _ in range(ATTEMPTS):
                # A file is absent when the run removed it meanwhile, as it does with an old checkpoint.
                with contextlib.suppress(FileNotFoundError):
                    self._push(mirrored_files.scan(self.local, self._layout))
                    return
        raise UserError(
            f"{self.address} was not brought up to date: the bucket is gone, or {self.local} changes all the time; "
            "start the same command again."
        )

    def commit(self) -> None:
        """Push; log a warning when the bucket cannot be reached now, since the next push makes up for it."""
        try:
            self.push()
        except LostError:
            raise
        except UserError as error:
            logger.warning(f"{self.address} is not up to date, which the next checkpoint makes up for: {error}")

    def pull(self) -> None:
        """Make the local folder like the bucket, unless it holds what this machine pushed last, or more."""
        if self.address is None:
            return
        with _locked(self.local):
            state = State.read(self._state_path)
            there = _objects(self.address, self._layout)
            if not _is_ahead(state, _read_revision(self.address), there):
                _pull(self.address, self.local, state, self._layout)
                return
            self.local.mkdir(parents=True, exist_ok=True)
            if self._lease is not None:
                # An interrupted push left the others, which the next one replaces or removes.
                state.files |= {name: UNKNOWN for name in there if name not in state.files}
                state.write(self._state_path)

    def share(self) -> None:
        """Give the other processes what the first one wrote: it pushes, then they pull. All must call this."""
        if self.address is None or jax.process_count() == 1:
            return
        first = jax.process_index() == 0
        with hosts.failing_together():
            if first:
                self.push()
        with hosts.failing_together():
            if not first:
                self.pull()

    def _push(self, snapshot: Snapshot) -> None:
        assert self.address is not None
        state = State.read(self._state_path)
        wanted = snapshot.stamps()
        if state.files == wanted and (state.revisions or not wanted):
            return
        known = dict(state.files)
        state.revisions = [*state.revisions[-1:], secrets.token_hex(8)]
        state.write(self._state_path)
        addresses.write(f"{self.address}/{REVISION}", state.revisions[-1].encode())
        try:
            mirrored_files.push(self.local, self.address, snapshot, known)
        finally:
            state.files = known
            state.write(self._state_path)
        gone = [name for name in known if name not in wanted]
        state.revisions = state.revisions[-1:]
        state.files = wanted
        state.versions = {name: version for name, version in state.versions.items() if name in wanted}
        # Before anything is removed, so that what an interruption leaves is unknown, and is removed by the next push.
        state.write(self._state_path)
        mirrored_files.remove(self.address, gone, snapshot)


@contextlib.contextmanager
def writing(path: str | Path, layout: Layout | None = None) -> Iterator[Mirror]:
    """Give the `Mirror` of a path or an address, to which no other machine writes during the block; push at its end.

    What was written before an error is pushed as well. Raise UserError when another process writes there, and when
    the bucket cannot be reached.
    """
    address = addresses.of(path)
    if address is None:
        yield Mirror(Path(path), None, layout or Layout())
        return
    with leases.held(address, f"{address}/{LEASE}") as lease:
        mirror = Mirror(_local(address, "written"), address, layout or Layout(), lease)
        mirror.pull()
        try:
            yield mirror
        except BaseException:
            mirror.commit()
            raise
        mirror.push()


@contextlib.contextmanager
def writing_together(path: str | Path, layout: Layout | None = None) -> Iterator[Mirror]:
    """Give all processes of a run the `Mirror` of a path or an address, which the first process pushes.

    Raise UserError on every process where `writing` does on the first.
    """
    address = addresses.of(path)
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        mirror: Mirror | None = None
        with hosts.failing_together():
            if first:
                mirror = stack.enter_context(writing(path, layout))
        with hosts.failing_together():
            if mirror is None:
                local = Path(path) if address is None else _local(address, "written")
                mirror = Mirror(local, address, layout or Layout())
                mirror.pull()
        yield mirror


def staged(path: str | Path) -> Path:
    """Return a local copy of the file or folder at an address; a path as it is.

    A copy that is there already is brought up to date. Raise UserError when there is nothing at the address, and when
    what is there is incomplete or damaged.
    """
    address = addresses.of(path)
    if address is None:
        return Path(path)
    for _ in range(MAX_LINKS):
        if addresses.is_file(address):
            return _staged_file(address)
        try:
            return _staged_folder(address)
        except FileNotFoundError:
            target = link_target(address)
            if target is None:
                raise UserError(f"There is no file or folder {address}; check the address.") from None
            address = target
    raise UserError(f"{address} was replaced {MAX_LINKS} times while it was read; try again.")


def link_target(address: str) -> str | None:
    """Return the address that the link `address` points to, such as that of the best model; None without a link."""
    try:
        target = addresses.read(f"{address}{LINK}").decode()
    except FileNotFoundError:
        return None
    return f"{address.rpartition('/')[0]}/{target}"


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a path at which the block makes a folder, which is then complete at `path`, a path or an address.

    Raise UserError when there is something at the address already.
    """
    address = addresses.of(path)
    if address is None:
        yield Path(path)
        return
    check_new(address)
    local = _local(address, "made")
    shutil.rmtree(local.parent, ignore_errors=True)
    _shown[str(local)] = address
    try:
        yield local
        layout = Layout(whole=(local.name,))
        parent = address.rpartition("/")[0]
        left = {f"{local.name}/{name}": UNKNOWN for name in _objects(address, Layout())}
        mirrored_files.push(local.parent, parent, mirrored_files.scan(local.parent, layout), left)
    except FileNotFoundError as error:
        raise UserError(f"There is no bucket {addresses.bucket_of(address)}; make it, or correct {path}.") from error
    finally:
        shutil.rmtree(local.parent, ignore_errors=True)


def check_new(path: str | Path) -> None:
    """Raise UserError when there is something complete at a path or an address already."""
    address = addresses.of(path)
    if address is None:
        files.check_new(path)
        return
    if not addresses.is_file(address) and not addresses.is_folder(address):
        return
    seal = f"{address}/{SEAL}"
    if not (addresses.is_file(seal) and addresses.read(seal) == BROKEN):
        raise UserError(f"{address} exists already and is never overwritten; remove it or choose another output.")


def _staged_file(address: str) -> Path:
    local = _local(address, "read")
    with _locked(local):
        state = State.read(local.parent / STATE)
        entry = addresses.stat(address)
        if not local.is_file() or not entry.version or state.versions.get(local.name) != entry.version:
            mirrored_files.download(address, local, entry.size)
            State(versions={local.name: entry.version}).write(local.parent / STATE)
    _shown[str(local)] = address
    return local


def _staged_folder(address: str) -> Path:
    local = _local(address, "read")
    with _locked(local):
        if not _objects(address, Layout()):
            raise FileNotFoundError(address)
        _pull(address, local, State.read(local.parent / STATE), Layout())
    _shown[str(local)] = address
    return local


def _pull(address: str, local: Path, state: State, layout: Layout) -> None:
    """Make `local` like the complete part of the bucket."""
    for _ in range(ATTEMPTS):
        # An object is absent when whoever writes there removed it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            revision = _read_revision(address)
            there = _objects(address, layout)
            stamps = mirrored_files.pull(address, local, there, state.files, state.versions, layout)
            versions = {name: there[name].version for name in stamps}
            stamps |= {name: UNKNOWN for name in there if name not in stamps and not name.endswith(SEAL)}
            State([] if revision is None else [revision], stamps, versions).write(local.parent / STATE)
            return
    raise UserError(f"{address} changes all the time, or its bucket is gone; try again.")


def _objects(address: str, layout: Layout) -> dict[str, addresses.Entry]:
    """Return the objects below `address` but those that mirrors keep for themselves and those that are skipped."""
    there = addresses.files_below(address)
    return {name: entry for name, entry in there.items() if CONTROL not in name.split("/") and not layout.skips(name)}


def _is_ahead(state: State, revision: str | None, there: Mapping[str, addresses.Entry]) -> bool:
    """Return whether a local folder goes back to what is in the bucket, with the changes of this machine alone."""
    if revision is None:
        return not there and not state.revisions
    return revision in state.revisions and all(name in there for name in state.files)


def _read_revision(address: str) -> str | None:
    try:
        return addresses.read(f"{address}/{REVISION}").decode()
    except FileNotFoundError:
        return None


def _local(address: str, use: str) -> Path:
    """Return the local copy of `address`; what is read, written and made there have copies of their own."""
    digest = hashlib.sha256(f"{use} {address}".encode()).hexdigest()[:16]
    return staging_root() / digest / address.rpartition("/")[2]


@contextlib.contextmanager
def _locked(local: Path) -> Iterator[None]:
    with locks.locked(local.parent, wait=True):
        yield
