"""Hooks: functions that the training loop calls between steps or epochs.

To add an evaluation, add a method and its `Hook` to `evaluations.Evaluations.hooks`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Event:
    """A moment at which hooks run.

    Hooks that need figures only get those of their step in `figures` (see `step.make_step`), as Python numbers. Hooks
    for epochs get the epoch's entry in the history of the run in `entry`, to which they may add.
    """

    step: int
    epoch: int
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    entry: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Hook:
    """A function that the training loop calls every so many steps or epochs.

    Exactly one of `every_steps` and `every_epochs` is given. Hooks for epochs also run before the first step and at
    the end of the run. After the last step of an epoch, hooks for steps run first; otherwise the order of the list
    holds.

    The loop waits for the device before it calls a hook for steps, so the hook sees the state after that step. With
    `needs_figures_only` the loop does not wait: the hook runs later, once the figures are read, and must not use the
    state.
    """

    run: Callable[[Event], None]
    every_steps: int | None = None
    every_epochs: int | None = None
    needs_figures_only: bool = False

    def __post_init__(self) -> None:
        if (self.every_steps is None) == (self.every_epochs is None):
            raise ValueError("a hook has either every_steps or every_epochs")

    def is_due_at_step(self, step: int) -> bool:
        """Return whether the hook runs after that step."""
        return self.every_steps is not None and step % self.every_steps == 0

    def is_due_after_epoch(self, epoch: int, *, last: bool) -> bool:
        """Return whether the hook runs after that epoch; `last`: the run ends with it."""
        return self.every_epochs is not None and (last or epoch % self.every_epochs == 0)

    def next_step(self, step: int) -> int:
        """Return the first step after `step` at which the hook runs; it must be a hook for steps."""
        assert self.every_steps is not None
        return step - step % self.every_steps + self.every_steps
