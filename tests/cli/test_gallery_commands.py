"""The commands enrol, identify, search and gallery: what they print, return and leave behind."""

import json
import re

import bucket_server
import noise_voices
import numpy as np
import pytest
import soundfile

import redimnet_jax as rj
from redimnet_jax.cli import embed, main
from redimnet_jax.embedding import folder as embedding_folder
from redimnet_jax.gallery.identification import IdentifyOptions

DIMS = (4, 8)
ODD = "caf\udce9\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return noise_voices.write(tmp_path_factory.mktemp("voices"), "s", 4, 5)


@pytest.fixture(scope="module")
def checkpoint(tree, tmp_path_factory):
    return noise_voices.save_model(tmp_path_factory.mktemp("model") / "tiny", tree, DIMS)


@pytest.fixture(scope="module")
def gallery(tree, checkpoint, tmp_path_factory):
    """Two speakers, one by two recordings."""
    path = tmp_path_factory.mktemp("gallery") / "voices"
    for name, files in (("s0", (0, 1)), (ODD, (0,))):
        speaker = "s0" if name == "s0" else "s2"
        recordings = [str(tree / speaker / f"{number}.wav") for number in files]
        assert main.main(["enrol", name, *recordings, *options(path, checkpoint)]) == 0
    return path


def options(gallery, checkpoint) -> list[str]:
    return [f"--gallery={gallery}", f"--checkpoint={checkpoint}", "--min_speech=0"]


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def refused(capsys, *arguments) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == 1 and re.fullmatch(r"error: [^\n]+\.\n", err), err
    return err


