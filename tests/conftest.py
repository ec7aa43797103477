"""Settings of all tests: where JAX runs, what it compiles with, and where compiled programs stay.

Most of the suite's time goes to compiling small networks that run once or twice, so compiling is made cheap at the
cost of slow programs, and all workers and the processes that tests start share what one of them compiled. To keep it
from one run of the suite to the next, set JAX_COMPILATION_CACHE_DIR.
"""

import os
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest

# The processes that tests start import this checkout's package and the tests' helpers, and what these tests import.
HERE = Path(__file__).parent
PATHS = [str(HERE / "helpers"), str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, PATHS)))

# Hypothesis draws the same examples every time, and no machine is too slow for them.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

CHEAPLY = "--xla_backend_optimization_level=0"
# JAX 0.10 compiles in half the time without fusion emitters; later versions abort, as they do not know the flag.
if version("jax").startswith("0.10."):
    CHEAPLY += " --xla_cpu_use_fusion_emitters=false"
if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu" and CHEAPLY not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {CHEAPLY}"


MOST_RESIDENT_BYTES = 2 * 2**30


@pytest.fixture(scope="session", autouse=True)
def compilation_caches(tmp_path_factory):
    """Name the folders of compiled programs, for this process and those that it starts."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(shared / "compiled"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # CUDA kernels that the tests compile for the CPU.
    os.environ["COMPILED_KERNELS"] = str(shared / "kernels")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Keep traced and compiled programs for the next file while they are small; a worker would end with gigabytes."""
    yield
    import jax

    if _resident_bytes() > MOST_RESIDENT_BYTES:
        jax.clear_caches()


def _resident_bytes() -> int:
    """Return the memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
