"""The schedule of a margin, which grows step by step."""

import jax.numpy as jnp
import optax

# What an exponential ramp has still to go just before its end, where it jumps to the margin.
RAMP_RESIDUE = 1e-3
RAMPS = ("constant", "linear", "exponential")


def ramp(value: float, start: int, end: int, shape: str = "linear") -> optax.Schedule:
    """0 until step `start` and `value` from step `end` on: a margin that is let in gradually.

    Of the way between, p from 0 to 1, a "linear" ramp has gone p, and an "exponential" one, which rises fast and then
    levels off, 1 - 0.001**p: the ramp of WeSpeaker's `MarginScheduler`, which jumps by a thousandth at its end.
    "constant" is `value` all along.
    """
    if end <= start or shape == "constant":
        return optax.constant_schedule(value)
    linear = optax.linear_schedule(0.0, 1.0, end - start, start)
    if shape == "linear":
        return lambda step: value * linear(step)
    return lambda step: value * jnp.where(jnp.asarray(step) < end, 1.0 - RAMP_RESIDUE ** linear(step), 1.0)
