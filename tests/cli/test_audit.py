"""`redimnet-jax audit` from the command line: what it writes, that it goes on, and what it refuses."""

import json

import numpy as np
import pytest
import soundfile
import tiny

from redimnet_jax.checkpoints import native
from redimnet_jax.cli import main as cli
from redimnet_jax.data.corpus import open_corpus


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    native.save(tiny.model(), folder)
    return folder


def tree(folder, speakers=4, each=5, level=0.1):
    """Noises of half a second in a tree of speakers, each with its own spectrum."""
    for speaker in range(speakers):
        for number in range(each):
            path = folder / f"s {speaker}" / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(100 * speaker + number).normal(0, level, 8000)
            noise = np.convolve(noise, np.random.default_rng(speaker).normal(size=8), "same") / 4
            soundfile.write(path, noise, 16000)
    return folder


def audit(corpus, weights, output, *more):
    return cli.main(["audit", str(corpus), f"--checkpoint={weights}", f"--output={output}", *more])


@pytest.mark.slow
def test_lists_are_written_and_read_back(weights, tmp_path, capsys):
    corpus = tree(tmp_path / "tree")
    (corpus / "s 3" / "4.wav").write_bytes((corpus / "s 3" / "3.wav").read_bytes())
    (corpus / "s 2" / "torn.wav").write_bytes(b"RIFF")
    assert audit(corpus, weights, tmp_path / "out", "--max_bad=0.1") == 0
    out = capsys.readouterr().out
    assert "left out: 1 unreadable such as s 2/torn.wav" in out and "of 20 recordings are doubtful" in out
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    duplicates = [finding for finding in content["findings"] if finding["reason"] == "duplicate"]
    assert [(each["utterance"], each["other"]) for each in duplicates] == [("s 3/4.wav", "s 3/3.wav")]
    assert content["recordings"] == 20 and "1 unreadable" in content["summary"]
    assert content["kept"] == 20 - len(content["findings"])
    kept = open_corpus(tmp_path / "out" / "kept.txt", cache_dir=None, progress=False)
    assert len(kept) == content["kept"] and set(kept.speakers) <= {f"s {number}" for number in range(4)}
    kept.read(0)

    written = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    assert audit(corpus, weights, tmp_path / "out", "--max_bad=0.1") == 0
    assert "has all embeddings" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == written
    assert audit(corpus, weights, tmp_path / "out", "--max_bad=0.1", "--dim=4") == 1
    assert "holds embeddings with other dim" in capsys.readouterr().err


@pytest.mark.parametrize(
    "made, more, code, message",
    [
        ({"speakers": 1}, [], 1, "has 1 speaker (the first is 's 0') where at least 2 are needed"),
        ({"level": 0.0}, [], 1, "has too much that cannot be used, 24 of 24"),
        (
            {"level": 0.1},
            ["--speech_only"],
            1,
            "20 of 20 utterances have less than 0.5 s of speech, more than --max_bad",
        ),
        ({}, ["--prior=0"], 2, "--prior is 0.0 but must be a fraction between 0 and 1"),
        ({}, ["--min_speech=1"], 2, "--min_speech has no effect without --speech_only"),
    ],
)
def test_what_cannot_be_audited(made, more, code, message, weights, tmp_path, capsys):
    corpus = tree(tmp_path / "tree", **made)
    try:
        assert audit(corpus, weights, tmp_path / "out", *more) == code
    except SystemExit as ended:
        assert ended.code == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "listen.tsv").exists()
