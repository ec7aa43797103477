"""What enrolling and removing leaves in a gallery, also where it fails or is killed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gallery_data import DIM, WEIGHTS, content, enrol, expected, utterances

from redimnet_jax import locks
from redimnet_jax.errors import UserError
from redimnet_jax.gallery import changes
from redimnet_jax.gallery.changes import writing
from redimnet_jax.gallery.gallery import Gallery
from redimnet_jax.gallery.manifest import Weights
from redimnet_jax.gallery.utterances import Utterances, joined

HELPERS = Path(__file__).parents[1] / "helpers"
ODD = "caf\udce9 \t\n\u2028'$'"


def test_models_come_back_as_they_were_enrolled(tmp_path):
    parts = [utterances(name, count) for name, count in (("a", 3), (ODD, 1), ("b", 2))]
    enrol(tmp_path / "gallery", *parts)
    assert content(tmp_path / "gallery") == expected(*parts)
    rows = Gallery.open(tmp_path / "gallery").segments[0].utterances
    assert set(rows.seconds.tolist()) == {2.5} and np.isnan(rows.speech_seconds).all()


def test_utterances_of_a_model_need_not_be_side_by_side(tmp_path):
    mixed = joined([utterances("a", 1), utterances("b", 2), utterances("a", 2, first=1)])
    enrol(tmp_path, mixed)
    assert content(tmp_path) == expected(mixed)


def test_a_name_is_enrolled_once_unless_added_to(tmp_path):
    enrol(tmp_path, utterances("a"), utterances("b"))
    before = content(tmp_path)
    with pytest.raises(UserError, match="a is enrolled already; add utterances to a model with --add"):
        enrol(tmp_path, joined([utterances("c"), utterances("a")]))
    assert content(tmp_path) == before
    enrol(tmp_path, utterances("a", first=2), add=True)
    assert content(tmp_path) == expected(utterances("a"), utterances("a", first=2), utterances("b"))


def test_removed_models_leave_nothing_in_any_file(tmp_path):
    enrol(tmp_path, utterances("secret-name"), utterances("b"), utterances("c"))
    vector = utterances("secret-name").vectors[0]
    with writing(tmp_path) as writer:
        assert writer.remove(["secret-name", "c"]) == 4
    assert content(tmp_path) == expected(utterances("b"))
    for root, _, names in os.walk(tmp_path):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                data = file.read()
            assert b"secret-name" not in data and vector.tobytes()[:8] not in data
    with pytest.raises(UserError, match="x is not enrolled"), writing(tmp_path) as writer:
        writer.remove(["b", "x"])
    assert content(tmp_path) == expected(utterances("b"))


def test_a_gallery_whose_last_model_is_removed_is_empty_and_takes_any_model(tmp_path):
    enrol(tmp_path, utterances("a"))
    with writing(tmp_path) as writer:
        writer.remove(["a"])
    assert len(Gallery.open(tmp_path, WEIGHTS)) == 0
    with pytest.raises(UserError, match="is empty; enrol a speaker first"):
        Gallery.open(tmp_path).identify(np.ones((1, DIM), np.float32))
    with writing(tmp_path, Weights("other", "", "float32", DIM)) as writer:
        writer.enrol(utterances("a"))


def test_segments_stay_few_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "MOST_UTTERANCES", 16)
    parts = [utterances(f"m{number}", 1 + number % 3) for number in range(40)]
    enrol(tmp_path, *parts)
    sizes = [len(part.utterances) for part in Gallery.open(tmp_path).segments]
    assert max(sizes) <= 16 and sum(sizes) == 79 and len(sizes) <= 2 * 79 / 16 + 5
    assert content(tmp_path) == expected(*parts)
    large = utterances("large", 30)
    enrol(tmp_path, joined([utterances("x"), large, utterances("y")]))
    assert content(tmp_path) == expected(*parts, utterances("x"), large, utterances("y"))


def test_bad_embeddings_are_refused_and_leave_nothing(tmp_path):
    enrol(tmp_path, utterances("a"))
    before = sorted(os.listdir(tmp_path))
    bad = utterances("b")
    bad.vectors[1, 3] = np.nan
    with pytest.raises(UserError, match=r"The embedding of b/1.wav is not finite"):
        enrol(tmp_path, bad)
    narrow = Utterances(["b"], ["b"], np.ones(1), np.ones(1), np.ones((1, 3), np.float32))
    with pytest.raises(UserError, match=r"shape \(1, 3\) but the gallery's have 24 dimensions"):
        enrol(tmp_path, narrow)
    with pytest.raises(UserError, match="empty name"):
        enrol(tmp_path, utterances(""))
    assert sorted(os.listdir(tmp_path)) == before


def test_other_weights_are_refused(tmp_path):
    enrol(tmp_path, utterances("a"))
    other = Weights("other", "config", "bfloat16", DIM)
    message = r"holds embeddings of another model \(other weights_sha256, dtype\); give the checkpoint"
    with pytest.raises(UserError, match=message):
        Gallery.open(tmp_path, other)
    with pytest.raises(UserError, match=message), writing(tmp_path, other):
        pass


def test_no_gallery_is_made_by_mistake(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="has no gallery.json but holds notes.txt"), writing(tmp_path, WEIGHTS):
        pass
    with pytest.raises(UserError, match="There is no gallery"), writing(tmp_path / "none"):
        pass
    with pytest.raises(UserError, match="There is no gallery"):
        Gallery.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_second_writer_is_refused(tmp_path):
    enrol(tmp_path, utterances("a"))
    with locks.locked(tmp_path), pytest.raises(UserError, match="is being written by another process"):
        enrol(tmp_path, utterances("b"))
    assert content(tmp_path) == expected(utterances("a"))


def test_every_flipped_bit_is_found(tmp_path):
    enrol(tmp_path / "gallery", utterances("a"), utterances("b"))
    paths = [path for path in (tmp_path / "gallery").rglob("*") if path.is_file()]
    assert len(paths) == 8
    rng = np.random.default_rng(0)
    for path in paths:
        original = path.read_bytes()
        for _ in range(3):
            damaged = bytearray(original)
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=f"{path.name}.*(checksum|damaged)"):
                Gallery.open(tmp_path / "gallery", WEIGHTS)
            with pytest.raises(UserError, match=f"{path.name}.*(checksum|damaged)"):
                enrol(tmp_path / "gallery", utterances("a", first=9), add=True)
        path.write_bytes(original[: len(original) // 2])
        with pytest.raises(UserError, match=path.name):
            Gallery.open(tmp_path / "gallery", WEIGHTS)
        path.write_bytes(original)
    assert content(tmp_path / "gallery") == expected(utterances("a"), utterances("b"))


def test_a_missing_segment_is_a_sentence(tmp_path):
    enrol(tmp_path, utterances("a"))
    shutil.rmtree(next(tmp_path.glob("segment-*")))
    with pytest.raises(UserError, match="A segment of .* is missing; restore it"):
        Gallery.open(tmp_path, WEIGHTS)


def test_an_open_gallery_outlives_changes(tmp_path):
    enrol(tmp_path, utterances("a"))
    gallery = Gallery.open(tmp_path, WEIGHTS)
    with writing(tmp_path) as writer:
        writer.remove(["a"])
    np.testing.assert_array_equal(gallery.vectors(gallery.rows_of("a")), utterances("a").vectors)


def test_a_reader_that_meets_a_writer_reads_the_new_description(tmp_path, monkeypatch):
    enrol(tmp_path, utterances("a"))
    read = Weights.check

    def check(self, location, other):
        read(self, location, other)
        if not changed:
            changed.append(True)
            enrol(tmp_path, utterances("b"))

    changed: list[bool] = []
    monkeypatch.setattr(Weights, "check", check)
    assert sorted(Gallery.open(tmp_path, WEIGHTS).models) == ["a", "b"]


@pytest.mark.slow
def test_killed_at_any_file_operation_a_change_happens_or_not(tmp_path):
    """In a process of its own, since the threads of JAX do not survive a fork."""
    command = [sys.executable, "-W", "ignore", HELPERS / "kill_gallery.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert before > 15 and after > 1
