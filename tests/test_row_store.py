"""Files of rows: checksums of blocks however rows come, one writer, and a disk that fails."""

import errno

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import row_store
from redimnet_jax.row_store import RowStore


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Rows of 12 and 4 bytes in blocks of 32, which end within rows."""
    monkeypatch.setattr(row_store, "BLOCK_BYTES", 32)
    return RowStore(tmp_path / "store", {"vectors": 12, "labels": 4}, "cache.folder")


def rows(count: int, begin: int = 0) -> dict[str, np.ndarray]:
    labels = np.arange(begin, begin + count, dtype="<i4")
    return {"vectors": np.stack([labels, labels**2, -labels], axis=1).astype("<f4"), "labels": labels}


def test_checksums_do_not_depend_on_how_rows_came(store, tmp_path):
    with store.appender() as appender:
        appender.append(**rows(23))
    other = RowStore(tmp_path / "other", store.row_bytes, "cache.folder")
    for begin, count in ((0, 1), (1, 2), (3, 13), (16, 7)):
        with other.appender() as appender:
            assert appender.rows == begin
            appender.append(**rows(count, begin))
    assert store.complete() == other.complete() and store.complete().rows == 23
    assert len(store.complete().checksums["vectors"]) == 9
    for name in store.row_bytes:
        other.check(name, 23)
        assert (store.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_every_flipped_byte_is_found_and_no_other_row_is_refused(store):
    with store.appender() as appender:
        appender.append(**rows(23))
    path = store.folder / "vectors"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert str(path) in refusal(store.check, "vectors", 23)
        before = place // 32 * 32 // 12
        store.check("vectors", before)
    path.write_bytes(whole[:-1])
    assert "shorter" in refusal(store.check, "vectors", 1)


def test_more_rows_than_are_complete(store):
    with store.appender() as appender:
        appender.append(**rows(2))
    assert "counts 2 rows" in refusal(store.check, "labels", 3)


def test_a_second_writer_is_refused(store):
    with store.appender():
        assert "another process" in refusal(store.appender().__enter__)


def test_rows_of_a_failed_batch_are_not_counted(tmp_path, monkeypatch):
    store = RowStore(tmp_path, {"vectors": 12, "labels": 4}, "cache.folder")
    original = row_store._write

    def write(file, data):
        if len(data) == 16:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(file, data)

    def append() -> None:
        with store.appender() as appender:
            appender.append(**rows(3))
            appender.append(**rows(4, 3))

    monkeypatch.setattr(row_store, "_write", write)
    assert "No space left" in refusal(append)
    assert store.complete().rows == 3
    for name in store.row_bytes:
        store.check(name, 3)
