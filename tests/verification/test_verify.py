"""Two files to a decision: the same numbers from the command, from Python and from an evaluation."""

import json
import shutil

import noise_voices
import numpy as np
import pytest
import soundfile
from refusals import refusal

import redimnet_jax as rj
from redimnet_jax import scoring
from redimnet_jax.cli import evaluate
from redimnet_jax.cli import verify as cli
from redimnet_jax.embedding.recording import embed_recording
from redimnet_jax.evaluation import quality_measures, score_file, system_calibration
from redimnet_jax.gallery import changes, enrolment
from redimnet_jax.gallery.identification import IdentifyOptions
from redimnet_jax.gallery.manifest import Weights

DIMS = (4, 8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return noise_voices.write(tmp_path_factory.mktemp("many"), "s", 6, 5)


@pytest.fixture(scope="module")
def plain(tree, tmp_path_factory):
    return noise_voices.save_model(tmp_path_factory.mktemp("plain") / "tiny", tree, DIMS)


@pytest.fixture(scope="module")
def report(plain, tree, tmp_path_factory):
    """An evaluation that calibrates a copy of the model, which is beside it."""
    folder = tmp_path_factory.mktemp("report")
    checkpoint = shutil.copytree(plain, folder / "model")
    arguments = [f"--checkpoint={checkpoint}", f"--output={folder / 'out'}", f"--trials={tree / 'trials.txt'}"]
    arguments += ["--calibrate_half", "--calibrate_quality=duration,norm", "--seed=1", "--bootstrap=50"]
    assert evaluate.main(arguments) == 0
    return folder


def run(capsys, *arguments):
    capsys.readouterr()
    code = cli.main([*map(str, arguments), "--min_speech=0"])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_command_python_and_evaluation_give_the_same_numbers(report, tree, capsys):
    trials, dims, scores = score_file.read(report / "out" / "scores.tsv")
    calibration = system_calibration.load(report / "out" / "calibration-cosine.json")
    model = rj.load(report / "model")
    recordings = [embed_recording(model, tree / name) for name in trials.names]
    vectors = np.stack([each.vector for each in recordings])
    cosines = np.asarray(scoring.score_trials(vectors, trials.left, trials.right, dims))
    # The evaluation embeds in batches, which rounds otherwise.
    np.testing.assert_allclose(cosines, scores, rtol=0, atol=1e-4)
    for row, dim in enumerate(dims):
        prefix = calibration.prefixes[dim]
        sides = quality_measures.of_vectors(vectors, [each.quality for each in recordings], dim)
        pairs = quality_measures.pairs(sides, trials.left, trials.right, prefix.limits)
        llrs = prefix.calibration(cosines[row], pairs)
        outside = prefix.outside(pairs)
        assert 0 < outside.sum() < len(trials)
        for i in range(0, len(trials), 7):
            files = [tree / trials.names[side[i]] for side in (trials.left, trials.right)]
            found = rj.verify(model, *files, dim, min_speech=0)
            decision = found.decision
            assert decision.score == cosines[row, i] and found.dim == dim
            if outside[i]:
                assert decision.llr is None and decision.same_speaker is None and "outside" in decision.reason
            else:
                assert decision.llr == llrs[i] and decision.same_speaker == (llrs[i] >= 0)
                assert decision.measured == prefix.judged
            code, out, _ = run(capsys, *files, f"--checkpoint={report / 'model'}", f"--dim={dim}", "--json")
            printed = json.loads(out)
            assert code == {True: 0, False: 3, None: 4}[decision.same_speaker]
            assert set(printed.pop("seconds")) == {"load", "decode", "embed", "score"}
            expected = json.loads(json.dumps(found.to_json()))
            expected.pop("seconds")
            assert printed == expected


@pytest.mark.slow
@pytest.mark.parametrize("point", [rj.OperatingPoint(), rj.OperatingPoint(far=0.2)])
def test_a_gallery_decides_as_two_files_do(report, tree, tmp_path, point):
    model = rj.load(report / "model")
    with changes.writing(tmp_path / "gallery", Weights.of(model)) as writer:
        for name in ("s1/0.wav", "s2/0.wav"):
            writer.enrol(enrolment.of_recordings(name, [embed_recording(model, tree / name)]))
    gallery = rj.Gallery.open(tmp_path / "gallery", model)
    options = IdentifyOptions(best=1, operating_point=point, min_speech=0)
    decided = 0
    for name in (f"s{speaker}/{number}.wav" for speaker in (1, 2, 3, 4) for number in (1, 2)):
        found = rj.identify(model, tree / name, gallery, options)
        nearest = tree / found.matches[0].model
        assert found.decision == rj.verify(model, nearest, tree / name, operating_point=point, min_speech=0).decision
        decided += found.decision.llr is not None
    assert decided


@pytest.mark.slow
def test_the_text_says_what_was_decided_and_how(report, plain, tree, capsys):
    files = (tree / "s1/0.wav", tree / "s1/1.wav")
    _, out, err = run(capsys, *files, f"--checkpoint={report / 'model'}", "--far=0.2")
    assert err == "" and "false acceptance rate of 0.2" in out and "s of speech in 0.5 s" in out
    assert "warning:" in out and "load " in out
    code, out, _ = run(capsys, *files, f"--checkpoint={plain}")
    assert code == 4 and out.startswith("no decision\n")
    assert (
        "warning: There is no log-likelihood ratio, because there is no calibration for this model; make one" in out
    )
    assert run(capsys, *files, f"--checkpoint={plain}", "--threshold=-1")[0] == 0
    assert run(capsys, *files, f"--checkpoint={plain}", "--threshold=1.5")[0] == 3


@pytest.mark.slow
def test_a_calibration_of_another_model_is_refused(report, plain, tree, tmp_path, capsys):
    files = (tree / "s1/0.wav", tree / "s1/1.wav")
    path = report / "out" / "calibration-cosine.json"
    other = noise_voices.save_model(tmp_path / "other", tree, (8,))
    shutil.copy(path, other)
    code, out, _ = run(capsys, *files, f"--checkpoint={other}")
    assert code == 4 and "does not suit it: it was made with other configuration" in out
    code, _, err = run(capsys, *files, f"--checkpoint={other}", f"--calibration={path}")
    assert code == 1 and "cannot be used for this model, because it was made with other configuration" in err
    assert "dim is 9 but must lie between 1 and 8" in refusal(rj.verify, rj.load(plain), *files, 9)
    assert "has no dimension 6" in refusal(rj.verify, rj.load(plain), *files, 6, calibration=path, min_speech=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silent", "short", "text", "missing"])
def test_files_that_cannot_be_compared_are_named(plain, tree, tmp_path, kind, capsys):
    path = tmp_path / f"{kind}.wav"
    if kind == "text":
        path.write_text("no audio")
    elif kind != "missing":
        soundfile.write(path, np.zeros(16000 if kind == "silent" else 40), 16000)
    assert cli.main([str(tree / "s0/0.wav"), str(path), f"--checkpoint={plain}"]) == 1
    # Noise has no speech either, so the first file would be refused for it.
    assert cli.main([str(path), str(tree / "s0/0.wav"), f"--checkpoint={plain}"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and str(path) in err.splitlines()[-1]
    assert kind != "silent" or "0.00 s of speech in 1.00 s, less than the 0.5 s" in err


@pytest.mark.parametrize(
    "flags",
    [["--far=2"], ["--p_target=0"], ["--threshold=nan"], ["--far=0.1", "--c_fa=2"], ["--dim=0"], ["--min_speech=-1"]],
)
def test_wrong_flags_are_one_sentence(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["a.wav", "b.wav", "--checkpoint=x", *flags])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and flags[-1].split("=")[0] in err
