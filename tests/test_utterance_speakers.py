"""The speaker of every utterance: by table, corpus, pattern or folder, in that order."""

import dataclasses

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import files, trials
from redimnet_jax.data import audio
from redimnet_jax.evaluation import protocol
from redimnet_jax.utterance_speakers import rule, speakers_of

BY_FOLDER = rule()


@pytest.mark.parametrize(
    "root",
    ["", "./", "wav/", "./wav//", "/data/vox1/wav/", "dev/./wav/", "../vox1/"],
    ids=lambda root: root or "none",
)
@pytest.mark.parametrize(
    "names", [["id1/a/1.wav", "id1/b/1.wav", "id2/a/1.wav"], ["id1/1.wav", "id1/2.wav", "id2/1.wav"]]
)
def test_folders_that_all_names_share_are_no_speakers(root, names):
    assert speakers_of([root + name for name in names], BY_FOLDER) == ["id1", "id1", "id2"]


def test_ways_of_writing_one_path_are_one():
    assert speakers_of(["./wav/id1/1.wav", "wav//id2/1.wav"], BY_FOLDER) == ["id1", "id2"]


def test_the_only_folder_is_the_only_speaker():
    assert speakers_of(["wav/id1/1.wav", "wav/id1/2.wav"], BY_FOLDER) == ["id1", "id1"]


@pytest.mark.parametrize(
    "names",
    [
        ["1.wav", "2.wav"],
        ["id1/1.wav", "2.wav"],
        ["/1.wav", "/2.wav"],
        ["a/1.wav", "/a/2.wav"],
        ["t/1.wav", "t/u/1.wav"],
    ],
)
def test_names_without_a_folder_are_refused_with_what_to_do(names):
    message = refusal(speakers_of, names, BY_FOLDER, None, "list.txt")
    assert all(word in message for word in ("list.txt", "utt2spk", "speaker_pattern"))


def test_a_pattern_finds_the_speaker_anywhere():
    by = rule(pattern=r"/(id\d+)-")
    assert speakers_of(["test/id807-singing-01.wav", "enroll/id12-x.wav"], by) == ["id807", "id12"]
    message = refusal(speakers_of, ["test/id807-1.wav", "test/x.wav"], by)
    assert "1 of 2 names" in message and "'test/x.wav'" in message


@pytest.mark.parametrize("pattern", ["(", "id", "(a)(b)", "(?:a)"])
def test_patterns_that_are_none(pattern):
    assert "speaker_pattern" in refusal(rule, None, pattern)


def test_a_table_is_matched_as_written_or_normalised(tmp_path):
    path = files.write(tmp_path / "utt2spk", "./wav/1.wav  anna\nwav//2.wav bert\n\nmy file.wav\tcarl smith\n")
    by = rule(path)
    assert speakers_of(["./wav/1.wav", "wav/1.wav", "./wav/2.wav", "my file.wav"], by) == [
        "anna",
        "anna",
        "bert",
        "carl smith",
    ]
    message = refusal(speakers_of, ["wav/1.wav", "wav/3.wav"], by, None, "list.txt")
    assert "lacks 1 of 2 utterances of list.txt" in message and "'wav/3.wav'" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ("a b\nc\n", "Line 2"), ("a b\na c\n", "Line 2"), ("a\t\n", "Line 1"), ("a $'b\n", "Line 1")],
)
def test_tables_that_are_none(text, said, tmp_path):
    message = refusal(rule, files.write(tmp_path / "utt2spk", text))
    assert said in message and "utt2spk" in message


def test_there_is_one_rule_at_most(tmp_path):
    assert "give one" in refusal(rule, tmp_path, "(a)")


@dataclasses.dataclass
class Known:
    speakers: tuple[str, ...] = ("x", "y")
    labels: tuple[int, ...] = (0, 1)


def test_the_order_of_what_tells(tmp_path):
    names = ["a/1.wav", "b/1.wav"]
    table = rule(files.write(tmp_path / "utt2spk", "a/1.wav anna\nb/1.wav bert\n"))
    assert speakers_of(names, table, Known()) == ["anna", "bert"]
    assert speakers_of(names, rule(pattern="(.)/"), Known()) == ["x", "y"]
    assert speakers_of(names, rule(pattern="(1)"), None) == ["1", "1"]


