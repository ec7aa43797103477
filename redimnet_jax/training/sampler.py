"""Decide which cached crops make up which training batch: a stratified sample, as a pure function.

Utterance u belongs to stratum u % strata, and a batch draws equally from every stratum, so that a device that holds
some strata makes its part of every batch without the rows of any other device. In an epoch every stratum is permuted
by (seed, epoch). The crops of an utterance take turns from a random one on, so that none repeats before all had their
turn. A batch is a function of the sampler, the epoch and the number of the batch in it. It does not depend on the
devices.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from redimnet_jax.errors import UserError

Array = jax.Array

MAX_STRATA = 64
# Folded into the seed beside the epochs, whose numbers are smaller.
CROP_ORDER = 2**31


@dataclasses.dataclass(frozen=True)
class EpochSampler:
    """The order in which `crops` crops of each of `utterances` utterances train, in batches of `batch_size` crops.

    `crops_per_epoch` crops of every utterance make an epoch, and incomplete batches are left out. Row
    `crop * width + u // strata` of stratum `u % strata` is that crop of utterance u.
    Raises UserError for numbers that do not fit together.
    """

    utterances: int
    crops: int
    batch_size: int
    seed: int
    strata: int = 1
    crops_per_epoch: int = 1

    def __post_init__(self) -> None:
        if self.utterances < self.strata:
            raise UserError(
                f"The {self.utterances} utterances are fewer than the {self.strata} strata of the cached features, "
                "so lower the batch size or set cache.crops to 0."
            )
        if self.batch_size % self.strata:
            raise UserError(
                f"The batch size {self.batch_size} is no multiple of the {self.strata} strata of the cached "
                "features, so make it one."
            )
        if not self.steps_per_epoch:
            raise UserError(
                f"The batch size {self.batch_size} exceeds the {self.utterances * self.crops_per_epoch} crops of an "
                "epoch, so lower it or raise data.crops_per_utterance."
            )

    @property
    def width(self) -> int:
        """The number of utterances in the largest stratum; smaller strata have an empty row in every crop."""
        return -(-self.utterances // self.strata)

    @property
    def steps_per_epoch(self) -> int:
        """The number of complete batches in an epoch."""
        return self.utterances * self.crops_per_epoch // self.batch_size

    def permutation(self, epoch: int | Array) -> Array:
        """Return the rows of every stratum in the order of `epoch`, int32 (strata, crops_per_epoch * width).

        In a smaller stratum another utterance stands in for the one that it lacks, and comes last.
        """
        key = jax.random.key(self.seed)
        index = jnp.arange(self.crops_per_epoch * self.width, dtype=jnp.int32)
        utterance = index % self.width
        turn = index // self.width

        def permute(stratum: Array) -> Array:
            shuffle_key = jax.random.fold_in(jax.random.fold_in(key, epoch), stratum)
            crop_key = jax.random.fold_in(jax.random.fold_in(key, CROP_ORDER), stratum)
            first = jax.random.randint(crop_key, (self.width,), 0, self.crops)[utterance]
            crop = (first + epoch * self.crops_per_epoch + turn) % self.crops
            # The order of random numbers; equal ones are so few that keeping their order makes no difference.
            priority = jax.random.bits(shuffle_key, index.shape) >> 1
            exists = utterance * self.strata + stratum < self.utterances
            rows = crop * self.width + jnp.where(exists, utterance, 0)
            return rows[jnp.argsort(jnp.where(exists, priority, jnp.uint32(2**32 - 1)))]

        return jax.vmap(permute)(jnp.arange(self.strata, dtype=jnp.int32)).astype(jnp.int32)

    def streams(self, devices: int) -> int:
        """Return the number of streams of rows from which `devices` devices make every batch.

        That is the number of strata where the devices divide it. Otherwise every stratum is divided further, into
        streams that share its utterances. Raises UserError unless the devices divide the batch.
        """
        if self.batch_size % devices:
            raise UserError(
                f"The batch size {self.batch_size} is no multiple of the {devices} devices, so change one of them."
            )
        return math.lcm(self.strata, devices)

    def order(self, epoch: int | Array, streams: int) -> Array:
        """Return the rows of the batches of `epoch`, int32 (streams, steps_per_epoch * batch_size / streams).

        Batch i takes the next batch_size / streams rows of every stream. Stream t has rows of stratum
        t // (streams / strata). Which crops are in which batch does not depend on `streams`.
        """
        per_stratum = self.batch_size // self.strata
        parts = streams // self.strata
        rows = self.permutation(epoch)[:, : self.steps_per_epoch * per_stratum]
        by_part = rows.reshape(self.strata, self.steps_per_epoch, parts, per_stratum // parts)
        return by_part.transpose(0, 2, 1, 3).reshape(streams, -1)

    def crop_numbers(self, stratum: int, rows: np.ndarray) -> np.ndarray:
        """Return the numbers of the crops, as in `data.crop_order`, int64, that are the rows `rows` of a stratum."""
        crop, member = np.divmod(rows.astype(np.int64), self.width)
        return crop * self.utterances + member * self.strata + stratum


def choose_strata(batch_size: int, devices: int) -> int:
    """Return the number of strata of a new run on `devices` devices.

    It is the same for all numbers of devices that divide gcd(batch_size, 64). For others it is the number of devices,
    so that no row has to be on two of them.
    """
    strata = math.gcd(batch_size, MAX_STRATA)
    return devices if strata % devices else strata
