"""The optimizer: AdamW with clipping, a learning rate that warms up and falls along a cosine, step by step."""

import optax


def schedule(peak: float, steps: int, warmup_steps: int, final: float = 0.0) -> optax.Schedule:
    """Learning rate by step: linear from 0 to `peak` in `warmup_steps`, then a half cosine to `final` at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(warmup_steps, 1), max(steps, warmup_steps + 2), final)


def ramp(value: float, start: int, end: int) -> optax.Schedule:
    """0 until step `start`, `value` from step `end` on, and a line between: a margin that is let in gradually."""
    if end <= start:
        return optax.constant_schedule(value)
    return optax.linear_schedule(0.0, value, end - start, start)


def adamw(rate: optax.Schedule, *, weight_decay: float, clip_norm: float | None) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) after clipping the global gradient norm; vectors (biases, norms) do not decay."""
    steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    decays = {"mask": lambda params: {name: array.ndim > 1 for name, array in params.items()}}
    return optax.chain(*steps, optax.adamw(rate, weight_decay=weight_decay, **decays))