@pytest.fixture
def silent(monkeypatch):
    """Files need not be audio."""
    monkeypatch.setattr(audio, "inspect", lambda source: audio.Inspection(8000, 1.0))


def listed(folder, *lines):
    for name in {name for line in lines for name in line.split()[1:]}:
        files.write(folder / name, "")
    return files.write(folder / "list.txt", "".join(f"{line}\n" for line in lines))


def test_labels_at_odds_say_what_to_do(tmp_path, silent):
    path = listed(tmp_path, "1 test/id1-1.wav enroll/id1-2.wav", "0 test/id1-1.wav test/id2-1.wav")
    message = refusal(protocol.check, protocol.from_list(path), (), allow_shared=True)
    assert "2 of 2 labels are at odds with the speakers by folder" in message and "speaker_pattern" in message
    judged = protocol.from_list(path, speaker_rule=rule(pattern="(id.)"))
    protocol.check(judged, (), allow_shared=True)
    assert judged.speakers == ["id1", "id1", "id2"]


def test_models_have_speakers_by_the_rule(tmp_path, silent):
    path = listed(tmp_path, "1 test/id1-1.wav test/id1-2.wav", "0 test/id1-1.wav test/id2-1.wav")
    files.write(path, "1 m test/id1-1.wav\n0 m test/id2-1.wav\n")
    models = {"m": ["test/id1-2.wav"]}
    judged = protocol.from_list(path, models=models, speaker_rule=rule(pattern="(id.)"))
    assert judged.speakers == ["id1", "id1", "id2"]
    overlapping = {"m": ["./test//id1-1.wav"]}
    assert "is in both" in refusal(protocol.from_list, path, models=overlapping, speaker_rule=rule(pattern="(id.)"))


def test_two_ways_of_writing_one_recording_are_one():
    problems = trials.check(
        trials.from_pairs(["a/1", "a/1", "b/1"], ["./a/1", "b/1", ".//a/1"], [True, False, False])
    )
    assert set(problems) == {"self", "duplicate"}


def test_names_are_looked_up_in_every_root(tmp_path, silent):
    dev, test = tmp_path / "dev", tmp_path / "test"
    for path in (dev / "id1/1.wav", dev / "id2/1.wav", test / "id2/1.wav", test / "id3/1.wav"):
        files.write(path, "")
    path = files.write(tmp_path / "list.txt", "0 id1/1.wav ./id2//1.wav\n0 id1/1.wav id3/1.wav\n")
    for roots in ([dev, test], (str(dev), str(test)), f"{dev},{test}", f"{dev}, {test}"):
        judged = protocol.from_list(path, roots)
        assert [judged.recordings.source(i) for i in range(3)] == [
            dev / "id1/1.wav",
            dev / "id2/1.wav",
            test / "id3/1.wav",
        ]
        assert judged.trials.names == ["id1/1.wav", "./id2//1.wav", "id3/1.wav"]
    message = refusal(protocol.from_list, path, [dev])
    assert "1 of 3" in message and "'id3/1.wav'" in message and str(dev) in message
    assert "must be a folder" in refusal(protocol.from_list, path, 2019)


def test_a_folder_whose_name_has_a_comma(tmp_path, silent):
    files.write(tmp_path / "a,b/id1/1.wav", "")
    files.write(tmp_path / "a,b/id2/1.wav", "")
    path = files.write(tmp_path / "list.txt", "0 id1/1.wav id2/1.wav\n")
    assert len(protocol.from_list(path, f"{tmp_path}/a,b").recordings) == 2


@pytest.mark.parametrize("name", ["x" * 5000 + ".wav", "caf\udce9.wav"])
def test_names_that_no_file_has_are_missing(name, tmp_path):
    trials.write(trials.from_pairs([f"a/{name}"], ["b/1.wav"], [False]), tmp_path / "list")
    assert "2 of 2 recordings" in refusal(protocol.from_list, tmp_path / "list")


def test_speakers_are_numbered_alike_for_both_sides():
    names, left, right = trials.speakers(trials.from_pairs(["./w/a/1", "w/a/1"], ["w/a/2", "w/b/1"], [True, False]))
    assert names == ["a", "b"] and np.array_equal(left, [0, 0]) and np.array_equal(right, [0, 1])
