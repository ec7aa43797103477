"""Trains the small backbone that comes with the package, with all speech in the memory of one GPU.

    python experiments/small_backbone.py --train SPEECH/train OTHER/train --output=small [--set NAME=VALUE...]

The speech is decoded once, changed to every speed, and kept on the device as int16. Each step draws its crops and
augments them there too: rooms, channels, talkers, noise, and loss of bands. A speaker at another speed is another
class. The result is the mean of the weights of the last steps.
"""

import argparse
import ast
import concurrent.futures
import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import soxr
from flax import nnx

from redimnet_jax.checkpoints import native
from redimnet_jax.data import audio, tree
from redimnet_jax.data.synthetic import rooms
from redimnet_jax.losses.classification import AAMSoftmax
from redimnet_jax.losses.heads import Heads
from redimnet_jax.models import config as model_config
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.speaker_model import Source, SpeakerModel
from redimnet_jax.training import optimizer
from redimnet_jax.training.partition import TrainableModel

Array = jax.Array
RATE = audio.SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what is trained, apart from the speech."""

    F: int = 40
    C: int = 8
    hop_length: int = 320
    stages: tuple = ((2, 1, 1, ((3, 3),), None), (2, 1, 1, ((3, 3),), None))
    block: str = "convnext_like_relu"
    block_1d: str = "att"
    divisor: int | None = None
    spec_augment: bool = False
    steps: int = 10_000
    batch: int = 256
    seconds: float = 1.0
    speeds: tuple[float, ...] = (1.0, 0.9, 1.1)
    learning_rate: float = 2e-3
    warmup: float = 0.02  # share of the steps
    weight_decay: float = 0.05
    margin: float = 0.2
    margin_ramp: tuple[float, float] = (0.05, 0.3)  # shares of the steps
    scale: float = 30.0
    averaged: float = 0.1  # share of the steps whose weights are averaged
    room: float = 0.25
    channel: float = 0.3
    talkers: float = 0.25
    noise: float = 0.15
    low_pass: float = 0.1
    balance: float = 1.0  # a speaker is drawn by (seconds of speech) to this power
    dtype: str = "bfloat16"
    seed: int = 0


class Speech(NamedTuple):
    """What crops are drawn from, on the device: utterances at every speed, and rooms."""

    waves: Array  # int16 (speeds, samples)
    starts: Array  # (speeds, utterances)
    lengths: Array  # (speeds, utterances)
    speakers: Array  # (utterances,)
    cumulated: Array  # (utterances,), the chances of all utterances up to this one
    rooms: Array  # complex (rooms, frequencies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, type=Path, help="folders of a folder a speaker")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="change a field of Settings")
    args = parser.parse_args()
    changes = dict(change.split("=", 1) for change in args.set)
    settings = dataclasses.replace(Settings(), **{name: _value(text) for name, text in changes.items()})
    utterances, speakers = read(args.train)
    model = train(settings, utterances, speakers)
    native.save(model, args.output)


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def read(folders: list[Path]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the waveforms, float32, and the speaker's number of each; the speakers of two folders are different."""
    files = [
        (path, f"{folder}/{path.relative_to(folder).parts[0]}")
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if tree.is_audio(path.name)
    ]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waves = list(pool.map(lambda file: audio.read(file[0]), files))
    speakers = np.unique([speaker for _, speaker in files], return_inverse=True)[1]
    hours = sum(map(len, waves)) / RATE / 3600
    print(f"{len(files)} utterances, {speakers.max() + 1} speakers, {hours:.2f} hours", flush=True)
    return waves, speakers


def on_device(utterances: list[np.ndarray], speakers: np.ndarray, settings: Settings) -> Speech:
    def at_speed(speed: float, wave: np.ndarray) -> np.ndarray:
        changed = wave if speed == 1.0 else soxr.resample(wave, RATE * speed, RATE)
        return np.clip(np.rint(changed * 32767), -32768, 32767).astype(np.int16)

    rows = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for speed in settings.speeds:
            rows.append(list(pool.map(partial(at_speed, speed), utterances)))
    lengths = np.array([[len(wave) for wave in row] for row in rows], np.int32)
    starts = np.cumsum(lengths, axis=1, dtype=np.int32) - lengths
    waves = np.zeros((len(rows), lengths.sum(axis=1).max()), np.int16)
    for flat, row in zip(waves, rows, strict=True):
        joined = np.concatenate(row)
        flat[: len(joined)] = joined
    seconds = np.bincount(speakers, lengths[0])
    chances = lengths[0] / seconds[speakers] * seconds[speakers] ** settings.balance
    rng = np.random.default_rng(settings.seed)
    size = _fourier_size(settings)
    responses = [np.fft.rfft(rooms.impulse_response(rng), size) for _ in range(512)]
    arrays = (waves, starts, lengths, speakers.astype(np.int32), np.cumsum(chances / chances.sum()), responses)
    dtypes = (jnp.int16, jnp.int32, jnp.int32, jnp.int32, jnp.float32, jnp.complex64)
    return Speech(*(jnp.asarray(array, dtype) for array, dtype in zip(arrays, dtypes, strict=True)))


