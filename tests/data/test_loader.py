"""What stands in which batch, and that neither workers, nor processes, nor a restart change it."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from fake_corpus import FakeCorpus
from refusals import refusal
from training_batches import train_batches

from redimnet_jax.data import loader
from redimnet_jax.data.augment import Gain, GaussianNoise, Speed
from redimnet_jax.data.crop_lengths import CropLengths
from redimnet_jax.data.loader import WaitMeter, classes, steps_per_epoch
from redimnet_jax.errors import UserError

CROP = 100
LENGTHS = [30, 100, 101, 250, 400, 1000, 5000]
STEPS = (GaussianNoise(p=0.5), Gain(p=1.0))


OPTIONS = {"batch_size": 4, "crop": CROP, "seed": 3, "crops_per_utterance": 2}


def take(iterator, count: int) -> list[dict]:
    """The next batches, out of the shared memory that workers hand them over in."""
    return [{key: np.array(value) for key, value in next(iterator).items()} for _ in range(count)]


def batches(count: int, corpus=None, **options) -> list[dict]:
    iterator = train_batches(corpus or FakeCorpus(LENGTHS), **OPTIONS | options)
    taken = take(iterator, count)
    iterator.close()
    return taken


def assert_same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a["waveform"], b["waveform"])
        np.testing.assert_array_equal(a["label"], b["label"])


def utterances(taken: list[dict]) -> list[int]:
    return [int(row[0]) for batch in taken for row in batch["waveform"]]


def test_shapes_and_labels():
    corpus = FakeCorpus(LENGTHS)
    for batch in batches(4):
        assert batch["waveform"].shape == (4, CROP) and batch["waveform"].dtype == np.float32
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["label"], corpus.labels[batch["waveform"][:, 0].astype(int)])


def test_crops_are_stretches_and_short_utterances_repeat():
    corpus, starts = FakeCorpus(LENGTHS), Counter()
    for row in np.concatenate([batch["waveform"] for batch in batches(60)]):
        index = int(row[0])
        start = round((row[0] - index) * 2**14)
        np.testing.assert_array_equal(row, np.resize(corpus.read(index, start, CROP), CROP))
        starts[index, start] += 1
    assert {start for index, start in starts if LENGTHS[index] <= CROP} == {0}
    assert {start for index, start in starts if LENGTHS[index] == 101} == {0, 1}
    assert len({start for index, start in starts if LENGTHS[index] == 5000}) > 25


def test_epochs():
    """Every epoch holds each crop once but for the dropped remainder, in an order of its own."""
    size = len(LENGTHS) * 2
    per_epoch = steps_per_epoch(FakeCorpus(LENGTHS), 4, 2)
    assert per_epoch == size // 4 == 3
    taken = utterances(batches(per_epoch * 20))
    epochs = [taken[start : start + 12] for start in range(0, len(taken), 12)]
    for epoch in epochs:
        assert max(Counter(epoch).values()) <= 2
    assert len({tuple(epoch) for epoch in epochs}) == 20
    dropped = Counter()
    for epoch in epochs:
        dropped.update(Counter({index: 2 for index in range(len(LENGTHS))}) - Counter(epoch))
    assert sum(dropped.values()) == 40 and len(dropped) >= 6
    assert utterances(batches(3, seed=4)) != epochs[0]


@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "crops_per_utterance": 1}])
def test_processes_share_every_step(options):
    """Also where the crops of an epoch are no multiple of the processes (the second case: 7 of 2)."""
    whole = batches(7, steps=STEPS, **options)
    parts = [batches(7, steps=STEPS, process_index=index, process_count=2, **options) for index in range(2)]
    for step, batch in enumerate(whole):
        for index in range(2):
            np.testing.assert_array_equal(batch["waveform"][index::2], parts[index][step]["waveform"])
            np.testing.assert_array_equal(batch["label"][index::2], parts[index][step]["label"])


def test_examples_depend_on_their_position_alone():
    joined = [
        np.concatenate([batch["waveform"] for batch in batches(12 // size, batch_size=size)]) for size in (2, 4)
    ]
    np.testing.assert_array_equal(*joined)


def test_threads_do_not_change_the_stream():
    assert_same(batches(8, steps=STEPS, threads=1), batches(8, steps=STEPS, threads=3))


class Counted(FakeCorpus):
    """Notes every reading."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.readings = []

    def read(self, index, start=0, samples=None):
        self.readings.append((index, start, samples))
        return super().read(index, start, samples)


