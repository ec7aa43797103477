"""Several processes of one run: they check that they see the same things, and they end together.

The functions that compare are collective: all processes must call them in the same order.
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from redimnet_jax.errors import UserError

TEXT_BYTES = 1024
# A new file may take a moment until other hosts see it.
VISIBLE_SECONDS = 2.0
POLL_SECONDS = 0.2
FAREWELL_SECONDS = 5.0
_ENDED, _LEFT = "redimnet_jax/ended", "redimnet_jax/left"

T = TypeVar("T")


class AgreedError(UserError):
    """An error that every process raises at the same point, so that no process has to tell the others."""


def gather(text: str) -> list[str]:
    """Return the `text` of every process, cut to `TEXT_BYTES`."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    # Always the same shape, so that a process that failed can meet others at any of these calls.
    row, data = np.zeros(TEXT_BYTES, np.uint8), text.encode(errors="replace")[:TEXT_BYTES]
    row[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(row)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in np.asarray(rows)]


def meet() -> None:
    """Return when all processes have called this."""
    gather("")


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Raise an AgreedError on every process when the block raises a UserError on any of them.

    Blocks may be nested. The only collective calls in a block are those of this module.
    """
    problem = None
    try:
        yield
    except AgreedError:
        raise
    except UserError as error:
        problem = error
    if jax.process_count() == 1:
        if problem is not None:
            raise problem
        return
    found = gather("" if problem is None else str(problem))
    if problem is not None:
        raise AgreedError(str(problem)) from problem
    for index, text in enumerate(found):
        if text:
            raise AgreedError(f"Process {index} of {len(found)} stopped the run: {text}")


def first_then_others(make: Callable[[], T]) -> T:
    """Return `make()`, which process 0 calls before the others, who then find the files that it wrote."""
    first = jax.process_index() == 0
    with failing_together():
        made = [make()] if first else []
    with failing_together():
        return made[0] if first else make()


def check_same(text: str, difference: str) -> None:
    """Raise UserError on every process, with the sentence `difference`, unless all have the same short `text`.

    `{which}` in the sentence stands for the processes whose text differs from that of process 0.
    """
    found = gather(text)
    which = [str(index) for index, other in enumerate(found) if other != found[0]]
    if which:
        more = f" and {len(which) - 4} more" if len(which) > 4 else ""
        raise AgreedError(difference.replace("{which}", ", ".join(which[:4]) + more))


def check_common_folder(folder: Path, name: str) -> None:
    """Raise UserError on every process unless all see the same `folder`, which the user gave as `name`.

    Process 0 must have made the folder.
    """
    if jax.process_count() == 1:
        return
    token, first = secrets.token_hex(16), jax.process_index() == 0
    path = folder / f".common-{token}"
    try:
        with failing_together():
            if first:
                try:
                    path.write_text(token)
                except OSError as error:
                    raise UserError(
                        f"{name} {folder} cannot be written ({error.strerror}); choose another folder."
                    ) from error
        token = gather(token)[0]
        seen = _reads(folder / f".common-{token}", token)
        check_same(
            "" if first or seen else str(folder),
            f"Process {{which}} of {jax.process_count()} does not find in {name} {folder} what process 0 wrote "
            "there; give all processes one folder that all hosts share.",
        )
    finally:
        if first:
            path.unlink(missing_ok=True)


def _reads(path: Path, content: str) -> bool:
    limit = time.monotonic() + VISIBLE_SECONDS
    while True:
        try:
            return path.read_text() == content
        except OSError:
            if time.monotonic() > limit:
                return False
        time.sleep(0.1)


class Farewell:
    """Let the processes of a run end together, whatever they are waiting for.

    A process that ends early leaves its exit code and a sentence with the coordinator. A thread of every process
    looks there; it calls `leave(code, sentence)`, which must end the process, when another one has left.
    """

    def __init__(self, leave: Callable[[int, str], Any]):
        from jax._src import distributed  # JAX has no public access to the coordinator.

        self._client: Any = distributed.global_state.client
        self._index, self._count = jax.process_index(), jax.process_count()
        self._leave, self._done = leave, threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="farewell", daemon=True)

    def __enter__(self) -> "Farewell":
        if self._count > 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._count > 1:
            self._thread.join()

    def say(self, code: int, sentence: str) -> None:
        """Tell the other processes that this one ends; process 0, the coordinator, waits until they know."""
        if self._count == 1:
            return
        self._claim()
        # Fails when another process was first, whose sentence then holds for all, or when the coordinator is gone.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(_ENDED, json.dumps([self._index, code, sentence]))
        self._depart()

    def heard(self, seconds: float = 0.0) -> tuple[int, str] | None:
        """Return (exit code, sentence) of another process that ended, waiting for up to `seconds`, or None."""
        limit = time.monotonic() + seconds
        while self._count > 1:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # There is no such key.
                index, code, sentence = json.loads(self._client.key_value_try_get(_ENDED))
                if index == self._index:
                    return None
                return code, f"Process {index} of {self._count} stopped the run: {sentence}"
            if time.monotonic() > limit:
                break
            time.sleep(POLL_SECONDS)
        return None

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            if (message := self.heard()) is not None and not self._done.is_set():
                self._claim()
                self._depart()
                self._leave(*message)

    def _claim(self) -> None:
        """Let one thread end this process; another one that wants to as well waits here until it has."""
        if not self._ending.acquire(blocking=False):
            time.sleep(2 * FAREWELL_SECONDS)

    def _depart(self) -> None:
        """Note that this process is about to end; process 0 waits for the notes of the others."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_LEFT}/{self._index}", str(os.getpid()), allow_overwrite=True)
            limit = time.monotonic() + FAREWELL_SECONDS
            while self._index == 0 and time.monotonic() < limit:
                if len(self._client.key_value_dir_get(f"{_LEFT}/")) >= self._count:
                    break
                time.sleep(POLL_SECONDS / 4)
