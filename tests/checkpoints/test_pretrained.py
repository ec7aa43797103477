"""The small backbone of the package: whole, small, attributed, and better than chance on voices it never heard."""

import numpy as np
import pytest

import redimnet_jax as rj
from redimnet_jax.checkpoints import pretrained
from redimnet_jax.data.synthetic import voices

BOTH = pytest.mark.parametrize("backbone", [pretrained.SMALL, pretrained.LIBRISPEECH], ids=lambda path: path.name)


@BOTH
def test_size_and_attribution(backbone):
    size = sum(path.stat().st_size for path in backbone.rglob("*") if path.is_file())
    assert size < 5e6
    assert "CC BY 4.0" in rj.load(backbone).source.licence
    assert "CC BY 4.0" in (backbone.parent / "README.md").read_text()


@BOTH
def test_voices_are_told_apart(tmp_path, backbone):
    voices.write_corpus(tmp_path / "voices", speakers=6, sessions=2, utterances=1, seconds=2.0)
    from redimnet_jax.data.corpus import open_corpus

    corpus = open_corpus(str(tmp_path / "voices"), cache_dir=None, progress=False)
    embeddings = rj.load(backbone).embed([corpus.read(i) for i in range(len(corpus))])
    cosines = np.array(embeddings @ embeddings.T)
    same = corpus.labels[:, None] == corpus.labels
    np.fill_diagonal(cosines, np.nan)
    assert np.nanmean(cosines[same]) > np.nanmean(cosines[~same]) + 0.2
