"""Reference values of a loss: its mean for random embeddings, and a lower bound.

Both depend on the loss, its margin and scale, the number of classes and the dimension, so that a loss of 15 may be
good or worse than chance. They are computed by evaluating the loss itself.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from redimnet_jax.losses.classification import Parameters
from redimnet_jax.losses.objective import Loss, Margin, by_prefix, losses_of_prefixes

# Random embeddings on which a loss over classes is evaluated. Half of them are the negatives of the others, so that
# deviations from the mean cancel to first order.
RANDOM_EMBEDDINGS = 256
# Random batches on which a loss over pairs is evaluated.
RANDOM_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class Levels:
    """The expected loss of random embeddings with untrained parameters, and the lower bound `Loss.lowest`."""

    random: float
    lowest: float


@functools.lru_cache
def levels(loss: Loss, classes: int, dim: int, *, margin: float, speakers: int, crops: int) -> Levels:
    """Return the levels of `loss` at `margin` for `classes` and prefixes of `dim`.

    Losses over pairs are evaluated on batches of `speakers` with `crops` each. Embeddings are uniform on the sphere,
    from a generator with a fixed seed.
    """
    rng = np.random.default_rng(0)
    parameters = loss.parameters(classes, dim, jax.random.key(0))
    if loss.needs_pairs:
        labels = np.repeat(np.arange(speakers), crops)
        batches = [rng.standard_normal((speakers * crops, dim), np.float32) for _ in range(RANDOM_BATCHES)]
    else:
        half = rng.standard_normal((RANDOM_EMBEDDINGS // 2, dim), np.float32)
        batches, labels = (
            [np.concatenate([half, -half])],
            np.tile(rng.integers(0, classes, RANDOM_EMBEDDINGS // 2), 2),
        )
    values = [_evaluated(loss, embeddings, labels, parameters, np.float32(margin)) for embeddings in batches]
    lowest = loss.lowest(classes, margin, speakers=speakers, crops=crops)
    # These losses are negative only by rounding.
    return Levels(float(np.mean(values)), max(0.0, lowest))


@functools.partial(jax.jit, static_argnums=0)
def _evaluated(
    loss: Loss, embeddings: jax.Array, labels: jax.Array, parameters: Parameters, margin: float
) -> jax.Array:
    return loss(embeddings, labels, parameters, margin)


@dataclasses.dataclass(frozen=True)
class LossLevels:
    """The levels of a run: `loss` for `classes` and each of `dims`, in batches of `speakers` with `crops` each.

    `margins` are those of the dimensions where they replace that of the loss.
    """

    loss: Loss
    classes: int
    dims: Sequence[int]
    speakers: int
    crops: int
    margins: tuple[float, ...] | None = None

    def at(self, margin: Margin) -> dict[int, Levels]:
        """Return the levels by dimension at `margin`, one of all dimensions or a tuple with one for each."""
        losses = losses_of_prefixes(self.loss, len(self.dims), self.margins)
        batch = {"speakers": self.speakers, "crops": self.crops}
        of_prefixes = zip(self.dims, losses, by_prefix(margin, len(self.dims)), strict=True)
        return {dim: levels(loss, self.classes, dim, margin=float(own), **batch) for dim, loss, own in of_prefixes}

    def description(self) -> str:
        """Return a line with the levels of every dimension at the full margin."""
        batches = f"batches of {self.speakers:,} x {self.crops}"
        scope = batches if self.loss.needs_pairs else f"{self.classes:,} classes"
        full = self.loss.margin if self.margins is None else self.margins
        values = self.at(full).items()
        each = ", ".join(f"{dim}: {value.random:.3g} / {value.lowest:.2g}" for dim, value in values)
        margin = f"{full:g}" if self.margins is None else "by dimension"
        return f"loss at random / lowest, {scope}, margin {margin}: {each}"

    def warning(self, losses: Mapping[str, float], margin: Margin) -> str | None:
        """Return a warning when the mean losses of an epoch, by dimension, exceed those at random, or None.

        `margin` is the largest of the epoch, as in `at`.
        """
        random = {str(dim): at.random for dim, at in self.at(margin).items()}
        above = [f"{dim}: {loss:.3g} > {random[dim]:.3g}" for dim, loss in losses.items() if loss > random[dim]]
        if not above:
            return None
        return (
            f"warning: the loss is above that of random embeddings ({', '.join(above)}); the network has learnt "
            "nothing yet or diverges, so lower optimizer.learning_rate or let the margin in later (loss.margin_ramp)"
        )
