"""The stages of a run: what trains in each of them, and how fast."""

import dataclasses
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from redimnet_jax.errors import UserError
from redimnet_jax.training import partition

BATCH_STATS = ("trained", "frozen")


@dataclasses.dataclass(frozen=True)
class Stage:
    """What trains: `filters` (see `partition.select_variables`), which the config calls `key`, with `batch_stats`
    'trained' or 'frozen'; and the settings of the optimizer, those of `config.optimizer`.
    """

    filters: tuple[str, ...]
    batch_stats: str
    optimizer: ConfigDict
    key: str


def stages(config: Any) -> tuple[Stage, ...]:
    """The one or two stages of a run with the settings `config`; what `stage2.optimizer` leaves open is as before."""
    first = Stage(tuple(config.parts), config.batch_stats, config.optimizer, "parts")
    second = config.stage2
    if second.epoch is None and second.patience is None:
        return (first,)
    settings = {key: first.optimizer[key] if value is None else value for key, value in second.optimizer.items()}
    return first, Stage(tuple(second.parts), second.batch_stats, ConfigDict(settings), "stage2.parts")


def last_epoch(config: Any, stage: int) -> int:
    """The epoch that ends the stage with that index at the latest: its learning rate has then come down."""
    first_of_two = stage == 0 and len(stages(config)) == 2
    return config.stage2.epoch if first_of_two and config.stage2.epoch is not None else config.epochs


def ends(config: Any, stage: int, epoch: int, stale: int) -> bool:
    """Whether that stage is over after `epoch`, with `stale` validations since the EER got better."""
    first_of_two = stage == 0 and len(stages(config)) == 2
    patience = config.stage2.patience if first_of_two else config.validation.patience
    return epoch >= last_epoch(config, stage) or (patience is not None and stale >= patience)


def rate_factors(stage: Stage, trained: Collection[str], names: Collection[str]) -> dict[str, float]:
    """What the learning rate of each variable in `trained` is multiplied by; `names` are all variables.

    That is the rate of its part over the stage's, and in the backbone `layer_decay` once for every stage of the
    network after its own (as in BEiT, arXiv 2106.08254); see `partition.depth`. Raises UserError for a rate of a part
    of which nothing trains.
    """
    rates = stage.optimizer.learning_rates
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
