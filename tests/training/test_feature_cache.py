"""Cached features: what they are of, that an interruption costs nothing, and what is refused."""

import contextlib
import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from fake_corpus import FakeCorpus
from jax.sharding import Mesh
from refusals import refusal

from redimnet_jax import locks
from redimnet_jax.data import loader
from redimnet_jax.data.augment import GaussianNoise, Speed
from redimnet_jax.data.crop_order import CropOrder
from redimnet_jax.data.crops import Crops
from redimnet_jax.training.feature_cache import FeatureCache, extract

SAMPLES, BATCH = 3000, 4
LENGTHS = [4000, 5000, 3500, 2000, 9000, 3000, 4444]


class Noise(FakeCorpus):
    """Utterances of noise, one with the `broken` number NaN."""

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        signal = 0.1 * np.random.default_rng(index).standard_normal(self.samples[index]).astype(np.float32)
        if index == self.broken:
            signal[:] = np.nan
        return signal[start : None if samples is None else start + samples]


CROPS = Crops(Noise(LENGTHS), SAMPLES, seed=5, steps=(GaussianNoise(p=0.5),), speed=Speed())
LOG = SimpleNamespace(
    say=lambda text: None, bar=lambda *_: contextlib.nullcontext(SimpleNamespace(update=lambda n: n))
)


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def extracted(folder, model, rows: int, crops=CROPS, dtype=jnp.float32, **options) -> FeatureCache:
    cache = FeatureCache(folder, model, crops, dtype)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    extract(cache, rows, mesh=mesh, **{"batch_size": BATCH, "log": LOG} | options)
    return cache


def contents(cache: FeatureCache) -> tuple[bytes, bytes]:
    return tuple((cache.folder / name).read_bytes() for name in ("features", "labels"))


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """Two crops of every utterance, extracted without a break."""
    return extracted(tmp_path_factory.mktemp("whole"), model, 2 * len(LENGTHS))


def test_rows_are_features_of_the_numbered_crops(whole, model):
    rows = 2 * len(LENGTHS)
    assert whole.rows == rows
    features, labels = whole.read_features(rows), whole.read_labels(rows)
    assert features.shape == (rows, 24) and features.dtype == np.float32 and labels.dtype == np.int32
    batches = loader.crops_in_order(CROPS, rows, readers=loader.Readers(threads=1))
    batch = next(batches)
    batches.close()
    wanted = jax.jit(lambda x: model.network.pooled(*model.network.features(x)))(batch["waveform"])
    np.testing.assert_allclose(features, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, batch["label"])
    # Two crops of an utterance differ, and a speed is a speaker of its own.
    assert not np.allclose(features[:7], features[7:], rtol=1e-2)
    assert (labels % 3 == np.tile(CROPS.corpus.labels, 2)).all() and len(set(labels)) > 3
    sample, named = whole.sample(rows, 5, seed=0)
    assert sample.shape == (5, 24)
    for row, label in zip(sample, named, strict=True):
        place = np.flatnonzero((features == row).all(axis=1))
        assert len(place) == 1 and labels[place[0]] == label
    assert len(whole.sample(rows, 1000, seed=0)[0]) == rows


def test_crops_of_one_pass_share_a_reading(whole, model, tmp_path):
    """The crops are the same as one by one, and an interruption changes none; further ones are behind them."""
    count = len(LENGTHS)
    cache = FeatureCache(tmp_path, model, CROPS, jnp.float32)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    options = {"batch_size": BATCH, "mesh": mesh, "log": LOG}
    assert cache.plan(2) == 2 * count and cache.order.passes == (2,)
    with pytest.raises(Interrupted):
        extract(cache, 2 * count, check=after(3), **options)
    assert FeatureCache(tmp_path, model, CROPS, jnp.float32).plan(3) == 3 * count
    cache = FeatureCache(tmp_path, model, CROPS, jnp.float32)
    assert cache.order.passes == (2, 1) and cache.plan(1) == 2 * count
    extract(cache, cache.plan(3), **options)
    # A corpus of its own, since threads of the extraction may still read ahead.
    corpus, readings = Noise(LENGTHS), []
    corpus.read = lambda *args: readings.append(args) or Noise.read(corpus, *args)
    made = loader.InOrder(dataclasses.replace(CROPS, corpus=corpus), cache.order, 0, BATCH, BATCH)
    for number in range(5):
        made(number)
    # The third pass begins in the fourth batch. A single crop is read alone.
    assert [args[0] for args in readings] == [*range(count), *range(6)]
    assert [len(args) for args in readings] == [1] * count + [3] * 6
    alone = extracted(tmp_path / "alone", model, 3 * count)
    features, labels = cache.read_features(3 * count), cache.read_labels(3 * count)
    rows = cache.order.row(np.arange(3 * count))
    assert [cache.order.number(row) for row in rows] == list(range(3 * count))
    np.testing.assert_array_equal(labels[rows], alone.read_labels(3 * count))
    np.testing.assert_allclose(features[rows], alone.read_features(3 * count), rtol=1e-4, atol=1e-5)
    for crop in range(3):
        np.testing.assert_array_equal(cache.order.of_crop(labels, crop), labels[rows[crop * count :][:count]])
    chosen = {tuple(row) for row in cache.sample(count, 99, seed=0)[0]}
    assert chosen == {tuple(row) for row in features[rows[:count]]}
    (cache.folder / "passes.json").write_text('{"passes": [1, 2], "sha256": ""}')
    assert "passes.json is damaged" in refusal(FeatureCache, tmp_path, model, CROPS, jnp.float32)


