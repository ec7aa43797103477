"""The index of trees and lists: what is in it, what is left out, when it is used again and when it is refused."""

import json
import logging
import os
import pickle
import tracemalloc

import numpy as np
import pytest
from audio_files import voice, write
from refusals import refusal

from redimnet_jax.data import audio, recordings
from redimnet_jax.data import index as corpus_index
from redimnet_jax.data.corpus import Corpus, open_corpus, require_speakers
from redimnet_jax.data.index import Entries
from redimnet_jax.data.recordings import ReadOnce, Subset, select, whole_is_cheaper
from redimnet_jax.data.speakers import read_sexes
from redimnet_jax.data.tree import FileList, Tree

# As VoxCeleb and LibriSpeech have them, in several formats, with one speaker without sessions.
FILES = {
    "id2/s1/a.wav": 1.0,
    "id2/s1/b.flac": 0.75,
    "id2/s2/a.m4a": 1.5,
    "id10/x/y/deep.ogg": 0.6,
    "id10/plain.mp3": 1.2,
    "id3/UPPER.WAV": 0.5,
}
ORDER = ["id10/plain.mp3", "id10/x/y/deep.ogg", "id2/s1/a.wav", "id2/s1/b.flac", "id2/s2/a.m4a", "id3/UPPER.WAV"]


def make(folder, files=FILES):
    for number, (name, seconds) in enumerate(files.items()):
        write(folder / name, voice(round(seconds * 16000), seed=number))
    return folder


