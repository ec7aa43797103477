"""CN-Celeb's folders, names and lists."""

from pathlib import Path

import audio_files
import pytest
from refusals import refusal

from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.evaluation import protocol
from redimnet_jax.utterance_speakers import rule

PATTERN = "(id[0-9]{5})"


@pytest.fixture(scope="module")
def cn_celeb(tmp_path_factory):
    """Two training speakers, and two of the trials, whose lists say .wav as those of CN-Celeb do."""
    root = tmp_path_factory.mktemp("CN-Celeb_flac")
    seed = 0
    for speaker in ("id00000", "id00001", "id00800", "id00801"):
        for name in ("singing-01-001", "live_broadcast-02-003"):
            seed += 1
            waveform = audio_files.voice(12000, seed=seed)
            audio_files.write(root / "data" / speaker / f"{name}.flac", waveform)
            if speaker >= "id00800":
                audio_files.write(root / "eval" / "test" / f"{speaker}-{name}-x.flac", waveform[:9000])
        if speaker >= "id00800":
            audio_files.write(
                root / "eval" / "enroll" / f"{speaker}-enroll.flac", audio_files.voice(20000, seed=seed)
            )
    lists = root / "eval" / "lists"
    lists.mkdir()
    (root / "dev").mkdir()
    (root / "dev" / "dev.lst").write_text("id00000\nid00001\n")
    (lists / "enroll.lst").write_text("".join(f"id0080{i}-enroll enroll/id0080{i}-enroll.wav\n" for i in (0, 1)))
    utterances = "id0080{0}/singing-01-001.wav id0080{0}/live_broadcast-02-003.wav"
    (lists / "enroll.map").write_text("".join(f"id0080{i}-enroll {utterances.format(i)}\n" for i in (0, 1)))
    rows = [(i, j) for i in (0, 1) for j in (0, 1)]
    (lists / "trials.lst").write_text(
        "".join(f"id0080{i}-enroll test/id0080{j}-singing-01-001-x.wav {int(i == j)}\n" for i, j in rows)
    )
    return root


def test_training_speakers_are_those_of_the_list(cn_celeb):
    corpus = open_corpus(cn_celeb, cache_dir=None, progress=False)
    assert corpus.speakers == ("id00000", "id00001")
    assert corpus.name(0) == "id00000/live_broadcast-02-003.flac" and len(corpus) == 4
    assert open_corpus(cn_celeb / "data", cache_dir=None, progress=False).speakers[-1] == "id00801"


def test_a_listed_speaker_without_recordings_is_counted(cn_celeb, tmp_path):
    other = tmp_path / "CN-Celeb2_flac"
    other.mkdir()
    (other / "data").symlink_to(cn_celeb / "data")
    (other / "spk.lst").write_text("id00000\nid99999\n")
    assert "1 speaker without usable audio such as id99999" in refusal(
        open_corpus, other, cache_dir=None, progress=False
    )
    (other / "spk.lst").write_text("\n")
    assert "names no speaker" in refusal(open_corpus, other, cache_dir=None, progress=False)


@pytest.mark.parametrize(("enrolment", "roots"), [("enroll.lst", ["eval"]), ("enroll.map", ["eval", "data"])])
def test_trials_of_models(enrolment, roots, cn_celeb, caplog):
    lists: Path = cn_celeb / "eval" / "lists"
    caplog.set_level("INFO", "redimnet_jax")
    trial_set = protocol.from_list(
        lists / "trials.lst",
        [cn_celeb / root for root in roots],
        speaker_rule=rule(pattern=PATTERN),
        models=protocol.read_models(lists / enrolment),
    )
    protocol.check(trial_set)
    assert trial_set.trials.labels.tolist() == [True, False, False, True]
    assert trial_set.speakers == ["id00800", "id00801"] * 2
    assert "recordings are .wav in the list, and .flac files of the same names" in caplog.text
