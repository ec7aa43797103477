"""Trial lists: their forms, their faults, and trials made from a corpus."""

import dataclasses
import time

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import trials


def listed(tmp_path, text, name="list.txt"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def as_rows(read):
    return [
        (bool(y), read.names[a], read.names[b]) for y, a, b in zip(read.labels, read.left, read.right, strict=True)
    ]


ROWS = [(True, "id1/a/1.wav", "id1/b/1.wav"), (False, "id1/a/1.wav", "id2/a/1.wav")]


@pytest.mark.parametrize(
    "text",
    [
        "1 id1/a/1.wav id1/b/1.wav\n0 id1/a/1.wav id2/a/1.wav\n",
        "id1/a/1.wav id1/b/1.wav target\nid1/a/1.wav   id2/a/1.wav nontarget",
        "id1/a/1.wav id1/b/1.wav TARGET\r\n\r\nid1/a/1.wav id2/a/1.wav Non-Target\r\n",
        "1\tid1/a/1.wav\tid1/b/1.wav\n0\tid1/a/1.wav\tid2/a/1.wav\n",
        "\ufeffenrol,test,label\nid1/a/1.wav,id1/b/1.wav,1\nid1/a/1.wav, id2/a/1.wav ,0\n",
        'enrol,test,target\n"id1/a/1.wav",id1/b/1.wav,1\nid1/a/1.wav,id2/a/1.wav,0\n',
        "label\tenrol\ttest\ntarget\tid1/a/1.wav\tid1/b/1.wav\nnontarget\tid1/a/1.wav\tid2/a/1.wav\n",
    ],
)
def test_forms(tmp_path, text):
    read = trials.read(listed(tmp_path, text))
    assert as_rows(read) == ROWS and len(read) == 2
    assert sorted(read.names) == sorted(set(read.names)) and len(read.names) == 3
    assert read.left.dtype == read.right.dtype == np.int32 and read.labels.dtype == bool


def test_names_with_blanks_and_commas_are_written_so_that_they_can_be_read(tmp_path):
    made = trials.from_pairs(["my voice.wav", "b,c.wav"], ["b,c.wav", "d.wav"], [True, False])
    trials.write(made, tmp_path / "t.txt")
    assert as_rows(trials.read(tmp_path / "t.txt")) == as_rows(made)
    plain = trials.from_pairs(["a"], ["b"], [False])
    trials.write(plain, tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text() == "0 a b\n"


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["empty"]),
        ("\n \n", ["empty"]),
        ("1 a b\n\n1 a\n", ["Line 3", "2 columns"]),
        ("1 a b\n2 a c\n", ["Line 2", "'2'"]),
        ("a b target\na c maybe\n", ["Line 2", "'maybe'"]),
        ("a b c\n", ["Line 1", "'c'"]),
        ("1 a 0\n0 b 1\n", ["Both"]),
        ('1,"a,b\n1,a,c\n', ["quotation"]),
        ("l,e,t\n1,a,b\nx,a,c\n", ["Line 3", "'x'"]),
    ],
)
def test_faulty_lists(tmp_path, text, words):
    message = refusal(trials.read, listed(tmp_path, text))
    assert all(word in message for word in words) and "list.txt" in message


