"""A trap in functions of the step: compiled JAX takes a negative power of an integer for 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optax_clr._jaxprs import equations
from optax_clr._words import shown

# Whatever a function divides the step by, its exponent is negative at the last of these.
_COUNTS = np.array([0, 1, 2**16, 2**31 - 1], np.int32)


def check_powers(name: str, function: Callable[..., Any], num_arguments: int = 1) -> None:
    """Raise if a traceable function of counts has a power such as ``10 ** -(step // 30)``.

    With Python's integers that is a fraction, with JAX's it is 0 if they are traced or an array.
    """
    # NumPy refuses such powers, but only a function that may have some is called a second time.
    if not _may_have_powers(function, num_arguments):
        return
    try:
        with np.errstate(all="ignore"):
            function(*[_COUNTS] * num_arguments)
    except Exception as error:  # the function may not take NumPy's arrays, and raise anything
        if "negative integer powers" in str(error):
            raise ValueError(
                f"{name} must not raise an integer to a negative power, as 10 ** -(step // 30) "
                f"does, which JAX makes 0; got {shown(function)}. Make the base a float: 10.0."
            ) from error


def _may_have_powers(function: Callable[..., Any], num_arguments: int) -> bool:
    try:
        jaxpr = jax.make_jaxpr(lambda *counts: function(*counts))(*[np.int32(0)] * num_arguments)
    except Exception:  # refused elsewhere, or not to be traced
        return False
    # JAX goes through the exponent bit by bit.
    return any(each.primitive.name == "shift_right_logical" for each in equations(jaxpr.jaxpr))
