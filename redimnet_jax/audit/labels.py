"""Doubts of labels: recordings that another speaker explains better, names of one speaker, speakers of one name."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from redimnet_jax.audit import two_covariance
from redimnet_jax.audit.two_covariance import TwoCovariance, add_rows, blocks

UNKNOWN = -1  # a speaker that is not in the corpus
ROUNDS = 5
# Of the recordings with a wrong label, the fraction whose speaker is not in the corpus.
_UNKNOWN_SHARE = 0.5
_MOST_SCORES = 1 << 24  # scores of recordings with speakers that exist at once
# Log-odds that a division of a name must exceed. Recordings that follow one another share what the microphone and the
# voice did at the time, so they are no independent observations; such divisions of a name reached 7.
_DRIFT = 10.0
_LEAST_GAIN = 1e-6  # in evidence, so that rounding cannot move a recording to and fro


@dataclasses.dataclass(frozen=True)
class Sets:
    """Recordings, their names and what counts as one observation.

    `labels` (n,) are the names. `groups` (n,) number the observations from 0: recordings of a session are one, since
    they share what a session adds. Where a name has a single session, each of its recordings is one.
    """

    labels: np.ndarray
    groups: np.ndarray

    @property
    def names(self) -> int:
        """The number of names."""
        return int(self.labels.max()) + 1


def observations(labels: np.ndarray, sessions: np.ndarray) -> np.ndarray:
    """Return the `groups` of `Sets`, int64 (n,).

    labels: int (n,). sessions: int (n,), unique over the corpus, -1 where not known.
    """
    single = np.arange(len(labels))
    pairs = np.unique(np.stack([labels, sessions])[:, sessions >= 0], axis=1)
    several = np.bincount(pairs[0], minlength=int(labels.max()) + 1) > 1
    keys = np.where((sessions >= 0) & several[labels], -1 - sessions.astype(np.int64), single)
    return np.unique(np.stack([labels, keys]), axis=1, return_inverse=True)[1].reshape(-1)


@dataclasses.dataclass(frozen=True)
class Doubts:
    """For every recording the log-odds that its label is wrong, float64 (n,), and the speaker suspected, int64 (n,).

    `suspected` is the other name that explains the recording best, or `UNKNOWN` where a new speaker does so better.
    """

    log_odds: np.ndarray
    suspected: np.ndarray


@dataclasses.dataclass(frozen=True)
class Split:
    """A name whose recordings are better explained by two speakers: the recordings of the smaller part."""

    name: int
    recordings: np.ndarray
    log_odds: float


@dataclasses.dataclass(frozen=True)
class Voices:
    """What the recordings say of the labels: coordinates, float32 (n, dim), under `model`, and who is in doubt."""

    model: TwoCovariance
    coordinates: np.ndarray
    doubts: Doubts


def listen(vectors: np.ndarray, sets: Sets, prior: float) -> Voices:
    """Return the doubts of the labels of embeddings `vectors` (n, dim), unit length.

    The model and the speakers' means leave out what is in doubt, until that no longer changes. A recording is
    compared with the other observations of its name. `prior` is the fraction of labels that are expected to be wrong.
    """
    usable = np.ones(len(vectors), bool)
    voices = None
    for _ in range(ROUNDS):
        model = two_covariance.fit(vectors, sets.labels, usable)
        coordinates = model.project(vectors)
        voices = Voices(model, coordinates, _doubts(model, coordinates, sets, usable, prior))
        trusted = voices.doubts.log_odds <= 0
        if (trusted == usable).all():
            break
        usable = trusted
    assert voices is not None
    return voices


def same_speakers(voices: Voices, sets: Sets, prior: float) -> list[tuple[int, int, float]]:
    """Return (name, name, log-odds) of the pairs of names that have one speaker, the surest first.

    `prior` is the fraction of names that are expected to be second names of a speaker.
    """
    model = voices.model
    sums, counts = _totals(voices.coordinates, sets, voices.doubts.log_odds <= 0)
    alone = model.evidence(sums, counts)
    between = jnp.asarray(model.between, jnp.float32)
    odds = math.log(prior) - math.log(max(1, sets.names - 1))
    table, numbers = jnp.asarray(sums, jnp.float32), jnp.asarray(counts, jnp.float32)
    found = []
    for name in range(sets.names):
        together = np.asarray(_evidence_with(table, numbers, name, between), np.float64)
        ratios = together[:name] - alone[:name] - alone[name] + odds
        # A name without a usable recording says nothing.
        likely = np.flatnonzero((ratios > 0) & (counts[:name] > 0) & (counts[name] > 0))
        found += [(int(other), name, float(ratios[other])) for other in likely]
    return sorted(found, key=lambda pair: -pair[2])


@jax.jit
def _evidence_with(sums, counts, name, between):
    spread = 1 + (counts + counts[name])[:, None] * between
    return 0.5 * (between * jnp.square(sums + sums[name]) / spread - jnp.log(spread)).sum(1)


def united(labels: np.ndarray, pairs: list[tuple[int, int, float]]) -> np.ndarray:
    """Return the `labels` (n,) with one number for all names that `pairs` join, numbered without gaps."""
    names = int(labels.max()) + 1
    left, right = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    graph = coo_array((np.ones(len(pairs)), (left, right)), shape=(names, names))
    return connected_components(graph, directed=False)[1].astype(np.int64)[labels]


def several_speakers(voices: Voices, sets: Sets, prior: float) -> list[Split]:
    """Return the names that have recordings of two speakers, at least two observations of each, the surest first.

    `prior` is the fraction of names for which this is expected. Each division of a name has its share of it.
    """
    model = voices.model
    order = np.argsort(sets.labels, kind="stable")
    ends = np.searchsorted(sets.labels[order], np.arange(sets.names), "right")
    found = []
    for name, end in enumerate(ends.tolist()):
        rows = order[0 if name == 0 else ends[name - 1] : end]
        groups, group = np.unique(sets.groups[rows], return_inverse=True)
        if len(groups) < 4:
            continue
        points = np.zeros((len(groups), voices.coordinates.shape[1]))
        add_rows(points, group, voices.coordinates[rows])
        points /= np.bincount(group)[:, None]
        part = _divided(points, model)
        sizes = part.sum(), len(part) - part.sum()
        if min(sizes) < 2:
            continue
        sums = points[part].sum(0), points[~part].sum(0)
        together = model.evidence(sums[0] + sums[1], len(part))
        apart = model.evidence(sums[0], sizes[0]) + model.evidence(sums[1], sizes[1])
        odds = float(apart - together) + math.log(prior) - (len(part) - 1) * math.log(2)
        if odds > _DRIFT:
            smaller = part if sizes[0] < sizes[1] else ~part
            found.append(Split(name, rows[smaller[group]], odds))
    return sorted(found, key=lambda split: -split.log_odds)


def _divided(points: np.ndarray, model: TwoCovariance) -> np.ndarray:
    """Return a division of `points` (n, dim) in two, bool (n,), from which moving one point gives less evidence.

    It starts from the first principal axis.
    """
    weighted = (points - points.mean(0)) * np.sqrt(model.between / (1 + model.between))
    part = np.linalg.svd(weighted, full_matrices=False)[0][:, 0] > 0
    for _ in range(2 * len(points)):
        gains = np.empty(len(points))
        for side in filter(np.any, (part, ~part)):
            here, there = points[side].sum(0), points[~side].sum(0)
            counts = side.sum(), (~side).sum()
            before = model.evidence(here, counts[0]) + model.evidence(there, counts[1])
            moved = points[side]
            after = model.evidence(here - moved, counts[0] - 1) + model.evidence(there + moved, counts[1] + 1)
            gains[side] = after - before
        best = int(gains.argmax())
        if gains[best] <= _LEAST_GAIN:
            break
        part[best] = not part[best]
    return part


def _totals(coordinates: np.ndarray, sets: Sets, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (sums (names, dim), counts (names,)) of the usable observations of every name."""
    sums = np.zeros((sets.names, coordinates.shape[1]))
    weights = _weights(sets, usable)
    for rows in blocks(len(coordinates)):
        add_rows(sums, sets.labels[rows], coordinates[rows].astype(np.float64), weights[rows])
    return sums, np.bincount(sets.labels, weights, minlength=sets.names)