def content(path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


@pytest.mark.slow
def test_a_speaker_is_identified_by_command_and_python_alike(tree, checkpoint, gallery, capsys):
    probe = tree / "s0" / "2.wav"
    code, out, _ = run(capsys, "identify", probe, *options(gallery, checkpoint), "--threshold=0", "--json")
    printed = json.loads(out)
    assert code == 0 and printed["model"] == "s0" and printed["models"] == 2
    assert set(printed["seconds"]) == {"load", "decode", "embed", "search"}
    model = rj.load(checkpoint)
    point = rj.OperatingPoint(threshold=0.0)
    found = rj.identify(
        model, probe, rj.Gallery.open(gallery, model), IdentifyOptions(operating_point=point, min_speech=0)
    )
    assert printed["matches"] == [{"model": match.model, "score": match.score} for match in found.matches]
    # Enrolled by one recording, and scored by the best, it is a comparison of two files.
    code, out, _ = run(capsys, "identify", probe, *options(gallery, checkpoint), "--best=1", "--json")
    scores = {match["model"]: match["score"] for match in json.loads(out)["matches"]}
    assert code == 4 and json.loads(out)["model"] is None
    assert scores[ODD] == rj.verify(model, tree / "s2" / "0.wav", probe, min_speech=0).decision.score
    code, out, _ = run(capsys, "identify", probe, *options(gallery, checkpoint), "--threshold=2")
    assert code == 3 and out.startswith("unknown speaker\n") and "caf\\xe9\\n" in out


@pytest.mark.slow
def test_search_lists_utterances(tree, checkpoint, gallery, capsys):
    probe = tree / "s0" / "0.wav"
    code, out, _ = run(capsys, "search", probe, *options(gallery, checkpoint), "--top=2", "--json")
    first, second = json.loads(out)["matches"]
    assert code == 0 and first["utterance"] == str(probe) and first["score"] == pytest.approx(1, abs=1e-6)
    assert second["score"] < first["score"]
    for shortlist in ("int8", "binary", "exhaustive"):
        arguments = ["search", probe, *options(gallery, checkpoint), "--top=2", "--json", f"--shortlist={shortlist}"]
        assert json.loads(run(capsys, *arguments)[1])["matches"] == [first, second]


@pytest.mark.slow
def test_what_is_refused_changes_nothing(tree, checkpoint, gallery, capsys, tmp_path):
    before = content(gallery)
    good, shared = tree / "s1" / "0.wav", options(gallery, checkpoint)
    soundfile.write(tmp_path / "short.wav", np.full(100, 0.1), 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    assert "s0 is enrolled already" in refused(capsys, "enrol", "s0", good, *shared)
    assert "too short" in refused(capsys, "enrol", "new", good, tmp_path / "short.wav", *shared)
    assert "0.00 s of speech" in refused(capsys, "enrol", "new", tmp_path / "silent.wav", *shared, "--min_speech=0.5")
    assert "is given 2 times" in refused(capsys, "enrol", "new", good, good, *shared)
    assert "none.wav" in refused(capsys, "enrol", "new", good, tmp_path / "none.wav", *shared)
    assert "x is not enrolled" in refused(capsys, "gallery", "remove", "s0", "x", f"--gallery={gallery}")
    other = noise_voices.save_model(tmp_path / "other", tree, (2, 8))
    wrong = options(gallery, other)
    for arguments in (("enrol", "new", good), ("identify", good), ("search", good)):
        assert "of another model" in refused(capsys, *arguments, *wrong)
    assert "There is no gallery" in refused(capsys, "identify", good, *options(tmp_path / "none", checkpoint))
    assert content(gallery) == before
    with pytest.raises(SystemExit) as wrong_flag:
        run(capsys, "enrol", "", good, *shared)
    assert wrong_flag.value.code == 2 and "name is empty" in capsys.readouterr().err


@pytest.mark.slow
def test_gallery_list_remove_export_and_import(tree, checkpoint, gallery, capsys, tmp_path):
    code, out, _ = run(capsys, "gallery", "list", f"--gallery={gallery}", "--json")
    assert code == 0 and json.loads(out)["models"] == {"s0": 2, ODD: 1}
    assert run(capsys, "gallery", "export", tmp_path / "out", f"--gallery={gallery}")[0] == 0
    exported = embedding_folder.load(tmp_path / "out")
    assert sorted(exported.speakers) == sorted(["s0", "s0", ODD])
    np.testing.assert_allclose(np.linalg.norm(exported.array, axis=1), 1, rtol=1e-6)
    assert "exists already" in refused(capsys, "gallery", "export", tmp_path / "out", f"--gallery={gallery}")
    copy = tmp_path / "copy"
    assert run(capsys, "gallery", "import", tmp_path / "out", f"--gallery={copy}")[0] == 0
    assert "enrolled already" in refused(capsys, "gallery", "import", tmp_path / "out", f"--gallery={copy}")
    probe = ("identify", tree / "s0" / "2.wav", "--threshold=0", "--json")
    found = [json.loads(run(capsys, *probe, *options(path, checkpoint))[1]) for path in (gallery, copy)]
    for one, two in zip(*(each["matches"] for each in found), strict=True):
        assert one["model"] == two["model"] and one["score"] == pytest.approx(two["score"], abs=1e-6)
    code, out, _ = run(capsys, "gallery", "remove", "s0", f"--gallery={copy}", "--json")
    assert code == 0 and json.loads(out)["gallery"] == {"models": 1, "utterances": 1}
    run(capsys, "gallery", "remove", ODD, f"--gallery={copy}")
    assert "is empty" in refused(capsys, "identify", tree / "s0" / "2.wav", *options(copy, checkpoint))


@pytest.mark.slow
def test_a_corpus_is_enrolled_from_its_embeddings(tree, checkpoint, capsys, tmp_path):
    assert embed.main([str(tree), f"--checkpoint={checkpoint}", f"--output={tmp_path / 'embeddings'}"]) == 0
    assert run(capsys, "gallery", "import", tmp_path / "embeddings", f"--gallery={tmp_path / 'gallery'}")[0] == 0
    model = rj.load(checkpoint)
    opened = rj.Gallery.open(tmp_path / "gallery", model)
    assert sorted(opened.models) == ["s0", "s1", "s2", "s3"] and opened.utterances == 12
    found = opened.identify(np.asarray(model.embed_file(tree / "s3" / "1.wav"))[None], best=1)
    assert found[0][0].model == "s3" and found[0][0].score == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_a_gallery_in_a_bucket(tree, checkpoint, capsys, tmp_path, monkeypatch):
    with bucket_server.served() as url:
        path = f"{bucket_server.make_bucket(url)}/voices"
        monkeypatch.setenv("REDIMNET_JAX_STAGING", str(tmp_path / "one"))
        assert run(capsys, "enrol", "s0", tree / "s0" / "0.wav", *options(path, checkpoint))[0] == 0
        assert "enrolled already" in refused(capsys, "enrol", "s0", tree / "s0" / "0.wav", *options(path, checkpoint))
        monkeypatch.setenv("REDIMNET_JAX_STAGING", str(tmp_path / "two"))
        assert run(capsys, "enrol", "s1", tree / "s1" / "0.wav", *options(path, checkpoint))[0] == 0
        monkeypatch.setenv("REDIMNET_JAX_STAGING", str(tmp_path / "three"))
        code, out, _ = run(capsys, "gallery", "list", f"--gallery={path}", "--json")
        assert code == 0 and json.loads(out)["models"] == {"s0": 1, "s1": 1}
