"""Tables of facts about utterances or speakers, and what is refused of them."""

import math

import pytest
from refusals import refusal

from redimnet_jax import files
from redimnet_jax.evaluation import metadata


def written(tmp_path, text):
    return files.write(tmp_path / "facts.tsv", text)


def test_cells_are_found_by_name_as_written_or_normalised(tmp_path):
    path = written(tmp_path, "utterance\tsnr\troom\n./a//x.wav\t12.5\tsmall\n$'b\\t.wav'\t\tlarge\n\n")
    table = metadata.read(path)
    assert (table.key, list(table.columns)) == ("utterance", ["snr", "room"])
    assert table.values("snr", ["a/x.wav", "b\t.wav"]) == ["12.5", ""]
    assert table.values("room", ["b\t.wav"]) == ["large"]
    assert "lacks 1 of 2 utterances of the trials, the first 'c.wav'" in refusal(
        table.values, "room", ["a/x.wav", "c.wav"]
    )


def test_numbers():
    found = metadata.numbers(["1", "", "2.5"])
    assert found is not None and found[::2] == [1, 2.5] and math.isnan(found[1])
    for cells in (["1", "x"], ["", ""], ["inf"], ["nan"]):
        assert metadata.numbers(cells) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins with nothing"),
        ("s0\tf\t30\n", "needs a header"),
        ("speaker\n", "needs a header"),
        ("speaker\tsex\tsex\n", "a column twice"),
        ("speaker\tsex\t\n", "without a name"),
        ("speaker\tsex\n", "no rows"),
        ("speaker\tsex\na\tf\nb\n", "Line 3"),
        ("speaker\tsex\n\tf\n", "Line 2"),
        ("speaker\tsex\na\tf\nb\tm\na\tm\n", "Line 4 of {path} repeats the speaker 'a'"),
        ("speaker\tsex\n$'a\tf\n", "Line 2 of {path} cannot be read"),
    ],
)
def test_bad_tables_are_one_sentence(text, said, tmp_path):
    path = written(tmp_path, text)
    assert said.format(path=path) in refusal(metadata.read, path)