@pytest.fixture(scope="module")
def shared_tree(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def tree(tmp_path):
    """One that a test may change."""
    return make(tmp_path / "tree", {f"id{s}/s{u}/{u}.wav": 0.6 for s in range(3) for u in range(2)})


def opened(source, **options) -> Corpus:
    return open_corpus(str(source), **({"cache_dir": None, "progress": False} | options))


def names(corpus: Corpus) -> list[str]:
    return [corpus.name(i) for i in range(len(corpus))]


@pytest.fixture
def examined(monkeypatch):
    """The files that are opened, in any order."""
    seen = []
    real = audio.inspect
    monkeypatch.setattr(audio, "inspect", lambda path, **options: seen.append(str(path)) or real(path, **options))
    return seen


def test_a_tree(shared_tree):
    corpus = opened(shared_tree)
    assert len(corpus) == 6 and names(corpus) == ORDER
    assert corpus.speakers == ("id10", "id2", "id3")
    assert corpus.labels.dtype == corpus.sessions.dtype == np.int32 and corpus.samples.dtype == np.int64
    assert corpus.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert corpus.sessions.tolist() == [-1, 0, 1, 1, 2, -1]
    assert corpus.samples.tolist() == [round(FILES[name] * 16000) for name in ORDER]
    assert corpus.name(-1) == ORDER[-1]
    for i, name in enumerate(ORDER):
        np.testing.assert_array_equal(corpus.read(i), audio.read(shared_tree / name))
        np.testing.assert_array_equal(corpus.read(i, 2000, 3000), audio.read(shared_tree / name)[2000:5000])
    with pytest.raises(IndexError):
        corpus.name(6)
    with pytest.raises(IndexError):
        corpus.read(-7)
    assert corpus.summary == "6 utterances of 3 speakers in 3 sessions, 0.0 h"


def test_which_stretches_cost_no_more_than_themselves(shared_tree, tmp_path):
    corpus = opened(shared_tree)
    assert [corpus.seeks(i) for i in range(len(corpus))] == [
        name.endswith((".wav", ".flac", ".WAV")) for name in ORDER
    ]
    (tmp_path / "list").write_text(f"{shared_tree}/id2/s1/b.flac a\n{shared_tree}/id2/s2/a.m4a b\n")
    listed = opened(tmp_path / "list")
    of_two = [listed.name(i).endswith("flac") for i in range(2)]
    assert [listed.seeks(i) for i in range(2)] == of_two == [Subset(listed, np.array([i])).seeks(0) for i in range(2)]


@pytest.mark.parametrize(
    ("name", "stretches", "seconds", "whole"),
    [
        ("id2/s2/a.m4a", 2, 0.1, True),
        ("id2/s2/a.m4a", 1, 0.1, False),
        ("id2/s1/b.flac", 2, 0.3, False),
        ("id2/s1/b.flac", 3, 0.3, True),
        ("id2/s1/a.wav", 2, 0.1, False),
    ],
)
def test_what_is_decoded_whole_for_several_stretches(shared_tree, monkeypatch, name, stretches, seconds, whole):
    corpus = opened(shared_tree)
    index, samples = names(corpus).index(name), round(seconds * 16000)
    readings = []
    monkeypatch.setattr(corpus, "read", lambda *args: readings.append(args) or Corpus.read(corpus, *args))
    once = ReadOnce(corpus, stretches)
    for number in range(stretches):
        np.testing.assert_array_equal(
            once.read(index, 100 * number, samples), Corpus.read(corpus, index, 100 * number, samples)
        )
    assert readings == ([(index,)] if whole else [(index, 100 * number, samples) for number in range(stretches)])
    monkeypatch.setattr(recordings, "WHOLE_SECONDS", 0.7)
    assert not whole_is_cheaper(corpus, index, 99, samples)


def test_a_list_gives_the_corpus_of_the_tree(shared_tree, tmp_path):
    listing = tmp_path / "train.txt"
    absolute = f"{shared_tree}/{ORDER[0]}"
    lines = [
        f"{absolute} id10",
        "",
        f"./{ORDER[5]}\tid3",
        *(f"  {name}   {name.split('/')[0]}  " for name in ORDER[1:5]),
    ]
    listing.write_text("\n".join(lines))
    from_tree, from_list = opened(shared_tree), opened(listing, audio_root=shared_tree)
    assert from_list.digest == from_tree.digest and names(from_list) == ORDER
    np.testing.assert_array_equal(from_list.read(4, 100, 5000), from_tree.read(4, 100, 5000))


def test_a_list_names_files_beside_it_by_any_speaker(tmp_path):
    write(tmp_path / "with space" / "a.wav", voice(16000))
    write(tmp_path / "elsewhere" / "b.wav", voice(16000))
    (tmp_path / "lists").mkdir()
    listing = tmp_path / "lists" / "l.txt"
    listing.write_text(f"../with space/a.wav anna\n{tmp_path}/elsewhere/b.wav bert\n")
    corpus = opened(listing)
    assert names(corpus) == ["../with space/a.wav", f"{tmp_path}/elsewhere/b.wav"]
    assert corpus.speakers == ("anna", "bert") and corpus.sessions.tolist() == [-1, -1]
    assert len(corpus.read(0)) == len(corpus.read(1)) == 16000


@pytest.mark.parametrize(
    "line, place, fault",
    [
        ("only.wav", 2, "`path speaker` is expected"),
        ("anna a.wav", 2, "`path speaker` is expected"),
        ("notes.txt anna", 2, "`path speaker` is expected"),
        ("./a.wav anna", 2, "a second time"),
        ("a.wav bert", 2, "a second time"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, place, fault):
    write(tmp_path / "a.wav", voice(16000))
    listing = tmp_path / "l.txt"
    listing.write_text(f"a.wav anna\n{line}\n")
    message = refusal(opened, listing)
    assert f"{listing}:{place} " in message and fault in message


def test_sources_that_are_none(tmp_path):
    assert f"There is no {tmp_path}/none" in refusal(opened, tmp_path / "none")
    assert "holds no audio" in refusal(opened, tmp_path)
    (tmp_path / "l.txt").write_text("\n\n")
    assert "holds no audio" in refusal(opened, tmp_path / "l.txt")
    (tmp_path / "l.bin").write_bytes(b"\xff\xfe\x00")
    assert "not text in UTF-8" in refusal(opened, tmp_path / "l.bin")


def test_what_cannot_be_used_is_counted_and_listed(tree, tmp_path):
    write(tree / "id0" / "s0" / "short.wav", voice(7999))
    write(tree / "id0" / "s0" / "long_enough.wav", voice(8000))
    (tree / "id1" / "s0" / "text.flac").write_text("not audio")
    whole = write(tree / "id1" / "s0" / "half.flac", voice(32000)).read_bytes()
    (tree / "id1" / "s0" / "half.flac").write_bytes(whole[: len(whole) // 2])
    (tree / "id1" / "s1" / "gone.wav").symlink_to(tmp_path / "nowhere")
    (tree / "id4" / "s0").mkdir(parents=True)
    write(tree / "id5" / "only_short.wav", voice(100))
    write(tree / "stray.wav", voice(16000))
    (tree / "id0" / "s0" / "notes.txt").write_text("")
    (tree / "id0" / "s0" / "._1.wav").write_text("")
    options = {"cache_dir": tmp_path / "cache", "max_bad": 0.6}
    corpus = opened(tree, **options)
    assert (
        len(corpus) == 7 and corpus.speakers == ("id0", "id1", "id2") and "long_enough.wav" in "".join(names(corpus))
    )
    for part in (
        "2 unreadable such as id1/s0/",
        "1 missing such as id1/s1/gone.wav",
        "2 too short such as id",
        "2 speaker without usable audio such as id4",
        "1 in no speaker's folder such as stray.wav",
        "ignored: 1 .txt, 1 hidden files",
    ):
        assert part in corpus.summary
    (listing,) = (tmp_path / "cache").glob("index-*.bad.txt")
    assert str(listing) in corpus.summary
    lines = [line.split("\t") for line in listing.read_text().splitlines()]
    assert sorted(name for name, _, _ in lines) == [
        *("id0/s0/short.wav", "id1/s0/half.flac", "id1/s0/text.flac", "id1/s1/gone.wav"),
        *("id4", "id5", "id5/only_short.wav", "stray.wav"),
    ]
    reasons = {name: reason for name, _, reason in lines}
    assert "cannot be decoded" in reasons["id1/s0/half.flac"] and "less than 0.5 s" in reasons["id5/only_short.wav"]
    # A stricter limit also holds for the index that is there.
    assert opened(tree, **options).summary == corpus.summary
    for cache_dir in (options["cache_dir"], tmp_path / "other", None):
        message = refusal(opened, tree, cache_dir=cache_dir, max_bad=0.5)
        assert "8 of 15 (max_bad=0.5)" in message and "2 unreadable such as" in message
    assert list((tmp_path / "other").glob("*.bad.txt")) and not list((tmp_path / "other").glob("index-*/"))


def test_nothing_usable_is_refused_at_any_limit(tmp_path):
    write(tmp_path / "id1" / "a.wav", voice(100))
    assert "2 of 2" in refusal(opened, tmp_path, max_bad=1.0)


def test_a_missing_file_of_a_list_counts(tmp_path):
    write(tmp_path / "a.wav", voice(16000))
    (tmp_path / "l.txt").write_text("a.wav anna\nb.wav bert\n")
    assert "1 missing such as b.wav" in refusal(opened, tmp_path / "l.txt")
    corpus = opened(tmp_path / "l.txt", max_bad=0.7)
    assert names(corpus) == ["a.wav"] and "1 speaker without usable audio such as bert" in corpus.summary


def test_too_few_speakers(tree):
    message = refusal(require_speakers, opened(tree), tree, 4)
    assert "has 3 speakers (the first is 'id0') where at least 4 are needed" in message
    assert "has 1 speaker (the first is 'tree')" in refusal(require_speakers, opened(tree.parent), tree.parent, 2)
    require_speakers(opened(tree), tree, 3)


def test_the_index_is_built_once(tree, tmp_path, examined):
    cache = tmp_path / "cache"
    first = opened(tree, cache_dir=cache)
    assert len(examined) == 6
    second = opened(tree, cache_dir=cache)
    assert len(examined) == 6
    assert second.digest == first.digest and names(second) == names(first) and second.summary == first.summary
    assert all(isinstance(corpus.labels, np.memmap) for corpus in (first, second))
    assert [path.name for path in cache.iterdir()] == [next(cache.glob("index-*")).name]
    # Another option, another speaker, and another utterance directly below a speaker, each build another.
    opened(tree, cache_dir=cache, min_seconds=0.55)
    assert len(examined) == 12
    write(tree / "id9" / "new.wav", voice(16000))
    assert opened(tree, cache_dir=cache).speakers[-1] == "id9" and len(examined) == 19
    write(tree / "id9" / "newer.wav", voice(16000))
    os.utime(tree / "id9", ns=(1, 1))
    assert len(opened(tree, cache_dir=cache)) == 8 and len(examined) == 27
    assert len(list(cache.iterdir())) == 4


def test_a_list_that_changes_is_indexed_anew(tree, tmp_path):
    listing = tmp_path / "l.txt"
    listing.write_text("id0/s0/0.wav a\nid1/s0/0.wav b\n")
    options = {"cache_dir": tmp_path / "cache", "audio_root": tree}
    assert opened(listing, **options).speakers == ("a", "b")
    listing.write_text("id0/s0/0.wav a\nid1/s0/0.wav c\n")
    assert opened(listing, **options).speakers == ("a", "c")


@pytest.mark.parametrize("damage", ["flip", "remove", "truncate", "json", "summary", "pickle"])
def test_a_damaged_index_is_refused(tree, tmp_path, damage):
    cache = tmp_path / "cache"
    opened(tree, cache_dir=cache)
    (folder,) = cache.glob("index-*")
    labels = folder / "labels.npy"
    if damage == "flip":
        content = bytearray(labels.read_bytes())
        content[-4] ^= 1
        labels.write_bytes(content)
    elif damage == "remove":
        labels.unlink()
    elif damage == "truncate":
        labels.write_bytes(labels.read_bytes()[:-3])
    elif damage == "json":
        (folder / "index.json").write_text("{")
    elif damage == "summary":
        text = (folder / "index.json").read_text()
        (folder / "index.json").write_text(text.replace("6 utterances", "7 utterances"))
    else:
        np.save(labels, np.array([{}] * 6), allow_pickle=True)
    message = refusal(opened, tree, cache_dir=cache)
    assert f"The index {folder} is damaged" in message and "remove the folder to rebuild it" in message


def test_a_cache_that_cannot_be_written(tree, tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another cache_dir" in refusal(opened, tree, cache_dir=tmp_path / "file" / "cache")


def test_an_index_that_another_process_wrote_meanwhile_is_taken(tree, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    real = corpus_index.save
    monkeypatch.setattr(corpus_index, "save", lambda *args: (real(*args), real(*args)))
    corpus = opened(tree, cache_dir=cache)
    assert len(corpus) == 6 and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("cached", [True, False])
def test_a_corpus_is_pickled(shared_tree, tmp_path, cached):
    corpus = opened(shared_tree, cache_dir=tmp_path if cached else None)
    content = pickle.dumps(corpus)
    copy = pickle.loads(content)
    assert copy.digest == corpus.digest and names(copy) == ORDER and copy.summary == corpus.summary
    np.testing.assert_array_equal(copy.labels, corpus.labels)
    np.testing.assert_array_equal(copy.read(2, 10, 100), corpus.read(2, 10, 100))
    if cached:  # By reference: the columns are mapped again, whatever their size.
        assert isinstance(copy.labels, np.memmap) and len(content) < 1000


def test_the_digest_tells_corpora_apart(shared_tree, tree):
    assert opened(shared_tree).digest == opened(shared_tree, workers=1).digest != opened(tree).digest
    index, _ = corpus_index.build(Entries(["a/1.wav", "b/1.wav"], ["a", "b"], np.array([9000, 9000])), 0.5)
    digests = {index.digest()}
    for entries in (
        Entries(["a/1.wav", "b/2.wav"], ["a", "b"], np.array([9000, 9000])),
        Entries(["a/1.wav", "b/1.wav"], ["a", "a"], np.array([9000, 9000])),
        Entries(["a/1.wav", "b/1.wav"], ["a", "c"], np.array([9000, 9000])),
        Entries(["a/1.wav", "b/1.wav"], ["a", "b"], np.array([9000, 9001])),
    ):
        digests.add(corpus_index.build(entries, 0.5)[0].digest())
    assert len(digests) == 5


def test_links_are_followed_but_not_in_circles(tree, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "id7").symlink_to(tree / "id0")
    assert names(opened(linked)) == ["id7/s0/0.wav", "id7/s1/1.wav"]
    (tree / "id0" / "loop").symlink_to(tree)
    assert f"{tree}/id0/loop is a link to a folder that holds it" in refusal(opened, tree)


def test_names_of_any_bytes(tmp_path):
    odd = tmp_path / "spéaker" / os.fsdecode(b"\xff\xfe a.wav")
    write(tmp_path / "spéaker" / "b.wav", voice(16000)).rename(odd)
    corpus = opened(tmp_path, cache_dir=tmp_path / "cache", max_bad=0.5)
    assert corpus.speakers == ("spéaker",) and corpus.name(0) == f"spéaker/{odd.name}"
    assert len(corpus.read(0)) == 16000


def test_errors_of_reading_name_the_file(tree):
    corpus = opened(tree)
    (tree / corpus.name(3)).unlink()
    assert f"There is no audio file {tree}/{corpus.name(3)}" in refusal(corpus.read, 3)


def test_an_index_of_many_takes_little_memory_once_built(tmp_path):
    count = 20_000
    entries = Entries(
        [f"id{i % 500:05}/{i % 7}/{i:08}.wav" for i in range(count)],
        [f"id{i % 500:05}" for i in range(count)],
        np.full(count, 64000),
    )
    index, bad = corpus_index.build(entries, 0.5)
    assert not bad and len(set(index.sessions.tolist())) == 500 * 7
    folder = tmp_path / "index-0"
    corpus_index.save(index, {"digest": index.digest(), "summary": ""}, folder)
    tracemalloc.start()
    mapped, _ = corpus_index.load(folder)
    corpus = Corpus(mapped, Tree(tmp_path), "", "", folder)
    assert corpus.name(count - 1) == "id00499/6/00017499.wav"  # 17499 = 6 mod 7, and the last such of its speaker
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert allocated < 500_000  # the names alone are more


def test_progress_is_shown_when_asked_for(tree, capfd, caplog):
    caplog.set_level(logging.INFO, "redimnet_jax")
    opened(tree)
    assert capfd.readouterr() == ("", "") and not caplog.messages
    opened(tree, progress=True)
    out, err = capfd.readouterr()
    assert not out and "utterances: 100%" in err and "6/6" in err
    assert caplog.messages == [f"{tree}: 6 utterances of 3 speakers in 6 sessions, 0.0 h"]


@pytest.mark.parametrize("cached", [False, True])
def test_what_the_index_left_out_is_refused_by_name_with_the_reason(tree, tmp_path, cached):
    write(tree / "id2/x/silent.wav", np.zeros(16000))
    write(tree / "id2/x/short.wav", voice(4000))
    cache = tmp_path / "cache" if cached else None
    for _ in range(2):
        corpus = pickle.loads(pickle.dumps(opened(tree, cache_dir=cache, max_bad=0.5)))
        assert "it is without signal" in refusal(select, corpus, ["./id2/x/silent.wav"])
        assert "it is too short" in refusal(select, corpus, ["id2/x/short.wav"])
        assert "check that the list belongs to it" in refusal(select, corpus, ["id2/x/none.wav"])


def test_what_a_killed_process_left_of_the_index_is_removed(tree, tmp_path):
    opened(tree, cache_dir=tmp_path / "a")
    (folder,) = (tmp_path / "a").glob("index-*")
    leftover = tmp_path / "b" / f".{folder.name}.0123abcd"
    leftover.mkdir(parents=True)
    (leftover / "labels.npy").write_bytes(b"half")
    os.utime(leftover, (0, 0))
    opened(tree, cache_dir=tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == [folder.name]


def test_two_processes_may_build_one_index(tree, tmp_path):
    corpus = opened(tree, cache_dir=tmp_path)
    (folder,) = tmp_path.glob("index-*")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    index, description = corpus_index.load(folder)
    corpus_index.save(index, {"digest": corpus.digest, "from": "the slower process"}, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "a file").write_text("")
    assert "cache_dir" in refusal(corpus_index.save, index, description, tmp_path / "a file" / "index-0")


def test_what_identifies_an_index_is_written_down(tree, tmp_path):
    opened(tree, cache_dir=tmp_path / "cache", min_seconds=0.25)
    (folder,) = (tmp_path / "cache").glob("index-*")
    identity = json.loads((folder / "index.json").read_text())["identity"]
    assert identity == {"format": 2, "rate": 16000, "min_seconds": 0.25} | Tree(tree).identity()
    assert FileList(tree / "l", tree) != FileList(tree / "l", tree.parent)


@pytest.mark.parametrize(
    "text, sexes",
    [
        (
            "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10001\tA.J._Buckley\tm\tIreland\tdev\n"
            "id10002\tA.R._Rahman\tf\tIndia\ttest\n",
            {"id10001": "m", "id10002": "f"},
        ),
        (
            "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012 ,n000012 ,m ,dev \nid00016 ,n000016 ,f ,dev \n",
            {"id00012": "m", "id00016": "f"},
        ),
        ("VoxCeleb2 ID\tVGGFace2 ID\tGender\tSet\nid00012\tn000012\tm\tdev\n", {"id00012": "m"}),
        (
            ";\n; Some pertinent notes, with commas, on the table.\n;\n"
            ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
            "14   | F | train-clean-360  | 25.03 | Kristin LeMoine\n"
            "60   | M | train-clean-100  | 20.18 | |CBW|Simon\n",
            {"14": "f", "60": "m"},
        ),
        ("speaker,sex\na,Male\nb,female\na,m\n", {"a": "m", "b": "f"}),
    ],
)
def test_tables_of_sexes(tmp_path, text, sexes):
    path = tmp_path / "meta"
    path.write_text(text)
    assert read_sexes(path) == sexes


@pytest.mark.parametrize(
    "text, fault",
    [
        ("speaker,sex\na,m\nb,x\n", ":3 names no speaker and sex"),
        ("speaker,sex\na\n", ":2 names no speaker and sex"),
        ("speaker,sex\na,m\na,f\n", ":3 contradicts an earlier line on the speaker a"),
        ("speaker,age\na,30\n", "no column headed gender or sex"),
        ("", "no column headed gender or sex"),
    ],
)
def test_tables_of_sexes_that_are_refused(tmp_path, text, fault):
    path = tmp_path / "meta.csv"
    path.write_text(text)
    assert f"{path}" in refusal(read_sexes, path) and fault in refusal(read_sexes, path)
    assert "cannot be read" in refusal(read_sexes, tmp_path / "none.csv")
