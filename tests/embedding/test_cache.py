"""The cache of pooled features: nothing twice, nothing stale, nothing half."""

import functools
import os

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from refusals import refusal

from redimnet_jax import row_store
from redimnet_jax.embedding import extract
from redimnet_jax.embedding.cache import PooledCache, backbone_digest
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.models import matryoshka


@functools.cache
def model():
    return tiny.model()


class Files:
    """Signals with files of their own; counts what is read."""

    def __init__(self, folder, count=5):
        rng = np.random.default_rng(0)
        self.paths = [folder / f"{i}.npy" for i in range(count)]
        self.reads = 0
        for path in self.paths:
            np.save(path, rng.normal(0, 0.1, 4000).astype(np.float32))
        self.samples = np.full(count, 4000)

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        return self.paths[index].name

    def source(self, index):
        return self.paths[index]

    def read(self, index, start=0, samples=None):
        self.reads += 1
        return np.load(self.paths[index])[start : None if samples is None else start + samples]


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    return Files(folder)


def pool(recordings, folder, **more):
    return extract.pool_recordings(model(), recordings, cache=PooledCache(folder, model()), **more)


@pytest.mark.slow
def test_what_is_kept_is_neither_read_nor_changed(recordings, tmp_path):
    plain = extract.pool_recordings(model(), recordings)
    first = pool(recordings, tmp_path / "cache")
    np.testing.assert_array_equal(first, plain)
    recordings.reads = 0
    np.testing.assert_array_equal(pool(recordings, tmp_path / "cache"), first)
    assert recordings.reads == 0


@pytest.mark.slow
def test_a_changed_recording_and_other_windows_are_computed_anew(recordings, tmp_path):
    first = pool(recordings, tmp_path / "cache")
    np.save(recordings.paths[1], np.load(recordings.paths[0]))
    os.utime(recordings.paths[1], ns=(1, 1))
    recordings.reads = 0
    again = pool(recordings, tmp_path / "cache")
    assert recordings.reads == 1
    # The same signal, but in a smaller batch.
    np.testing.assert_allclose(again[1], first[0], rtol=1e-4, atol=1e-5)
    recordings.reads = 0
    crops = pool(recordings, tmp_path / "cache", crop_policy=CropPolicy(0.2, 2))
    assert recordings.reads == 10 and crops.shape[:2] == (5, 2)
    assert not np.allclose(crops[:, 0], crops[:, 1])


def test_an_interrupted_run_goes_on(recordings, tmp_path):
    class Stop(Exception):
        pass

    checks = []

    def stop():
        checks.append(None)
        if len(checks) == 4:
            raise Stop

    with pytest.raises(Stop):
        pool(recordings, tmp_path / "cache", batch_seconds=0.01, check=stop)
    kept = len(PooledCache(tmp_path / "cache", model()))
    assert 0 < kept < 5
    recordings.reads = 0
    pool(recordings, tmp_path / "cache")
    assert recordings.reads == 5 - kept


@pytest.mark.parametrize(("file", "damage"), [("rows", "cut"), ("rows", "flip"), ("keys", "cut"), ("keys", "flip")])
def test_rows_in_damaged_blocks_are_computed_anew(file, damage, recordings, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(row_store, "BLOCK_BYTES", 32)
    first = pool(recordings, tmp_path / "cache")
    path = PooledCache(tmp_path / "cache", model()).folder / file
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-1]
    else:
        content[10] ^= 1
    path.write_bytes(content)
    recordings.reads = 0
    np.testing.assert_allclose(pool(recordings, tmp_path / "cache"), first, rtol=1e-4, atol=1e-5)
    read = recordings.reads
    assert 1 <= read <= 2 and "damaged" in caplog.text
    # And the new rows are there the next time.
    np.testing.assert_allclose(pool(recordings, tmp_path / "cache"), first, rtol=1e-4, atol=1e-5)
    assert recordings.reads == read


def test_rows_without_checksums_are_computed_anew(recordings, tmp_path, caplog):
    cache = PooledCache(tmp_path / "cache", model())
    for name in ("rows", "keys"):
        (cache.folder / name).write_bytes(b"1" * 500)
    pool(recordings, tmp_path / "cache")
    assert recordings.reads == 5 and "no checksums" in caplog.text


def test_two_writers_keep_all_rows(tmp_path):
    rng = np.random.default_rng(0)
    caches = [PooledCache(tmp_path, model()) for _ in range(2)]
    written = {}
    for number in range(6):
        keys = [bytes([number, row]) * 8 for row in range(3)]
        rows = rng.normal(size=(3, model().network.pool.features)).astype(np.float32)
        caches[number % 2].append(keys, rows)
        written |= dict(zip(keys, rows, strict=True))
    out = np.zeros((18, model().network.pool.features), np.float32)
    assert PooledCache(tmp_path, model()).read(list(written), out).all()
    np.testing.assert_array_equal(out, list(written.values()))
    out[:] = 0
    # Each knows what it wrote itself, wherever the other's rows lie.
    assert caches[0].read(list(written), out).sum() == 9
    np.testing.assert_array_equal(out[:3], list(written.values())[:3])


def test_the_key_is_the_backbone_and_not_the_projection():
    digest = backbone_digest(model())
    assert backbone_digest(matryoshka.adapt(model(), (4, 8), init="random", seed=0)) == digest
    assert backbone_digest(tiny.model(hop_length=160)) != digest
    other = tiny.model()
    other.network.dtype = jnp.dtype("bfloat16")
    assert backbone_digest(other) != digest
    other = tiny.model()
    kernel = other.network.pool.linear1.kernel
    kernel.set_value(kernel.get_value() + 1)
    assert backbone_digest(other) != digest


def test_a_recording_that_is_gone_is_named(recordings, tmp_path):
    recordings.paths[2].unlink()
    assert "2.npy" in refusal(pool, recordings, tmp_path / "cache")


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refusal(PooledCache, tmp_path / "file", model())
