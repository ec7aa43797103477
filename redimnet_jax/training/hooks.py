"""Hooks: what a run does beside training. A new evaluation is a function and a hook for it in a list."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Event:
    """A moment at which hooks run.

    After a step, `figures` are those of the step, see `step.make_step`, as Python numbers. After an epoch, `entry` is
    the epoch's entry in the history of the run, to which a hook may add.
    """

    step: int
    epoch: int
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    entry: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Hook:
    """A function that the training loop calls every so many steps or epochs.

    Exactly one of `every_steps` and `every_epochs` is given. Hooks for epochs also run before the first step and
    after the last one. Hooks run in the order of their list; after the last step of an epoch, those for steps come
    before those for epochs.

    A hook for steps normally runs when the state of the run is that of its step: the loop waits until the device has
    done the step. A hook that `needs_figures_only` runs once the figures of its step have been read, and the loop
    does not wait for it.
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
        """Return whether the hook runs after that epoch; `last` says that no step follows."""
        return self.every_epochs is not None and (last or epoch % self.every_epochs == 0)

    def next_step(self, step: int) -> int:
        """Return the first step after `step` at which the hook runs; it must be a hook for steps."""
        assert self.every_steps is not None
        return step - step % self.every_steps + self.every_steps
