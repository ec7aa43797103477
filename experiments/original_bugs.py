"""What each mistake of a Matryoshka adaptation gone wrong costs: EER per dimension, everything else equal.

    python experiments/original_bugs.py --train=TREE --trials=trials.txt --audio_root=UNSEEN --output=bugs

A pretrained model (`--checkpoint`, by default the small one of the package) is adapted to the dimensions 64, 128, 192
and 256 with its backbone frozen: once as it should be, and once with each of these mistakes, none of which the
product lets anyone make:

- random mfa: a random, frozen linear layer stands between the backbone and its pooling
- random pooling: the frozen pooling has random weights
- wrong hop: the front end makes frames at 2/3 of the hop that the backbone was trained at
- random projection: the pretrained projection is thrown away
- untrained prototypes: random prototypes that the optimizer does not know
- drifting BatchNorm: the frozen backbone runs in train mode, and its batch statistics move
- all of them at once

Each gets the same crops in the same order, the same steps and the same optimizer. The figures are of the last step.
Writes `results.json`, `results.md` and `bugs.png`.
"""

import dataclasses

import jax
import numpy as np
import optax
from flax import nnx
from frozen_backbone import DIMS, Judge, arguments, open_all, pooled_crops

from redimnet_jax.checkpoints import native
from redimnet_jax.embedding.extract import embed_pooled
from redimnet_jax.losses.heads import Heads
from redimnet_jax.models import config as model_config
from redimnet_jax.models import matryoshka
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.training import optimizer
from redimnet_jax.training.partition import TrainableModel


@dataclasses.dataclass(frozen=True)
class Mistakes:
    random_mfa: bool = False
    random_pooling: bool = False
    wrong_hop: bool = False
    random_projection: bool = False
    untrained_prototypes: bool = False
    drifting_batch_norm: bool = False


def systems() -> dict[str, Mistakes]:
    names = [field.name for field in dataclasses.fields(Mistakes)]
    each = {name.replace("_", " ").replace("batch norm", "BatchNorm"): Mistakes(**{name: True}) for name in names}
    return {"as it should be": Mistakes()} | each | {"all of them": Mistakes(*[True] * len(names))}


def with_mistakes(model: SpeakerModel, made: Mistakes, seed: int) -> SpeakerModel:
    """`model` with the mistakes that lie in the network that is frozen."""
    entries = dict(model.model_config)
    if made.random_mfa:
        entries["out_channels"] = entries["C"] * entries["F"]
    if made.wrong_hop:
        entries["hop_length"] = round(entries["hop_length"] * 2 / 3)
    network = SpeakerNetwork(model_config.parse(model.arch, entries), rngs=nnx.Rngs(seed))
    right, random = native.flat(model.network), native.flat(network)
    lost = ("pool.",) if made.random_pooling else ()
    keep = {name for name in random if name in right and not name.startswith(lost)}
    native.fill(network, {name: right[name] if name in keep else array for name, array in random.items()})
    return SpeakerModel(network, entries, model.source)


def adapted(frozen: SpeakerModel, made: Mistakes, waveforms, labels, pooled, args) -> SpeakerModel:
    """`frozen` with a projection and heads trained on the crops."""
    init = "random" if made.random_projection else "lossless"
    model = matryoshka.adapt(frozen, DIMS, pooled, labels, init=init, order="class", seed=args.seed)
    heads = Heads(int(labels.max()) + 1, DIMS, rngs=nnx.Rngs(args.seed + 1))
    if not (made.random_projection or made.untrained_prototypes):
        heads.start_at_means(embed_pooled(model, pooled), labels)
    learner = TrainableModel(model.network, heads)

    def trains(path, leaf) -> bool:
        if not isinstance(leaf, nnx.Param):
            return False
        return path[0] == "heads" and not made.untrained_prototypes or path[1] in ("bn", "linear")

    graph, params, stats, rest = nnx.split(learner, trains, nnx.BatchStat, ...)
    per_epoch = len(labels) // args.batch_size
    rate = optimizer.schedule(args.learning_rate, args.epochs * per_epoch, per_epoch // 2, 1e-6)
    update = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(rate, weight_decay=1e-4))

    @jax.jit
    def step(params, stats, opt, x, y):
        def loss(params):
            learner = nnx.merge(graph, params, stats, rest, copy=True)
            if made.drifting_batch_norm:
                features, frames = learner.network.features(x)
                e = jax.lax.stop_gradient(learner.network.pooled(features, frames, train=True))
            else:
                e = x
            value, _ = learner.heads.loss(learner.network.embed(e, train=True), y, weights=(1.0,) * len(DIMS))
            return value, nnx.state(learner, nnx.BatchStat)

        (value, moved), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = update.update(gradients, opt, params)
        return optax.apply_updates(params, updates), moved, opt, value

    opt, rng, inputs = update.init(params), np.random.default_rng(args.seed), pooled
    if made.drifting_batch_norm:
        inputs = waveforms
    for _ in range(args.epochs):
        order, total = rng.permutation(len(labels)), 0.0
        for i in range(per_epoch):
            rows = order[i * args.batch_size : (i + 1) * args.batch_size]
            params, stats, opt, value = step(params, stats, opt, inputs[rows], labels[rows])
            total += float(value)
    print(f"  loss of the last epoch {total / per_epoch:.3f}", flush=True)
    learner = nnx.merge(graph, params, stats, rest)
    return SpeakerModel(learner.network, model.model_config, model.source)


def main() -> None:
    args = arguments(__doc__)
    model, judged, waveforms, labels = open_all(args)
    judge, ready = Judge(judged, args.seed), {}
    for name, made in systems().items():
        frozen = with_mistakes(model, made, args.seed)
        key = (made.random_mfa, made.random_pooling, made.wrong_hop)
        if key not in ready:
            ready[key] = pooled_crops(frozen.network, waveforms)
        judge(name, adapted(frozen, made, waveforms, labels, ready[key], args))
    judge.write(args, "bugs.png")


if __name__ == "__main__":
    main()
