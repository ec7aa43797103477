"""The objective of a run from its settings."""

from collections.abc import Callable
from typing import Any

from redimnet_jax.losses import margin_schedule, prefixes
from redimnet_jax.losses.distillation import Distillation
from redimnet_jax.losses.doubt import Doubt
from redimnet_jax.losses.objective import Objective
from redimnet_jax.training.settings import Settings


def make_objective(settings: Settings, epoch_steps: int) -> Objective:
    """Return the objective of a run with `epoch_steps` steps in an epoch."""
    loss, dims = settings.loss, settings.projection.mrl_dims
    weights = loss.weights or (1.0,) * len(dims)
    doubtful = loss.doubtful
    doubt = Doubt(doubtful.trim, doubtful.minor_weight)
    return Objective(
        weights=weights,
        margin=_margin(settings, epoch_steps),
        consistency=loss.consistency,
        distillation=Distillation(settings.distillation.scores, settings.distillation.embeddings),
        gradient_factors=prefixes.gradient_factors(dims, weights) if loss.scale_gradients else None,
        sampled=loss.sampled_prefixes,
        durations=None if loss.durations is None else prefixes.Durations(loss.durations, loss.duration_sharpness),
        crop_seconds=settings.data.crop_lengths[0],
        doubt=None if doubt == Doubt() else doubt,
        doubt_from=round(doubtful.from_epoch * epoch_steps),
    )


def _margin(settings: Settings, epoch_steps: int) -> Callable[..., Any]:
    """Return the margin by step, a tuple with one for each prefix where they have margins of their own."""
    loss = settings.loss
    start, end = (round(epochs * epoch_steps) for epochs in loss.margin_ramp)

    def ramp(margin: float) -> Callable[..., Any]:
        return margin_schedule.ramp(margin, start, end, loss.margin_schedule)

    if loss.margins is None:
        return ramp(settings.chosen_loss.margin)
    ramps = [ramp(margin) for margin in loss.margins]
    return lambda step: tuple(each(step) for each in ramps)
