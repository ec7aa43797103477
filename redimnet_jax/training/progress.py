"""The progress of a run: everything besides arrays and the position in the data that decides how it continues."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from redimnet_jax.errors import UserError


@dataclasses.dataclass
class EpochSums:
    """Sums of the figures of the `steps` steps of an epoch so far; the lists have an element for each dimension."""

    steps: int
    loss: float
    losses: list[float]
    accuracies: list[float]

    @classmethod
    def zeros(cls, dims: int) -> "EpochSums":
        """Return the sums before the first step of an epoch, for that many dimensions."""
        return cls(0, 0.0, [0.0] * dims, [0.0] * dims)

    def add(self, figures: Mapping[str, Any]) -> None:
        """Add the figures of a step, see `step.make_step`, as Python numbers."""
        self.steps += 1
        self.loss += figures["loss"]
        self.losses = [total + value for total, value in zip(self.losses, figures["losses"], strict=True)]
        self.accuracies = [total + value for total, value in zip(self.accuracies, figures["accuracies"], strict=True)]

    def means(self, dims: Sequence[int]) -> dict[str, Any]:
        """Return {"loss", "losses": {dim: loss}, "accuracies": {dim: accuracy}}, means over the steps."""

        def by_dim(totals: Sequence[float]) -> dict[str, float]:
            return {str(dim): total / self.steps for dim, total in zip(dims, totals, strict=True)}

        return {
            "loss": self.loss / self.steps,
            "losses": by_dim(self.losses),
            "accuracies": by_dim(self.accuracies),
        }


@dataclasses.dataclass(frozen=True)
class Best:
    """The validation with the lowest EER (a fraction) so far."""

    eer: float
    step: int
    epoch: int


@dataclasses.dataclass(frozen=True)
class Reference:
    """The latest validation that started patience anew."""

    eer: float
    step: int


@dataclasses.dataclass
class Progress:
    """The progress of a run.

    `history` has an entry for every epoch and one for the start; `stale` counts the validations since patience was
    started anew; `sums` are those of the current epoch, or None between epochs; `pretrained` are the results of the
    model that training started from; `stage` is an index, and `stage_start` the step before its first one; `strata`
    is that of `sampler.choose_strata`.
    """

    strata: int
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: Best | None = None
    reference: Reference | None = None
    stale: int = 0
    stopped: bool = False
    sums: EpochSums | None = None
    pretrained: dict[str, Any] | None = None
    stage: int = 0
    stage_start: int = 0

    def begin_stage(self, stage: int, step: int) -> None:
        """Note that a stage begins after a step, with patience anew."""
        self.stage = stage
        self.stage_start = step
        self.stale = 0

    @property
    def unvalidated_steps(self) -> int:
        """The number of steps of an epoch that is not validated yet."""
        return self.sums.steps if self.sums else 0

    def best_entry(self) -> dict[str, Any]:
        """Return the entry of `history` with the lowest EER; there is one after the first validation."""
        assert self.best is not None
        return next(entry for entry in self.history if entry["step"] == self.best.step)

    def to_json(self) -> dict[str, Any]:
        """Return the progress as JSON, which shares no list or dict with it except the entries of the history."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> "Progress":
        """Return the progress that `to_json` gave; raise UserError for entries of another version."""
        names = {field.name for field in dataclasses.fields(cls)}
        if entries.keys() != names:
            differing = ", ".join(sorted(entries.keys() ^ names))
            raise UserError(
                f"The training checkpoint has another kind of progress than this version writes ({differing}); "
                "resume with the version that wrote it, or train in another workdir."
            )
        kinds = {"best": Best, "reference": Reference, "sums": EpochSums}
        typed = {name: kind(**entries[name]) for name, kind in kinds.items() if entries[name] is not None}
        return cls(**{**entries, **typed})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, list) else value
