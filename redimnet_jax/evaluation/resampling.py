"""Resamples of the speakers of trials: how often each trial counts in each of them.

docs/reference/metrics.md defines them. `confidence` draws the same ones on the device.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from redimnet_jax.errors import UserError

# Resamples that are computed side by side: a multiple of every vector width that takes little memory.
BATCH = 32


def keys(resamples: int, seed: int) -> jax.Array:
    """Return the random keys of at least `resamples` resamples, (batches, up to BATCH)."""
    batch = min(BATCH, resamples)
    batches = -(-resamples // batch)
    return jax.random.split(jax.random.key(seed), batches * batch).reshape(batches, batch)


def draw(key: jax.Array, speakers: int) -> jax.Array:
    """Return how often each speaker is drawn, int32 (speakers + 1,); the last entry is 0, for speakers of none."""
    return jnp.zeros(speakers + 1, jnp.int32).at[jax.random.randint(key, (speakers,), 0, speakers)].add(1)


def trial_weights(
    labels: np.ndarray, left: np.ndarray, right: np.ndarray, *, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yield how often every trial counts, float64 (trials,), in each resample with both classes.

    `left` and `right` (trials,) are the numbers of the speakers. Raise UserError when most resamples lack a class.
    """
    first, second = np.unique(np.stack([left, right]), return_inverse=True)[1].reshape(2, -1)
    speakers = 1 + int(max(first.max(), second.max()))
    counts = np.asarray(_draws(keys(resamples, seed), speakers)).reshape(-1, speakers + 1)[:resamples].astype(float)
    complete = 0
    for count in counts:
        weights = np.where(labels, count[first], count[first] * count[second])
        if weights[labels].any() and weights[~labels].any():
            complete += 1
            yield weights
    if 2 * complete < resamples:
        raise UserError(
            f"Only {complete} of {resamples} resamples of {speakers} speakers have target and non-target trials; "
            "give trials of more speakers."
        )


@functools.partial(jax.jit, static_argnums=1)
def _draws(keys: jax.Array, speakers: int) -> jax.Array:
    return jax.vmap(jax.vmap(lambda key: draw(key, speakers)))(keys)
