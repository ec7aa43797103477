"""The parts of a message are short, whatever a file holds."""

import numpy as np
import pytest

from redimnet_jax.errors import shown, some_of


def test_some_of():
    assert some_of([]) == ""
    assert some_of("abcde") == "a, b, c, d, e"
    assert some_of((str(i) for i in range(2000)), most=2) == "0, 1 and 1,998 more"
    assert len(some_of(["x" * 10_000] * 9)) < 600


def doubled(times: int) -> list:
    value: list = []
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        10**6000,
        -(10**6000),
        doubled(60),
        list(range(10**5)),
        {i: "y" * 99 for i in range(99)},
        np.zeros(99),
    ],
    ids=lambda value: type(value).__name__,
)
def test_shown_is_short(value):
    assert 0 < len(shown(value)) <= 100


def test_shown_is_a_repr():
    for value in (3, -2.5, "a\nb", None, [1, "x"], True, {"a": (1, 2)}):
        assert shown(value) == repr(value)
