"""The small backbone of the package: whole, small, attributed, and better than chance on voices it never heard."""

import numpy as np

import redimnet_jax as rj
from redimnet_jax.checkpoints import pretrained
from redimnet_jax.data.synthetic import voices


def test_size_and_attribution():
    size = sum(path.stat().st_size for path in pretrained.SMALL.rglob("*") if path.is_file())
    assert size < 5e6
    assert "CC BY 4.0" in rj.load(pretrained.SMALL).source.licence
    assert "CC BY 4.0" in (pretrained.SMALL.parent / "README.md").read_text()


def test_voices_are_told_apart(tmp_path):
    voices.write_corpus(tmp_path / "voices", speakers=6, sessions=2, utterances=1, seconds=2.0)
    from redimnet_jax.data.corpus import open_corpus

    corpus = open_corpus(str(tmp_path / "voices"), cache_dir=None, progress=False)
    embeddings = rj.load(pretrained.SMALL).embed([corpus.read(i) for i in range(len(corpus))])
    cosines = np.array(embeddings @ embeddings.T)
    same = corpus.labels[:, None] == corpus.labels
    np.fill_diagonal(cosines, np.nan)
    assert np.nanmean(cosines[same]) > np.nanmean(cosines[~same]) + 0.2
