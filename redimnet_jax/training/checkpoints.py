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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from redimnet_jax import files, sharding
from redimnet_jax.checkpoints import native
from redimnet_jax.errors import UserError
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.training.step import Arrays, TrainState

FOLDER, ARRAYS, PROGRESS = "checkpoints", "arrays", "progress/metadata"
# What hidden folders of a step end with: one that is written, one that goes, one in whose place another comes.
PART, REMOVED, REPLACED = ".part", ".removed", ".replaced"
# Entries of a `progress`; the last two are its checksums, which checkpoints of earlier versions lack.
ENTRIES, CHECKSUMS = {"config", "speakers", "model", "batches", "progress"}, {"arrays", "sha256"}
# What Orbax and TensorStore raise for files that are damaged or absent; a lack of memory is none of it.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, RecursionError)


class TrainingCheckpoints:
    """The checkpoints of one workdir. The first process writes them, in the background and one at a time."""

    def __init__(self, workdir: Path, keep: int):
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
        sharding.agreed(np.zeros((), np.int32))

    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return max(self._steps(), default=None)

    def save(self, state: TrainState, frozen: Arrays, progress: dict[str, Any], best: int | None) -> None:
        """Saves everything as it is now, in the background; raises UserError for what went wrong with the last save.

        The given arrays and `progress` may change as soon as this returns. `best` is the step with the best EER so
        far, whose checkpoint is kept.
        """
        self.wait()
        tree = jax.tree.map(lambda x: np.array(x), _tree(state, frozen))
        text = _with_checksums(progress, tree)
        if self._first:
            self._pending = self._executor.submit(self._write, int(state.step), tree, text, best)

    def read_progress(self) -> dict[str, Any]:
        """The `progress` of the newest checkpoint; UserError when it is damaged."""
        return self._read_progress()[0]

    def restore(self, state: TrainState, frozen: Arrays) -> tuple[TrainState, Arrays]:
        """(state, frozen) of the newest checkpoint in the host's memory, with the shapes of the given ones.

        Any devices and processes may have written it. Raises UserError when it is damaged or has other shapes.
        """
        import orbax.checkpoint as ocp

        wanted, path = _tree(state, frozen), self.folder / str(self.latest())
        sums = self._read_progress()[1]
        arguments = jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        with _readable_damage(path), native.own_checkpointer() as checkpointer:
            self._check_shapes(path, checkpointer.metadata(path / ARRAYS).item_metadata.tree, wanted)
            tree = checkpointer.restore(path / ARRAYS, item=wanted, restore_args=arguments)
        if sums is not None and _array_checksums(tree) != sums:
            raise _damaged(path, "its arrays do not match their checksums")
        frozen = tree.pop("frozen")
        return TrainState(**tree), frozen

    def wait(self) -> None:
        """Returns when every save is on disk; raises UserError for what went wrong with one."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with _readable_disk_errors(self.folder):
                pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._executor.shutdown()

    def _steps(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self.folder) if re.fullmatch("[0-9]+", name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.folder} cannot be read ({error.strerror}); make it readable.") from error

    def _recover(self) -> None:
        """Removes what killed runs left, and puts back a checkpoint whose replacement was not completed."""
        for path in list(self.folder.iterdir()):
            step = path.name.removeprefix(".").removesuffix(REPLACED)
            if path.name == f".{step}{REPLACED}" and not (self.folder / step).exists():
                path.rename(self.folder / step)
            elif path.name.startswith(".") or path.name.endswith(".orbax-checkpoint-tmp"):
                _remove_folder(path)

    def _write(self, step: int, tree: dict[str, Any], text: str, best: int | None) -> None:
        folder, part, replaced = (self.folder / name for name in (f"{step}", f".{step}{PART}", f".{step}{REPLACED}"))
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

    def _read_progress(self) -> tuple[dict[str, Any], dict[str, int] | None]:
        """(progress, checksums of the arrays) of the newest checkpoint; None where an earlier version wrote none."""
        path = self.folder / str(self.latest())
        with _readable_damage(path):
            entries = json.loads((path / PROGRESS).read_text())
            if entries.keys() == ENTRIES:
                return entries, None
            found = entries.pop("sha256", None)
        if entries.keys() - {"corpora"} != ENTRIES | CHECKSUMS - {"sha256"} or found != _sha256(entries):
            raise _damaged(path, "its progress does not match its checksum")
        return entries, entries.pop("arrays")

    def _check_shapes(self, path: Path, found: Any, wanted: Any) -> None:
        shapes = {name: tuple(x.shape) for name, x in _by_name(found).items()}
        expected = {name: tuple(x.shape) for name, x in _by_name(wanted).items()}
        differing = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        if differing:
            name, more = differing[0], len(differing) - 1
            raise UserError(
                f"The checkpoint {path} does not fit this run: {name} is {shapes.get(name, 'absent')} there and "
                f"{expected.get(name, 'absent')} here" + f" (and {more} more differ)" * bool(more) + "; use the "
                "version and settings that it was written with, or another workdir."
            )


def _tree(state: TrainState, frozen: Arrays) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)} | {"frozen": frozen}


def _by_name(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by their path, named alike for tuples, lists and dicts as Orbax gives them back."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", None)))) for key in path): leaf
        for path, leaf in leaves
    }


def _array_checksums(tree: Any) -> dict[str, int]:
    """CRC-32 of dtype, shape and bytes of every array of `tree`."""
    return {
        name: zlib.crc32(
            np.ascontiguousarray(x).reshape(-1).view(np.uint8), zlib.crc32(f"{x.dtype}{x.shape}".encode())
        )
        for name, x in _by_name(tree).items()
    }


def _sha256(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _with_checksums(progress: dict[str, Any], tree: Any) -> str:
    """`progress` as JSON, with the checksums of `tree` and of itself."""
    entries = json.loads(json.dumps(progress | {"arrays": _array_checksums(tree)}))
    return json.dumps(entries | {"sha256": _sha256(entries)})


def _remove_folder(path: Path) -> None:
    """Removes `path` if it is there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"The checkpoint {path} is damaged ({reason}); move it away to resume from an earlier one.")


