"""The script that keeps a spot slice going, with a `gcloud` that plays a slice which is taken away once."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "guides" / "keep-spot-slice.sh"
# Files in $PLAY stand for what is there: `state` of the slice, `results` of the run, `calls` so far.
GCLOUD = """#!/bin/bash
cd "$PLAY"
echo "$@" >> calls
case "$*" in
    *" describe "*) cat state 2>/dev/null ;;
    *" create "*) echo WAITING_FOR_RESOURCES > state ;;
    *" delete "*) rm state ;;
    "storage ls "*) test -e results ;;
    *--command=install*) : ;;
    *--command=train*)
        [ "$MODE" = broken ] && exit 1
        if [ -e taken ]; then touch results; else touch taken; echo SUSPENDED > state; exit 255; fi ;;
esac
"""
SLEEP = """#!/bin/bash
grep -q WAITING "$PLAY/state" 2>/dev/null && echo ACTIVE > "$PLAY/state"
exit 0
"""


@pytest.fixture
def run(tmp_path):
    for name, text in (("gcloud", GCLOUD), ("sleep", SLEEP)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(mode: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        settings = {"WORKDIR": "gs://bucket/run", "INSTALL": "install", "TRAIN": "train", "MODE": mode}
        environment = os.environ | settings | {"PLAY": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        ran = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=30)
        words = ("create", "delete", "--command=install", "--command=train")
        lines = (tmp_path / "calls").read_text().splitlines()
        return ran, [word.rpartition("=")[2] for line in lines for word in line.split() if word in words]

    return run


def test_a_slice_that_is_taken_away_is_replaced_and_the_last_one_is_deleted(run):
    ran, calls = run("spot")
    assert ran.returncode == 0 and ran.stdout.endswith("complete: gs://bucket/run\n")
    assert calls == ["create", "install", "train", "delete", "create", "install", "train", "delete"]


def test_a_command_that_always_fails_is_not_repeated_for_ever(run):
    ran, calls = run("broken")
    assert ran.returncode == 1 and "failed 3 times on a slice that is still there" in ran.stderr
    assert calls == ["create", "install", "train", "train", "train"]
