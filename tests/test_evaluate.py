"""From a checkpoint and a trial list to results, through `eval.py`, and the files that it leaves."""

import json
import pathlib

import numpy as np
import pytest
import soundfile
from refusals import refusal

import redimnet_jax as rj
from redimnet_jax import cli, embedding, evaluate, files, score_file, scoring, trials, validation

TINY = pathlib.Path(__file__).parent / "data" / "tiny.pt"
SPEAKERS, UTTERANCES = 3, 3


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Noises of three colours for three speakers."""
    root, rng = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    for speaker in range(SPEAKERS):
        for utterance in range(UTTERANCES):
            noise = np.convolve(rng.normal(size=8000), np.hanning(3 + 3 * speaker), "same")
            path = root / f"s{speaker}" / f"{utterance}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, 0.1 * noise / np.std(noise), 16000)
    return root


@pytest.fixture(scope="module")
def listed(tree):
    names = [f"s{s}/{u}.wav" for s in range(SPEAKERS) for u in range(UTTERANCES)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    lines = [f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs]
    files.write(tree / "trials.txt", "".join(lines))
    return tree / "trials.txt"


@pytest.fixture(scope="module")
def report(listed, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    assert cli.evaluate([f"--checkpoint={TINY}", f"--trials={listed}", f"--output={output}", "--bootstrap=50"]) == 0
    return output


def test_results_hold_what_the_contract_names(report, listed):
    results = json.loads((report / "results.json").read_text())
    assert list(results["dims"]) == ["8", "16", "24", "32"]
    model, of = rj.from_torch(TINY), trials.read(listed)
    for dim, figures in results["dims"].items():
        embeddings = model.embed(
            [soundfile.read(listed.parent / n, dtype="float32")[0] for n in of.names], dim=int(dim)
        )
        scores = np.sum(np.asarray(embeddings)[of.left] * np.asarray(embeddings)[of.right], axis=1)
        assert figures["eer"] == pytest.approx(rj.metrics.eer(scores, of.labels), abs=1e-6)
        for p in ("0.01", "0.05"):
            wanted = rj.metrics.min_dcf(scores, of.labels, p_target=float(p))
            assert figures["min_dcf"][p] == pytest.approx(wanted, abs=1e-6)
        assert figures["target_mean"] == pytest.approx(scores[of.labels].mean(), abs=1e-5)
        assert figures["nontarget_mean"] == pytest.approx(scores[~of.labels].mean(), abs=1e-5)
        assert figures["trials"] == len(of)
        low, high = figures["eer_ci95"]
        assert 0 <= low <= high <= 1
        assert figures["accuracy"] == pytest.approx(np.mean((scores >= figures["threshold"]) == of.labels), abs=0.03)


def test_scores_are_written_and_read(report, listed):
    of, dims, scores = score_file.read(report / "scores.tsv")
    assert of.names == trials.read(listed).names and dims == (8, 16, 24, 32)
    assert scores.dtype == np.float32 and scores.shape == (4, len(of))
    results = json.loads((report / "results.json").read_text())
    assert results["dims"]["16"]["eer"] == rj.metrics.eer(scores[1], of.labels)


def test_plots_and_table_are_there(report):
    for name in ("det.png", "scores.png", "dimensions.png"):
        assert (report / name).read_bytes().startswith(b"\x89PNG")
    assert "| model | 32 |" in (report / "results.md").read_text()


def test_trials_can_be_made_of_a_tree(tree, tmp_path, capsys):
    arguments = [f"--checkpoint={TINY}", f"--corpus={tree}", f"--output={tmp_path}", "--dims=8,32", "--bootstrap=20"]
    assert cli.evaluate([*arguments, "--count=100", "--crop_seconds=0.3", "--crops=2"]) == 0
    of, dims, _ = score_file.read(tmp_path / "scores.tsv")
    # Nine target pairs are all there are.
    assert dims == (8, 32) and of.labels.sum() == 9 and len(of) == 18
    assert "EER %" in capsys.readouterr().out


def test_several_crops_score_as_the_mean_of_their_pairs(listed):
    judged, model = validation.from_list(listed), rj.from_torch(TINY)
    pooled = embedding.pool_recordings(model, judged.recordings, windows=embedding.Windows(0.3, 2))
    _, scores, embeddings = evaluate.evaluate(model, pooled, judged, (8, 32), bootstrap=20)
    of = judged.trials
    pairs = [
        scoring.score_trials(
            np.concatenate([embeddings[:, i], embeddings[:, j]]), of.left, of.right + len(pooled), (8, 32)
        )
        for i in range(2)
        for j in range(2)
    ]
    np.testing.assert_allclose(scores, np.mean(pairs, axis=0), atol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trials={tree}/none.txt"], "none.txt"),
        (["--trials={tree}/trials.txt", "--audio_root={tree}/s0"], "audio root"),
        (["--corpus={tree}/nowhere"], "nowhere"),
        (["--trials={tree}/trials.txt", "--dims=8,64"], "64"),
        (["--trials={tree}/trials.txt", "--checkpoint={tree}"], "checkpoint"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, listed, tmp_path, capsys):
    arguments = [a.format(tree=listed.parent) for a in arguments]
    assert cli.evaluate([f"--checkpoint={TINY}", f"--output={tmp_path / 'out'}", *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not (tmp_path / "out" / "results.json").exists()


def test_score_files_that_are_none_are_refused(tmp_path):
    for name, text in {
        "empty": "",
        "header": "a\tb\n",
        "row": "label\tleft\tright\t8\n1\ta\n",
        "word": "label\tleft\tright\t8\n1\ta\tb\tx\n",
    }.items():
        files.write(tmp_path / name, text)
        assert name in refusal(score_file.read, tmp_path / name)
