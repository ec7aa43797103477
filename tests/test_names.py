"""Names of any bytes come back equal from every list, and can be shown on any terminal."""

import io
import os
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from redimnet_jax import names, trials, utterance_speakers
from redimnet_jax.data import tree
from redimnet_jax.data.speakers import read_sexes
from redimnet_jax.evaluation import plots, protocol, report, score_file

ODD = [
    "caf\udce9/a.wav",  # a byte that is not UTF-8, as the names of files have it
    "a\tb/1.wav",
    "a\nb/1.wav",
    "a\r/1\r.wav",
    "a\u2028b/1\x85.wav",
    "a\u3000b\xa0c/1.wav",
    " lead/trail ",
    "my voice/1, 2.wav",
    '"quoted"/1.wav',
    "$'x'/1.wav",
    "back\\slash's/1.wav",
    "\ufeffa/1.wav",
    "\x1b[31m/\x0b\x0c\x1c.wav",
    "target",
    "1",
    "",
]


@given(
    st.text(
        st.characters(exclude_categories=[]) | st.sampled_from("\udc80\udcff\t\n\r\x85\u2028$'\\\" ,"), max_size=9
    )
)
def test_a_quoted_name_is_one_line_of_utf8_and_comes_back(name):
    for text in (names.quote(name), names.quoted(name)):
        assert names.unquote(text) == name
        assert len(text.splitlines()) == 1 and "\t" not in text
        assert names.decode(text.encode()) == text
    assert not set(names.quoted(name)[2:]) & set(' ,"\xa0\u3000')


@pytest.mark.parametrize("name", ["id1/x/1.wav", "my voice.wav", "b,c.wav", "naïve/语音.wav", "C:\\a", "it's", "a$b"])
def test_plain_names_stay_as_they_are(name):
    assert names.quote(name) == name == names.unquote(name)


def test_a_quoted_name_is_what_a_shell_reads():
    assert names.quote("caf\udce9\t1.wav") == r"$'caf\xe9\t1.wav'"
    assert names.quote("a\u2028b") == r"$'a\u2028b'"


@pytest.mark.parametrize("text", ["$'", "$'a", "$'a'b'", r"$'\q'", r"$'\xg1'", "$'a\\'"])
def test_malformed_quotes_are_refused(text):
    assert "is not quoted" in refusal(names.unquote, text)


def test_bytes_of_a_file_come_back_from_the_name(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9\n.wav"
    open(path, "w").close()
    [name] = os.listdir(tmp_path)
    assert os.path.exists(tmp_path / names.unquote(names.quote(name)))


def all_pairs():
    left, right = zip(*[(a, b) for i, a in enumerate(ODD) for b in ODD[:i]], strict=True)
    return trials.from_pairs(left, right, [i % 2 == 0 for i in range(len(left))])


def same(a, b):
    assert a.names == b.names and a.left.tolist() == b.left.tolist() and a.right.tolist() == b.right.tolist()
    assert a.labels.tolist() == b.labels.tolist()


def test_trials_of_odd_names_come_back(tmp_path):
    made = all_pairs()
    trials.write(made, tmp_path / "list")
    same(trials.read(tmp_path / "list"), made)


def test_scores_of_odd_names_come_back(tmp_path):
    made = all_pairs()
    scores = np.random.default_rng(0).normal(size=(2, len(made))).astype(np.float32)
    found, dims, values = score_file.read(score_file.write(tmp_path / "scores.tsv", made, (4, 8), scores))
    same(found, made)
    assert dims == (4, 8) and (values == scores).all()


def test_a_list_may_hold_raw_bytes_and_blanks_that_are_not_ascii(tmp_path):
    (tmp_path / "list").write_bytes("1 a\u3000b/1.wav a\u2028b/2.wav\r\n0 a\u3000b/1.wav c\xa0/3.wav\r\n".encode())
    assert trials.read(tmp_path / "list").names == ["a\u3000b/1.wav", "a\u2028b/2.wav", "c\xa0/3.wav"]
    (tmp_path / "list").write_bytes(b"1 caf\xe9/1.wav caf\xe9/2.wav\n")
    assert trials.read(tmp_path / "list").names == ["caf\udce9/1.wav", "caf\udce9/2.wav"]


@pytest.mark.parametrize("separator", ["\t", " "])
def test_the_other_lists_hold_odd_names(separator, tmp_path):
    path, odd = tmp_path / "list", [name for name in ODD if name]
    quoted = names.quote if separator == "\t" else names.quoted
    path.write_bytes("".join(f"m{i}{separator}{quoted(name)}\n" for i, name in enumerate(odd)).encode())
    assert protocol.read_models(path) == {f"m{i}": [name] for i, name in enumerate(odd)}
    path.write_bytes("".join(f"{quoted(name)}{separator}{quoted(name)}\n" for name in odd).encode())
    assert utterance_speakers.read_utt2spk(path) == {name: name for name in odd}
    files = [f"x{i}/{name.replace('/', '')}.wav" for i, name in enumerate(odd)]
    path.write_bytes(
        "".join(f"{quoted(a)}{separator}{quoted(b)}\n" for a, b in zip(files, odd, strict=True)).encode()
    )
    entries = tree.FileList(path, tmp_path).entries(1, False)
    assert entries.names == files and entries.speakers == odd


def test_tables_of_speakers_hold_odd_names(tmp_path):
    (tmp_path / "table").write_bytes("speaker\tsex\r\nid\u2028\tf\r\n$'a\\tb'\tm\r\n".encode() + b"caf\xe9\tm\n")
    assert read_sexes(tmp_path / "table") == {"id\u2028": "f", "a\tb": "m", "caf\udce9": "m"}


def test_tables_are_one_line_a_row():
    table = report.Table("t", ("system",), [("a\nb\udce9|",)])
    assert "a\\nb\\xe9\\|" in table.markdown() and "a\\nb\\xe9|" in table.text()
    table.markdown().encode()


def test_a_legend_shows_odd_names(tmp_path):
    entry = {"eer": 0.1, "eer_ci95": [0.0, 0.2]}
    figure = plots.eer_by_dimension({"_a$b$^\udce9\n": {"dims": {"4": entry}}})
    assert plots.save(figure, tmp_path / "x.png").stat().st_size > 1000
    [text] = figure.axes[0].get_legend().get_texts()
    assert text.get_text() == r" _a\$b\$^\xe9\n"


def test_output_of_any_encoding_shows_any_name(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    names.show_any()
    print("语\udce9")
    sys.stdout.flush()
    assert raw.getvalue() == b"\\u8bed\\udce9\n"


@pytest.mark.parametrize(
    ("path", "plain"),
    [("./a/b", "a/b"), ("a//b", "a/b"), ("/a/./b", "/a/b"), ("//a/b", "/a/b"), ("a/../b", "a/../b"), ("a", "a")],
)
def test_normalised(path, plain):
    assert names.normalised(path) == plain
