"""The tests compile many small networks once each: cheaply, at the cost of slow programs, and none of them stays."""

import os
from pathlib import Path

import hypothesis
import pytest

# For the processes that tests start: this checkout's package, and the tests' helpers.
HERE = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE / "helpers"), str(HERE.parent)])

# What a test draws is the same every time, and no machine is too slow for it.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

CHEAPLY = "--xla_backend_optimization_level=0"
if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu" and CHEAPLY not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {CHEAPLY}"


# The longest files come first, so that no worker is left alone with one at the end. Of itself pytest-xdist begins
# with the files of most tests; `make test` keeps it from that.
LONGEST = (
    "test_parity",
    "test_kill",
    "test_train_devices",
    "test_train",
    "test_kernels",
    "test_train_processes",
    "test_run_start",
    "test_sharding",
    "test_stages",
    "test_training",
    "test_lengths",
    "test_train_cached",
    "test_train_step",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What one test compiles is there for the others of its worker, and for the processes that they start."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    folder = str(tmp_path_factory.mktemp("compiled"))
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # Kernels for CUDA GPUs, compiled for a CPU, are there for all workers.
    of_worker = tmp_path_factory.getbasetemp()
    of_all = of_worker.parent if "PYTEST_XDIST_WORKER" in os.environ else of_worker
    os.environ["COMPILED_KERNELS"] = str(of_all / "kernels")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file_at_a_time():
    """Without this a worker ends with gigabytes of programs that nothing will run again."""
    yield
    import jax

    jax.clear_caches()