def test_several_crops_of_one_reading():
    """An epoch has the same crops of every utterance, pairs are of one utterance, and each pair is read once."""
    corpus = Counted(LENGTHS)
    taken = batches(30, corpus=corpus, crops_per_read=2, threads=1)
    rows = utterances(taken)
    assert rows[::2] == rows[1::2]
    assert set(corpus.readings) == {(index, 0, None) for index in range(len(LENGTHS))}
    # Threads read ahead.
    assert 60 <= len(corpus.readings) <= 70
    for start in range(0, len(rows), 12):
        assert max(Counter(rows[start : start + 12]).values()) <= 2
    pairs = np.concatenate([batch["waveform"] for batch in taken])[:, :2].reshape(-1, 2, 2)
    assert sum(first[0] != second[0] for first, second in pairs) > 30
    for pair, row in zip(pairs.reshape(-1, 2), rows, strict=True):
        start = round((pair[0] - row) * 2**14)
        np.testing.assert_array_equal(pair, corpus.read(row, start, CROP)[:2])
    parts = [batches(30, crops_per_read=2, batch_size=4, process_index=index, process_count=2) for index in (0, 1)]
    for batch, first, second in zip(taken, *parts, strict=True):
        np.testing.assert_array_equal(batch["waveform"], np.concatenate([first["waveform"], second["waveform"]]))
    resumed = train_batches(FakeCorpus(LENGTHS), **OPTIONS, crops_per_read=2)
    state = {"step": 11, "seed": 3, "batch_size": 4, "crop": CROP, "crops_per_utterance": 2}
    state |= {"crops_per_speaker": 1, "corpus": "fake"}
    assert "crops_per_read = 1" in refusal(resumed.set_state, state)
    resumed.set_state(state | {"crops_per_read": 2})
    assert_same(taken[11:15], take(resumed, 4))
    resumed.close()


def test_what_cannot_be_read_whole_is_read_in_pieces():
    class Damaged(Counted):
        def read(self, index, start=0, samples=None):
            waveform = super().read(index, start, samples)
            if len(waveform) > CROP:
                raise UserError("It is damaged at its end.")
            return waveform

    corpus = Damaged(LENGTHS)
    assert_same(batches(9, crops_per_read=2), batches(9, corpus=corpus, crops_per_read=2))
    assert any(samples == CROP for _, _, samples in corpus.readings)


SEVERAL = {"lengths": (50, 100, 70), "steps": STEPS}


def test_each_batch_has_one_of_several_lengths():
    """Drawn evenly by the number of the batch, over the ends of epochs, whatever makes the batches."""
    whole = batches(60, **SEVERAL)
    lengths = [batch["waveform"].shape[1] for batch in whole]
    assert all(12 <= lengths.count(length) <= 28 for length in SEVERAL["lengths"])
    drawn = CropLengths((50, 100, 70), OPTIONS["seed"], numbers=14, size=4)
    assert lengths == [drawn.of_batch(number) for number in range(60)]
    assert lengths != [batch["waveform"].shape[1] for batch in batches(60, **SEVERAL, seed=4)]
    parts = [batches(60, process_index=index, process_count=2, **SEVERAL) for index in range(2)]
    for index, part in enumerate(parts):
        for batch, own in zip(whole, part, strict=True):
            np.testing.assert_array_equal(batch["waveform"][index::2], own["waveform"])
    state = {"step": 4, "seed": 3, "batch_size": 4, "crop": [50, 100, 70], "crops_per_utterance": 2}
    resumed = train_batches(FakeCorpus(LENGTHS), **OPTIONS, **SEVERAL)
    resumed.set_state(state | {"crops_per_speaker": 1, "corpus": "fake"})
    assert_same(whole[4:9], take(resumed, 5))
    resumed.close()
    assert "crop" in refusal(train_batches(FakeCorpus(LENGTHS), **OPTIONS).set_state, resumed.get_state())


def test_groups_of_speakers_of_several_lengths():
    options = {"batch_size": 4, "crops_per_speaker": 2, "lengths": (50, 100), "crops_per_utterance": 1}
    whole = batches(12, corpus=FakeCorpus(LENGTHS), **options)
    assert {batch["waveform"].shape for batch in whole} == {(4, 50), (4, 100)}
    assert all((batch["label"][::2] == batch["label"][1::2]).all() for batch in whole)


