"""Embeddings of a corpus in a folder: what they are, and the same ones however often the work was stopped."""

import csv
import functools
import json
import shutil

import numpy as np
import pytest
import soundfile
import tiny
from fake_corpus import FakeCorpus
from refusals import refusal

from redimnet_jax import file_checksums, files, locks, names
from redimnet_jax.checkpoints import native
from redimnet_jax.cli import embed as embed_command
from redimnet_jax.cli import main as cli
from redimnet_jax.embedding import extract
from redimnet_jax.embedding import folder as embedding_folder
from redimnet_jax.embedding.segments import CropPolicy

WHOLE = CropPolicy()
LENGTHS = (4100, 9000, 3900, 8000, 7900, 3000)


@functools.cache
def model():
    return tiny.model()


class Noises(FakeCorpus):
    """Noises, the second of speaker id1; `broken` cannot be decoded, and read number `stop` is interrupted."""

    def __init__(self, broken=None, stop=None):
        super().__init__(LENGTHS, broken=broken)
        self.sessions = np.full(len(LENGTHS), -1)
        self.reads, self.stop = 0, stop

    def read(self, index, start=0, samples=None):
        self.reads += 1
        if self.reads == self.stop:
            raise KeyboardInterrupt
        super().read(index, start, samples)
        noise = np.random.default_rng(index).normal(0, 0.1, LENGTHS[index]).astype(np.float32)
        return noise[start : start + samples]


def embed(corpus, folder, crop_policy=WHOLE, dim=4, **more):
    wanted = embedding_folder.settings(model(), crop_policy, dim)
    finished = embedding_folder.check(folder, wanted)
    done = embedding_folder.embed(
        model(), corpus, folder, wanted, crop_policy=crop_policy, batch_seconds=0.5, workers=1, **more
    )
    return finished, done


