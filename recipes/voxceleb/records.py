"""Stages that leave a record when they are done, and are skipped as long as nothing changes that they depend on.

The key of a stage is a digest of its own inputs and of the keys of the stages before it. A stage writes to places
that its key names, or replaces what it wrote before at once; another key is therefore another result beside the old.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from recipes.voxceleb.archives import read_json
from redimnet_jax import files

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Stage(Generic[T]):
    """A stage: `inputs(recipe)` is JSON that decides its result, and `work(recipe, key)` does it.

    `work` returns facts as JSON, such as what later stages need; "outputs" are the paths that have to remain,
    relative to the workdir.
    """

    name: str
    does: str
    inputs: Callable[[T], Any]
    work: Callable[[T, str], dict[str, Any]]


def key(stage: Stage, inputs: Any, previous: str | None) -> str:
    """Return the key of a stage with `inputs` after the stage with the key `previous`."""
    content = json.dumps([stage.name, inputs, previous], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


class Records:
    """The records of the stages in `workdir`, a file for each stage and key."""

    def __init__(self, workdir: Path):
        self._workdir = workdir

    def find(self, stage: Stage, key: str) -> dict[str, Any] | None:
        """Return the facts of a stage that is done and whose outputs are still there, or None."""
        path = self._path(stage, key)
        if not path.exists():
            return None
        facts = read_json(path, ("facts",))["facts"]
        return facts if all((self._workdir / name).exists() for name in facts.get("outputs", ())) else None

    def write(self, stage: Stage, key: str, inputs: Any, facts: dict[str, Any], seconds: float) -> None:
        """Keep the facts of a stage that is done."""
        content = {"stage": stage.name, "inputs": inputs, "facts": facts, "seconds": round(seconds, 1)}
        files.write(self._path(stage, key), json.dumps(content, indent=1, sort_keys=True) + "\n")

    def _path(self, stage: Stage, key: str) -> Path:
        return self._workdir / "done" / f"{stage.name}-{key}.json"
