"""Checkpoints of everything that decides how an interrupted run continues, and the best model of a run.

`<workdir>/checkpoints/<step>/` holds `arrays` (Orbax: all variables of network and heads, optimizer, step) and
`progress/metadata` (JSON: position in the data, history, best and early-stop state, config, speaker map, checksums).
The latest few are kept, and the one with the best EER. The best model alone, for use, is in `<workdir>/best/` in the
native format.

A checkpoint is written under a hidden name and renamed when it is complete, and one that is removed is renamed first.
So a folder named after a step is complete at every moment, whenever the process is killed.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from redimnet_jax import files, sharding
from redimnet_jax.checkpoints import native
from redimnet_jax.errors import UserError
from redimnet_jax.models import config as model_config
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel
from redimnet_jax.training.partition import NamedArrays
from redimnet_jax.training.step import TrainState

FOLDER = "checkpoints"
ARRAYS = "arrays"
PROGRESS = "progress/metadata"
# Suffixes of hidden folders of a step, which is being written, removed, or replaced.
PART = ".part"
REMOVED = ".removed"
REPLACED = ".replaced"
# Entries of a `progress`.
ENTRIES = {"config", "speakers", "model", "batches", "progress"}
# Entries that checkpoints of earlier versions lack.
OPTIONAL_ENTRIES = {"corpora"}
# What Orbax and TensorStore raise for files that are damaged or absent, which does not include a lack of memory.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, RecursionError)


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """All of a model but its weights."""

    arch: str
    model_config: dict[str, Any]
    source: Source

    @classmethod
    def of(cls, model: SpeakerModel) -> "ModelDescription":
        """Return the description of `model`."""
        return cls(model.arch, dict(model.model_config), model.source)

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> "ModelDescription":
        """Return the description that `to_json` gave."""
        return cls(entries["arch"], entries["model_config"], Source(**entries["source"]))

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON."""
        return {"arch": self.arch, "model_config": self.model_config, "source": dataclasses.asdict(self.source)}

    def model(self, network: SpeakerNetwork) -> SpeakerModel:
        """Return the model with that `network`."""
        return SpeakerModel(network, self.model_config, self.source)

    def empty_model(self, dtype: jnp.dtype) -> SpeakerModel:
        """Return a model whose variables a checkpoint is about to fill."""
        config = model_config.parse(self.arch, self.model_config)
        return self.model(SpeakerNetwork(config, dtype=dtype, rngs=nnx.Rngs(0)))


