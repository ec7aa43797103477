"""Large programs that run once or twice, against a tolerance."""

import functools

import jax

# Half the time to compile. Not for tests to the bit: two programs then round the same sum differently.
jit = functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": False})
