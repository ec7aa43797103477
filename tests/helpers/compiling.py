"""Large programs that run once or twice, against a tolerance."""

import functools

import jax

# Half the time to compile, where the compiler has the choice (up to JAX 0.10). Not for tests to the bit: two programs
# then round the same sum differently.
OPTIONS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
jit = functools.partial(jax.jit, compiler_options=OPTIONS)