def rows(folder):
    with open(folder / "index.tsv", newline="") as file:
        return list(csv.reader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    embed(Noises(), folder)
    return np.load(folder / "embeddings.npy")


@pytest.mark.slow
def test_command(tmp_path, capsys):
    for name, length in {"a/s/0": 8000, "a/s/1": 12000, "b/t/0": 16000}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(length).normal(0, 0.1, length)
        soundfile.write(tmp_path / f"{name}.wav", noise, 16000, subtype="FLOAT")
    native.save(model(), tmp_path / "weights")
    (tmp_path / "tree").mkdir()
    for speaker in "ab":
        (tmp_path / speaker).rename(tmp_path / "tree" / speaker)
    command = ["embed", str(tmp_path / "tree"), f"--checkpoint={tmp_path / 'weights'}"]
    command += [f"--output={tmp_path / 'out'}", "--dim=4"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "3 utterances, 0.00 h of audio" in out and "real-time factor" in out
    array = np.load(tmp_path / "out" / "embeddings.npy", mmap_mode="r")
    assert array.dtype == np.float32 and array.shape == (3, 4)
    header, *table = rows(tmp_path / "out")
    assert header == ["utterance", "speaker", "session", "seconds"]
    assert table == [
        ["a/s/0.wav", "a", "0", "0.5000"],
        ["a/s/1.wav", "a", "0", "0.7500"],
        ["b/t/0.wav", "b", "1", "1.0000"],
    ]
    signals = [soundfile.read(tmp_path / "tree" / name, dtype="float32")[0] for name, *_ in table]
    np.testing.assert_allclose(array, model().embed(signals, dim=4), atol=2e-5)
    facts = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert facts["weights_sha256"] == native.checksum(native.flat(model().network))
    assert facts["dim"] == 4 and facts["shape"] == [3, 4] and facts["tool"].startswith("redimnet_jax ")

    assert cli.main(command) == 0
    assert "already" in capsys.readouterr().out
    assert cli.main([*command[:-1], "--dim=8"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "other dim" in error


@pytest.mark.parametrize("name", ["dim", "windows", "speech", "dtype", "weights_sha256", "tool"])
def test_other_settings_are_refused(name, tmp_path):
    wanted = embedding_folder.settings(model(), WHOLE, 4)
    (tmp_path / "embeddings.json").write_text(json.dumps(wanted))
    assert not embedding_folder.check(tmp_path, wanted)
    assert f"other {name}" in refusal(embedding_folder.check, tmp_path, wanted | {name: "another"})


def test_an_interrupted_run_goes_on_to_the_same_result(whole, tmp_path):
    # A thread reads ahead, so the first batches are done only when the last ones are read.
    with pytest.raises(KeyboardInterrupt):
        embed(Noises(stop=len(LENGTHS)), tmp_path)
    assert not (tmp_path / "embeddings.npy").exists()
    done = json.loads((tmp_path / "embeddings.partial" / "complete.json").read_text())["rows"]
    assert 0 < done < len(LENGTHS)
    corpus = Noises()
    finished, report = embed(corpus, tmp_path)
    assert not finished and 1 <= corpus.reads == report.recordings < len(LENGTHS)
    np.testing.assert_array_equal(np.load(tmp_path / "embeddings.npy"), whole)
    assert not (tmp_path / "embeddings.partial").exists()


def test_what_cannot_be_read_is_listed_and_has_no_row(whole, tmp_path):
    _, done = embed(Noises(broken=2), tmp_path, max_bad=0.2)
    assert (done.unreadable, done.total) == (1, 5)
    name, reason = (tmp_path / "unreadable.txt").read_text().rstrip("\n").split("\t")
    assert name == "id2/2.wav" and "cannot be decoded" in reason
    assert [row[0] for row in rows(tmp_path)[1:]] == [f"id{i % 3}/{i}.wav" for i in (0, 1, 3, 4, 5)]
    array = np.load(tmp_path / "embeddings.npy")
    np.testing.assert_allclose(array, np.delete(whole, 2, axis=0), atol=2e-5)
    assert json.loads((tmp_path / "embeddings.json").read_text())["unreadable"] == 1


def test_too_much_that_cannot_be_read_is_refused(tmp_path):
    assert "id2/2.wav cannot be decoded" in refusal(embed, Noises(broken=2), tmp_path)
    assert not (tmp_path / "embeddings.npy").exists()


@pytest.mark.slow
def test_crops_have_an_axis(tmp_path):
    embed(Noises(), tmp_path, CropPolicy(0.2, 3))
    array = np.load(tmp_path / "embeddings.npy")
    assert array.shape == (len(LENGTHS), 3, 4)
    signal = Noises().read(1, 0, 9000)
    for crop, start in enumerate((0, 2900, 5800)):
        alone = model().embed(signal[start : start + 3200], dim=4)
        np.testing.assert_allclose(array[1, crop], alone, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(array, axis=-1), 1, atol=1e-6)


def test_an_array_of_unknown_origin_is_refused(tmp_path):
    (tmp_path / "embeddings.npy").write_bytes(b"")
    assert "embeddings.json" in refusal(embedding_folder.check, tmp_path, {})


def finished(folder):
    embedding_folder.embed(model(), Noises(broken=2), folder, wanted(), crop_policy=WHOLE, max_bad=0.2)
    return folder


def wanted():
    return embedding_folder.settings(model(), WHOLE, 4)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("intact"))


def test_a_finished_folder_is_read(intact):
    assert embedding_folder.check(intact, wanted())
    found = embedding_folder.load(intact)
    np.testing.assert_array_equal(found.array, np.load(intact / "embeddings.npy"))
    assert found.utterances == [f"id{i % 3}/{i}.wav" for i in (0, 1, 3, 4, 5)]
    assert found.speakers == ["id0", "id1", "id0", "id1", "id2"] and set(found.sessions.tolist()) == {-1}
    np.testing.assert_allclose(found.seconds, np.delete(LENGTHS, 2) / 16000, atol=1e-4)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["embeddings.npy", "index.tsv", "unreadable.txt", "embeddings.json"])
@pytest.mark.parametrize("how", ["flipped first", "flipped last", "cut", "longer", "empty", "missing"])
def test_a_damaged_folder_is_neither_finished_nor_read(name, how, intact, tmp_path):
    folder = shutil.copytree(intact, tmp_path / "copy")
    path = folder / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how.startswith("flipped"):
        flip(path, 5 if how == "flipped first" else -5)
    else:
        path.write_bytes({"cut": content[:-2], "longer": content + b"0", "empty": b""}[how])
    assert str(folder) in refusal(embedding_folder.check, folder, wanted())
    assert str(folder) in refusal(embedding_folder.load, folder)


def test_blocks_of_large_files_are_checked_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(file_checksums, "BLOCK", 10)
    path = files.write(tmp_path / "data", bytes(range(35)))
    kept = file_checksums.of(path)
    assert len(kept["blake2b"]) == 4
    file_checksums.verify(path, kept, "mend it")
    flip(path, 21)
    assert "bytes from 20 on; mend it" in refusal(file_checksums.verify, path, kept, "mend it")
    assert "malformed" in refusal(file_checksums.verify, path, kept | {"blake2b": []}, "mend it")


def test_an_unfinished_folder_is_not_read(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed(Noises(stop=1), tmp_path)
    assert "no finished embeddings" in refusal(embedding_folder.load, tmp_path)
    assert "no finished embeddings" in refusal(embedding_folder.load, tmp_path / "none")


@pytest.mark.parametrize("file", ["rows", "keys"])
def test_a_row_that_was_damaged_before_the_end_is_computed_anew(file, whole, tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        embed(Noises(stop=len(LENGTHS)), tmp_path)
    flip(tmp_path / "embeddings.partial" / file, 3)
    embed(Noises(), tmp_path)
    assert "damaged blocks" in caplog.text
    np.testing.assert_array_equal(np.load(tmp_path / "embeddings.npy"), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.json", "embeddings.npy", "index.tsv"]


def test_an_unfinished_array_of_an_earlier_version_is_computed_anew(whole, tmp_path, caplog):
    (tmp_path / "embeddings.json").write_text(json.dumps(wanted()))
    (tmp_path / "embeddings.partial.npy").write_bytes(b"1" * 100)
    embed(Noises(), tmp_path)
    assert "embeddings.partial.npy is of an earlier version" in caplog.text
    np.testing.assert_array_equal(np.load(tmp_path / "embeddings.npy"), whole)
    assert not (tmp_path / "embeddings.partial.npy").exists()


def test_names_of_any_bytes_come_back(tmp_path):
    class Odd(Noises):
        speakers = ("a\tb", "caf\udce9", '"c\u2028"')

        def name(self, index):
            return f"{self.speakers[index % 3]}/\n{index}.wav"

    corpus = Odd(broken=2)
    corpus.speakers = Odd.speakers
    embed(corpus, tmp_path, max_bad=0.2)
    found = embedding_folder.load(tmp_path)
    assert found.utterances == [corpus.name(i) for i in (0, 1, 3, 4, 5)]
    assert found.speakers == [corpus.speakers[i % 3] for i in (0, 1, 3, 4, 5)]
    [line] = (tmp_path / "unreadable.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert names.unquote(line.split("\t")[0]) == corpus.name(2)
    assert len((tmp_path / "index.tsv").read_text(encoding="utf-8").splitlines()) == 6


def test_a_finished_folder_is_not_begun_anew(intact, tmp_path):
    folder = shutil.copytree(intact, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    message = refusal(
        embedding_folder.embed, model(), Noises(broken=2), folder, wanted(), crop_policy=WHOLE, max_bad=0.2
    )
    assert "finished by another process" in message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_one_process_writes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed(Noises(stop=1), tmp_path)
    with locks.locked(tmp_path / "embeddings.partial"):
        assert "another process" in refusal(embed, Noises(), tmp_path)


@pytest.mark.parametrize("devices", [1, 3])
def test_plan(devices):
    lengths = np.random.default_rng(0).integers(2000, 200_000, 500)
    pieces = np.arange(100, 400)
    batches = extract.plan(lengths, pieces, 400_000, devices)
    assert sorted(np.concatenate([batch.segments for batch in batches]).tolist()) == pieces.tolist()
    sizes = [batch.size for batch in batches]
    assert sizes == sorted(sizes, reverse=True)
    assert len({(batch.size, batch.rows) for batch in batches}) == len(set(sizes))
    for batch in batches:
        assert 0 < len(batch.segments) <= batch.rows and batch.rows % devices == 0
        assert lengths[batch.segments].max() <= batch.size and batch.samples == lengths[batch.segments].sum()
        # Rows are rounded up by at most a quarter.
        assert batch.rows // devices * batch.size <= 1.25 * 400_000 + batch.size


def test_a_plan_for_tpus_has_few_programs():
    """Of two lengths an octave, with as many rows at least as a register has."""
    lengths = np.random.default_rng(0).integers(4 * 16000, 60 * 16000, 1000)
    batches = extract.plan(lengths, np.arange(1000), 240 * 16000, 4, on_tpu=True)
    assert sorted(np.concatenate([batch.segments for batch in batches]).tolist()) == list(range(1000))
    seconds = [batch.size / 16000 for batch in batches]
    assert sorted(set(seconds)) == [6, 8, 12, 16, 24, 32, 48, 64]
    assert len({(batch.size, batch.rows) for batch in batches}) == 8
    assert all(batch.rows >= 4 * 8 and batch.rows % 4 == 0 for batch in batches)
    (alone,) = extract.plan(lengths[:1], np.arange(1), 16000, 1, on_tpu=True)
    assert alone.rows == 8


def test_a_model_of_another_rate_is_refused():
    other = tiny.model(spec_params={"sample_rate": 8000, "f_max": 3800})
    assert "8000 Hz" in refusal(extract.pool_recordings, other, Noises())


def test_unknown_commands_are_refused(capsys):
    assert cli.main(["embeds"]) == 2 and "embeds" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0 and "embed " in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--crops=3"], ["--max_seconds=0"], ["--workers=x"], ["--batch_seconds=inf"]])
def test_flags_that_make_no_sense_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        embed_command.main(["tree", "--checkpoint=x", "--output=y", *flags])
    assert stop.value.code == 2 and "error" in capsys.readouterr().err
