"""What a run logs is captured in all tests of training, as a command would show it."""

import logging

import pytest


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO, "redimnet_jax")
