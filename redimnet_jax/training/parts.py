"""Which variables train: parts of a learner by their names, and patterns of paths."""

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable

from redimnet_jax.errors import UserError

# Every variable of network and heads belongs to one part, by the start of its path.
PARTS = {
    "backbone": ("network.frontend.", "network.backbone.", "network.pool."),
    "projection": ("network.bn.", "network.linear.", "network.bn2."),
    "heads": ("heads.",),
}

_STAGE = re.compile(r"network\.backbone\.stages\.(\d+)\.")


def selected(names: Collection[str], filters: Iterable[str], key: str) -> set[str]:
    """Those of the variables `names` that any of the `filters` matches.

    A filter is a part, or a pattern (`*` stands for anything) of a path as `checkpoint.flat` has it, which then means
    all below it: "backbone.stages.5", "backbone.stages.[45]", "pool", "*.bias", "heads.prototypes.0".
    Raises UserError naming the setting `key` when a pattern matches nothing.
    """
    found: set[str] = set()
    for each in filters:
        if each in PARTS:
            # Which may be empty: the heads of a loss without prototypes.
            found |= {name for name in names if name.startswith(PARTS[each])}
            continue
        matched = {name for name in names if _matches(name.removeprefix("network."), each)}
        if not matched:
            raise UserError(
                f"config.{key} has {each!r}, which matches nothing that can train; near it are {_near(each, names)}."
            )
        found |= matched
    return found


def part_of(name: str) -> str:
    """The part of the variable `name`; ValueError when it has none."""
    for part, prefixes in PARTS.items():
        if name.startswith(prefixes):
            return part
    raise ValueError(f"the variable {name} is in none of the parts {', '.join(PARTS)}")


def depth(name: str, names: Iterable[str]) -> int:
    """Stages between the variable `name` of the backbone and the end of the backbone, of which `names` are all.

    0 for the last stage and what follows the stages, one more for every stage before it, and for stem and front end.
    """
    stages = 1 + max((int(found[1]) for found in map(_STAGE.match, names) if found), default=-1)
    if name.startswith(("network.frontend.", "network.backbone.stem")):
        return stages
    found = _STAGE.match(name)
    return stages - 1 - int(found[1]) if found else 0


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}.*")


def _near(pattern: str, names: Collection[str]) -> str:
    steps = [name.removeprefix("network.").split(".") for name in names]
    paths = {".".join(path[:end]) for path in steps for end in range(1, len(path) + 1)} | PARTS.keys()
    near = difflib.get_close_matches(pattern.replace("*", ""), sorted(paths), n=3, cutoff=0.5)
    return ", ".join(near or sorted({path[0] for path in steps} | PARTS.keys()))
