"""Training batches from plain keywords."""

import dataclasses
from typing import Any

from redimnet_jax.data import loader
from redimnet_jax.data.crops import Crops


def train_batches(corpus: Any, *, batch_size: int, crop: int, seed: int = 0, **options: Any) -> loader.TrainBatches:
    """Return batches; `options` are steps, speed, fields of `loader.Readers`, and those of `loader.train_batches`."""
    changes = {name: options.pop(name) for name in ("steps", "speed") if name in options}
    names = [field.name for field in dataclasses.fields(loader.Readers)]
    readers = loader.Readers(**{name: options.pop(name) for name in names if name in options})
    return loader.train_batches(Crops(corpus, crop, seed, **changes), batch_size, readers=readers, **options)
