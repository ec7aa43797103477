"""Changes a gallery in children that kill themselves at their first, second, ... file operation.

The argument is an empty folder. Prints how many children left the old gallery and how many the new one, as JSON.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from gallery_data import content, enrol, expected, utterances
from kill_server import count_operations

from redimnet_jax import scoring
from redimnet_jax.gallery.gallery import Gallery
from redimnet_jax.gallery.utterances import joined


def numpy_means(vectors: np.ndarray, numbers: np.ndarray, dim: int) -> np.ndarray:
    unit = vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)
    return np.stack([unit[numbers == number].mean(axis=0) for number in range(numbers.max() + 1)])


def change(folder: Path) -> None:
    enrol(folder, joined([utterances("a", 1, first=1), utterances("c")]), add=True)


def killed(folder: Path, last: int) -> bool:
    """Whether a child that changes the gallery and dies at its `last` operation got that far."""
    child = os.fork()
    if not child:
        code = 1
        try:
            count_operations(str(folder), last)
            change(folder)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -9), code
    return code == -9


def main(folder: Path) -> list[int]:
    scoring.group_means = numpy_means  # JAX's threads do not survive a fork.
    start = folder / "start"
    enrol(start, utterances("a", 1), utterances("b", 4))
    before = content(start)
    after = expected(utterances("a", 1), utterances("a", 1, first=1), utterances("b", 4), utterances("c"))
    counts = [0, 0]
    alive, last = True, 0
    while alive:
        last += 1
        path = folder / str(last)
        shutil.copytree(start, path)
        alive = killed(path, last)
        found = content(path)
        assert found in (before, after), (last, found)
        counts[found == after] += 1
        enrol(path, utterances("d"))  # What the child left does no harm.
        assert content(path) == found | expected(utterances("d"))
        assert len(list(path.glob("segment-*"))) == len(Gallery.open(path).segments)
    assert found == after
    return counts


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