class TrainingCheckpoints:
    """The checkpoints of one workdir, which the first process writes in the background, one at a time.

    The `keep` newest ones are kept, and the one with the best EER. `saved` is called in the background after each.
    """

    def __init__(self, workdir: Path, keep: int, saved: Callable[[], None] = lambda: None):
        self._saved = saved
        self.folder = workdir.absolute() / FOLDER
        self._keep = keep
        self._pending: concurrent.futures.Future | None = None
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._first = jax.process_index() == 0
        if self._first:
            with _readable_disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._recover()
        # The others look for checkpoints once that is done.
        sharding.from_first_process(np.zeros((), np.int32))

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        return max(self._steps(), default=None)

    def save(self, state: TrainState, frozen: NamedArrays, progress: dict[str, Any], best: int | None) -> None:
        """Save everything as it is now, in the background; raise UserError for what went wrong with the last save.

        The given arrays and `progress` may change as soon as this returns. `best` is the step with the best EER so
        far, whose checkpoint is kept.
        """
        self.wait()
        tree = jax.tree.map(lambda x: np.array(x), _tree(state, frozen))
        text = _with_checksums(progress, tree)
        if self._first:
            self._pending = self._executor.submit(self._write, int(state.step), tree, text, best)

    def read_progress(self) -> dict[str, Any]:
        """Return the `progress` of the newest checkpoint; raise UserError when it is damaged."""
        return _read_progress(self._newest())[0]

    def restore(self, state: TrainState, frozen: NamedArrays) -> tuple[TrainState, NamedArrays]:
        """Return (state, frozen) of the newest checkpoint in the host's memory, with the shapes of the given ones.

        Any devices and processes may have written it. Raise UserError when it is damaged or has other shapes.
        """
        path = self._newest()
        expected = _tree(state, frozen)
        tree = _read_arrays(path, _read_progress(path)[1], expected)
        frozen = tree.pop("frozen")
        return TrainState(**tree), frozen

    def wait(self) -> None:
        """Return when every save is on disk; raise UserError for what went wrong with one."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with _readable_disk_errors(self.folder):
                pending.result()

    def close(self) -> None:
        """Wait for every save, and end the thread that writes."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()

    def _newest(self) -> Path:
        return self.folder / str(self.latest())

    def _steps(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self.folder) if re.fullmatch("[0-9]+", name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.folder} cannot be read ({error.strerror}); make it readable.") from error

    def _recover(self) -> None:
        """Remove what killed runs left, and restore a checkpoint whose replacement was not completed."""
        for path in list(self.folder.iterdir()):
            step = path.name.removeprefix(".").removesuffix(REPLACED)
            if path.name == f".{step}{REPLACED}" and not (self.folder / step).exists():
                path.rename(self.folder / step)
            elif path.name.startswith(".") or path.name.endswith(".orbax-checkpoint-tmp"):
                _remove_folder(path)

    def _write(self, step: int, tree: dict[str, Any], text: str, best: int | None) -> None:
        folder = self.folder / str(step)
        part = self.folder / f".{step}{PART}"
        replaced = self.folder / f".{step}{REPLACED}"
        try:
            _remove_folder(part)
            native.check_room(self.folder, jax.tree.leaves(tree))
            with native.own_checkpointer() as checkpointer:
                checkpointer.save(part / ARRAYS, tree)
            files.write(part / PROGRESS, text)
            if folder.exists():
                # Saved when the run was asked to stop before the validation of this step was complete.
                folder.rename(replaced)
            part.rename(folder)
            _remove_folder(replaced)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in set(self._steps()[: -self._keep]) - {best}:
            removed = self.folder / f".{old}{REMOVED}"
            (self.folder / str(old)).rename(removed)
            _remove_folder(removed)
        self._saved()


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (progress, arrays) of the checkpoint in a folder; raise UserError when it is damaged."""
    progress, sums = _read_progress(path)
    return progress, _read_arrays(path, sums)


def _read_progress(path: Path) -> tuple[dict[str, Any], dict[str, int] | None]:
    """Return (progress, checksums of the arrays or None, if an earlier version wrote the checkpoint)."""
    with _readable_damage(path):
        entries = json.loads((path / PROGRESS).read_text())
        if entries.keys() == ENTRIES:
            return entries, None
        digest = entries.pop("sha256", None)
    if digest != _sha256(entries) or entries.keys() - OPTIONAL_ENTRIES != ENTRIES | {"arrays"}:
        raise _damaged(path, "its progress does not match its checksum")
    return entries, entries.pop("arrays")


def _read_arrays(path: Path, sums: dict[str, int] | None, expected: Any = None) -> dict[str, Any]:
    """Return the arrays of a checkpoint, which match their checksums `sums` and the shapes of `expected`, if any.

    Without `expected` the containers are dicts and lists.
    """
    import orbax.checkpoint as ocp

    with _readable_damage(path), native.own_checkpointer() as checkpointer:
        saved = checkpointer.metadata(path / ARRAYS).item_metadata.tree
        if expected is not None:
            _check_shapes(path, saved, expected)
        arguments = jax.tree.map(
            lambda x: ocp.RestoreArgs(restore_type=np.ndarray), saved if expected is None else expected
        )
        tree = checkpointer.restore(path / ARRAYS, item=expected, restore_args=arguments)
    if sums is not None and _array_checksums(tree) != sums:
        raise _damaged(path, "its arrays do not match their checksums")
    return tree


def _check_shapes(path: Path, saved: Any, expected: Any) -> None:
    there = {name: tuple(x.shape) for name, x in _by_name(saved).items()}
    here = {name: tuple(x.shape) for name, x in _by_name(expected).items()}
    differing = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if differing:
        name = differing[0]
        more = len(differing) - 1
        others = f" (and {more} more differ)" if more else ""
        raise UserError(
            f"The checkpoint {path} does not fit this run: {name} is {there.get(name, 'absent')} there and "
            f"{here.get(name, 'absent')} here{others}; use the version and settings that it was written with, or "
            "another workdir."
        )


def _tree(state: TrainState, frozen: NamedArrays) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)} | {"frozen": frozen}


def _by_name(tree: Any) -> dict[str, Any]:
    """Return the leaves of `tree` by their path, which is the same for tuples, lists and dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", None)))) for key in path): leaf
        for path, leaf in leaves
    }


