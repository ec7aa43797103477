"""An audit finds what is planted, blames nobody else, and writes lists that are read back."""

import json
from pathlib import Path

import numpy as np
import pytest
from gaussian_voices import gaussian_voices
from refusals import refusal

from redimnet_jax.audit import findings, labels, output
from redimnet_jax.audit.findings import ALIAS, DUPLICATE, SECOND, WRONG

SPEAKERS, EACH = 20, 10


@pytest.fixture
def vectors():
    return gaussian_voices(SPEAKERS, EACH)[0]


def noise(index, start=0, samples=None):
    return np.random.default_rng(index).normal(size=4000).astype(np.float32)


def audit(vectors, speakers, sessions=None, read=noise):
    sessions = np.full(len(speakers), -1) if sessions is None else sessions
    return findings.audit(vectors, speakers, sessions, read, progress=False)


def test_correct_labels_are_left_alone(vectors):
    result = audit(vectors, np.repeat(np.arange(SPEAKERS), EACH))
    assert result.findings == [] and result.keep().all()


def test_wrong_labels_are_found_with_the_speaker(vectors):
    truth = np.repeat(np.arange(SPEAKERS), EACH)
    speakers = truth.copy()
    planted = [3, 44, 101, 199]
    speakers[planted] = (truth[planted] + 7) % SPEAKERS
    result = audit(vectors, speakers)
    assert sorted(finding.recording for finding in result.findings) == planted
    assert all(f.reason == WRONG and f.suspected == truth[f.recording] for f in result.findings)
    scores = [finding.score for finding in result.findings]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0
    assert result.counts() == {WRONG: 4, SECOND: 0, ALIAS: 0, DUPLICATE: 0}


def test_a_speaker_outside_the_corpus_is_unknown(vectors):
    stranger = gaussian_voices(1, 1, seed=99)[0]
    result = audit(np.concatenate([vectors, stranger]), np.append(np.repeat(np.arange(SPEAKERS), EACH), 4))
    (finding,) = result.findings
    assert (finding.recording, finding.reason, finding.suspected) == (SPEAKERS * EACH, WRONG, labels.UNKNOWN)


def test_names_of_one_speaker_and_speakers_of_one_name(vectors):
    truth = np.repeat(np.arange(SPEAKERS), EACH)
    speakers = truth.copy()
    speakers[26:30] = SPEAKERS  # four recordings of speaker 2
    speakers[66:70] = 5  # four recordings of speaker 6 among those of speaker 5
    result = audit(vectors, speakers)
    found = {finding.recording: finding for finding in result.findings}
    assert sorted(found) == [*range(26, 30), *range(66, 70)]
    assert all((found[row].reason, found[row].suspected) == (ALIAS, 2) for row in range(26, 30))
    assert all((found[row].reason, found[row].suspected) == (SECOND, 6) for row in range(66, 70))


def test_the_recordings_of_a_session_do_not_vouch_for_one_another(vectors):
    """A whole session under a wrong name is found, since what counts is the other sessions of the name."""
    speakers = np.repeat(np.arange(SPEAKERS), EACH)
    sessions = np.arange(len(speakers)) // 2
    speakers[56:58] = 9
    result = audit(vectors, speakers, sessions)
    assert {finding.recording for finding in result.findings} == {56, 57}


def test_observations():
    speakers = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    sessions = np.array([0, 0, 1, 2, 2, 3, -1, 4])
    groups = labels.observations(speakers, sessions)
    assert groups[0] == groups[1] != groups[2]  # two sessions
    assert len(set(groups[[3, 4]])) == 2  # a single session
    assert len(set(groups.tolist())) == 7 and groups.max() == 6


def test_a_copy_does_not_vouch_for_a_label(vectors):
    speakers = np.append(np.repeat(np.arange(SPEAKERS), EACH), [3, 3])
    twice = np.concatenate([vectors, vectors[80:81], vectors[80:81]])  # speaker 8, twice under the name 3

    def read(index, start=0, samples=None):
        return noise(80 if index >= len(vectors) else index)

    result = audit(twice, speakers, read=read)
    assert {(f.recording, f.reason) for f in result.findings} == {(200, WRONG), (201, WRONG)}


def test_the_copy_of_a_recording_is_left_out_once(vectors):
    speakers = np.append(np.repeat(np.arange(SPEAKERS), EACH), [8, 8])
    thrice = np.concatenate([vectors, vectors[80:81], vectors[80:81]])
    result = audit(thrice, speakers, read=lambda index, *_: noise(80 if index >= len(vectors) else index))
    assert [(f.recording, f.reason, f.suspected) for f in result.findings] == [
        (200, DUPLICATE, 8),
        (201, DUPLICATE, 8),
    ]
    assert all(finding.other in (80, 200) for finding in result.findings)


def test_a_speaker_with_one_recording_is_no_fault(vectors):
    alone = gaussian_voices(1, 1, seed=5)[0]
    speakers = np.append(np.repeat(np.arange(SPEAKERS), EACH), SPEAKERS)
    assert audit(np.concatenate([vectors, alone]), speakers).findings == []


def test_too_few_speakers_are_refused(vectors):
    assert refusal(audit, vectors, np.zeros(len(vectors), int)) == (
        "The corpus has one speaker, so there is nobody to confuse it with; give at least two."
    )
    assert "too few to compare voices" in refusal(audit, vectors[::EACH], np.arange(SPEAKERS))


class Files:
    """Utterances with names that need quotes."""

    speakers = ("a b", "c\td")
    labels = np.array([0, 0, 1])

    def __len__(self):
        return 3

    def name(self, index):
        return f"{self.speakers[self.labels[index]]}/ {index}.wav"

    def source(self, index):
        return Path("/data") / self.name(index)


def test_files_hold_the_findings_and_the_rest(tmp_path):
    found = [
        findings.Finding(2, WRONG, 0, 12.5),
        findings.Finding(1, DUPLICATE, 0, 0.98765, other=0),
    ]
    result = findings.Audit(found, np.zeros(3), findings.Duplicates(np.zeros((1, 2), int), np.ones(1), 5, 1))
    output.write(tmp_path, result, Files(), {"prior": 0.01})
    content = json.loads((tmp_path / "audit.json").read_text())
    assert content["counts"] == {WRONG: 1, SECOND: 0, ALIAS: 0, DUPLICATE: 1}
    assert (content["recordings"], content["kept"], content["prior"]) == (3, 1, 0.01)
    assert content["duplicates"] == {"compared": 5, "unread": 1}
    assert content["findings"][1]["other"] == "a b/ 0.wav"
    lines = (tmp_path / "listen.tsv").read_text().splitlines()
    assert lines[0].split("\t") == list(output.COLUMNS)
    assert lines[1].split("\t") == [r"$'c\td/\x202.wav'", r"$'c\td'", "a b", "12.5", WRONG]
    assert lines[2].split("\t")[4] == "duplicate of a b/ 0.wav"
    assert (tmp_path / "kept.txt").read_text() == "/data/a b/ 0.wav\ta b\n"
