"""A trap in functions of the step: compiled JAX takes a negative power of an integer for 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optax_clr._tracing import is_traced
from optax_clr._words import shown

# Whatever a function divides the step by, its exponent is negative at the last of these.
_COUNTS = np.array([0, 1, 2**16, 2**31 - 1], np.int32)


def check_powers(name: str, function: Callable[..., Any], num_arguments: int = 1) -> None:
    """Raise if a traceable function of counts has a power such as ``10 ** -(step // 30)``.

    With Python's integers that is a fraction, with JAX's it is 0 if they are traced or an array.
    """
    try:
        closed = jax.make_jaxpr(lambda *counts: function(*counts))(*[np.int32(0)] * num_arguments)
    except Exception:  # refused elsewhere, or not to be traced
        return
    if any(_may_be_negative(exponent, closed) for exponent in _exponents(closed.jaxpr)):
        raise ValueError(
            f"{name} must not raise an integer to a negative power, as 10 ** -(step // 30) "
            f"does, which JAX makes 0; got {shown(function)}. Make the base a float: 10.0."
        )


def _exponents(jaxpr: Any) -> list[Any]:
    """Return the variables that may be exponents of integers, outside of loops and calls."""
    # JAX goes through an exponent bit by bit: what it shifts first is the exponent itself.
    shifts = [each for each in jaxpr.eqns if each.primitive.name == "shift_right_logical"]
    shifted = [output for each in shifts for output in each.outvars]
    return [each.invars[0] for each in shifts if each.invars[0] not in shifted]


def _may_be_negative(exponent: Any, closed: Any) -> bool:
    """Whether an exponent is negative at one of the counts, as far as it is known."""
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
    from jax.interpreters.partial_eval import dce_jaxpr

    # Cut the program down to the exponent, which is a few operations on integers.
    num_inputs, num_outputs = len(closed.jaxpr.invars), len(closed.jaxpr.outvars)
    with_exponents = closed.jaxpr.replace(outvars=[exponent] * num_outputs)
    computing, _ = dce_jaxpr(with_exponents, [True] * num_outputs, instantiate=True)
    exponents_at = jaxpr_as_fun(ClosedJaxpr(computing, closed.consts))
    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
        found = [exponents_at(*[count] * num_inputs)[0] for count in _COUNTS]
        return any(not is_traced(value) and np.any(np.asarray(value) < 0) for value in found)
