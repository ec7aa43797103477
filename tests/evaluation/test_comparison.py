"""Another system's scores of the same trials."""

import hashlib

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import trials
from redimnet_jax.evaluation import comparison, confidence, score_file

SPEAKERS = 8


@pytest.fixture(scope="module")
def of():
    names = [f"{s}/{u}" for s in range(SPEAKERS) for u in range(3)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    left, right = map(list, zip(*pairs, strict=True))
    return trials.from_pairs(left, right, [a[0] == b[0] for a, b in pairs])


@pytest.fixture(scope="module")
def sides(of):
    return trials.speakers(of)[1:]


def scores(of, noise, seed):
    return (of.labels + noise * np.random.default_rng(seed).normal(size=(2, len(of)))).astype(np.float32)


@pytest.mark.slow
def test_trials_are_matched_by_name_in_any_order(of, sides, tmp_path):
    theirs, ours = scores(of, 2.0, 0), scores(of, 0.3, 1)
    order = np.random.default_rng(2).permutation(len(of))
    shuffled = trials.Trials(of.names, of.left[order], of.right[order], of.labels[order])
    path = score_file.write(tmp_path / "scores.tsv", shuffled, (4, 8), theirs[:, order])
    other = comparison.read(path, of)
    np.testing.assert_allclose(other.scores, theirs, rtol=1e-6)
    found = comparison.compare(other, ours, of.labels, (8, 16), sides, resamples=100, seed=3)
    wanted = confidence.compare(theirs[1], ours[0], of.labels, *sides, resamples=100, seed=3)
    assert found["other"] == str(path) and found["dims"].keys() == {"8"}
    figures = found["dims"]["8"]
    assert figures["difference"] == pytest.approx(wanted.difference[0]) and figures["difference"] < 0
    assert figures["ci95"] == pytest.approx(wanted.interval[0].tolist())
    assert figures["p_value"] == wanted.p_value[0] and figures["differs"] is True
    (row,) = comparison.table(found).rows
    assert row[0] == "8" and row[1].startswith("-") and row[-1] == "yes"


def test_other_trials_are_refused(of, tmp_path):
    fewer = trials.Trials(of.names, of.left[1:], of.right[1:], of.labels[1:])
    odd = trials.Trials(of.names, of.left, of.right, np.roll(of.labels, 1))
    for other in (fewer, odd):
        path = score_file.write(tmp_path / "scores.tsv", other, (4, 8), scores(other, 1.0, 0))
        assert "same trials" in refusal(comparison.read, path, of)


def test_other_dimensions_are_refused(of, tmp_path):
    path = score_file.write(tmp_path / "scores.tsv", of, (4, 8), scores(of, 1.0, 0))
    assert "4, 8, none of 16" in refusal(comparison.common_dims, comparison.read(path, of), (16,))


def test_scores_that_were_changed_are_refused(of, tmp_path):
    path = score_file.write(tmp_path / "scores.tsv", of, (4, 8), scores(of, 1.0, 0))
    beside = tmp_path / "scores.tsv.sha256"
    content = path.read_bytes()
    assert beside.read_text() == f"{hashlib.sha256(content).hexdigest()}  scores.tsv\n"
    for damaged in (content.replace(b".", b"1", 1), content[:-1], content + b"\n"):
        path.write_bytes(damaged)
        assert "does not match its checksum in scores.tsv.sha256" in refusal(comparison.read, path, of)
    path.write_bytes(content)
    comparison.read(path, of)
    beside.write_bytes(b"\xff")
    assert "does not match" in refusal(comparison.read, path, of)
    beside.unlink()  # as scores have it that were written elsewhere
    comparison.read(path, of)


def test_scores_are_written_over_others(of, tmp_path):
    for noise in (1.0, 2.0):
        path = score_file.write(tmp_path / "scores.tsv", of, (4, 8), scores(of, noise, 0))
    assert (comparison.read(path, of).scores == scores(of, 2.0, 0)).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\ta\tb\t0.5\n1\ta\tc\tnan\n", "Line 3"),
        ("1\ta\tb\t1e999\n", "not finite"),
        ("1\ta\tb\t1e39\n", "not finite"),
        ("1\t$'a\tb\t0\n", "quoted"),
    ],
)
def test_scores_that_are_none_are_refused(text, said, tmp_path):
    (tmp_path / "scores.tsv").write_text("label\tleft\tright\t8\n" + text)
    assert said in refusal(score_file.read, tmp_path / "scores.tsv")


def test_a_dimension_of_many_digits_is_none(tmp_path):
    (tmp_path / "scores.tsv").write_text(f"label\tleft\tright\t{'9' * 5000}\n")
    assert "does not begin with" in refusal(score_file.read, tmp_path / "scores.tsv")