@pytest.mark.slow
def test_resuming_is_exact():
    """Mid-epoch, over the end of the epoch, in a new iterator and in one that has begun."""
    expected, options = batches(9, steps=STEPS), OPTIONS | {"steps": STEPS}
    first = train_batches(FakeCorpus(LENGTHS), **options)
    assert_same(expected[:4], take(first, 4))
    state = json.loads(json.dumps(first.get_state()))
    second = train_batches(FakeCorpus(LENGTHS), **options)
    for iterator in (first, second):
        next(iterator)
        iterator.set_state(state)
        assert iterator.get_state() == state
        assert_same(expected[4:], take(iterator, 5))
        assert iterator.get_state()["step"] == 9
        iterator.close()


@pytest.mark.slow
def test_workers_change_neither_the_stream_nor_its_resumption():
    """Two batches from threads, four from workers, three from threads; each worker costs an import of the library."""
    expected, state = batches(9, steps=STEPS), None
    for workers, start, stop in ((0, 0, 2), (2, 2, 6), (0, 6, 9)):
        iterator = train_batches(FakeCorpus(LENGTHS), workers=workers, **OPTIONS | {"steps": STEPS})
        if state:
            iterator.set_state(json.loads(json.dumps(state)))
        assert_same(expected[start:stop], take(iterator, stop - start))
        state = iterator.get_state()
        iterator.close()


@pytest.mark.parametrize(
    ("change", "key"), [({"batch_size": 2}, "batch_size"), ({"seed": 4}, "seed"), ({"crop": 50}, "crop")]
)
def test_a_state_of_another_stream_is_refused(change, key):
    state = train_batches(FakeCorpus(LENGTHS), **OPTIONS).get_state()
    assert key in refusal(train_batches(FakeCorpus(LENGTHS), **OPTIONS | change).set_state, state)


def test_a_state_of_another_corpus_is_refused():
    state = train_batches(FakeCorpus(LENGTHS), **OPTIONS).get_state()
    other = FakeCorpus(LENGTHS)
    other.digest = "another"
    text = refusal(train_batches(other, **OPTIONS).set_state, state)
    assert "corpus" in text and "'another'" in text


class Tones(FakeCorpus):
    """Utterance i is a tone of ten periods a crop, of amplitude i + 1."""

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        positions = np.arange(len(super().read(index, start, samples)))
        return ((index + 1) * np.sin(2 * np.pi * 10 * positions / CROP)).astype(np.float32)


def test_speed_perturbation():
    """All factors, the label of the factor, and crops that are full."""
    corpus, speed = Tones(LENGTHS), Speed(factors=(1.0, 0.5))
    assert classes(corpus, speed) == 6 and classes(corpus) == 3
    seen = Counter()
    for batch in batches(30, corpus, speed=speed):
        for row, label in zip(batch["waveform"], batch["label"], strict=True):
            choice, speaker = divmod(int(label), 3)
            spectrum = np.abs(np.fft.rfft(row)) * 2 / CROP
            utterance = round(spectrum.max()) - 1
            assert corpus.labels[utterance] == speaker
            assert spectrum.argmax() == 10 * speed.factors[choice]
            seen[choice] += 1
    assert min(seen.values()) > 40


def test_speed_without_new_speakers():
    corpus, speed = FakeCorpus(LENGTHS), Speed(new_speakers=False)
    assert classes(corpus, speed) == 3
    for batch in batches(6, speed=speed):
        assert batch["waveform"].shape == (4, CROP)
        np.testing.assert_array_equal(batch["label"], np.round(batch["waveform"][:, 50]) % 3)


BROKEN = FakeCorpus(LENGTHS, broken=5)
SPEED = Speed(factors=(1.0, 0.5))


def test_another_crop_takes_the_place_of_one_that_cannot_be_read():
    """It is of the same speaker where there is another recording, and its label is that of the recording."""
    whole, taken = batches(21, steps=STEPS), batches(21, BROKEN, steps=STEPS)
    plain, replaced = batches(21), batches(21, BROKEN)
    changed = 0
    for with_steps, broken, before, after in zip(whole, taken, plain, replaced, strict=True):
        for row in range(4):
            if int(before["waveform"][row, 0]) != 5:
                # Nothing else changes.
                assert broken["waveform"][row].tobytes() == with_steps["waveform"][row].tobytes()
            else:
                changed += 1
                # The only other recording of the speaker of 5.
                assert int(after["waveform"][row, 0]) == 2 and after["label"][row] == 2
                assert broken["label"][row] == 2
    assert changed > 5


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"crops_per_speaker": 2}])
def test_what_takes_its_place_does_not_depend_on_workers_processes_or_a_restart(options):
    options = OPTIONS | {"steps": STEPS, "speed": SPEED} | options
    expected = batches(9, BROKEN, **options)
    iterator = train_batches(BROKEN, **options)
    assert_same(expected[:4], take(iterator, 4))
    state, failed = iterator.get_state(), iterator.take_unreadable()
    assert failed and {utterance for utterance, _ in failed} == {5} and not iterator.take_unreadable()
    iterator.close()
    iterator = train_batches(BROKEN, workers=2, **options)
    assert_same(expected[:4], take(iterator, 4))
    assert iterator.take_unreadable() == failed
    iterator.set_state(state)
    assert_same(expected[4:], take(iterator, 5))
    iterator.close()
    size = options.get("crops_per_speaker", 1)
    for index in range(2):
        part = batches(9, BROKEN, process_index=index, process_count=2, **options)
        for ours, theirs in zip(expected, part, strict=True):
            groups = ours["waveform"].reshape(-1, size, CROP)[index::2]
            np.testing.assert_array_equal(groups.reshape(-1, CROP), theirs["waveform"])


