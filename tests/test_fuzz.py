"""A few damaged files of every kind; `make fuzz` reads many more."""

import random

import fuzz
import pytest

# Those that build a network take longest.
COUNTS = {
    "checkpoint model_config": 10,
    "wespeaker configuration": 8,
    "safetensors": 8,
    "safetensors header": 10,
    "native description": 8,
    "native arrays": 8,
}
SEED = 1


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_damaged_files(name, tmp_path):
    assert list(fuzz.failures(name, COUNTS.get(name, 15), SEED, tmp_path)) == []


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_mutants_differ_and_come_again(name, tmp_path):
    def mutant(number: int) -> bytes:
        path = fuzz.TARGETS[name].make(random.Random(number), tmp_path)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return b"".join(file.read_bytes() for file in files if file.is_file())

    assert name.startswith("native") or mutant(1) == mutant(1)
    assert len({mutant(number) for number in range(4)}) > 1


def failing(read) -> str | None:
    return fuzz.failure_of(fuzz.Target(None, read), __file__)


def test_what_is_a_failure(monkeypatch):
    def wrong(path):
        raise KeyError("x")

    def refused(path):
        raise fuzz.UserError("The file is damaged; make it anew.")

    def talkative(path):
        raise fuzz.UserError("x" * 10_000 + ".")

    def runs(path):
        import os

        try:
            os.system("true")
        except Exception:
            return

    def slow(path):
        while True:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    assert failing(lambda path: None) is failing(refused) is None
    assert failing(wrong).startswith("KeyError: 'x'")
    assert "short" in failing(talkative)
    assert "os.system" in failing(runs)
    assert "takes more than 0.1 s" in failing(slow)
