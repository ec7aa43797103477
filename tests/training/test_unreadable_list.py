"""Recordings that go bad while a run trains: replaced, counted, listed, and too many of them."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import training_runs
from fake_corpus import FakeCorpus
from refusals import refusal
from training_runs import config, history, same_bits, same_runs, saved, stop_at

from redimnet_jax.cli import train as train_command
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import html_report, plots
from redimnet_jax.training import data as training_data
from redimnet_jax.training import preemption, unreadable_list
from redimnet_jax.training import run as training_run
from redimnet_jax.training.steppers import LiveStepper
from redimnet_jax.training.unreadable_list import Unreadable

ONE_MAY_BE = {"data__max_bad": 0.03, "checkpoint__keep": 20}  # of 36
CACHED = {"cache__crops": 3, "cache__batch_size": 6}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(plots, "save", lambda *_: None)
    monkeypatch.setattr(html_report, "write", lambda *_: None)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    training_runs.write_data(folder)
    return folder


@pytest.fixture
def data(pristine, tmp_path):
    folder = shutil.copytree(pristine, tmp_path / "data")
    names = {"data.train": "train", "validation.tree": "unseen", "model.checkpoint": "pretrained"}
    return {setting: str(folder / name) for setting, name in names.items()}


def recordings(data) -> list[Path]:
    return sorted(Path(data["data.train"]).glob("*/*/*.wav"))


def spoil(path: Path) -> None:
    """Makes samples NaN, in place, so that an index of the folder stays valid."""
    waveform, rate = soundfile.read(path, dtype="float32")
    waveform[:-800] = np.nan
    soundfile.write(path, waveform, rate, subtype="FLOAT")


def index(wanted, *workdirs: Path) -> None:
    """Indexes the recordings while they are good."""
    for workdir in workdirs:
        training_data.open_data(training_runs.typed(wanted), workdir)


def listed(workdir: Path) -> list[str]:
    return [line.split("\t")[0] for line in (workdir / "unreadable.txt").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("cached", [{}, CACHED])
def test_a_bad_recording_is_replaced_also_in_a_resumed_run(cached, data, tmp_path, monkeypatch, caplog):
    bad = recordings(data)[7]
    wanted = config(data, **ONE_MAY_BE, **cached)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    index(wanted, whole, stopped)
    spoil(bad)
    training_run.train(wanted, whole)
    assert listed(whole) == [bad.relative_to(data["data.train"]).as_posix()]
    assert "unreadable: 1 training recording; see" in caplog.text
    for step in () if cached else (6, 10):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(preemption.Preempted):
                training_run.train(wanted, stopped)
    training_run.train(wanted, stopped)
    same_runs(whole, stopped, 12)
    assert listed(stopped) == listed(whole)


def remove(bad: list[Path], spare: Path) -> None:
    for path in bad:
        path.unlink()


def remove_and_index_anew(bad: list[Path], spare: Path) -> None:
    remove(bad, spare)
    os.utime(bad[0].parents[1])


def mend(bad: list[Path], spare: Path) -> None:
    for path in bad:
        shutil.copy(spare / path.relative_to(path.parents[2]), path)


def cut(bad: list[Path], spare: Path) -> None:
    """Leaves less of the recordings than the index says."""
    for path in bad:
        soundfile.write(path, soundfile.read(spare / path.relative_to(path.parents[2]))[0][:5000], 16000)


@pytest.mark.slow
@pytest.mark.parametrize("remedy", [remove, remove_and_index_anew, mend, cut])
def test_too_many_stop_with_a_checkpoint_and_the_run_goes_on_when_mended(remedy, data, pristine, tmp_path):
    bad = recordings(data)[7:9]
    wanted, workdir = config(data, **ONE_MAY_BE, heads__init="random", projection__init="random"), tmp_path / "run"
    index(wanted, workdir)
    for path in bad:
        spoil(path)
    told = refusal(training_run.train, wanted, workdir)
    assert "2 of 36" in told and "data.max_bad=0.03" in told and str(workdir / "unreadable.txt") in told
    assert sorted(listed(workdir)) == [path.relative_to(data["data.train"]).as_posix() for path in bad]
    steps = [int(folder.name) for folder in (workdir / "checkpoints").iterdir()]
    stopped = max(steps)
    assert saved(workdir, stopped)[1]["batches"]["step"] == stopped > 0
    if remedy is remove:  # What happens before a remedy is the same for all.
        assert refusal(training_run.train, wanted, workdir) == told
        assert max(int(folder.name) for folder in (workdir / "checkpoints").iterdir()) == stopped
    remedy(bad, pristine / "train")
    training_run.train(wanted, workdir)
    assert [entry["step"] for entry in history(workdir)] == [0, 4, 8, 12]
    assert all(np.isfinite(entry["loss"]) for entry in history(workdir)[1:])
    assert len(listed(workdir)) == (0 if remedy is mend else 2)
    # A whole run on what there was in the end, where that is what was mended.
    if remedy is remove_and_index_anew:
        assert refusal(
            training_run.train, config(data | {"data.train": str(pristine / "unseen")}, **ONE_MAY_BE), workdir
        )


@pytest.mark.slow
def test_the_limit_can_be_raised(data, tmp_path):
    start = {"heads__init": "random", "projection__init": "random"}
    index(config(data, **ONE_MAY_BE, **start), tmp_path / "run")
    for path in recordings(data)[7:9]:
        spoil(path)
    refusal(training_run.train, config(data, **ONE_MAY_BE, **start), tmp_path / "run")
    training_run.train(config(data, **ONE_MAY_BE | {"data__max_bad": 0.1}, **start), tmp_path / "run")
    assert [entry["step"] for entry in history(tmp_path / "run")] == [0, 4, 8, 12]


@pytest.mark.slow
def test_too_many_while_features_are_cached(data, tmp_path):
    """A run that has not begun goes on with the features of another corpus, whose labels are right."""
    bad = recordings(data)[7:9]
    wanted = config(data, **ONE_MAY_BE, **CACHED)
    index(wanted, tmp_path / "run")
    for path in bad:
        spoil(path)
    assert "2 of 36" in refusal(training_run.train, wanted, tmp_path / "run")
    remove_and_index_anew(bad, tmp_path)
    training_run.train(wanted, tmp_path / "run")
    fresh = tmp_path / "fresh"
    training_run.train(wanted, fresh)
    same_bits(saved(tmp_path / "run", 12)[0], saved(fresh, 12)[0])


@pytest.mark.slow
def test_a_cached_run_goes_on_after_recordings_were_removed(data, tmp_path, monkeypatch):
    """Its features are those from before, so it ends as if nothing had been removed."""
    wanted = config(data, **CACHED, **ONE_MAY_BE, checkpoint__every_steps=3)
    training_run.train(wanted, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run", symlinks=True)
    for step in (9, 12):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    remove_and_index_anew(recordings(data)[3:6], tmp_path)
    training_run.train(wanted, tmp_path / "run")
    same_runs(tmp_path / "whole", tmp_path / "run", 12)


@pytest.mark.slow
def test_a_validation_recording_that_goes_bad_costs_no_training(data, tmp_path, monkeypatch):
    wanted = config(data, parts=("backbone", "projection", "heads"), **ONE_MAY_BE)
    training_run.train(wanted, tmp_path / "whole")
    path = sorted(Path(data["validation.tree"]).glob("*/*/*.wav"))[3]
    aside = path.rename(tmp_path / "aside.wav")
    shutil.copy(aside, path)
    original = LiveStepper.run

    def run(self, state, frozen, begin, end):
        if begin == 2:
            path.unlink()
        return original(self, state, frozen, begin, end)

    with monkeypatch.context() as patch:
        patch.setattr(LiveStepper, "run", run)
        assert str(path) in refusal(training_run.train, wanted, tmp_path / "run")
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
    assert str(path) in refusal(training_run.train, wanted, tmp_path / "run")
    os.utime(path.parents[1])
    told = refusal(training_run.train, wanted, tmp_path / "run")
    assert "removed" in told and path.name in told and "restore" in told
    aside.rename(path)
    training_run.train(wanted, tmp_path / "run")
    same_runs(tmp_path / "whole", tmp_path / "run", 12)


@pytest.mark.slow
def test_noise_that_goes_away_costs_no_training(data, tmp_path, monkeypatch):
    noise, aside = tmp_path / "noise", tmp_path / "aside"
    noise.mkdir()
    soundfile.write(noise / "hum.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    start = {"heads__init": "random", "projection__init": "random"}
    wanted = config(data, **start, data__augment__noise_folder__folder=str(noise), data__augment__noise_folder__p=1.0)
    original = LiveStepper.run

    def run(self, state, frozen, begin, end):
        if begin == 1:
            noise.rename(aside)
        return original(self, state, frozen, begin, end)

    with monkeypatch.context() as patch:
        patch.setattr(LiveStepper, "run", run)
        assert "hum.wav" in refusal(training_run.train, wanted, tmp_path / "run")
    stopped = max(int(folder.name) for folder in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved(tmp_path / "run", stopped)[1]["batches"]["step"] == stopped > 0
    aside.rename(noise)
    training_run.train(wanted, tmp_path / "run")
    training_run.train(wanted, tmp_path / "whole")
    same_runs(tmp_path / "whole", tmp_path / "run", 12)


def test_check_decodes_everything(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    bad = recordings(data)[7:9]
    index(config(data), tmp_path / "run")
    for path in bad:
        spoil(path)
    flags = ["--check", "--config=configs/projection_only.py", f"--workdir={tmp_path / 'run'}"]
    flags += [f"--config.data.train={data['data.train']}", f"--config.validation.tree={data['validation.tree']}"]

    def check(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *flags, *more])
        return train_command.main(), *capsys.readouterr()

    code, out, err = check()
    assert code == 1 and "training: 2 of 36" in out and "validation: 0 of 24" in out
    for path in bad:
        assert f"{path.relative_to(data['data.train']).as_posix()}: " in out
    assert "more than data.max_bad=0.01" in err.splitlines()[-1] and bad[0].name in err.splitlines()[-1]
    code, out, err = check("--config.data.max_bad=0.1")
    assert code == 0 and "2 of 36" in out
    spoil(next(Path(data["validation.tree"]).glob("*/*/*.wav")))
    code, _, err = check("--config.data.max_bad=0.1")
    assert code == 1 and "validation" in err.splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


class Named(FakeCorpus):
    """Utterances whose names are those of `names`, of which those in `lost` cannot be read."""

    def __init__(self, names: list[str], lost: set[int]):
        super().__init__([1000] * len(names))
        self.names, self.lost = names, lost

    def name(self, index: int) -> str:
        return self.names[index]

    def removed(self, index: int) -> bool:
        return False

    def read(self, index: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        if index in self.lost:
            raise UserError(f"{self.name(index)} is lost; restore it.")
        return super().read(index, start, samples)


NAMES = [
    "a/tab\there.wav",
    "b/line\nend.wav",
    os.fsdecode(b"c/\xff\xfe.wav"),
    "d/back\\nslash.wav",
    "e/\u2028.wav",
    "f.wav",
]


def test_names_of_any_bytes_survive_in_the_list(tmp_path):
    corpus, path = Named(NAMES, set(range(5))), tmp_path / "unreadable.txt"
    first = Unreadable(path, corpus, 100, 1.0)
    said = first.note([(index, 10 * index) for index in range(5)] + [(0, 7)])
    assert len(said) == 5 and len(first) == 5
    for text in said:
        text.encode()
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 6 and all(line.count(b"\t") == 2 for line in lines[:-1])
    assert lines[2].startswith(b"c/\xff\xfe.wav\t20\t")
    again = Unreadable(path, corpus, 100, 1.0)
    assert len(again) == 5 and path.read_bytes().split(b"\n") == lines
    assert again.note([(index, 0) for index in range(5)]) == []
    # What can be read again, and what is not in the corpus, leaves the list.
    corpus.lost = {2}
    assert len(Unreadable(path, corpus, 100, 1.0)) == 1
    path.write_bytes(path.read_bytes() + b"nobody.wav\t3\twhy\n")
    assert len(Unreadable(path, corpus, 100, 1.0)) == 1 and path.read_bytes().count(b"\n") == 1


def test_the_limit_is_a_share_of_the_recordings(tmp_path):
    found = Unreadable(tmp_path / "list", Named(NAMES, {0, 1, 2}), 100, 0.34)
    found.note([(0, 0), (2, 16000)])
    assert found.excess() is None
    found.note([(1, 5)])
    told = found.excess()
    assert "3 of 6" in told and "0.34" in told and "is lost" in told and told.endswith(".")


def test_a_damaged_list_is_refused(tmp_path):
    path = tmp_path / "list"
    for line in (b"name\n", b"name\tmany\twhy\n", b"name\t1\n"):
        path.write_bytes(b"f.wav\t1\twhy\n" + line)
        assert f"{path}:2" in refusal(Unreadable, path, Named(NAMES, set()), 100, 0.1)


def test_a_long_list_is_printed_in_part(tmp_path):
    names = [f"{index}.wav" for index in range(30)]
    found = Unreadable(tmp_path / "list", Named(names, set(range(30))), 100, 1.0)
    said = found.note([(index, 0) for index in range(30)])
    assert len(said) == unreadable_list._MAX_REPORTED + 1 and "all are in" in said[-1]
    assert len(found) == 30


@pytest.mark.slow
def test_a_small_corpus_has_enough_crops_for_a_lossless_start(pristine, data, tmp_path, caplog):
    small = tmp_path / "small"
    for path in recordings(data)[:18:3]:
        (small / path.parent.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, small / path.parent.parent.name / f"{path.parent.name}-{path.name}")
    wanted = config(data | {"data.train": str(small)}, batch_size=2, epochs=1, cache__crops=1, cache__batch_size=6)
    training_run.train(wanted, tmp_path / "run")
    assert "lossless start" in caplog.text
