"""What training starts from: a pretrained model with a new projection and heads, or an untrained network."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.checkpoints.open import open_model
from redimnet_jax.embedding.extract import PooledFeatures, embed_pooled
from redimnet_jax.errors import UserError
from redimnet_jax.losses.heads import Heads
from redimnet_jax.models import config as model_config
from redimnet_jax.models import matryoshka
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel
from redimnet_jax.training.log import TrainingLog


def starting_model(config: Any) -> SpeakerModel:
    """The pretrained model, or an untrained one of `model.config`, for which the configured dimensions are right."""
    dims, dtype = tuple(config.projection.mrl_dims), jnp.dtype(config.dtype)
    if config.model.checkpoint is not None:
        pretrained = open_model(config.model.checkpoint, dtype=dtype)
        matryoshka.check_dims(pretrained, dims)
        if config.projection.init == "keep":
            matryoshka.check_kept(pretrained, dims)
        return pretrained
    entries = config.model.config.to_dict() | {"embed_dim": dims[-1], "mrl_dims": list(dims)}
    network = SpeakerNetwork(model_config.parse(config.model.arch, entries), dtype=dtype, rngs=nnx.Rngs(config.seed))
    return SpeakerModel(network, entries, Source("none: trained from scratch", "", "redimnet_jax"))


def open_teacher(config: Any) -> SpeakerNetwork | None:
    """The network of `distillation.teacher`, or None; UserError when its embedding has no place in the student's."""
    wanted = config.distillation
    if wanted.teacher is None:
        return None
    teacher = open_model(wanted.teacher, dtype=jnp.dtype(config.dtype))
    width = config.projection.mrl_dims[-1]
    if wanted.embeddings and teacher.embed_dim > width:
        raise UserError(
            f"The teacher {wanted.teacher} has {teacher.embed_dim} dimensions and the student only {width}, so "
            "distillation.embeddings cannot be; set it to 0 and distillation.scores above 0, or widen "
            "projection.mrl_dims."
        )
    return teacher.network


def adapt(
    config: Any,
    pretrained: SpeakerModel,
    heads: Heads,
    crops: Callable[[int], tuple[np.ndarray, np.ndarray]],
    utterances: int,
    log: TrainingLog,
) -> SpeakerModel:
    """The pretrained backbone with the projection that training starts from; puts `heads` where they start.

    `crops(count)` gives (pooled features, labels) of about that many training crops of `utterances` in all, from
    which the rotation of a lossless start and the means of the classes are taken.
    """
    wanted, dims = config.projection, tuple(config.projection.mrl_dims)
    from_means = config.heads.init == "means" and heads.have_prototypes
    pooled = labels = None
    if wanted.init == "lossless" or from_means:
        pooled, labels = crops(min(wanted.crops, max(8 * utterances, 4 * dims[-1])))
    model = matryoshka.adapt(pretrained, dims, pooled, labels, init=wanted.init, order=wanted.order, seed=config.seed)
    if from_means:
        reached = heads.start_at_means(embed_pooled(model, pooled), labels)
        log.say(f"heads start at the means of {reached:,} of {heads.classes:,} classes, the others at random")
    if wanted.init != "lossless":
        return model
    if model.embed_dim < pretrained.embed_dim:
        log.say(f"start: the first {model.embed_dim} of {pretrained.embed_dim} pretrained directions")
    else:
        difference = matryoshka.check_lossless(pretrained, model, pooled[:512])
        log.say(
            f"lossless start: no cosine at the {pretrained.embed_dim} pretrained dimensions changes by more than "
            f"{difference:.1e}"
        )
    return model


def pooled_crops(
    model: SpeakerModel, batches: Iterator, count: int, mesh: Mesh, log: TrainingLog
) -> tuple[np.ndarray, np.ndarray]:
    """(pooled features, labels) of `count` batches, which are then closed; the same on every process."""
    pooled_features = PooledFeatures(model.network, mesh, replicated=True)
    found = []
    with contextlib.closing(batches), log.bar("features", count) as bar:
        for _ in range(count):
            features, rest = pooled_features(sharding.deal_rows(next(batches), mesh))
            found.append((np.asarray(features), np.asarray(rest["label"])))
            bar.update()
    features, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    return features, labels
