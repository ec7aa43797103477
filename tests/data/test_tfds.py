"""A corpus written to a TFDS data set and read back: the same corpus, without TensorFlow."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from audio_files import voice, write
from refusals import refusal

from redimnet_jax.cli import tfds as tfds_command
from redimnet_jax.data import tfds as tfds_corpus
from redimnet_jax.data.corpus import open_corpus

FILES = ("id1/s1/a.wav", "id1/s1/b.flac", "id1/s2/a.m4a", "id2/s1/a.ogg", "id2/s1/b.mp3", "id3/é.wav", "id3/z.opus")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for number, name in enumerate(FILES):
        write(folder / name, voice(9600 + 160 * number, seed=number))
    write(folder / "id1" / "short.wav", voice(100))
    return folder


@pytest.fixture(scope="module")
def data_dir(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    arguments = [f"--source={tree}", f"--data_dir={folder}", "--name=small", "--max_bad=0.2"]
    assert tfds_command.main(arguments) == 0
    return folder


def opened(source, **options):
    return open_corpus(str(source), **({"cache_dir": None, "progress": False, "max_bad": 0.2} | options))


def test_the_data_set_is_the_corpus_it_was_written_from(tree, data_dir, tmp_path):
    from_tree = opened(tree)
    for cache_dir in (None, tmp_path, tmp_path):
        corpus = opened("tfds:speaker_corpus/small", data_dir=data_dir, cache_dir=cache_dir)
        assert corpus.digest == from_tree.digest and len(corpus) == len(FILES)
        assert corpus.speakers == from_tree.speakers
        assert [corpus.name(i) for i in range(len(corpus))] == sorted(FILES)
        np.testing.assert_array_equal(corpus.labels, from_tree.labels)
        np.testing.assert_array_equal(corpus.sessions, from_tree.sessions)
        np.testing.assert_array_equal(corpus.samples, from_tree.samples)
        for i in reversed(range(len(corpus))):
            assert not corpus.seeks(i)
            np.testing.assert_array_equal(corpus.read(i), from_tree.read(i))
            np.testing.assert_array_equal(corpus.read(i, 3000, 500), from_tree.read(i, 3000, 500))
    assert len(list(tmp_path.glob("index-*"))) == 1


@pytest.mark.slow
def test_a_corpus_is_pickled_and_read_in_another_process(data_dir, tmp_path):
    corpus = opened("tfds:speaker_corpus/small:train", data_dir=data_dir, cache_dir=tmp_path)
    expected = corpus.read(4)
    content = pickle.dumps(corpus)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).read(4), expected)
    (tmp_path / "corpus").write_bytes(content)
    code = (
        "import pickle, pathlib, sys\n"
        "corpus = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(corpus.read(4).sum(), *(name in sys.modules for name in ('tensorflow', 'torch', 'apache_beam')))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "corpus")]
    total, *unwanted = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(total) == pytest.approx(float(expected.sum())) and unwanted == ["False"] * 3


def test_min_seconds_also_holds_for_records(data_dir):
    corpus = opened("tfds:speaker_corpus/small", data_dir=data_dir, min_seconds=0.605, max_bad=0.5)
    assert len(corpus) == 6 and "1 too short such as id1/s1/a.wav" in corpus.summary


def test_what_cannot_be_opened(data_dir, tmp_path):
    message = refusal(opened, "tfds:speaker_corpus/small:test", data_dir=data_dir)
    assert "has the splits train; give one as tfds:speaker_corpus/small:SPLIT" in message
    for name in ("speaker_corpus/none", "none/small", "not, a name", "mnist"):
        assert f"There is no data set {name} in {data_dir}" in refusal(opened, f"tfds:{name}", data_dir=data_dir)


def test_another_kind_of_data_set_is_refused(tmp_path):
    import tensorflow_datasets as tfds

    class Other(tfds.core.GeneratorBasedBuilder):
        VERSION, code_path = tfds.core.Version("1.0.0"), None

        def _info(self):
            features = tfds.features.FeaturesDict({"audio": tfds.features.Scalar(np.object_)})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield "x", {"audio": b"x"}

    Other(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    assert "The data set other has no 'name' in its records" in refusal(opened, "tfds:other", data_dir=tmp_path)


def test_the_command_line(tree, data_dir, tmp_path, capsys):
    arguments = [f"--source={tree}", f"--data_dir={data_dir}", "--name=small", "--max_bad=0.2"]
    assert tfds_command.main(arguments) == 1
    assert "exists already and is never overwritten" in capsys.readouterr().err
    for wrong in ("--name=a/b", "--split=a:b"):
        assert tfds_command.main([*arguments, wrong]) == 1
        assert "cannot name a data set or a split" in capsys.readouterr().err
    assert tfds_command.main(arguments[:2] + ["--name=strict"]) == 1
    assert "1 too short such as id1/short.wav" in capsys.readouterr().err
    listing = tmp_path / "l.txt"
    listing.write_text("id1/s1/a.wav one\nid2/s1/a.ogg two\n")
    arguments = [f"--source={listing}", f"--audio_root={tree}", f"--data_dir={tmp_path}", "--split=eval"]
    assert tfds_command.main(arguments) == 0
    out, err = capsys.readouterr()
    assert f"Written: tfds:speaker_corpus/default:eval, with data_dir {tmp_path}" in out and "2/2" in err
    corpus = opened("tfds:speaker_corpus/default:eval", data_dir=tmp_path)
    assert corpus.speakers == ("one", "two")
    assert corpus.digest == opened(listing, audio_root=tree).digest


def test_beam_is_asked_for_by_name_when_it_is_missing(tree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    message = refusal(
        *(tfds_corpus.build, tree, tmp_path, "beam"),
        beam_options=["runner=DirectRunner"],
        cache_dir=None,
        max_bad=0.2,
    )
    assert "Apache Beam cannot be imported" in message and "install apache-beam" in message


def test_beam_writes_the_same_data_set(tree, tmp_path):
    pytest.importorskip("apache_beam")
    written = tfds_corpus.build(
        *(tree, tmp_path, "beam"), beam_options=["runner=DirectRunner"], cache_dir=None, max_bad=0.2
    )
    assert opened(written, data_dir=tmp_path).digest == opened(tree).digest
