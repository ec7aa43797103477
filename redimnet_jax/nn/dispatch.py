"""The choice among several forms of one operation by the platform that a program is compiled for.

Every operation has a plain form, its reference, which runs everywhere. Some have other forms for a platform: kernels
for CUDA GPUs, or a formula that a compiler handles better. Forms agree to rounding. An operation leaves a form out
(None) where the form does not take the operands' shapes or dtypes.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

Form = Callable[..., Any]


def by_platform(
    *operands: Any, plain: Form, cuda: Form | None = None, cpu: Form | None = None, tpu: Form | None = None
) -> Any:
    """Apply to `operands` (arrays, None, or trees of them) the platform's form, or `plain` where it has none."""
    forms = {name: form for name, form in (("cuda", cuda), ("cpu", cpu), ("tpu", tpu)) if form is not None}
    return lax.platform_dependent(*operands, **forms, default=plain) if forms else plain(*operands)


def with_derivative_of(plain: Form, fused: Form) -> Form:
    """Return `fused` with the derivative of `plain`, the form it stands for, computed from the same operands."""

    @jax.custom_vjp
    def value(*operands: Any) -> Any:
        return fused(*operands)

    def forward(*operands: Any) -> tuple[Any, tuple]:
        return fused(*operands), operands

    def backward(operands: tuple, dy: Any) -> tuple:
        # Without the barrier XLA would start this in the forward pass, before `dy` exists, and keep its maps.
        operands, dy = lax.optimization_barrier((operands, dy))
        return jax.vjp(plain, *operands)[1](dy)

    value.defvjp(forward, backward)
    return value