def test_unreadable_lists(tmp_path):
    assert "no.txt" in refusal(trials.read, tmp_path / "no.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "text file" in refusal(trials.read, tmp_path / "binary")


@dataclasses.dataclass
class Voices:
    """As much of a corpus as trials are made from: `per` utterances a speaker, two a session."""

    count: int
    per: int

    @property
    def speakers(self):
        return tuple(f"id{i}" for i in range(self.count))

    @property
    def labels(self):
        return np.repeat(np.arange(self.count, dtype=np.int32), self.per)

    @property
    def sessions(self):
        return np.arange(self.count * self.per, dtype=np.int32) // 2

    def name(self, i):
        return f"id{i // self.per}/{i // 2}/{i}.wav"


def test_generated_trials():
    corpus = Voices(10, 6)
    sexes = {speaker: "mf"[i % 2] for i, speaker in enumerate(corpus.speakers)}
    made = trials.generate(corpus, count=200, seed=3, sexes=sexes, cross_session=True)
    assert len(made) == 200 and made.labels.sum() == 100
    assert trials.check(made, known=[corpus.name(i) for i in range(60)], training_speakers=()) == {}
    for target, left, right in as_rows(made):
        (speaker, session, _), (other, other_session, _) = left.split("/"), right.split("/")
        assert (speaker == other) == target
        assert session != other_session if target else sexes[speaker] == sexes[other]
    # Every utterance takes part about equally often.
    uses = np.bincount(np.concatenate([made.left, made.right]), minlength=60)
    assert uses.min() >= 4 and uses.max() <= 10


def test_generated_trials_follow_the_seed():
    corpus = Voices(4, 5)
    assert as_rows(trials.generate(corpus, count=20, seed=1)) == as_rows(trials.generate(corpus, count=20, seed=1))
    assert as_rows(trials.generate(corpus, count=20, seed=1)) != as_rows(trials.generate(corpus, count=20, seed=2))


@pytest.mark.parametrize("per, cross, most", [(4, False, 3 * 6), (5, False, 3 * 10), (4, True, 3 * 4)])
def test_all_pairs_can_be_had_and_no_more(per, cross, most):
    corpus = Voices(3, per)
    made = trials.generate(corpus, count=2 * most, cross_session=cross)
    assert trials.check(made) == {} and made.labels.sum() == most
    message = refusal(trials.generate, corpus, count=2 * most + 2, cross_session=cross)
    assert f"only {most} of the {most + 1} target trials" in message


def test_what_cannot_be_generated():
    assert "even" in refusal(trials.generate, Voices(3, 4), count=3)
    assert "only 0 of the 1 non-target trials" in refusal(trials.generate, Voices(1, 4), count=2)
    assert "lacks 2 of 3 speakers, the first 'id1'" in refusal(
        trials.generate, Voices(3, 4), count=2, sexes={"id0": "m"}
    )
    flat = Voices(3, 4)
    flat_sessions = dataclasses.make_dataclass(
        "Flat", [], bases=(Voices,), namespace={"sessions": flat.sessions - 99}
    )
    assert "sessions" in refusal(trials.generate, flat_sessions(3, 4), count=2, cross_session=True)


def test_checks():
    pairs = [("id1/a", "id1/b", 1), ("id1/b", "id1/a", 1), ("id1/a", "id1/a", 1), ("id1/a", "id2/c", 1)]
    left, right, labels = zip(*pairs, strict=True)
    faulty = trials.from_pairs(left, right, map(bool, labels))
    problems = trials.check(faulty, known=["id1/a", "id2/c"], training_speakers=["id2", "id9"])
    assert set(problems) == {"missing", "one class", "self", "duplicate", "shared", "label"}
    for kind, word in {
        "missing": "1 of 3 utterances of the trial list do not exist, the first 'id1/b'",
        "one class": "All 4 trials of the list are target",
        "self": "1 of 4 trials",
        "duplicate": "'id1/a' with 'id1/b'",
        "shared": "1 of 2 speakers",
        "label": "1 of 4 labels",
    }.items():
        assert word in problems[kind] and problems[kind].endswith(".") and ". " not in problems[kind]
    fine = trials.from_pairs(["id1/a", "id1/a"], ["id1/b", "id2/c"], [True, False])
    assert trials.check(fine, known=fine.names, training_speakers=["id3"]) == {}


def test_speakers_of_names():
    made = trials.from_pairs(["x", "x"], ["y", "z"], [True, False])
    names, left, right = trials.speakers(made, {"x": "anna", "y": "anna", "z": "bert"})
    assert [(names[a], names[b]) for a, b in zip(left, right, strict=True)] == [("anna", "anna"), ("anna", "bert")]
    assert "'x'" in refusal(trials.speakers, made)
    assert "1 of 3 utterances is unknown, the first 'z'" in refusal(trials.speakers, made, {"x": "a", "y": "a"})


def test_long_lists_are_quick(tmp_path):
    """Ten times as much takes ten times as long and a little more; of a loop that grows as the square, a hundred."""

    def seconds(speakers: int) -> float:
        rng, corpus = np.random.default_rng(0), Voices(speakers, 100)
        count = 100 * speakers
        names = [corpus.name(i) for i in range(count)]
        pairs = rng.integers(0, count, (2, 5 * count)).astype(np.int32)
        made = trials.Trials(names, *pairs, rng.random(5 * count) < 0.5)
        start = time.process_time()
        trials.write(made, tmp_path / "long")
        assert as_rows(trials.read(tmp_path / "long")) == as_rows(made)
        trials.check(made, known=names, training_speakers=["id500"])
        trials.generate(corpus, count=5 * count)
        return time.process_time() - start

    assert seconds(200) < 40 * seconds(20)
