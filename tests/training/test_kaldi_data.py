"""A run whose training data, and validation trials, are those of Kaldi folders."""

from pathlib import Path

import pytest
import training_runs
from refusals import refusal

from redimnet_jax.training.data import open_data


def kaldi(path: Path, tree: Path) -> Path:
    """Make a Kaldi folder of a tree, with every recording cut into two segments."""
    path.mkdir()
    names = sorted(tree.rglob("*.wav"))
    ids = ["-".join(name.relative_to(tree).with_suffix("").parts) for name in names]
    speakers = [name.relative_to(tree).parts[0] for name in names]
    (path / "wav.scp").write_text("".join(f"{i} {name}\n" for i, name in zip(ids, names, strict=True)))
    halves = [(f"{i}-{half}", i, speaker, half) for i, speaker in zip(ids, speakers, strict=True) for half in (0, 1)]
    (path / "utt2spk").write_text("".join(f"{name} {speaker}\n" for name, _, speaker, _ in halves))
    segments = (f"{name} {i} {0.3 * half:g} {0.3 * (half + 1):g}\n" for name, i, _, half in halves)
    (path / "segments").write_text("".join(segments))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kaldi")
    made = training_runs.write_data(folder)
    unseen = kaldi(folder / "kaldi_unseen", folder / "unseen")
    ids = [line.split()[0] for line in (unseen / "utt2spk").read_text().splitlines()]
    trials = folder / "trials"
    trials.write_text(f"{ids[0]} {ids[1]} target\n{ids[0]} {ids[-1]} nontarget\n")
    made.pop("validation.tree")
    made["data.train"] = str(kaldi(folder / "kaldi_train", folder / "train"))
    return made | {"validation.trials": str(trials), "validation.audio_root": str(unseen)}


def test_segments_train_and_are_validated_on(data, tmp_path):
    opened = open_data(training_runs.settings(data, data__min_seconds=0.2), tmp_path)
    assert len(opened.corpus) == 2 * 36 and len(opened.corpus.speakers) == 6
    assert set(opened.corpus.samples.tolist()) == {4800}
    assert opened.validation.speakers == ["speaker0006", "speaker0006", "speaker0009"]
    assert opened.validation.recordings.read(1).shape == (4800,)


def test_speakers_of_the_trials_are_refused_in_training(data, tmp_path):
    shared = data | {"data.train": data["validation.audio_root"]}
    settings = training_runs.settings(shared, data__min_seconds=0.2)
    assert "are training speakers too" in refusal(open_data, settings, tmp_path)
