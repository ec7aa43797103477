"""What a loss is worth: its value for random embeddings, and the lowest that it can reach.

Both depend on the loss, its margin and scale, the number of classes and the dimension, so a loss of 15 may be good or
worse than chance. They are computed for what is used, by evaluating the loss itself.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from redimnet_jax.losses.objective import Loss

# Random embeddings a loss over classes is evaluated for, half of them the negatives of the others: what they have in
# excess of the mean then cancels, but for the curvature.
ROWS = 256
# Random batches that a loss over pairs is evaluated for.
DRAWS = 16


@dataclasses.dataclass(frozen=True)
class Levels:
    """`random`, the expected loss of random embeddings with untrained parameters; `lowest`, see the losses."""

    random: float
    lowest: float


@functools.lru_cache
def levels(loss: Loss, classes: int, dim: int, *, margin: float, speakers: int, crops: int) -> Levels:
    """The levels of `loss` at `margin` for `classes` and prefixes of `dim`.

    A loss over pairs is that of batches of `speakers` with `crops` each. Embeddings are uniform on the sphere, by a
    generator with a fixed seed.
    """
    rng = np.random.default_rng(0)
    parameters = loss.parameters(classes, dim, jax.random.key(0))
    if loss.needs_pairs:
        labels = np.repeat(np.arange(speakers), crops)
        batches = [rng.standard_normal((speakers * crops, dim), np.float32) for _ in range(DRAWS)]
        lowest = loss.lowest(speakers, crops, margin)
    else:
        half = rng.standard_normal((ROWS // 2, dim), np.float32)
        batches, labels = [np.concatenate([half, -half])], np.tile(rng.integers(0, classes, ROWS // 2), 2)
        lowest = loss.lowest(classes, margin)
    values = [_evaluated(loss, embeddings, labels, parameters, np.float32(margin)) for embeddings in batches]
    # No loss here is negative but by rounding.
    return Levels(float(np.mean(values)), max(0.0, lowest))


@functools.partial(jax.jit, static_argnums=0)
def _evaluated(loss, embeddings, labels, parameters, margin):
    return loss(embeddings, labels, parameters, margin)


@dataclasses.dataclass(frozen=True)
class LossLevels:
    """The levels of a run: `loss` for `classes` and each of `dims`, in batches of `speakers` with `crops` each."""

    loss: Loss
    classes: int
    dims: Sequence[int]
    speakers: int
    crops: int

    def at(self, margin: float) -> dict[int, Levels]:
        """By dimension, at `margin`."""
        of = {"margin": margin, "speakers": self.speakers, "crops": self.crops}
        return {dim: levels(self.loss, self.classes, dim, **of) for dim in self.dims}

    def description(self) -> str:
        """A line for the user: every dimension at the full margin."""
        pairs = f"batches of {self.speakers:,} x {self.crops}"
        what = pairs if self.loss.needs_pairs else f"{self.classes:,} classes"
        found = self.at(self.loss.margin).items()
        each = ", ".join(f"{dim}: {at.random:.3g} / {at.lowest:.2g}" for dim, at in found)
        return f"loss at random / lowest, {what}, margin {self.loss.margin:g}: {each}"

    def warning(self, losses: Mapping[str, float], margin: float) -> str | None:
        """A line for the user when the mean losses of an epoch, by dimension, are above those at random.

        `margin` is the largest of the epoch.
        """
        random = {str(dim): at.random for dim, at in self.at(margin).items()}
        above = [f"{dim}: {loss:.3g} > {random[dim]:.3g}" for dim, loss in losses.items() if loss > random[dim]]
        if not above:
            return None
        return (
            f"warning: the loss is above that of random embeddings ({', '.join(above)}); the network has learnt "
            "nothing yet or diverges, so lower optimizer.learning_rate or let the margin in later (loss.margin_ramp)"
        )