def test_rows_of_a_version_without_passes_stay(model, tmp_path):
    """They lie in the order of the crops' numbers, and so does the round over the utterances that is not complete."""
    count = len(LENGTHS)
    cache = extracted(tmp_path, model, count + 3)
    earlier = contents(cache)
    assert not (cache.folder / "passes.json").exists()
    cache = FeatureCache(tmp_path, model, CROPS, jnp.float32)
    rows = cache.plan(4)
    assert rows == 4 * count and cache.order.passes == (1, 1, 2)
    extract(cache, rows, batch_size=BATCH, mesh=Mesh(np.array(jax.devices()[:1]), ("data",)), log=LOG)
    assert all(now.startswith(before) for now, before in zip(contents(cache), earlier, strict=True))
    numbers = [cache.order.number(row) for row in range(rows)]
    expected = loader.crops_in_order(CROPS, rows, readers=loader.Readers(threads=1))
    np.testing.assert_array_equal(cache.read_labels(rows), next(expected)["label"][numbers])
    expected.close()


def test_processes_make_rows_side_by_side(model, tmp_path):
    """Also from a row within an utterance on, where a run that had other processes and batches was interrupted."""
    order = CropOrder(len(LENGTHS), (2, 1))

    def made(batch_size: int, count: int, begin: int = 0, state: int = 0, **readers) -> list[dict[str, np.ndarray]]:
        given = loader.Readers(threads=1, **readers)
        batches = loader.crops_in_order(CROPS, batch_size, begin=begin, order=order, readers=given)
        batches.set_state(batches.get_state() | {"step": state})
        taken = [next(batches) for _ in range(count)]
        batches.close()
        return taken

    (whole,) = made(27, 1)
    for begin, state in ((0, 0), (5, 0), (3, 2)):
        parts = [made(6, 2, begin, state, process_index=index, process_count=3) for index in range(3)]
        rows = range(begin + 6 * state, begin + 6 * state + 12)
        for name in whole:
            joined = np.concatenate([part[name] for step in zip(*parts, strict=True) for part in step])
            np.testing.assert_array_equal(joined, whole[name][rows])


def test_half_the_bytes_in_bfloat16(whole, model, tmp_path):
    cache = extracted(tmp_path, model, 7, dtype=jnp.bfloat16)
    rounded = np.asarray(whole.read_features(7)).astype(jnp.bfloat16)
    assert cache.read_features(7).tobytes() == rounded.tobytes()
    assert cache.sample(7, 7, seed=0)[0].dtype == np.float32


def test_another_crop_takes_the_place_of_one_that_cannot_be_read(whole, model, tmp_path):
    """Its label is that of its recording; other rows stay what they are, and an interruption changes nothing."""
    crops = Crops(Noise(LENGTHS, broken=2), SAMPLES, seed=5, steps=CROPS.steps, speed=CROPS.speed)
    told = []
    cache = extracted(tmp_path / "one", model, 14, crops, unreadable=told.extend)
    assert {utterance for utterance, _ in told} == {2}
    same = (cache.read_features(14) == whole.read_features(14)).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(~same), [2, 9])
    # A recording of the same speaker, at the same speed.
    np.testing.assert_array_equal(cache.read_labels(14), whole.read_labels(14))
    with pytest.raises(Interrupted):
        extracted(tmp_path / "two", model, 14, crops, check=after(2))
    assert contents(extracted(tmp_path / "two", model, 14, crops)) == contents(cache)


class Interrupted(Exception):
    pass


def after(batches: int):
    """Raises before batch number `batches`."""
    left = [batches]

    def check():
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted

    return check


def test_an_interrupted_extraction_goes_on(whole, model, tmp_path, monkeypatch):
    rows = 2 * len(LENGTHS)
    with pytest.raises(Interrupted):
        extracted(tmp_path, model, rows, check=after(0))
    for batches in (3, 2):
        with pytest.raises(Interrupted):
            extracted(tmp_path, model, rows, check=after(batches))
    cache = FeatureCache(tmp_path, model, CROPS, jnp.float32)
    reached = cache.rows
    assert 0 < reached < rows and reached % BATCH == 0
    # Half a row, and rows that were never counted, are no rows.
    with open(cache.folder / "features", "ab") as file:
        file.write(b"\xff" * 150)
    with open(cache.folder / "labels", "ab") as file:
        file.write(b"\xff" * 9)
    assert cache.rows == reached
    extracted(tmp_path, model, rows)
    assert contents(cache) == contents(whole)
    # Nothing is left to be done.
    monkeypatch.setattr(loader, "crops_in_order", None)
    extracted(tmp_path, model, rows)


