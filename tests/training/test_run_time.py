"""Where the time of a run went: the clock, the account over several starts, and what was lost."""

import json

import jax
import jax.numpy as jnp
import pytest

from redimnet_jax.errors import UserError
from redimnet_jax.training import run_time
from redimnet_jax.training.run_time import Clock, RunTime, Start

V5E = "TPU v5 lite"


class Hands:
    """The time, set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hands():
    return Hands()


def test_time_within_something_else_counts_once(hands):
    clock = Clock(hands)
    hands.now += 3
    clock.begin("other")
    with clock.counting("steps"):
        hands.now += 10
        with clock.counting("input"):
            hands.now += 2
            clock.move(0.5, "compilation")
        hands.now += 5
    hands.now += 1
    assert {kind: spent for kind, spent in clock.seconds().items() if spent} == {
        "start-up": 3,
        "other": 1,
        "steps": 15,
        "input": 1.5,
        "compilation": 0.5,
    }
    assert sum(clock.seconds().values()) == hands.now - 100


def test_an_error_ends_what_is_counted(hands):
    clock = Clock(hands)
    with pytest.raises(ZeroDivisionError), clock.counting("validation"):
        hands.now += 4
        raise ZeroDivisionError
    hands.now += 1
    assert clock.seconds()["validation"] == 4 and clock.seconds()["start-up"] == 1


def test_compilations_are_found_wherever_they_are():
    clock = Clock()
    with clock.noting_compilations(), clock.counting("validation"):
        jax.jit(lambda x: jnp.sin(x) * 3 + jnp.cos(x * 2.25)).lower(jnp.ones(7)).compile()
    seconds = clock.seconds()
    assert 0 < seconds["compilation"] < 10 and seconds["validation"] > 0
    jax.jit(lambda x: jnp.sin(x) * 4.5).lower(jnp.ones(7)).compile()
    assert clock.seconds()["compilation"] == seconds["compilation"]


def start(first: int, last: int, steps: float, flops: float | None = 1e12, kind: str = V5E) -> Start:
    return Start(0.0, first, last, {"start-up": 10.0, "steps": steps, "input": 4.0}, kind, flops)


def test_steps_that_are_done_again_are_lost():
    # 100 steps, of which the last 25 were not saved; then 75 to 175.
    total = run_time.summary([start(0, 100, 40.0), start(75, 175, 36.0)])
    assert total["lost_steps"] == 25
    assert total["seconds"]["steps"] == 30 + 36
    assert total["seconds"]["input"] == 3 + 4
    assert total["seconds"]["lost"] == 10 + 1
    assert total["seconds"]["start-up"] == 20
    assert total["goodput"] == pytest.approx(66 / 104)
    assert total["utilization"] == pytest.approx(175e12 / (66 * 197e12))


def test_a_start_that_saved_nothing_is_lost_whole():
    total = run_time.summary([start(0, 30, 12.0), start(0, 30, 12.0), start(30, 30, 0.0)])
    assert total["lost_steps"] == 30 and total["seconds"]["lost"] == 16
    # The third has done nothing, so it does not matter where it ran.
    assert total["seconds"]["steps"] == 12 and total["utilization"] == pytest.approx(30 / (12 * 197))


@pytest.mark.parametrize("other", [start(10, 20, 5.0, flops=None), start(10, 20, 5.0, kind="cpu")])
def test_without_peak_or_count_there_is_no_utilization(other):
    assert run_time.summary([start(0, 10, 5.0)])["utilization"] is not None
    assert run_time.summary([start(0, 10, 5.0), other])["utilization"] is None


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v4", 275), ("TPU v6 lite", 918), ("cpu", None)],
)
def test_peaks(kind, teraflops):
    peak = run_time.peak_flops(kind)
    assert peak == (None if teraflops is None else teraflops * 1e12)


def test_the_account_goes_on_with_the_next_start(tmp_path, hands):
    clock = Clock(hands)
    first = RunTime(tmp_path, clock, 0, first=True)
    with clock.counting("steps"):
        hands.now += 20
        first.note(10, 1e12)
        assert not (tmp_path / "time.json").exists()  # It is not written at every step.
        first.write(10)
    clock = Clock(hands)
    second = RunTime(tmp_path, clock, 5, first=True)
    hands.now += 2
    second.write(12)
    saved = json.loads((tmp_path / "time.json").read_text())
    assert [(entry["first_step"], entry["step"]) for entry in saved["starts"]] == [(0, 10), (5, 12)]
    assert saved["total"]["lost_steps"] == 5 and saved["total"]["seconds"]["lost"] == 10
    assert "5 steps were lost" in second.table() and "(2 starts)" in second.table()
    # Other processes count too, but do not write.
    RunTime(tmp_path / "other", clock, 5, first=False).write(9)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"starts": [{"began": 1}]}', '{"starts": 3}'])
def test_a_damaged_account_is_a_sentence(tmp_path, text):
    (tmp_path / "time.json").write_text(text)
    with pytest.raises(UserError, match="remove it to begin a new one"):
        RunTime(tmp_path, Clock(), 0, first=True)


def test_flops_are_those_of_the_program():
    program = jax.jit(lambda x, y: x @ y).lower(jnp.ones((8, 16)), jnp.ones((16, 4))).compile()
    assert run_time.program_flops(program) == 2 * 8 * 16 * 4


def test_the_table():
    lines = run_time.table(run_time.summary([start(0, 10, 86.0)]), 1).splitlines()
    assert lines[0].split() == ["time", "of", "the", "run", "seconds", "%", "(1", "start)"]
    assert [line.split() for line in lines[1:5]] == [
        ["start-up", "10.0", "10.0"],
        ["input", "4.0", "4.0"],
        ["steps", "86.0", "86.0"],
        ["all", "100.0", "100.0"],
    ]
    assert lines[5].startswith("goodput 86.0 %")
