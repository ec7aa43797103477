"""The command that runs the kernels under compute-sanitizer, as far as it goes without a GPU."""

import types
from pathlib import Path

import numpy as np
import pytest
import replay_kernel
import sanitize_kernels

from redimnet_jax.nn.cuda import program


def test_every_kernel_has_a_case():
    launched = set().union(*(case.kernels for case in sanitize_kernels.CASES))
    assert launched == {path.stem for path in Path(program.__file__).parent.glob("*.cu")}


@pytest.mark.parametrize(
    ("log", "clean"),
    [
        (f"{replay_kernel.LAUNCHED}\n========= ERROR SUMMARY: 0 errors\n", True),
        (
            f"{replay_kernel.LAUNCHED}\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
            True,
        ),
        (f"{replay_kernel.LAUNCHED}\n========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n", False),
        (f"{replay_kernel.LAUNCHED}\n========= ERROR SUMMARY: 10 errors\n", False),
        (f"{replay_kernel.LAUNCHED}\n", False),
        ("========= ERROR SUMMARY: 0 errors\n", False),
    ],
)
def test_only_a_launch_of_which_a_tool_says_so_is_clean(log, clean, monkeypatch):
    done = types.SimpleNamespace(returncode=0, stdout=log)
    monkeypatch.setattr(sanitize_kernels.subprocess, "run", lambda *_, **__: done)
    assert sanitize_kernels.sanitized("memcheck", Path("launch.npz")) == (clean, log)


def test_a_launch_is_read_as_it_was_written(tmp_path):
    operands = [np.arange(n, dtype=np.uint16) for n in (3, 5)]
    launch = replay_kernel.Launch("k", "the PTX", (2, 1), 64, 128, operands, [np.float32([1, np.nan])])
    launch.write(tmp_path / "launch.npz")
    again = replay_kernel.Launch.read(tmp_path / "launch.npz")
    assert (again.kernel, again.ptx, tuple(again.grid)) == ("k", "the PTX", (2, 1))
    assert (again.threads, again.shared_bytes) == (64, 128)
    for a, b in zip((*again.operands, *again.results), (*operands, *launch.results), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_a_value_that_is_not_a_number_is_an_infinite_error():
    assert sanitize_kernels.relative_error([1, np.nan], [1, 2]) == np.inf
    assert sanitize_kernels.relative_error([3, 4], [3, 4]) == 0
