"""The tests compile many small networks once each: cheaply, at the cost of slow programs, and none of them stays."""

import os

import pytest

if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file_at_a_time():
    """Without this a worker ends with gigabytes of programs that nothing will run again."""
    yield
    import jax

    jax.clear_caches()
