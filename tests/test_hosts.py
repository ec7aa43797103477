"""Signs of life of several processes, and what is said of one that gives none."""

import threading

import jax
import pytest

from redimnet_jax import hosts


def test_a_process_is_lost_when_its_sign_stays_the_same_for_too_long():
    watch = hosts.LifeWatch(3, 30.0)
    assert watch.lost({0: "a", 1: "a"}, 100.0) is None
    assert watch.lost({0: "b", 1: "b"}, 129.0) is None
    # The third has never given any; the clock starts at the first look.
    assert watch.lost({0: "c", 1: "c"}, 130.0) is None
    assert watch.lost({0: "d", 1: "d"}, 130.1) == 2
    watch = hosts.LifeWatch(2, 30.0)
    assert watch.lost({0: "a", 1: "a"}, 0.0) is None
    # A look that comes late finds new signs, and loses nobody.
    assert watch.lost({0: "b", 1: "b"}, 500.0) is None
    assert watch.lost({0: "c", 1: "b"}, 531.0) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation failed: remote process exited"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (OSError("Connection reset by peer"), False),
    ],
)
def test_errors_that_may_come_from_a_lost_peer(error, expected):
    assert hosts.may_be_lost_peer(error) is expected


class Coordinator:
    """The keys that processes leave with the coordinator."""

    def __init__(self):
        self.keys = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        if key in self.keys and not allow_overwrite:
            raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
        self.keys[key] = value

    def key_value_try_get(self, key):
        if key not in self.keys:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")
        return self.keys[key]

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.keys.items() if key.startswith(prefix)]


def test_process_0_ends_all_when_one_gives_no_sign_of_life(monkeypatch):
    monkeypatch.setattr(hosts, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(hosts, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(hosts, "LOST_SECONDS", 0.5)
    monkeypatch.setattr(hosts, "FAREWELL_SECONDS", 0.2)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    coordinator = Coordinator()
    left = {}
    ended = threading.Barrier(3)
    farewells = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)

        def leave(code, sentence, index=index):
            left[index] = code, sentence
            ended.wait(10)

        farewell = hosts.Farewell(leave)
        farewell._client = coordinator
        farewells.append(farewell)
    # The third has joined but never gives a sign.
    with farewells[0], farewells[1]:
        ended.wait(10)
    assert left.keys() == {0, 1}
    for code, sentence in left.values():
        assert code == 1
        assert sentence.startswith("Process 2 of 3 stopped the run: it gave no sign of life for ")
