"""The order of a run: hooks for steps and epochs, and checkpoints, with a stepper that only counts."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from redimnet_jax.training.hooks import Hook
from redimnet_jax.training.log import TrainingLog
from redimnet_jax.training.loop import Loop, LoopSize
from redimnet_jax.training.preemption import Preempted
from redimnet_jax.training.progress import Progress
from redimnet_jax.training.run_time import Clock, RunTime
from redimnet_jax.training.saver import RunState
from redimnet_jax.training.stages import Stage

DIMS = (64, 128)


class CountingStepper:
    """Up to three steps a dispatch, whose loss is the number of the step."""

    def run(self, state, frozen, begin, end):
        reached = min(end, begin + 3)
        numbers = np.arange(begin + 1.0, reached + 1)
        rows = np.ones((len(numbers), len(DIMS)))
        figures = {"loss": numbers, "grad_norm": numbers, "losses": rows, "accuracies": rows}
        return state, figures, reached

    flops = None

    def wait_fraction(self):
        return 0.0

    def close(self):
        pass


class Saver:
    def __init__(self, state, calls):
        self.stop = SimpleNamespace(requested_anywhere=lambda: False)
        self.checkpoints = SimpleNamespace(wait=lambda: None)
        self._state = state
        self._calls = calls

    def saving_on_error(self, before=None):
        return contextlib.nullcontext()

    def save(self):
        self._calls.append(("save", self._state.step))

    def leave(self):
        raise Preempted


def make_loop(folder, state, hooks, saver):
    return Loop(
        size=LoopSize(epochs=2, epoch_steps=10, batch_size=4),
        state=state,
        stages=[Stage((), "frozen", None, "parts", 2, None)],
        hooks=hooks,
        saver=saver,
        log=TrainingLog(folder, DIMS),
        time=RunTime(folder, Clock(), 0, first=True),
        open_stepper=CountingStepper,
        begin_stage=lambda index: None,
        raise_if_too_many_unreadable=lambda: None,
        save_every_steps=6,
        synchronize_every_steps=100,
    )


def new_state():
    return RunState(Progress(strata=1), SimpleNamespace(state=None, frozen=None), 0)


def test_hooks_and_checkpoints_come_in_their_order(tmp_path):
    calls = []
    state = new_state()

    def record(name):
        return lambda event: calls.append((name, event.step))

    def end_epoch(event):
        calls.append(("epoch", event.step))
        state.progress.history.append(event.entry)
        state.progress.sums = None

    hooks = [
        Hook(end_epoch, every_epochs=1),
        Hook(record("state"), every_steps=5),
        Hook(lambda event: calls.append(("figures", event.figures["loss"])), every_steps=4, needs_figures_only=True),
    ]
    make_loop(tmp_path, state, hooks, Saver(state, calls)).run()
    assert [step for name, step in calls if name == "figures"] == [4, 8, 12, 16, 20]
    # A hook for steps also runs after the last step of an epoch, before the validation.
    assert [call for call in calls if call[0] != "figures"] == [
        ("epoch", 0),
        *[("state", 5), ("save", 6), ("state", 10), ("epoch", 10), ("save", 10)],
        *[("save", 12), ("state", 15), ("save", 18), ("state", 20), ("epoch", 20), ("save", 20)],
    ]
    assert [entry.get("loss") for entry in state.progress.history] == [None, 5.5, 15.5]


@pytest.mark.parametrize(("asked_at", "saved_at"), [(0, []), (10, [6, 10]), (20, [6, 10, 12, 18, 20])])
def test_a_request_to_stop_during_a_validation_is_heeded_before_the_next_step(asked_at, saved_at, tmp_path):
    calls, state = [], new_state()
    saver = Saver(state, calls)

    def validate(event):
        state.progress.sums = None
        saver.stop.requested_anywhere = lambda: event.step == asked_at

    loop = make_loop(tmp_path, state, [Hook(validate, every_epochs=1)], saver)
    # After the last validation the run only writes its results.
    with contextlib.nullcontext() if asked_at == 20 else pytest.raises(Preempted):
        loop.run()
    assert state.step == asked_at and [step for _, step in calls] == saved_at
