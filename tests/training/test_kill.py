"""A run that is killed at any file operation goes on from its last good state, to the same end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import training_runs

import redimnet_jax as rj

HELPERS = Path(__file__).parents[1] / "helpers"
pytestmark = pytest.mark.slow

KILLS = 3
SETTINGS = {"epochs": 2, "checkpoint.every_steps": 3, "checkpoint.keep": 1}
# The last chain makes its crops while it trains.
KINDS = [{"cache.crops": 2, "averaging.last": 2}, {}]
CHAINS = len(KINDS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def server():
    """Starts a run for [workdir, settings, n], see `kill_server`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-W", "ignore", HELPERS / "kill_server.py"], env=environment, **pipes)

    def start(workdir: Path, settings: dict, last: int) -> tuple[int, int]:
        print(json.dumps([str(workdir), settings, last]), file=process.stdin, flush=True)
        return tuple(json.loads(process.stdout.readline()))

    yield start
    process.stdin.close()
    process.wait(60)


def outcome(workdir: Path) -> tuple:
    return training_runs.history(workdir), json.loads((workdir / "results.json").read_text())


@pytest.mark.slow
def test_killed_at_file_operations(data, server, tmp_path):
    """Every chain is a run that is killed three times; together they spread the kills evenly over a run."""
    killed = 0
    for chain, kind in enumerate(KINDS):
        settings, whole, workdir = data | SETTINGS | kind, tmp_path / f"whole{chain}", tmp_path / str(chain)
        code, operations = server(whole, settings, 0)
        assert code == 0 and operations > 20
        for number in range(KILLS):
            last = operations // KILLS + (chain + 1) * operations // (KILLS * CHAINS) * (number == 0)
            code, _ = server(workdir, settings, last)
            assert code in (0, -9)
            killed += code == -9
            if (workdir / "best").exists():
                rj.load(workdir)
        assert server(workdir, settings, 0)[0] == 0
        assert outcome(workdir) == outcome(whole)
        rj.load(workdir)
        hidden = [path for path in workdir.rglob(".*") if "compiled" not in path.parts]
        assert hidden == [] and len(list(workdir.glob("best-*/"))) == 1
        assert all(path.name.isdigit() for path in (workdir / "checkpoints").iterdir())
    assert killed >= CHAINS * KILLS - CHAINS