def _fourier_size(settings: Settings) -> int:
    return 1 << round((settings.seconds + rooms.MAX_REVERBERATION) * RATE).bit_length()


def drawing(settings: Settings, count: int) -> Callable[[Speech, Array], tuple[Array, Array]]:
    """Return draw(speech, key) -> (augmented crops (batch, samples), classes (batch,)) of `count` speakers."""
    samples, size = round(settings.seconds * RATE), _fourier_size(settings)
    frequencies = jnp.fft.rfftfreq(size, 1 / RATE)

    def draw(speech: Speech, key: Array) -> tuple[Array, Array]:
        keys = iter(jax.random.split(key, 24))
        rows = (settings.batch,)
        utterance = jnp.searchsorted(speech.cumulated, jax.random.uniform(next(keys), rows))
        utterance = jnp.minimum(utterance, len(speech.cumulated) - 1)
        speed = jax.random.randint(next(keys), rows, 0, len(settings.speeds))
        length = speech.lengths[speed, utterance]
        offset = (jax.random.uniform(next(keys), rows) * jnp.maximum(length - samples, 1)).astype(jnp.int32)
        # An utterance shorter than a crop is repeated.
        place = (offset[:, None] + jnp.arange(samples)) % length[:, None]
        x = speech.waves[speed[:, None], speech.starts[speed, utterance][:, None] + place].astype(jnp.float32)
        x = x / jnp.maximum(rms(x), 1.0)

        def happens(p: float) -> Array:
            return jax.random.bernoulli(next(keys), p, (settings.batch, 1))

        def decibels(low: float, high: float) -> Array:
            return 10.0 ** (jax.random.uniform(next(keys), (settings.batch, 1), minval=low, maxval=high) / 20)

        # Up to three other talkers, then a response, a channel, and noise of a random colour.
        others = sum(
            x[jax.random.permutation(next(keys), settings.batch)] * happens(chance) for chance in (1.0, 0.5, 0.5)
        )
        babble = others / jnp.maximum(rms(others), 1e-3)
        y = x + jnp.where(happens(settings.talkers), babble / decibels(5.0, 20.0), 0.0)
        room = speech.rooms[jax.random.randint(next(keys), rows, 0, len(speech.rooms))]
        response = jnp.where(happens(settings.room), room, 1.0)
        response *= jnp.where(happens(settings.channel), curve(next(keys), frequencies, settings.batch), 1.0)
        cutoff = jax.random.uniform(next(keys), (settings.batch, 1), minval=3000.0, maxval=6000.0)
        passed = jax.nn.sigmoid((cutoff - frequencies) / 100.0)
        response *= jnp.where(happens(settings.low_pass), passed, 1.0)
        y = jnp.fft.irfft(jnp.fft.rfft(y, size) * response, size)[:, :samples]
        white = jax.random.normal(next(keys), y.shape)
        colour = curve(next(keys), frequencies, settings.batch)
        noise = jnp.fft.irfft(jnp.fft.rfft(white, size) * colour, size)[:, :samples]
        level = rms(y) / rms(noise) / decibels(5.0, 30.0)
        y += jnp.where(happens(settings.noise), noise * level, 0.0)
        return 0.1 * y / jnp.maximum(rms(y), 1e-3), speech.speakers[utterance] + count * speed

    return draw


def rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=1, keepdims=True))


def curve(key: Array, frequencies: Array, count: int) -> Array:
    """Return smooth random gains (count, frequencies): ten points of 5 dB deviation, linear in between."""
    knots = jnp.linspace(0.0, RATE / 2, 10)
    gains = 5.0 * jax.random.normal(key, (count, 10))
    return 10.0 ** (jax.vmap(lambda row: jnp.interp(frequencies, knots, row))(gains) / 20)


