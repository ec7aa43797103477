"""The stages of a run: what trains in each of them, how fast, and until when."""

import dataclasses
from collections.abc import Collection
from typing import Any

import optax

from redimnet_jax.errors import UserError
from redimnet_jax.training import optimizer, partition
from redimnet_jax.training.settings import Optimizer, Settings


@dataclasses.dataclass(frozen=True)
class Stage:
    """What trains, how fast, and until when.

    `filters`, from the setting `key`, choose the variables that train (see `partition.select_variables`).
    `batch_stats` is 'trained' or 'frozen'. The stage ends after `last_epoch`, when its learning rate has come
    down, or sooner after `patience` validations without improvement.
    """

    filters: tuple[str, ...]
    batch_stats: str
    optimizer: Optimizer
    key: str
    last_epoch: int
    patience: int | None

    def ends(self, epoch: int, stale: int) -> bool:
        """Return whether the stage is over after `epoch`, with `stale` validations since the last improvement."""
        return epoch >= self.last_epoch or (self.patience is not None and stale >= self.patience)


def stages(settings: Settings) -> tuple[Stage, ...]:
    """Return the one or two stages of a run."""
    optimizers = settings.optimizers
    second = settings.stage2
    last = (settings.epochs, settings.validation.patience)
    if "stage2." not in optimizers:
        return (Stage(settings.parts, settings.batch_stats, optimizers[""], "parts", *last),)
    ends = (second.epoch if second.epoch is not None else settings.epochs, second.patience)
    return (
        Stage(settings.parts, settings.batch_stats, optimizers[""], "parts", *ends),
        Stage(second.parts, second.batch_stats, optimizers["stage2."], "stage2.parts", *last),
    )


def stage_optimizer(
    stage: Stage, rate: optax.Schedule, trained: Collection[str], names: Collection[str]
) -> optax.GradientTransformation:
    """Return the optimizer of a stage, whose variables `trained` train; `names` are all variables."""
    chosen = stage.optimizer
    heads = chosen.weight_decay if chosen.heads_weight_decay is None else chosen.heads_weight_decay
    common: dict[str, Any] = {
        "weight_decay": {
            name: heads if partition.part_of(name) == "heads" else chosen.weight_decay for name in trained
        },
        "clip_norm": chosen.clip_norm,
        "factors": rate_factors(stage, trained, names),
    }
    if chosen.name == "sgd":
        return optimizer.sgd(rate, momentum=chosen.momentum, nesterov=chosen.nesterov, **common)
    return optimizer.adamw(rate, **common)


def rate_factors(stage: Stage, trained: Collection[str], names: Collection[str]) -> dict[str, float]:
    """Return what the learning rate of each variable in `trained` is multiplied by; `names` are all variables.

    The factor is the rate of the variable's part over that of the stage, and in the backbone `layer_decay` once for
    every later stage of the network (as in BEiT, arXiv 2106.08254); see `partition.depth`. Raise UserError for a
    rate of a part of which nothing trains.
    """
    rates = dataclasses.asdict(stage.optimizer.learning_rates)
    training = {partition.part_of(name) for name in trained}
    for part, rate in rates.items():
        if rate is not None and part not in training:
            prefix = stage.key.removesuffix("parts")
            raise UserError(
                f"config.{prefix}optimizer.learning_rates.{part} is {rate} but config.{stage.key} trains nothing of "
                f"the {part}; leave the rate out, or train the part."
            )
    factors = {}
    for name in trained:
        part = partition.part_of(name)
        rate = stage.optimizer.learning_rate if rates[part] is None else rates[part]
        decay = stage.optimizer.layer_decay ** partition.depth(name, names) if part == "backbone" else 1.0
        factors[name] = rate / stage.optimizer.learning_rate * decay
    return factors
