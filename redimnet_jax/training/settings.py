"""The settings of a training run: each with its type, default, range, unit and a sentence, section by section.

The sections about data and losses are in `settings_data` and `settings_losses`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from redimnet_jax.losses import objective
from redimnet_jax.models import config as model_config
from redimnet_jax.models.matryoshka import INITS, ORDERS
from redimnet_jax.models.variants import VARIANTS
from redimnet_jax.settings import all_optional, section, setting
from redimnet_jax.training.optimizer import OPTIMIZERS, SCHEDULES
from redimnet_jax.training.settings_data import Cache, Classification, Data, Validation
from redimnet_jax.training.settings_losses import Distillation, Heads, Loss

DTYPES = ("float32", "bfloat16")
BATCH_STATS = ("trained", "frozen")


@dataclass(frozen=True)
class Model:
    """The network that training starts from."""

    checkpoint: str | None = setting(
        None, help="Names a native checkpoint, a workdir or a `.pt` file; None starts from random weights."
    )
    variant: str | None = setting(
        None, choices=tuple(VARIANTS), help="Names the published network that starts from random weights."
    )
    arch: str = setting(
        "redimnet", choices=model_config.ARCHITECTURES, help="Chooses the architecture that `model.config` describes."
    )
    config: dict = setting({}, help="Gives the `model_config` of another network that starts from random weights.")

    @property
    def untrained(self) -> tuple[str, dict[str, Any]]:
        """The architecture and `model_config` of the network that starts from random weights."""
        return (self.arch, self.config) if self.variant is None else VARIANTS[self.variant]


@dataclass(frozen=True)
class Projection:
    """The Matryoshka projection and its start."""

    mrl_dims: tuple[int, ...] = setting(
        (64, 128, 192, 256), at_least=1, help="Lists the prefix lengths that are trained, in increasing order."
    )
    init: str = setting(
        "lossless",
        choices=INITS,
        help="Starts from the rotated pretrained projection (lossless), from it as it is (keep), or from random.",
    )
    order: str = setting(
        "class", choices=ORDERS, help="Orders the directions of the lossless start by the energy of means or of all."
    )
    crops: int = setting(
        20_000, at_least=1, help="Sets how many training crops the rotation and the means are computed from."
    )


@dataclass(frozen=True)
class LearningRates:
    """Learning rates of single parts; None is `learning_rate`."""

    backbone: float | None = setting(None, above=0, help="Replaces the peak learning rate for the backbone.")
    projection: float | None = setting(None, above=0, help="Replaces the peak learning rate for the projection.")
    heads: float | None = setting(None, above=0, help="Replaces the peak learning rate for the heads.")


@dataclass(frozen=True)
class Optimizer:
    """The optimizer and its schedule, with a linear warm-up."""

    name: str = setting("adamw", choices=OPTIMIZERS, help="Chooses AdamW or SGD with momentum.")
    momentum: float = setting(0.9, at_least=0, below=1, help="Sets the momentum of SGD.")
    nesterov: bool = setting(True, help="Uses Nesterov's form of the momentum.")
    schedule: str = setting(
        "cosine", choices=SCHEDULES, help="Lets the learning rate fall along half a cosine or exponentially."
    )
    learning_rate: float = setting(1e-3, above=0, help="Sets the peak learning rate of the schedule.")
    learning_rates: LearningRates = section(LearningRates)
    layer_decay: float = setting(
        1.0, above=0, at_most=1, help="Multiplies the rate once for every later stage of the backbone."
    )
    final_learning_rate: float = setting(1e-6, at_least=0, help="Sets the learning rate at the end of the schedule.")
    warmup_epochs: float = setting(0.5, at_least=0, unit="epochs", help="Sets the length of the warm-up.")
    weight_decay: float = setting(
        1e-4, at_least=0, help="Sets the decay: with adamw decoupled and of matrices alone, with sgd of everything."
    )
    heads_weight_decay: float | None = setting(
        None, at_least=0, help="Replaces the decay for the heads; None is `weight_decay`."
    )
    clip_norm: float | None = setting(5.0, above=0, help="Clips the global norm of the gradient; None does not.")
    accumulate: int = setting(1, at_least=1, help="Sets into how many pieces a batch is divided to save memory.")


SecondOptimizer = all_optional(Optimizer, "The optimizer of the second stage; None is as in the first stage.")


@dataclass(frozen=True)
class SecondStage:
    """A second stage, which `stage2.epoch` or `stage2.patience` starts."""

    epoch: int | None = setting(None, at_least=1, help="Starts the second stage after this epoch.")
    patience: int | None = setting(
        None, at_least=1, help="Starts the second stage after this many validations without a better EER."
    )
    parts: tuple[str, ...] = setting(
        ("backbone", "projection", "heads"), help="Lists the parts or patterns of paths that train."
    )
    batch_stats: str = setting(
        "trained", choices=BATCH_STATS, help="Updates the batch statistics of what trains, or freezes them all."
    )
    optimizer: Any = section(SecondOptimizer)


@dataclass(frozen=True)
class Averaging:
    """Averages of weights."""

    ema: float = setting(
        0.0, at_least=0, below=1, help="Sets the decay of the moving average that is validated; 0 turns it off."
    )
    last: int = setting(0, at_least=0, help="Averages the models of this many last epochs; 0 turns it off.")


@dataclass(frozen=True)
class Checkpoint:
    """Training checkpoints."""

    keep: int = setting(2, at_least=1, help="Sets how many of the newest checkpoints are kept.")
    every_steps: int = setting(1000, at_least=1, unit="steps", help="Sets the distance between checkpoints.")


@dataclass(frozen=True)
class Settings:
    """The run as a whole."""

    seed: int = setting(0, at_least=0, below=2**31 - 1, help="Seeds all random numbers of the run.")
    epochs: int = setting(10, at_least=1, help="Sets the number of epochs of all stages together.")
    batch_size: int = setting(
        256, at_least=1, unit="crops", help="Sets the size of a batch over all devices and hosts."
    )
    dtype: str = setting(
        "bfloat16", choices=DTYPES, help="Chooses the arithmetic of the backbone; everything else is float32."
    )
    remat: bool = setting(
        False, help="Computes the blocks of a backbone that trains twice, which takes less memory and more time."
    )
    parts: tuple[str, ...] = setting(
        ("projection", "heads"), help="Lists the parts or patterns of paths that train; everything else is frozen."
    )
    batch_stats: str = setting(
        "trained", choices=BATCH_STATS, help="Updates the batch statistics of what trains, or freezes them all."
    )
    model: Model = section(Model)
    data: Data = section(Data)
    cache: Cache = section(Cache)
    projection: Projection = section(Projection)
    heads: Heads = section(Heads)
    loss: Loss = section(Loss)
    distillation: Distillation = section(Distillation)
    optimizer: Optimizer = section(Optimizer)
    stage2: SecondStage = section(SecondStage)
    averaging: Averaging = section(Averaging)
    validation: Validation = section(Validation)
    classification: Classification = section(Classification)
    checkpoint: Checkpoint = section(Checkpoint)
    log_every_steps: int = setting(20, at_least=1, unit="steps", help="Sets the distance between lines of the log.")

    @property
    def chosen_loss(self) -> objective.Loss:
        """The loss that `loss.name` chooses, with its options."""
        options = getattr(self.loss, self.loss.name)
        return objective.LOSSES[self.loss.name](
            **{field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        )

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizer of each stage by the prefix of its keys; the second one defaults to the first."""
        optimizers = {"": self.optimizer}
        if self.stage2.epoch is not None or self.stage2.patience is not None:
            entries = {
                field.name: getattr(self.stage2.optimizer, field.name) for field in dataclasses.fields(Optimizer)
            }
            given = {name: value for name, value in entries.items() if value is not None}
            optimizers["stage2."] = dataclasses.replace(self.optimizer, **given)
        return optimizers