def _weights(sets: Sets, usable: np.ndarray) -> np.ndarray:
    """Return the weight of every recording in its observation, float64 (n,), 0 where it is not usable."""
    sizes = np.bincount(sets.groups, usable)
    return usable / np.maximum(sizes[sets.groups], 1)


def _doubts(model: TwoCovariance, coordinates: np.ndarray, sets: Sets, usable: np.ndarray, prior: float) -> Doubts:
    sums, counts = _totals(coordinates, sets, usable)
    own_sums, own_counts = _observation_totals(coordinates, sets, usable)
    spread = 1 + counts[:, None] * model.between
    wider = spread + model.between
    # The evidence of a speaker with a recording x more, less that without, is a quadratic form of x.
    factor = model.between / wider
    linear = jnp.asarray((factor * sums).T, jnp.float32)
    quadratic = jnp.asarray(factor.T, jnp.float32)
    constant = 0.5 * (factor * sums**2 - model.between * sums**2 / spread - np.log(wider / spread)).sum(1)
    constant = jnp.asarray(constant, jnp.float32)
    odds = np.empty(len(coordinates))
    suspected = np.empty(len(coordinates), np.int64)
    share = math.log((1 - _UNKNOWN_SHARE) / max(1, sets.names - 1))
    for rows in blocks(len(coordinates), max(1, _MOST_SCORES // sets.names)):
        x = coordinates[rows].astype(np.float64)
        labels = sets.labels[rows]
        alone = model.evidence(x, 1)
        rest = sums[labels] - own_sums[sets.groups[rows]]
        rest_counts = counts[labels] - own_counts[sets.groups[rows]]
        own = model.evidence(rest + x, rest_counts + 1) - model.evidence(rest, rest_counts) - alone
        best, total, which = map(
            np.asarray, _others(jnp.asarray(x, jnp.float32), labels, linear, quadratic, constant)
        )
        others = total - alone + share
        wrong = np.logaddexp(others, math.log(_UNKNOWN_SHARE))
        odds[rows] = math.log(prior) - math.log1p(-prior) + wrong - own
        suspected[rows] = np.where(best - alone > 0, which, UNKNOWN)
    return Doubts(odds, suspected)


def _observation_totals(coordinates: np.ndarray, sets: Sets, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (sums float32 (groups, dim), counts (groups,)) of what each observation adds to its name."""
    weights = _weights(sets, usable)
    count = int(sets.groups.max()) + 1
    sums = np.zeros((count, coordinates.shape[1]), np.float32)
    for rows in blocks(len(coordinates)):
        add_rows(sums, sets.groups[rows], coordinates[rows], weights[rows])
    return sums, np.bincount(sets.groups, weights, minlength=count)


@jax.jit
def _others(x, labels, linear, quadratic, constant):
    """Return (largest, log of the sum of exponentials, place of the largest) over all names but the own, (rows,)."""
    exact = jax.lax.Precision.HIGHEST
    scores = jnp.matmul(x, linear, precision=exact) + 0.5 * jnp.matmul(x * x, quadratic, precision=exact) + constant
    scores = jnp.where(jnp.arange(scores.shape[1]) == labels[:, None], -jnp.inf, scores)
    return scores.max(1), jax.nn.logsumexp(scores, axis=1), scores.argmax(1)
