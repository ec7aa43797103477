"""Every loss after equal training: EER per dimension, and whether it differs from that of AAM-Softmax.

    python experiments/losses.py --train=TREE --trials=trials.txt --audio_root=UNSEEN --output=losses

A random projection and random heads for the dimensions 64, 128, 192 and 256 are trained on the frozen backbone of
`--checkpoint`, by default the small one of the package, with each loss in its default setting. All get the same
batches, of `--speakers` speakers with `--batch_size` / `--speakers` crops each, which the losses over pairs need, the
same steps and the same optimizer. The figures are of the last step; nothing is chosen by the trials. Writes
`results.json`, `results.md` and `losses.png`.
"""

import jax
import numpy as np
import optax
from flax import nnx
from frozen_backbone import DIMS, Judge, arguments, open_all, pooled_crops

from redimnet_jax.embedding.extract import pool_recordings
from redimnet_jax.losses.classification import AAMSoftmax
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import LOSSES, Loss
from redimnet_jax.models import matryoshka
from redimnet_jax.models.speaker_model import SpeakerModel
from redimnet_jax.training import optimizer
from redimnet_jax.training.partition import TrainableModel

CROPS_PER_SPEAKER = 4


def batches(labels: np.ndarray, size: int, epochs: int, seed: int):
    """Rows of the batches: every epoch deals the speakers anew, and some crops of each, other ones in every batch."""
    rng, speakers = np.random.default_rng(seed), np.unique(labels)
    of = {speaker: np.flatnonzero(labels == speaker) for speaker in speakers}
    count = size // CROPS_PER_SPEAKER
    for _ in range(epochs * len(labels) // size):
        chosen = rng.choice(speakers, count, replace=False)
        yield np.concatenate([rng.choice(of[speaker], CROPS_PER_SPEAKER, replace=False) for speaker in chosen])


def trained(model: SpeakerModel, loss: Loss, pooled: np.ndarray, labels: np.ndarray, args) -> SpeakerModel:
    model = matryoshka.adapt(model, DIMS, None, None, init="random", order="class", seed=args.seed)
    learner = TrainableModel(model.network, Heads(int(labels.max()) + 1, DIMS, loss, rngs=nnx.Rngs(args.seed + 1)))

    def trains(path, leaf) -> bool:
        return isinstance(leaf, nnx.Param) and (path[0] == "heads" or path[1] in ("bn", "linear"))

    graph, params, stats, rest = nnx.split(learner, trains, nnx.BatchStat, ...)
    steps = args.epochs * len(labels) // args.batch_size
    rate = optimizer.schedule(args.learning_rate, steps, steps // 40, 1e-6)
    update = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(rate, weight_decay=1e-4))

    @jax.jit
    def step(params, stats, opt, x, y):
        def value(params):
            learner = nnx.merge(graph, params, stats, rest, copy=True)
            total, _ = learner.heads.loss(learner.network.embed(x, train=True), y, weights=(1.0,) * len(DIMS))
            return total, nnx.state(learner, nnx.BatchStat)

        (total, moved), gradients = jax.value_and_grad(value, has_aux=True)(params)
        updates, opt = update.update(gradients, opt, params)
        return optax.apply_updates(params, updates), moved, opt, total

    opt = update.init(params)
    for rows in batches(labels, args.batch_size, args.epochs, args.seed):
        params, stats, opt, total = step(params, stats, opt, pooled[rows], labels[rows])
    print(f"  last loss {float(total):.3f}", flush=True)
    return SpeakerModel(nnx.merge(graph, params, stats, rest).network, model.model_config, model.source)


def main() -> None:
    args = arguments(__doc__)
    model, judged, waveforms, labels = open_all(args)
    pooled, recordings = pooled_crops(model.network, waveforms), pool_recordings(model, judged.recordings)
    judge = Judge(judged, args.seed)
    first = "aam_softmax"
    for name in (first, *(name for name in LOSSES if name != first)):
        judge(name, trained(model, LOSSES[name](), pooled, labels, args), recordings)
    # Two options that are losses of their own in the literature.
    for name, loss in variants().items():
        judge(name, trained(model, loss, pooled, labels, args), recordings)
    judge.write(args, "losses.png")


def variants() -> dict[str, Loss]:
    triplet, sphereface2 = LOSSES["triplet"], LOSSES["sphereface2"]
    return {
        "aam_softmax, no margin": AAMSoftmax(margin=0.0),
        "sphereface2, type A": sphereface2(margin_type="A"),
        "triplet, hard": triplet(mining="hard"),
        "triplet, all": triplet(mining="all"),
    }


if __name__ == "__main__":
    main()
