"""Who is nearest: shortlists against exhaustive search, and scores against those of `scoring`."""

import numpy as np
import pytest
from gallery_data import DIM, WEIGHTS, utterances

from redimnet_jax import scoring
from redimnet_jax.embedding import codes
from redimnet_jax.errors import UserError
from redimnet_jax.gallery import gallery as gallery_module
from redimnet_jax.gallery import shortlist
from redimnet_jax.gallery.changes import writing
from redimnet_jax.gallery.gallery import Gallery, Method
from redimnet_jax.gallery.manifest import Weights
from redimnet_jax.gallery.shortlist import Shortlist
from redimnet_jax.gallery.utterances import joined

COUNTS = [1, 2, 3, 5, 1, 4, 2]
PARTS = [utterances(f"m{number}", count) for number, count in enumerate(COUNTS)]
ALL = joined(PARTS)
QUERIES = np.concatenate([utterances(f"m{number}", 2, first=50).vectors for number in (3, 5)])
FORMS = [Method("binary"), Method("int8"), Method("float32", 8), Method("float32", DIM)]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    path = tmp_path_factory.mktemp("gallery")
    with writing(path, WEIGHTS) as writer:
        writer.enrol(joined(PARTS[:4]))
        for part in PARTS[4:]:
            writer.enrol(part)
    opened = Gallery.open(path, WEIGHTS)
    assert len(opened.segments) > 1
    return opened


def pairs_with_all() -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(np.arange(len(QUERIES)), len(ALL)), len(QUERIES) + np.tile(np.arange(len(ALL)), len(QUERIES))


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("dim", [8, None])
def test_search_ranks_utterances_by_the_scores_of_scoring_to_the_bit(gallery, method, dim):
    every = np.concatenate([QUERIES, ALL.vectors])
    scores = np.asarray(scoring.score_trials(every, *pairs_with_all(), (dim or DIM,))).reshape(len(QUERIES), -1)
    found = gallery.search(QUERIES, top=5, dim=dim, method=method)
    for matches, row in zip(found, scores, strict=True):
        order = np.argsort(-row)[:5]
        assert [match.utterance for match in matches] == [ALL.names[place] for place in order]
        assert [match.model for match in matches] == [ALL.models[place] for place in order]
        assert [match.score for match in matches] == row[order].tolist()


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("dim", [8, None])
def test_identify_by_the_mean_is_enrolment_by_group_means_to_the_bit(gallery, method, dim):
    width = dim or DIM
    means = np.asarray(scoring.group_means(ALL.vectors, np.repeat(np.arange(len(COUNTS)), COUNTS), width))
    table = np.concatenate([QUERIES[:, :width], means])
    left = np.repeat(np.arange(len(QUERIES)), len(COUNTS))
    right = len(QUERIES) + np.tile(np.arange(len(COUNTS)), len(QUERIES))
    scores = np.asarray(scoring.score_trials(table, left, right, (width,))).reshape(len(QUERIES), -1)
    found = gallery.identify(QUERIES, top=3, dim=dim, method=method)
    for matches, row in zip(found, scores, strict=True):
        order = np.argsort(-row)[:3]
        assert [match.model for match in matches] == [f"m{place}" for place in order]
        assert [match.score for match in matches] == row[order].tolist()
    assert [matches[0].model for matches in found] == ["m3", "m3", "m5", "m5"]


@pytest.mark.parametrize("best", [1, 2, 9])
def test_identify_by_the_best_utterances(gallery, best):
    every = np.concatenate([QUERIES, ALL.vectors])
    scores = np.asarray(scoring.score_trials(every, *pairs_with_all(), (DIM,))).reshape(len(QUERIES), -1)
    found = gallery.identify(QUERIES, top=100, best=best)
    for matches, row in zip(found, scores, strict=True):
        wanted = {
            f"m{number}": np.sort(row[[model == f"m{number}" for model in ALL.models]])[::-1][:best].mean()
            for number in range(len(COUNTS))
        }
        assert [match.model for match in matches] == sorted(wanted, key=wanted.get, reverse=True)
        np.testing.assert_allclose(
            [match.score for match in matches], sorted(wanted.values(), reverse=True), atol=1e-6
        )
        if best == 1:
            assert [match.score for match in matches] == sorted((float(v) for v in wanted.values()), reverse=True)


