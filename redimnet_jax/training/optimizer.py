"""The optimizer: AdamW with clipping, a learning rate that warms up and falls along a cosine, step by step."""

from collections.abc import Mapping

import jax
import optax


def schedule(peak: float, steps: int, warmup_steps: int, final: float = 0.0) -> optax.Schedule:
    """Return the schedule: linear from 0 to `peak` in `warmup_steps`, then half a cosine to `final` at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(warmup_steps, 1), max(steps, warmup_steps + 2), final)


def adamw(
    rate: optax.Schedule,
    *,
    weight_decay: float,
    clip_norm: float | None,
    factors: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Return AdamW (arXiv 1711.05101) after clipping the global gradient norm; biases and norms do not decay.

    `factors` multiply the learning rate, and so the decay, of the parameters by name; all of them must be there.
    """
    steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]

    def decays(params: Mapping[str, jax.Array]) -> dict[str, bool]:
        return {name: array.ndim > 1 for name, array in params.items()}

    steps.append(optax.adamw(rate, weight_decay=weight_decay, mask=decays))
    if factors is not None and set(factors.values()) != {1.0}:
        steps.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: f * u, updates, dict(factors))))
    return optax.chain(*steps)