def train(settings: Settings, utterances: list[np.ndarray], speakers: np.ndarray) -> SpeakerModel:
    start = time.monotonic()
    speech = on_device(utterances, speakers, settings)
    entries = {
        "F": settings.F,
        "C": settings.C,
        "block_1d_type": settings.block_1d,
        "block_2d_type": settings.block,
        "global_context_att": True,
        "group_divisor": settings.divisor,
        "hop_length": settings.hop_length,
        "pooling_func": "ASTP",
        "spec_params": {"win_length": 512, "do_spec_aug": settings.spec_augment},
        "stages_setup": json.loads(json.dumps(settings.stages)),
        "embed_dim": 192,
    }
    config = model_config.parse("redimnet", entries)
    network = SpeakerNetwork(config, dtype=jnp.dtype(settings.dtype), rngs=nnx.Rngs(settings.seed))
    classes = (int(speakers.max()) + 1) * len(settings.speeds)
    loss = AAMSoftmax(margin=settings.margin, scale=settings.scale)
    heads = Heads(classes, (config.embed_dim,), loss, rngs=nnx.Rngs(settings.seed + 1))
    graph, params, rest = nnx.split(TrainableModel(network, heads), nnx.Param, ...)
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
    print(f"{size:,} parameters, {classes} classes; speech ready after {time.monotonic() - start:.0f} s", flush=True)
    rate = optimizer.schedule(settings.learning_rate, settings.steps, round(settings.warmup * settings.steps))
    decayed = jax.tree.map(lambda x: x.ndim > 1, params)
    update = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=settings.weight_decay, mask=decayed)
    )
    draw = drawing(settings, int(speakers.max()) + 1)
    first, last = (share * settings.steps for share in settings.margin_ramp)

    def step(speech: Speech, carry, number: Array):
        params, rest, opt, total, key = carry
        draw_key, key_of_step = jax.random.split(jax.random.fold_in(key, number))
        waveform, labels = draw(speech, draw_key)
        margin = settings.margin * jnp.clip((number - first) / (last - first), 0.0, 1.0)

        def objective(params):
            model = nnx.merge(graph, params, rest, copy=True)
            embedding = model.network(waveform, train=True, key=key_of_step)
            value, _ = model.heads.loss(embedding, labels, weights=(1.0,), margin=margin)
            return value, nnx.split(model, nnx.Param, ...)[2]

        (value, moved), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt = update.update(gradients, opt, params)
        params = optax.apply_updates(params, updates)
        counted = number >= settings.steps * (1 - settings.averaged)
        total = jax.tree.map(lambda t, x: t + counted * x, total, (params, moved))
        return (params, moved, opt, total, key), value

    run = jax.jit(
        lambda speech, carry, numbers: jax.lax.scan(partial(step, speech), carry, numbers), donate_argnums=1
    )
    total = jax.tree.map(jnp.zeros_like, (params, rest))
    carry = (params, rest, update.init(params), total, jax.random.key(settings.seed))
    block = max(1, min(250, settings.steps // 20))
    report = max(1, settings.steps // block // 10)
    for number in range(settings.steps // block):
        carry, losses = run(speech, carry, number * block + jnp.arange(block))
        if number % report == 0 or number == settings.steps // block - 1:
            print(
                f"step {(number + 1) * block}, loss {float(losses.mean()):.3f}, {time.monotonic() - start:.0f} s",
                flush=True,
            )
    counted = sum(
        number >= settings.steps * (1 - settings.averaged) for number in range(settings.steps // block * block)
    )
    params, rest = jax.tree.map(lambda x: (x / counted).astype(x.dtype), carry[3])
    return _model(graph, params, rest, entries)


def _model(graph, params, rest, entries: dict) -> SpeakerModel:
    network = nnx.merge(graph, params, rest).network
    network.dtype = jnp.dtype(jnp.float32)
    source = Source(
        file="experiments/small_backbone.py on LibriSpeech train-clean-100 (251 speakers) and speechocean762 (125)",
        sha256="",
        layout="redimnet_jax",
        licence="trained on LibriSpeech (Panayotov et al., 2015), CC BY 4.0, and speechocean762 (Zhang et al., "
        "2021), free for commercial and non-commercial purposes",
    )
    return SpeakerModel(network, entries, source)


if __name__ == "__main__":
    main()