def _array_checksums(tree: Any) -> dict[str, int]:
    """Return the CRC-32 of dtype, shape and bytes of every array of `tree`."""
    return {
        name: zlib.crc32(
            np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, zlib.crc32(f"{x.dtype}{x.shape}".encode())
        )
        for name, x in _by_name(tree).items()
    }


def _sha256(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _with_checksums(progress: dict[str, Any], tree: Any) -> str:
    """Return `progress` as JSON, with the checksums of `tree` and of itself."""
    entries = json.loads(json.dumps(progress | {"arrays": _array_checksums(tree)}))
    return json.dumps(entries | {"sha256": _sha256(entries)})


def _remove_folder(path: Path) -> None:
    """Remove `path` if it exists."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"The checkpoint {path} is damaged ({reason}); move it away to resume from an earlier one.")


@contextlib.contextmanager
def _readable_damage(path: Path) -> Iterator[None]:
    """Raise UserError for what reading a checkpoint raises, and tell damage from files that may not be read."""
    try:
        yield
    except UNREADABLE as error:
        denied = isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error)
        absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if denied or (isinstance(error, OSError) and not absent):
            reason = "Permission denied" if denied else getattr(error, "strerror", None) or error
            raise UserError(f"The checkpoint {path} cannot be read ({reason}); make it readable.") from error
        raise _damaged(path, "a file is missing or has impossible contents") from error


@contextlib.contextmanager
def _readable_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore raises ValueError, also for a full disk.
        raise UserError(
            f"{folder} cannot be written ({files.reason(error)}); free some space and start again to resume."
        ) from error


def save_best(model: SpeakerModel, workdir: Path, step: int) -> None:
    """Make `<workdir>/best` the native checkpoint of `model`; at every moment it is a complete one, old or new.

    A folder that another process is loading stays until the next call.
    """
    link = workdir / native.BEST
    # The name is another one if a run was killed after this step, since the link may point to its folder.
    names = (f"best-{step}" + ".again" * count for count in itertools.count())
    folder = next(workdir / name for name in names if not (workdir / name).exists())
    native.save(model, folder)
    with _readable_disk_errors(link):
        files.replace_link(link, folder.name)
        for other in workdir.glob("best-*"):
            if other.is_dir() and other != folder:
                _remove_unless_read(other)
        # Killed runs may have left these.
        for other in workdir.glob(".best-*"):
            _remove_folder(other)


def _remove_unless_read(folder: Path) -> None:
    """Remove a native checkpoint, under a hidden name, unless a process is loading it; see `native.load`."""
    import fcntl

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):
            file = stack.enter_context(open(folder / native.DESCRIPTION, "r+b"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            except OSError:  # On a file system without locks, a reader tries again.
                pass
        hidden = folder.with_name(f".{folder.name}")
        _remove_folder(hidden)
        folder.rename(hidden)
        _remove_folder(hidden)