def test_more_crops_are_added_behind(whole, model, tmp_path):
    cache = extracted(tmp_path, model, len(LENGTHS))
    first = contents(cache)
    assert cache.rows == len(LENGTHS)
    extracted(tmp_path, model, 2 * len(LENGTHS))
    assert all(now.startswith(before) for now, before in zip(contents(cache), first, strict=True))
    # The batches are others, and so is the rounding.
    np.testing.assert_allclose(cache.read_features(14), whole.read_features(14), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cache.read_labels(14), whole.read_labels(14))


def test_what_features_follow_from_names_the_folder(whole, model, tmp_path):
    def name(model=model, dtype=jnp.float32, **changes) -> str:
        crops = Crops(**{field: getattr(CROPS, field) for field in CROPS.__dataclass_fields__} | changes)
        return FeatureCache(tmp_path, model, crops, dtype).folder.name

    assert name() == whole.folder.name
    made_of = json.loads((whole.folder / "made_of.json").read_text())
    assert made_of["corpus"] == "fake" and made_of["samples"] == SAMPLES
    other = Noise(LENGTHS)
    other.digest = "other"
    names = [
        name(dtype=jnp.bfloat16),
        name(samples=SAMPLES + 1),
        name(seed=6),
        name(steps=()),
        name(steps=(GaussianNoise(p=0.6),)),
        name(speed=None),
        name(corpus=other),
        name(model=tiny.model(pooling_func="TSTP")),
    ]
    assert len({name(), *names}) == len(names) + 1
    # A projection changes nothing.
    assert name(model=tiny.model(embed_dim=12)) == name()


def flip(path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(("name", "place"), [("features", 50), ("features", -1), ("labels", 4), ("complete.json", 9)])
def test_a_flipped_bit_is_found_before_training(name, place, whole, tmp_path, model):
    cache = FeatureCache(tmp_path, model, CROPS, jnp.float32)
    shutil.copytree(whole.folder, cache.folder, dirs_exist_ok=True)
    flip(cache.folder / name, place)

    def read():
        cache.read_features(14), cache.read_labels(14)

    told = refusal(read)
    assert str(cache.folder / name) in told and "remove the folder" in told
    refusal(cache.sample, 14, 3, seed=0)
    # The rows before a damaged one are in its block.
    assert name != "features" or "do not match" in refusal(cache.read_features, 1)


def test_labels_beyond_the_classes(whole, tmp_path, model):
    cache = FeatureCache(tmp_path, model, CROPS, jnp.float32)
    with cache.writer() as writer:
        writer.append(features=np.zeros((2, 24), np.float32), labels=np.array([0, cache.classes], "<i4"))
    assert f"for {cache.classes} classes" in refusal(cache.read_labels, 2)


def test_rows_without_checksums_are_made_anew(whole, tmp_path, model, caplog):
    cache = FeatureCache(tmp_path, model, CROPS, jnp.float32)
    for name in ("features", "labels"):
        (cache.folder / name).write_bytes(b"\x01" * 5000)
    (cache.folder / "complete.json").write_text('{"rows": 9}')
    extracted(tmp_path, model, 2 * len(LENGTHS))
    assert contents(cache) == contents(whole) and "no checksums" in caplog.text


def test_the_count_is_read_under_the_lock(whole, tmp_path, model):
    """Another run that appends between the first look and the lock neither shifts nor cuts what is there."""
    cache = FeatureCache(tmp_path, model, CROPS, jnp.float32)
    original = cache.writer

    def writer():
        cache.writer = original
        extracted(tmp_path, model, len(LENGTHS))
        return original()

    cache.writer = writer
    extract(cache, 2 * len(LENGTHS), batch_size=BATCH, mesh=Mesh(jax.devices()[:1], ("data",)), log=LOG)
    np.testing.assert_array_equal(cache.read_labels(14), whole.read_labels(14))
    np.testing.assert_allclose(cache.read_features(14), whole.read_features(14), rtol=1e-4, atol=1e-5)


def test_refused(whole, model, tmp_path):
    crops = Crops(Noise(LENGTHS), SAMPLES, seed=5)
    broken = tiny.model()
    broken.network.backbone.stem.conv.kernel.set_value(broken.network.backbone.stem.conv.kernel[...] * np.nan)
    assert "id0/0.wav are NaN" in refusal(extracted, tmp_path, broken, 7, crops)
    assert FeatureCache(tmp_path, broken, crops, jnp.float32).rows == 0
    cache = FeatureCache(tmp_path, model, crops, jnp.float32)
    extracted(tmp_path, model, 1, crops, batch_size=1)
    with locks.locked(cache.folder):
        assert "another process" in refusal(extracted, tmp_path, model, 7, crops)
    with open(whole.folder / "labels", "r+b") as file:
        file.truncate(40)
    assert "damaged" in refusal(lambda: whole.rows)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refusal(FeatureCache, tmp_path / "file", model, CROPS, jnp.float32)
