"""Rank-1 and FNIR at a fixed FPIR against a plain search, trial by trial."""

import numpy as np
import pytest

from redimnet_jax import trials
from redimnet_jax.evaluation import identification
from redimnet_jax.evaluation.protocol import Enrolment, TrialSet

DIMS = (4, 6)


def trial_set(counts, enrolment=None):
    """All pairs of so many recordings of each speaker, in an order that is not that of the names."""
    names = [f"{speaker}/{i}" for i in reversed(range(max(counts))) for speaker, n in enumerate(counts) if i < n]
    pairs = [(x, y) for i, x in enumerate(names) for y in names[:i]]
    listed = trials.from_pairs([x for x, _ in pairs], [y for _, y in pairs], [x[0] == y[0] for x, y in pairs])
    return TrialSet(listed, None, [name[0] for name in listed.names], "a list", enrolment=enrolment)


def embeddings_of(chosen, crops=1, spread=1.0):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 6))
    rows = [centres[int(name[0])] + spread * rng.normal(size=(crops, 6)) for name in chosen.trials.names]
    return np.array(rows, np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def plain(embeddings, names, gallery, dim, fpir):
    """(rank-1, FNIR) of every recording that is not enrolled, searched for one by one."""
    units = unit(embeddings[..., :dim].astype(np.float64))
    entries = {
        s: unit(np.mean([units[names.index(n)].mean(axis=0) for n in of], axis=0)) for s, of in gallery.items()
    }
    enrolled = [name for of in gallery.values() for name in of]
    probes = [name for name in names if name not in enrolled]
    scores = [{s: float(units[names.index(p)].mean(axis=0) @ e) for s, e in entries.items()} for p in probes]
    own = np.array([each[p[0]] for p, each in zip(probes, scores, strict=True)])
    other = np.array([max(v for s, v in each.items() if s != p[0]) for p, each in zip(probes, scores, strict=True)])
    # Every distinct threshold is tried; the lowest with few enough false positives is kept.
    candidates = np.sort(np.concatenate([own, other, [np.inf]]))
    threshold = next(t for t in candidates if np.mean(other >= t) <= fpir)
    return np.mean(own > other), np.mean(~((own > other) & (own >= threshold))), threshold


@pytest.mark.parametrize(("crops", "enrolled"), [(1, 1), (3, 2)])
def test_figures_are_those_of_a_plain_search(crops, enrolled):
    chosen = trial_set([7, 4, 6, 1, 5])
    embeddings = embeddings_of(chosen, crops)
    names = chosen.trials.names
    gallery = {s: [f"{s}/{i}" for i in range(enrolled) if f"{s}/{i}" in names] for s in "01234"}
    found = identification.figures(embeddings, chosen, DIMS, enrol_utterances=enrolled, resamples=20)
    probes = len(names) - sum(map(len, gallery.values()))
    assert (found["gallery"], found["searches"]) == (5, probes)
    for dim in DIMS:
        rank1, fnir, threshold = plain(embeddings, names, gallery, dim, 0.1)
        entry = found["dims"][str(dim)]
        assert entry["rank1"] == pytest.approx(rank1) and entry["fnir"]["0.1"] == pytest.approx(fnir)
        assert 0 < rank1 < 1 and entry["threshold"]["0.1"] == pytest.approx(threshold, abs=1e-5)
        assert entry["rank1_ci95"][0] <= entry["rank1"] <= entry["rank1_ci95"][1]
        # One search in a hundred cannot be counted among fewer.
        assert entry["fnir"]["0.01"] is entry["threshold"]["0.01"] is None
    assert "at least 100 searches" in found["reason"]
    rows = identification.table(found).rows
    assert [row[0] for row in rows] == ["4", "6"] and rows[0][3] == "–"


def test_models_are_the_gallery_and_the_best_of_a_speakers_models_counts():
    names = ["m", "n", "o", "0/5", "1/5", "2/5"]
    listed = trials.from_pairs(["m", "n", "o"], ["0/5", "1/5", "2/5"], [True, False, True])
    assert listed.names == names
    enrolment = Enrolment(np.array([0, 0, 1, 2, 3, 4, 5]), np.arange(7), np.array([True] * 3 + [False] * 3))
    chosen = TrialSet(listed, None, ["0", "0", "2", "0", "1", "2"], "a list", enrolment=enrolment)
    found = identification.searches(chosen, 1)
    assert found.gallery == 2 and found.probes.tolist() == [4, 6]  # Nobody enrolled the speaker of 5.
    angles = np.array([0, 20, 60, 90, 65, 180, 85]) * np.pi / 180
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None].astype(np.float32)
    own, other = identification._best_scores(embeddings, found, 2)
    np.testing.assert_allclose(own, np.cos(np.array([5, 5]) * np.pi / 180), atol=1e-6)
    np.testing.assert_allclose(other, np.cos(np.array([25, 25]) * np.pi / 180), atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "said"), [([5], "fewer than two speakers"), ([1, 1, 1], "no enrolled speaker has")]
)
def test_where_there_is_nothing_to_search_the_reason_is_given(counts, said):
    chosen = trial_set(counts)
    assert said in identification.figures(embeddings_of(chosen), chosen, DIMS)["reason"]


def test_the_first_recordings_by_name_are_enrolled():
    chosen = trial_set([3, 12])
    found = identification.searches(chosen, 2)
    assert [chosen.trials.names[i] for i in sorted(found.recordings, key=chosen.trials.names.__getitem__)] == [
        "0/0",
        "0/1",
        "1/0",
        "1/1",
    ]
    assert len(found.probes) == 11


def test_ties_are_against_the_system():
    own, other = np.array([0.5, 0.9, 0.4]), np.array([0.5, 0.9, 0.1])
    rank1, strict, lenient = identification._rates(own, other, np.ones((1, 3), int))[0]
    assert rank1 == pytest.approx(1 / 3) and strict == lenient == 1
