"""On a CPU the tests compile many small networks once each, so they trade the speed of programs for compile time."""

import os

if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
