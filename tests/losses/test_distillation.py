"""Distances of a student from its teacher, against plain loops; and what no gradient reaches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import training_runs
from flax import nnx
from refusals import refusal
from training_runs import config, history, saved

import redimnet_jax as rj
from redimnet_jax.checkpoints import native
from redimnet_jax.evaluation import plots
from redimnet_jax.losses import distillation
from redimnet_jax.losses.heads import Heads
from redimnet_jax.training import run as training_run
from redimnet_jax.training.partition import TrainableModel, TrainablePartition

DIMS = (2, 3, 5)
RNG = np.random.default_rng(0)
STUDENT = RNG.standard_normal((6, 5)).astype(np.float32)
TEACHER = RNG.standard_normal((6, 4)).astype(np.float32)


def cosine(a, b) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt(a @ a * (b @ b)))


def test_scores():
    pairs = list(itertools.permutations(range(6), 2))
    squares = [
        (cosine(STUDENT[i, :dim], STUDENT[j, :dim]) - cosine(TEACHER[i], TEACHER[j])) ** 2
        for dim in DIMS
        for i, j in pairs
    ]
    found = jax.jit(distillation.score_distance, static_argnums=2)(STUDENT, TEACHER, DIMS)
    assert float(found) == pytest.approx(np.mean(squares), rel=1e-5)
    assert float(distillation.score_distance(3.0 * TEACHER, TEACHER, (4,))) == pytest.approx(0.0, abs=1e-12)


def test_embeddings():
    wanted = np.mean([1 - cosine(a[:4], b) for a, b in zip(STUDENT, TEACHER, strict=True)])
    assert float(distillation.embedding_distance(STUDENT, TEACHER)) == pytest.approx(wanted, rel=1e-5)
    longer = np.concatenate([2.0 * TEACHER, STUDENT], axis=1)
    assert float(distillation.embedding_distance(longer, TEACHER)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "distance", [lambda s, t: distillation.score_distance(s, t, DIMS), distillation.embedding_distance]
)
def test_the_teacher_is_taught_nothing(distance):
    student, teacher = jax.grad(distance, argnums=(0, 1))(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    assert not np.asarray(teacher).any() and np.isfinite(student).all() and np.asarray(student).any()


@pytest.mark.slow
def test_no_filter_reaches_the_teacher():
    learner = TrainableModel(tiny.model().network, Heads(3, tiny.DIMS, rngs=nnx.Rngs(0)), tiny.model().network)
    names = TrainablePartition(learner, ("*",)).names
    assert names["params"] and names["stats"]
    assert not [name for group in names.values() for name in group if name.startswith("teacher.")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


def student(data, **changes):
    nothing = {"model__checkpoint": None, "model__config": tiny.CONFIG, "heads__init": "random"}
    wanted = {"parts": ("backbone", "projection", "heads"), "distillation__teacher": data["model.checkpoint"]}
    return config(data, **nothing, **wanted | changes)


@pytest.mark.slow
def test_a_run_learns_from_a_teacher_that_stays_as_it_is(data, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda *_: None)
    teacher = native.flat(rj.load(data["model.checkpoint"]).network)
    training_run.train(student(data, distillation__embeddings=1.0, epochs=2), tmp_path)
    (last,) = {entry["step"] for entry in history(tmp_path)} - {0, 4}
    arrays, _ = saved(tmp_path, last)
    kept = {name.split("teacher.")[1][:-2]: array for name, array in arrays.items() if "teacher." in name}
    assert kept.keys() == teacher.keys()
    assert all(np.array_equal(kept[name], teacher[name]) for name in teacher)
    assert rj.load(tmp_path).mrl_dims == tiny.DIMS
    entries = history(tmp_path)
    # The loss of the heads and the distances from the teacher.
    assert all(entry["loss"] > np.mean(list(entry["losses"].values())) for entry in entries[1:])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"distillation__scores": 0.0}, "distillation.scores"),
        ({"cache__crops": 1}, "cache.crops"),
        ({"projection__mrl_dims": (4, 6), "distillation__embeddings": 1.0}, "has 8 dimensions"),
        ({"distillation__teacher": "nothing"}, "nothing"),
    ],
)
def test_what_cannot_be(changes, told, data, tmp_path):
    assert told in refusal(training_run.train, student(data, **changes), tmp_path)
