"""What training starts from: a pretrained model with a new projection and heads, or an untrained network."""

import contextlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from redimnet_jax import sharding
from redimnet_jax.checkpoints.open import open_model
from redimnet_jax.data.loader import TrainBatches
from redimnet_jax.embedding.extract import PooledFeatures, embed_pooled
from redimnet_jax.errors import UserError
from redimnet_jax.losses.heads import Heads
from redimnet_jax.models import config as model_config
from redimnet_jax.models import matryoshka
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel
from redimnet_jax.training.log import TrainingLog
from redimnet_jax.training.partition import TrainableModel, TrainablePartition
from redimnet_jax.training.saved_run import require_step
from redimnet_jax.training.settings import Settings
from redimnet_jax.training.stages import rate_factors, stages


def starting_model(settings: Settings) -> SpeakerModel:
    """Return the pretrained model, or an untrained one; raise UserError if `projection.mrl_dims` do not fit it."""
    dims = settings.projection.mrl_dims
    dtype = jnp.dtype(settings.dtype)
    if settings.heads.run is not None:
        require_step(settings.heads.run)
    if settings.model.checkpoint is not None:
        pretrained = open_model(settings.model.checkpoint, dtype=dtype)
        matryoshka.check_dims(pretrained, dims)
        if settings.projection.init == "keep":
            matryoshka.check_kept(pretrained, dims)
        return pretrained
    arch, entries = settings.model.untrained
    entries = entries | {"embed_dim": dims[-1], "mrl_dims": list(dims)}
    config = model_config.parse(arch, entries)
    network = SpeakerNetwork(config, dtype=dtype, rngs=nnx.Rngs(settings.seed))
    return SpeakerModel(network, entries, Source("none: trained from scratch", "", "redimnet_jax"))


def open_teacher(settings: Settings) -> SpeakerNetwork | None:
    """Return the network of the teacher, or None; raise UserError when the student is too narrow for it."""
    distillation = settings.distillation
    if distillation.teacher is None:
        return None
    teacher = open_model(distillation.teacher, dtype=jnp.dtype(settings.dtype))
    width = settings.projection.mrl_dims[-1]
    if distillation.embeddings and teacher.embed_dim > width:
        raise UserError(
            f"The teacher {distillation.teacher} has {teacher.embed_dim} dimensions and the student only {width}, so "
            "distillation.embeddings cannot be; set it to 0 and distillation.scores above 0, or widen "
            "projection.mrl_dims."
        )
    return teacher.network


def check_what_trains(settings: Settings, model: SpeakerModel) -> None:
    """Raise UserError for filters of what trains that match nothing in a network like `model` and its heads."""
    dims = settings.projection.mrl_dims
    config = matryoshka.check_dims(model, dims)

    def untrained() -> TrainableModel:
        rngs = nnx.Rngs(0)
        return TrainableModel(SpeakerNetwork(config, rngs=rngs), Heads(2, dims, settings.chosen_loss, rngs=rngs))

    abstract = nnx.eval_shape(untrained)
    partitions = []
    for stage in stages(settings):
        partition = TrainablePartition(abstract, stage.filters, batch_stats=stage.batch_stats, key=stage.key)
        rate_factors(stage, partition.names["params"], partition.variables)
        partitions.append(partition)
    if settings.cache.crops and partitions[0].backbone_trains:
        raise UserError(
            f"config.cache.crops is {settings.cache.crops} but the backbone, whose features would be cached, trains "
            "from the start; set cache.crops to 0."
        )


def adapt(
    settings: Settings,
    pretrained: SpeakerModel,
    heads: Heads,
    crops: Callable[[int], tuple[np.ndarray, np.ndarray]],
    utterances: int,
    log: TrainingLog,
) -> SpeakerModel:
    """Return the pretrained backbone with the projection that training starts from; initialise `heads`.

    `crops(count)` gives (pooled features, labels) of about that many training crops of `utterances` in all, from
    which the rotation of a lossless start and the means of the classes are computed.
    """
    projection = settings.projection
    dims = projection.mrl_dims
    from_means = settings.heads.init == "means" and heads.have_prototypes
    start: tuple[np.ndarray, np.ndarray] | None = None
    if projection.init == "lossless" or from_means:
        start = crops(min(projection.crops, max(8 * utterances, 4 * dims[-1])))
    pooled, labels = start or (None, None)
    model = matryoshka.adapt(
        pretrained, dims, pooled, labels, init=projection.init, order=projection.order, seed=settings.seed
    )
    if from_means:
        assert pooled is not None and labels is not None
        reached = heads.start_at_means(embed_pooled(model, pooled), labels)
        log.say(f"heads start at the means of {reached:,} of {heads.classes:,} classes, the others at random")
    if projection.init != "lossless":
        return model
    if model.embed_dim < pretrained.embed_dim:
        log.say(f"start: the first {model.embed_dim} of {pretrained.embed_dim} pretrained directions")
    else:
        assert pooled is not None
        difference = matryoshka.check_lossless(pretrained, model, pooled[:512])
        log.say(
            f"lossless start: no cosine at the {pretrained.embed_dim} pretrained dimensions changes by more than "
            f"{difference:.1e}"
        )
    return model


def pooled_crops(
    model: SpeakerModel, batches: TrainBatches, count: int, mesh: Mesh, log: TrainingLog
) -> tuple[np.ndarray, np.ndarray]:
    """Return (pooled features, labels) of `count` batches, the same on every process; close the batches."""
    pooled_features = PooledFeatures(model.network, mesh, replicated=True)
    rows = []
    with contextlib.closing(batches), log.bar("features", count) as bar:
        for _ in range(count):
            features, rest = pooled_features(sharding.shard_rows(next(batches), mesh))
            rows.append((np.asarray(features), np.asarray(rest["label"])))
            bar.update()
    features, labels = (np.concatenate(column) for column in zip(*rows, strict=True))
    return features, labels
