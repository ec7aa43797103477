"""From a checkpoint and a trial list to results, through `eval.py`, and the files that it leaves."""

import dataclasses
import io
import json
import shutil
import sys

import noise_voices
import numpy as np
import pytest
import soundfile
from refusals import refusal

import redimnet_jax as rj
from redimnet_jax import files, metrics, scoring, trials
from redimnet_jax.cli import evaluate as cli
from redimnet_jax.embedding import extract
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.evaluation import protocol, score_file, score_norm, system_calibration
from redimnet_jax.evaluation import results as evaluation_results

SPEAKERS, UTTERANCES = 4, noise_voices.UTTERANCES
DIMS = (4, 8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return noise_voices.write(tmp_path_factory.mktemp("tree"), "s", SPEAKERS, 0)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Other speakers, for a cohort and for calibration."""
    return noise_voices.write(tmp_path_factory.mktemp("others"), "c", SPEAKERS, 1)


@pytest.fixture(scope="module")
def weights(others, tmp_path_factory):
    return noise_voices.save_model(tmp_path_factory.mktemp("weights") / "tiny", others, DIMS)


@pytest.fixture(scope="module")
def listed(tree):
    return tree / "trials.txt"


@pytest.fixture(scope="module")
def report(weights, listed, tmp_path_factory):
    return run(weights, f"--trials={listed}", output=tmp_path_factory.mktemp("report"))


def run(weights, *arguments, output):
    assert cli.main([f"--checkpoint={weights}", f"--output={output}", "--bootstrap=50", *arguments]) == 0
    return output


def read(folder):
    return json.loads((folder / "results.json").read_text())


def raw(weights, root, names):
    signals = [soundfile.read(root / n, dtype="float32")[0] for n in names]
    return np.asarray(rj.load(weights).embed(signals, normalize=False))


@pytest.mark.slow
def test_results_hold_what_the_contract_names(report, weights, listed):
    results, of = read(report), trials.read(listed)
    assert list(results["dims"]) == ["4", "8"]
    whole = raw(weights, listed.parent, of.names)
    for dim, figures in results["dims"].items():
        scores = np.asarray(scoring.score_trials(whole, of.left, of.right, (int(dim),)))[0]
        assert figures["eer"] == pytest.approx(rj.metrics.eer(scores, of.labels), abs=1e-6)
        for p in ("0.01", "0.05"):
            wanted = rj.metrics.min_dcf(scores, of.labels, p_target=float(p))
            assert figures["min_dcf"][p] == pytest.approx(wanted, abs=1e-6)
        assert figures["target_mean"] == pytest.approx(scores[of.labels].mean(), abs=5e-5)
        assert figures["nontarget_mean"] == pytest.approx(scores[~of.labels].mean(), abs=5e-5)
        assert figures["trials"] == len(of)
        low, high = figures["eer_ci95"]
        assert 0 <= low <= high <= 1
        assert figures["accuracy"] == pytest.approx(np.mean((scores >= figures["threshold"]) == of.labels), abs=0.03)


def test_scores_are_written_and_read(report, listed):
    of, dims, scores = score_file.read(report / "scores.tsv")
    assert of.names == trials.read(listed).names and dims == DIMS
    assert scores.dtype == np.float32 and scores.shape == (2, len(of))
    assert read(report)["dims"]["8"]["eer"] == rj.metrics.eer(scores[1], of.labels)


def test_plots_and_tables_are_there(report):
    for name in ("det.png", "scores.png", "dimensions.png"):
        assert (report / name).read_bytes().startswith(b"\x89PNG")
    text = (report / "results.md").read_text()
    assert "| tiny | 8 |" in text


@pytest.fixture(scope="module")
def everything(report, weights, listed, others, tmp_path_factory):
    """A run with a cohort, a calibration and a comparison with the plain run."""
    folder = tmp_path_factory.mktemp("everything")
    arguments = [f"--trials={listed}", "--score_norm=as-norm", f"--cohort={others}"]
    # A cohort may not share speakers with a list that is calibrated on.
    calibrated = noise_voices.write(tmp_path_factory.mktemp("calibrated"), "k", SPEAKERS, 2)
    arguments += ["--top_k=3", f"--calibrate={calibrated / 'trials.txt'}", f"--compare={report / 'scores.tsv'}"]
    return run(weights, *arguments, f"--cache={folder / 'cache'}", output=folder / "report"), arguments


def test_normalised_scores_stand_beside_the_cosines(everything, report, weights, listed, others):
    folder, _ = everything
    results, of = read(folder), trials.read(listed)
    assert results["score"] == "as-norm" and results["cosine"]["dims"] == read(report)["dims"]
    assert (folder / "cosine.tsv").read_text() == (report / "scores.tsv").read_text()
    _, _, scores = score_file.read(folder / "scores.tsv")
    names = [str(path.relative_to(others)) for path in sorted(others.glob("*/*.wav"))]
    cohort_labels = np.arange(len(names)) // UTTERANCES
    means = scoring.speaker_means(raw(weights, others, names), cohort_labels, DIMS)
    embeddings = raw(weights, listed.parent, of.names)
    statistics = score_norm.cohort_statistics(embeddings, means, top_k=3)
    cosines = scoring.score_trials(embeddings, of.left, of.right, DIMS)
    wanted = np.asarray(score_norm.normalise(cosines, of.left, of.right, *statistics, "as-norm"))
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-3)
    assert results["dims"]["8"]["eer"] == rj.metrics.eer(scores[1], of.labels)


def test_calibration_is_of_the_other_list(everything, listed):
    folder, _ = everything
    kept = json.loads((folder / "calibration-as-norm.json").read_text())
    _, _, scores = score_file.read(folder / "scores.tsv")
    labels = trials.read(listed).labels
    for dim, row in zip(map(str, DIMS), scores, strict=True):
        figures, line = read(folder)["dims"][dim], kept["dims"][dim]
        scale, offset = (line["calibration"][name] for name in ("scale", "offset"))
        assert figures["cllr"] == pytest.approx(metrics.cllr(scale * row + offset, labels), rel=1e-5)
        assert figures["min_cllr"] == pytest.approx(metrics.min_cllr(row, labels))
        assert figures["transferred"]["threshold"] == line["threshold"] != figures["threshold"]
        far, frr = metrics.error_rates(row, labels, line["threshold"])
        assert (figures["transferred"]["far"], figures["transferred"]["frr"]) == pytest.approx((far, frr), abs=0.02)


def test_the_comparison_is_paired(everything, report):
    folder, _ = everything
    ours, theirs = read(folder), read(report)
    for dim, figures in ours["comparison"]["dims"].items():
        wanted = ours["dims"][dim]["eer"] - theirs["dims"][dim]["eer"]
        assert figures["difference"] == pytest.approx(wanted, abs=1e-6)
    assert "EER minus that of" in (folder / "results.md").read_text()


@pytest.mark.slow
def test_a_mean_is_subtracted_and_every_utterance_of_the_cohort_counts(weights, listed, others, tmp_path):
    arguments = [f"--trials={listed}", f"--cache={tmp_path / 'cache'}", f"--cohort={others}", "--score_norm=as-norm"]
    arguments += ["--cohort_by=utterance", "--top_k=7", "--subtract_mean=cohort"]
    folder = run(weights, *arguments, output=tmp_path / "out")
    of, _, cosines = score_file.read(folder / "cosine.tsv")
    members = raw(weights, others, [str(path.relative_to(others)) for path in sorted(others.glob("*/*.wav"))])
    sides = raw(weights, listed.parent, of.names) - members.mean(axis=0)
    np.testing.assert_allclose(cosines, scoring.score_trials(sides, of.left, of.right, DIMS), atol=1e-3)
    every = scoring.speaker_means(members - members.mean(axis=0), np.arange(len(members)), DIMS)
    statistics = score_norm.cohort_statistics(sides, every, top_k=7)
    wanted = np.asarray(score_norm.normalise(cosines, of.left, of.right, *statistics, "as-norm"))
    np.testing.assert_allclose(score_file.read(folder / "scores.tsv")[2], wanted, rtol=1e-2, atol=1e-2)
    plain = [f"--trials={listed}", f"--cache={tmp_path / 'cache'}", f"--subtract_mean={others}"]
    means = run(weights, *plain, output=tmp_path / "plain")
    assert read(means)["dims"] == read(folder)["cosine"]["dims"]


@pytest.mark.slow
def test_a_kept_calibration_is_used_where_it_fits(everything, weights, listed, tmp_path, capsys):
    folder, arguments = everything
    assert (weights / "calibration-as-norm.json").read_text() == (folder / "calibration-as-norm.json").read_text()
    same = [a for a in arguments if not a.startswith(("--calibrate", "--compare"))]
    again = read(run(weights, *same, f"--cache={folder.parent / 'cache'}", output=tmp_path / "again"))
    assert again["dims"] == read(folder)["dims"] and again["calibration"] == read(folder)["calibration"]
    capsys.readouterr()
    other = read(run(weights, *same, "--max_seconds=0.3", output=tmp_path / "other"))
    assert "is not used, it was made with other windows" in capsys.readouterr().out
    assert "cllr" not in other["dims"]["8"]


@pytest.mark.slow
def test_calibration_on_the_evaluated_trials_has_to_be_said_and_is_not_kept_for_them(
    weights, listed, tmp_path, capsys
):
    own = shutil.copytree(weights, tmp_path / "own")
    arguments = [f"--trials={listed}", "--dims=4", f"--cache={tmp_path / 'cache'}"]
    calibrate = [f"--calibrate={listed}", "--allow_same_trials"]
    figures = read(run(own, *arguments, *calibrate, output=tmp_path / "first"))["dims"]["4"]
    assert figures["transferred"]["threshold"] == figures["threshold"]
    assert "4 of whose speakers are evaluated too" in capsys.readouterr().out
    assert "cllr" not in read(run(own, *arguments, output=tmp_path / "second"))["dims"]["4"]
    assert "is not used, it was fit on these very trials" in capsys.readouterr().out


@pytest.mark.slow
def test_calibration_on_half_of_the_speakers_with_quality_measures(weights, others, tmp_path, capsys):
    own = shutil.copytree(weights, tmp_path / "own")
    many = noise_voices.write(tmp_path / "many", "s", 6, 5)
    arguments = [f"--trials={many / 'trials.txt'}", "--score_norm=s-norm", f"--cohort={others}", "--calibrate_half"]
    arguments += ["--calibrate_quality=duration,norm,cohort", "--seed=1", f"--cache={tmp_path / 'cache'}"]
    folder = run(own, *arguments, output=tmp_path / "out")
    results = read(folder)
    assert results["calibration"]["measures"] == ["duration", "norm", "cohort"]
    assert results["calibration"]["shared_speakers"] == 0
    assert results["dropped_trials"] == 3 * 3 * UTTERANCES**2
    kept = system_calibration.load(folder / "calibration-s-norm.json")
    of, dims, scores = score_file.read(folder / "scores.tsv")
    assert len(of) == 36 and dims == DIMS and not set(kept.trials["speakers"]) & {name[:2] for name in of.names}
    prefix = kept.prefixes[8]
    assert prefix.judged is not None and prefix.judged.targets == of.labels.sum() == 9
    assert set(prefix.calibration.weights) == set(prefix.limits) == {"duration", "norm", "cohort"}
    # The quality of each side, from its own embedding.
    lengths = np.linalg.norm(raw(own, many, of.names)[:, :8].astype(np.float64), axis=1)
    low, high = prefix.limits["norm"]
    assert 0.5 * low < lengths.min() and lengths.max() < 2 * high
    assert results["dims"]["8"]["ci95"]["cllr"][0] <= results["dims"]["8"]["cllr"]
    assert (folder / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert "with duration, norm, cohort" in capsys.readouterr().out


@pytest.mark.slow
def test_groups_identification_and_widths_are_in_results_and_report(weights, tree, listed, report, tmp_path):
    files.write(tmp_path / "facts", "speaker\tsex\n" + "".join(f"s{i}\t{'ffmm'[i]}\n" for i in range(SPEAKERS)))
    arguments = [f"--trials={listed}", f"--cache={tmp_path / 'cache'}", f"--metadata={tmp_path / 'facts'}", "--table"]
    folder = run(weights, *arguments, output=tmp_path / "out")
    results = read(folder)
    assert results["dims"] == read(report)["dims"]
    groups = results["subgroups"]["sex"]
    assert groups["outside"] == 36 and groups["groups"]["f"]["trials"] == 15
    found = results["identification"]
    assert (found["gallery"], found["searches"]) == (SPEAKERS, 8) and found["dims"]["8"]["fnir"]["0.1"] is None
    whole = raw(weights, tree, [f"s{i}/{j}.wav" for i in range(SPEAKERS) for j in range(UTTERANCES)])
    units = (whole / np.linalg.norm(whole, axis=1, keepdims=True)).reshape(SPEAKERS, UTTERANCES, -1)
    best = np.argmax(units[:, 1:] @ units[:, 0].T, axis=-1)
    assert found["dims"]["8"]["rank1"] == pytest.approx(np.mean(best == np.arange(SPEAKERS)[:, None]))
    for duration in ("1", "2", "3", "whole"):  # No recording is longer than half a second.
        of = results["widths"][duration]
        assert of["shorter_recordings"] == (0 if duration == "whole" else 12)
        assert of["formats"]["float32"]["8"]["eer"] == pytest.approx(results["dims"]["8"]["eer"], abs=1e-6)
        assert set(of["formats"]) == {"float32", "int8", "binary"} and list(of["formats"]["int8"]) == ["8"]
    page = (folder / "report.html").read_text()
    for heading in ("Groups of trials", "Identification", "Width, format and duration", "Hardest trials"):
        assert f">{heading}</h2>" in page
    assert "<audio" in page and "data:audio/mpeg;base64," in page
    tables = (folder / "results.md").read_text()
    assert "## EER by sex; 36 trials are in no group" in tables and "EER % whole" in tables


@pytest.mark.slow
def test_models_of_several_utterances(weights, tree, tmp_path):
    files.write(tmp_path / "models", "m s0/0.wav s0/1.wav\nn s1/0.wav s1/1.wav\n")
    lines = [f"{int(a == b)} {name} s{b}/2.wav\n" for a, name in enumerate("mn") for b in range(3)]
    files.write(tmp_path / "list", "".join(lines))
    arguments = [f"--trials={tmp_path / 'list'}", f"--audio_root={tree}", f"--enrolment={tmp_path / 'models'}"]
    of, _, scores = score_file.read(run(weights, *arguments, output=tmp_path / "out") / "scores.tsv")
    units = raw(weights, tree, ["s0/0.wav", "s0/1.wav", "s2/2.wav"])
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    model = units[:2].sum(axis=0)
    assert len(of) == 6 and scores[1, 2] == pytest.approx(units[2] @ model / np.linalg.norm(model), abs=1e-5)


@pytest.mark.slow
def test_trials_can_be_made_of_a_tree(weights, tree, tmp_path, capsys):
    run(weights, f"--corpus={tree}", "--dims=4", "--count=100", "--crop_seconds=0.3", "--crops=2", output=tmp_path)
    of, dims, _ = score_file.read(tmp_path / "scores.tsv")
    # Twelve target pairs are all there are.
    assert dims == (4,) and of.labels.sum() == 12 and len(of) == 24
    assert "EER %" in capsys.readouterr().out


@pytest.mark.slow
def test_names_of_any_bytes_go_through_all_outputs(weights, tree, tmp_path, monkeypatch):
    odd = tmp_path / "caf\udce9\n$t$"
    shutil.copytree(weights, tmp_path / "_$é\n$")
    renamed = {}
    for path in sorted(tree.glob("*/*.wav")):
        speaker = f"wav/{path.parent.name}\udcff\t|"
        renamed[str(path.relative_to(tree))] = name = f"{speaker}/\n\u2028{path.name}"
        (odd / speaker).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, odd / name)
    of = trials.read(tree / "trials.txt")
    trials.write(dataclasses.replace(of, names=[renamed[name] for name in of.names]), odd / "trials.txt")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    arguments = [f"--trials={odd / 'trials.txt'}", "--bootstrap=50"]
    first = run(tmp_path / "_$é\n$", *arguments, output=odd / "first")
    found, _, scores = score_file.read(first / "scores.tsv")
    assert sorted(found.names) == sorted(renamed.values()) and len(found) == len(of)
    arguments.append(f"--compare={first / 'scores.tsv'}")
    second = run(tmp_path / "_$é\n$", *arguments, output=odd / "second")
    assert read(second)["comparison"]["dims"]["8"]["difference"] == 0
    assert read(second)["comparison"]["other"] == str(first / "scores.tsv")
    assert "EER minus that of" in (second / "results.md").read_text(encoding="utf-8")
    made = run(tmp_path / "_$é\n$", f"--corpus={odd / 'wav'}", "--bootstrap=50", output=odd / "made")
    assert {f"wav/{name}" for name in score_file.read(made / "scores.tsv")[0].names} <= set(renamed.values())
    sys.stdout.flush()
    assert b"scores.tsv, results.json" in raw.getvalue()


@pytest.mark.slow
def test_speakers_and_roots_are_given_on_the_command_line(weights, tree, tmp_path):
    """The list of two roots, with a folder before the speakers, gives the scores of the plain list."""
    of = trials.read(tree / "trials.txt")
    for name in of.names:
        root = tmp_path / ("dev" if name < "s2" else "test")
        (root / "x").mkdir(parents=True, exist_ok=True)
        shutil.copy(tree / name, root / "x" / name.replace("/", "-"))
    flat = dataclasses.replace(of, names=[f"./x/{name.replace('/', '-')}" for name in of.names])
    trials.write(flat, tmp_path / "list")
    files.write(tmp_path / "utt2spk", "".join(f"x/{name.replace('/', '-')} {name[:2]}\n" for name in of.names))
    roots = [f"--trials={tmp_path / 'list'}", f"--audio_root={tmp_path / 'dev'}", f"--audio_root={tmp_path / 'test'}"]
    table = run(weights, *roots, f"--utt2spk={tmp_path / 'utt2spk'}", output=tmp_path / "table")
    pattern = run(weights, *roots, "--speaker_pattern=(s[0-9])", output=tmp_path / "pattern")
    plain = run(weights, f"--trials={tree / 'trials.txt'}", output=tmp_path / "plain")
    assert read(table)["dims"] == read(pattern)["dims"] == read(plain)["dims"]
    assert score_file.read(table / "scores.tsv")[0].names == flat.names


@pytest.mark.slow
def test_several_crops_score_as_the_mean_of_their_pairs(weights, listed):
    judged, model = protocol.from_list(listed), rj.load(weights)
    pooled = extract.pool_recordings(model, judged.recordings, crop_policy=CropPolicy(0.2, 2))
    _, scores, embeddings = evaluation_results.evaluate(model, pooled, judged, DIMS, bootstrap=50)
    of = judged.trials
    pairs = [
        scoring.score_trials(
            np.concatenate([embeddings[:, i], embeddings[:, j]]), of.left, of.right + len(pooled), DIMS
        )
        for i in range(2)
        for j in range(2)
    ]
    np.testing.assert_allclose(scores, np.mean(pairs, axis=0), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trials={tree}/none.txt"], "none.txt"),
        (["--trials={tree}/trials.txt", "--audio_root={tree}/s0"], "audio root"),
        (["--corpus={tree}/nowhere"], "nowhere"),
        (["--trials={tree}/trials.txt", "--dims=8,64"], "64"),
        (["--trials={tree}/trials.txt", "--checkpoint={tree}"], "checkpoint"),
        (["--trials={tree}/trials.txt", "--score_norm=s-norm", "--cohort={tree}"], "in the cohort too"),
        (["--trials={tree}/trials.txt", "--score_norm=as-norm", "--cohort={tree}"], "--top_k is 300"),
        (["--trials={tree}/trials.txt", "--subtract_mean={tree}"], "in the corpus of the mean too"),
        (["--trials={tree}/trials.txt", "--calibrate={tree}/trials.txt"], "--allow_same_trials"),
        (["--trials={tree}/trials.txt", "--compare={tree}/trials.txt"], "scores.tsv"),
        (["--trials={tree}/trials.txt", "--enrolment={tree}/none.txt"], "none.txt"),
        (["--trials={tree}/trials.txt", "--utt2spk={tree}/none.txt"], "none.txt"),
        (["--trials={tree}/trials.txt", "--speaker_pattern=("], "regular expression"),
        (["--trials={tree}/trials.txt", "--cache={tree}/trials.txt"], "cache"),
        (["--trials={tree}/trials.txt", "--metadata={tree}/trials.txt"], "needs a header"),
        (["--trials={tree}/trials.txt", "--by=age"], "--by has 'age'"),
        (["--trials={tree}/trials.txt", "--by=duration"], "has the one value 0.5"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, weights, tree, tmp_path, capsys):
    arguments = [a.format(tree=tree) for a in arguments]
    assert cli.main([f"--checkpoint={weights}", f"--output={tmp_path / 'out'}", *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--trials=x", "--utt2spk=y", "--speaker_pattern=(z)"],
        ["--corpus=x", "--utt2spk=y"],
        ["--corpus=x", "--trials=y", "--speaker_pattern=(z)"],
        ["--trials=x", "--score_norm=s-norm"],
        ["--trials=x", "--cohort=y"],
        ["--trials=x", "--subtract_mean=cohort"],
        ["--trials=x", "--cohort_by=utterance"],
        ["--trials=x", "--edges=age=3,2"],
        ["--trials=x", "--edges=age"],
        ["--trials=x", "--table", "--crop_seconds=2"],
        ["--trials=x", "--enrolment=y", "--enrol_utterances=2"],
        ["--trials=x", "--score_norm=s-norm", "--cohort=y", "--top_k=5"],
        ["--trials=x", "--calibrate_root=y"],
        ["--trials=x", "--calibrate=y", "--calibrate_half"],
        ["--trials=x", "--calibrate_quality"],
        ["--trials=x", "--calibrate_half", "--calibrate_quality=loudness"],
        ["--trials=x", "--calibrate_half", "--calibrate_quality=cohort"],
        ["--trials=x", "--calibrate_half", "--calibrate_quality", "--crop_seconds=2"],
        ["--trials=x", "--calibrate_half", "--compare=y"],
        ["--corpus=x", "--enrolment=y"],
    ],
)
def test_flags_that_make_no_sense_together_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--checkpoint=x", "--output=y", *flags])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_score_files_that_are_none_are_refused(tmp_path):
    for name, text in {
        "empty": "",
        "header": "a\tb\n",
        "row": "label\tleft\tright\t8\n1\ta\n",
        "word": "label\tleft\tright\t8\n1\ta\tb\tx\n",
    }.items():
        files.write(tmp_path / name, text)
        assert name in refusal(score_file.read, tmp_path / name)