def test_a_speaker_of_whom_nothing_can_be_read():
    """Others take the place, in groups whole ones, and labels are theirs."""

    class Lost(FakeCorpus):
        def read(self, index, start=0, samples=None):
            if self.labels[index] == 1:
                raise UserError(f"{self.name(index)} is lost; restore it.")
            return super().read(index, start, samples)

    for size in (1, 2):
        for batch in batches(12, Lost(LENGTHS), crops_per_speaker=size):
            labels = batch["label"].reshape(-1, size)
            assert 1 not in labels and (labels == labels[:, :1]).all()
            np.testing.assert_array_equal(batch["waveform"][:, 50].astype(int) % 3, batch["label"])


@pytest.mark.parametrize("bad", [np.nan, 1e13, 90])
def test_stretches_that_are_refused(bad):
    """Not finite, too loud for float32, and fewer samples than the index says."""

    class Odd(FakeCorpus):
        def read(self, index, start=0, samples=None):
            waveform = super().read(index, start, samples)
            if index != 5:
                return waveform
            return waveform[:bad] if bad == 90 else waveform * np.float32(bad)

    for batch, expected in zip(batches(9, Odd(LENGTHS)), batches(9, BROKEN), strict=True):
        np.testing.assert_array_equal(batch["waveform"], expected["waveform"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 1}, {"crops_per_speaker": 2}])
def test_nothing_that_can_be_read_ends_training_by_name(options):
    class Empty(FakeCorpus):
        def read(self, index, start=0, samples=None):
            raise UserError(f"{self.name(index)} cannot be decoded; replace or remove it.")

    iterator = train_batches(Empty(LENGTHS), **OPTIONS | options)
    with pytest.raises(UserError, match=r"None of the \d+ crops .* the first since: id\d/\d.wav cannot be decoded"):
        next(iterator)
    iterator.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 5, "process_count": 2}, ["5", "2 processes"]),
        ({"batch_size": 16}, ["16", "14 crops"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"crop": 0}, ["crop", "0"]),
        ({"crops_per_utterance": 0}, ["crops_per_utterance"]),
        ({"crops_per_read": 3}, ["crops_per_utterance, 2", "3 crops_per_read"]),
        ({"crops_per_read": 2, "process_count": 4}, ["4", "8, the crops_per_read"]),
        ({"crops_per_read": 2, "crops_per_speaker": 2}, ["crops_per_read", "crops_per_speaker"]),
        ({"workers": -1}, ["workers"]),
        ({"seed": -1}, ["seed"]),
    ],
)
def test_impossible_numbers(options, words):
    text = refusal(train_batches, FakeCorpus(LENGTHS), **OPTIONS | options)
    assert all(word in text for word in words), text


def test_too_little_shared_memory_is_an_error(monkeypatch):
    monkeypatch.setattr(loader.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 20))
    options = OPTIONS | {"crop": 48000}
    train_batches(FakeCorpus(LENGTHS), **options)
    text = refusal(train_batches, FakeCorpus(LENGTHS), workers=2, **options)
    assert "6 MiB" in text and "3 MiB free" in text


def test_wait_meter():
    now = [0.0]

    def slow():
        for index in range(4):
            now[0] += 3.0
            yield index

    meter = WaitMeter(slow(), clock=lambda: now[0])
    for _ in range(2):
        next(meter)
        now[0] += 1.0
    assert meter.wait_fraction() == pytest.approx(0.75)
    now[0] += 5.0
    assert meter.wait_fraction() == 0.0
    assert list(meter) == [2, 3]