def test_dims_of_a_calibration_set_the_order_of_sums(gallery):
    dims = (4, 8, DIM)
    every = np.concatenate([QUERIES, ALL.vectors])
    scores = np.asarray(scoring.score_trials(every, *pairs_with_all(), dims)[1]).reshape(len(QUERIES), -1)
    found = gallery.identify(QUERIES, best=1, dim=8, dims=dims)
    assert [matches[0].score for matches in found] == scores.max(axis=1).tolist()


def test_scores_do_not_depend_on_other_queries_or_on_blocks(gallery, monkeypatch):
    together = [gallery.identify(QUERIES, top=4, best=best) for best in (None, 2)]
    monkeypatch.setattr(gallery_module, "_BLOCK_UTTERANCES", 3)
    for best, found in zip((None, 2), together, strict=True):
        assert found == [gallery.identify(query[None], top=4, best=best)[0] for query in QUERIES]


def test_a_short_shortlist_leaves_only_its_own(gallery):
    assert len(gallery.search(QUERIES, top=2, method=Method(count=2))[0]) == 2
    assert len(gallery.search(QUERIES, top=5, method=Method(count=2))[0]) == 5  # as many as are asked for
    assert len(gallery.identify(QUERIES, top=99)[0]) == len(COUNTS)


@pytest.mark.parametrize("form", codes.FORMS)
@pytest.mark.parametrize("rows", [1, 5, 1024, 3000])
def test_shortlists_are_exact_by_their_own_scores(monkeypatch, form, rows):
    """Several blocks, a last block that is not full, and columns that are chosen first."""
    monkeypatch.setattr(shortlist, "BLOCK_ROWS", 1024)
    rng = np.random.default_rng(rows)
    table = rng.standard_normal((rows, 40)).astype(np.float32)
    queries = rng.standard_normal((3, 40)).astype(np.float32)
    arrays = np.array_split(codes.encode(table, 40, form), 3)
    found = Shortlist(arrays, form, 16).find(queries, 7)
    left, right = (codes.decode(codes.encode(rows, 40, form), 40, form)[:, :16] for rows in (queries, table))
    right = right / np.linalg.norm(right, axis=1, keepdims=True)
    scores = left @ right.T
    count = min(7, rows)
    assert found.shape == (3, count)
    for row, chosen in zip(scores, found, strict=True):
        assert len(set(chosen.tolist())) == count
        # Binary scores are often equal, so that several results are right.
        np.testing.assert_allclose(row[chosen], np.sort(row)[::-1][:count], atol=1e-4)


def test_many_queries_are_cut_into_batches(monkeypatch):
    table = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    monkeypatch.setattr(shortlist, "MAX_QUERIES", 4)
    found = Shortlist([table], "float32", 8).find(table[:11], 1)
    np.testing.assert_array_equal(found[:, 0], np.arange(11))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top is 0"),
        ({"best": 0}, "best is 0"),
        ({"dim": 99}, "dims has 99"),
        ({"method": Method(dim=99)}, "dims has 99"),
    ],
)
def test_wrong_options_are_sentences(gallery, options, message):
    with pytest.raises(UserError, match=message):
        gallery.identify(QUERIES, **options)


def test_a_gallery_may_have_fewer_dimensions_than_the_model(tmp_path):
    narrow = Weights("weights", "config", "float32", 8)
    with writing(tmp_path, narrow) as writer:
        writer.enrol(ALL)
    opened = Gallery.open(tmp_path, WEIGHTS)
    cut = [[match.score for match in opened.search(rows, top=3)[0]] for rows in (QUERIES[:1], QUERIES[:1, :8])]
    assert cut[0] == cut[1] and opened.vectors(np.arange(3)).shape == (3, 8)
    with writing(tmp_path / "wide", WEIGHTS) as writer:
        writer.enrol(ALL)
    with pytest.raises(UserError, match="of another model .other dim."):
        Gallery.open(tmp_path / "wide", narrow)


def test_wrong_embeddings_are_sentences(gallery):
    with pytest.raises(UserError, match="Embeddings have 3 dimensions but the gallery .* has 24"):
        gallery.identify(np.ones((1, 3), np.float32))
    with pytest.raises(UserError, match="NaN or Inf"):
        gallery.identify(np.full((1, DIM), np.nan, np.float32))
    with pytest.raises(UserError, match="at least 1"):
        Method(count=0)
    with pytest.raises(UserError, match="x is not enrolled"):
        gallery.rows_of("x")
