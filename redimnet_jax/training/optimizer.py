"""The optimizers, AdamW and SGD, with clipping, and their learning rate step by step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "exponential")


def schedule(peak: float, steps: int, warmup_steps: int, final: float = 0.0, shape: str = "cosine") -> optax.Schedule:
    """Return the learning rate of every step, from 0 in a linear warm-up to `final` at `steps`.

    "cosine" rises to `peak` in `warmup_steps` and then falls along half a cosine. "exponential" is
    peak (final / peak)^(step / steps) from the first step on, times step / warmup_steps during the warm-up, so it
    never reaches `peak` itself: the schedule of WeSpeaker's `ExponentialDecrease` with `warm_from_zero`.
    """
    if shape == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, max(warmup_steps, 1), max(steps, warmup_steps + 2), final
        )
    warmup = optax.linear_schedule(0.0, peak, warmup_steps) if warmup_steps else optax.constant_schedule(peak)
    return lambda step: warmup(step) * (final / peak) ** (jnp.minimum(step, steps) / steps)


def adamw(
    rate: optax.Schedule,
    *,
    weight_decay: float | Mapping[str, float],
    clip_norm: float | None,
    factors: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Return AdamW (arXiv 1711.05101) after clipping the global gradient norm; biases and norms do not decay.

    `weight_decay` is that of all matrices, or of each parameter by name. `factors` multiply the learning rate, and so
    the decay, of the parameters by name; all of them must be there.
    """
    return _chain(rate, clip_norm, factors, optax.scale_by_adam(), _decayed(weight_decay, vectors=False))


def sgd(
    rate: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float | Mapping[str, float],
    clip_norm: float | None,
    factors: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Return SGD with momentum as `torch.optim.SGD` computes it, after clipping the global gradient norm.

    The decay is a part of the gradient, and of all parameters: biases and norms decay too. The other arguments are
    those of `adamw`.
    """
    trace = optax.trace(momentum, nesterov) if momentum else optax.identity()
    return _chain(rate, clip_norm, factors, _decayed(weight_decay, vectors=True), trace)


def _decayed(weight_decay: float | Mapping[str, float], vectors: bool) -> optax.GradientTransformation:
    """Return the step that adds to every update its parameter times its weight decay."""

    def decay(name: str, parameter: jax.Array) -> float:
        of_all = weight_decay if isinstance(weight_decay, int | float) else weight_decay[name]
        return of_all if vectors or parameter.ndim > 1 else 0.0

    def add(updates: Any, params: Any) -> Any:
        decays = {name: decay(name, parameter) for name, parameter in params.items()}
        return {name: u + decays[name] * params[name] if decays[name] else u for name, u in updates.items()}

    return optax.stateless(add)


def _chain(
    rate: optax.Schedule,
    clip_norm: float | None,
    factors: Mapping[str, float] | None,
    *middle: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Return clipping, then the steps of an optimizer, then its learning rate, by parameter with `factors`."""
    steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    steps.append(optax.chain(*middle, optax.scale_by_learning_rate(rate)))
    if factors is not None and set(factors.values()) != {1.0}:
        steps.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: f * u, updates, dict(factors))))
    return optax.chain(*steps)
