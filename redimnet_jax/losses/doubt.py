"""Training examples whose label is in doubt: which of a batch they are, and how much less they count."""

import dataclasses

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Doubt:
    """What doubtful examples weigh in the loss of a batch; all others weigh 1.

    `trim` is a share of the batch: the examples with the largest losses, which weigh nothing (Shen and Sanghavi,
    arXiv 1810.11874, with a batch in the place of all data). `minor_weight` is the weight of an example that is
    nearest to another sub-center of its class than to the first one. Deng et al. ("Sub-center ArcFace", ECCV 2020)
    drop what lies far from the dominant sub-center before they train anew; here the first sub-center counts as the
    dominant one, since `Heads.start_at_means` puts it where the class is. Both hold while `active`, a bool, is True.
    """

    trim: float = 0.0
    minor_weight: float = 1.0
    active: bool | Array = True

    def weights(self, losses: Array, minor: Array | None = None) -> Array:
        """Return the weight of every example, float32 (batch,), from its loss (batch,) and whether it is `minor`.

        `minor`, bool (batch,), may be missing where `minor_weight` is 1. Of equal losses all count or none does, so
        fewer than the share may be left out. No gradient goes through the weights.
        """
        losses = jax.lax.stop_gradient(losses)
        weights = jnp.ones(len(losses), jnp.float32)
        if count := trimmed(self.trim, len(losses)):
            weights *= losses <= jnp.sort(losses)[-count - 1]
        if minor is not None:
            weights *= jnp.where(minor, self.minor_weight, 1.0)
        return jnp.where(self.active, weights, 1.0)


def trimmed(share: float, batch: int) -> int:
    """Return how many of `batch` examples are the `share`, rounded down."""
    return int(share * batch + 1e-6)