@contextlib.contextmanager
def _readable_damage(path: Path) -> Iterator[None]:
    """Makes a UserError of what reading a checkpoint raises: damage is called so, an obstacle by its name."""
    try:
        yield
    except UNREADABLE as error:
        denied = isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error)
        absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if denied or (isinstance(error, OSError) and not absent):
            reason = "Permission denied" if denied else error.strerror or error
            raise UserError(f"The checkpoint {path} cannot be read ({reason}); make it readable.") from error
        raise _damaged(path, "a file is missing or has impossible contents") from error


@contextlib.contextmanager
def _readable_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore's, of a full disk too, are ValueErrors.
        raise UserError(
            f"{folder} cannot be written ({files.reason(error)}); free some space and start again to resume."
        ) from error


def save_best(model: SpeakerModel, workdir: Path, step: int) -> None:
    """Makes `<workdir>/best` the native checkpoint of `model`; at every moment it is a complete one, old or new.

    A folder that another process is loading stays until the next call.
    """
    link = workdir / native.BEST
    # Another name where a run that was killed had come this far, and the link may point there.
    names = (f"best-{step}" + ".again" * count for count in itertools.count())
    folder = next(workdir / name for name in names if not (workdir / name).exists())
    native.save(model, folder)
    with _readable_disk_errors(link):
        new = workdir / f".{native.BEST}"
        new.unlink(missing_ok=True)
        new.symlink_to(folder.name)
        new.rename(link)
        for other in workdir.glob("best-*"):
            if other.is_dir() and other != folder:
                _remove_unless_read(other)
        # What killed runs left.
        for other in workdir.glob(".best-*"):
            _remove_folder(other)


def _remove_unless_read(folder: Path) -> None:
    """Removes a native checkpoint, under a hidden name, unless somebody loads it; see `checkpoint.load`."""
    import fcntl

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):
            file = stack.enter_context(open(folder / native.DESCRIPTION, "r+b"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            except OSError:  # A file system without locks, where a reader tries again.
                pass
        hidden = folder.with_name(f".{folder.name}")
        _remove_folder(hidden)
        folder.rename(hidden)
        _remove_folder(hidden)
