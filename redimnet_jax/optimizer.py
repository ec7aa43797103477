"""The optimizer: AdamW with clipping, a learning rate that warms up and falls along a cosine, step by step."""

from collections.abc import Mapping

import jax
import optax

# What an exponential ramp has still to go at its end, of which the public recipes' schedule makes a last small jump.
RAMP_RESIDUE = 1e-3
RAMPS = ("constant", "linear", "exponential")


def schedule(peak: float, steps: int, warmup_steps: int, final: float = 0.0) -> optax.Schedule:
    """Learning rate by step: linear from 0 to `peak` in `warmup_steps`, then a half cosine to `final` at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(warmup_steps, 1), max(steps, warmup_steps + 2), final)


def ramp(value: float, start: int, end: int, shape: str = "linear") -> optax.Schedule:
    """0 until step `start` and `value` from step `end` on: a margin that is let in gradually.

    Of the way between, p from 0 to 1, a "linear" ramp has gone p, and an "exponential" one, which rises fast and then
    levels off, (1 - 0.001**p) / (1 - 0.001). "constant" is `value` all along.
    """
    if end <= start or shape == "constant":
        return optax.constant_schedule(value)
    linear = optax.linear_schedule(0.0, 1.0, end - start, start)
    if shape == "linear":
        return lambda step: value * linear(step)
    return lambda step: value * (1.0 - RAMP_RESIDUE ** linear(step)) / (1.0 - RAMP_RESIDUE)


def adamw(
    rate: optax.Schedule,
    *,
    weight_decay: float,
    clip_norm: float | None,
    factors: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) after clipping the global gradient norm; vectors (biases, norms) do not decay.

    `factors` multiply the learning rate (so the decay too) of the parameters by name; it has all of them.
    """
    steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    decays = {"mask": lambda params: {name: array.ndim > 1 for name, array in params.items()}}
    steps.append(optax.adamw(rate, weight_decay=weight_decay, **decays))
    if factors is not None and set(factors.values()) != {1.0}:
        steps.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: f * u, updates, dict(factors))))
    return optax.chain(*steps)
