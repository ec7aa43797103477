"""The objective of a run from its settings."""

from redimnet_jax.losses import margin_schedule
from redimnet_jax.losses.distillation import Distillation
from redimnet_jax.losses.objective import Objective
from redimnet_jax.training.settings import Settings


def make_objective(settings: Settings, epoch_steps: int) -> Objective:
    """Return the objective of a run with `epoch_steps` steps in an epoch."""
    loss = settings.loss
    start, end = (round(epochs * epoch_steps) for epochs in loss.margin_ramp)
    return Objective(
        weights=loss.weights or (1.0,) * len(settings.projection.mrl_dims),
        margin=margin_schedule.ramp(settings.chosen_loss.margin, start, end, loss.margin_schedule),
        consistency=loss.consistency,
        distillation=Distillation(settings.distillation.scores, settings.distillation.embeddings),
    )
