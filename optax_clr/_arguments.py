"""Checks of arguments: each names the argument, the value it had and what is allowed."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

INT32_MAX = 2**31 - 1


def is_traced(value: Any) -> bool:
    """Whether ``value`` is known only while a compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def known_float(value: Any) -> float | None:
    """Return ``value`` as a Python float, or None where it is traced."""
    return None if is_traced(value) else float(value)


def whole_number(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return ``value`` as a Python int from ``minimum`` to 2**31 - 1."""
    allowed = f"a Python integer from {minimum} to 2**31 - 1"
    if is_traced(value):
        raise TypeError(
            f"{name} must be {allowed}, known when the object is built; got the traced "
            f"value {value}. Mark it static (static_argnames) in the surrounding jax.jit."
        )
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be {allowed}, got {value!r}.")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {allowed}, got {value!r}.") from None
    if not minimum <= number <= INT32_MAX:
        raise ValueError(f"{name} must be {allowed}, got {number}.")
    return number


def real_scalar(name: str, value: Any, *, positive: bool = False) -> ArrayLike:
    """Return ``value`` if it is a finite real scalar; of a traced one only type and shape count."""
    if type(value) is float and math.isfinite(value) and (value > 0 or not positive):
        return value
    allowed = f"a finite {'positive ' if positive else ''}real number"
    if isinstance(value, (bool, np.bool_)) or not (
        isinstance(value, numbers.Real) or hasattr(value, "dtype")
    ):
        raise TypeError(f"{name} must be {allowed}, got {value!r}.")
    if np.shape(value) != ():
        raise ValueError(
            f"{name} must be a scalar, got an array of shape {np.shape(value)}. "
            "Use jax.vmap to build one for each of many values."
        )
    if not jnp.issubdtype(jnp.result_type(value), jnp.number) or jnp.iscomplexobj(value):
        raise TypeError(f"{name} must be {allowed}, got {value!r}.")
    number = known_float(value)
    if number is not None and (not math.isfinite(number) or (positive and number <= 0)):
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")
    return value  # type: ignore[no-any-return]


def function(name: str, value: Any, *, form: str) -> Callable[..., Any]:
    """Return ``value`` if it can be called; ``form`` shows what is expected of it."""
    if not callable(value):
        raise TypeError(f"{name} must be a function {form}, got {value!r}.")
    return value  # type: ignore[no-any-return]


def float_dtype(*values: Any) -> np.dtype[Any]:
    """float64 where any value is a float64 array and x64 is on, else float32."""
    dtypes = {jnp.result_type(value) for value in values if hasattr(value, "dtype")}
    return np.dtype("float64") if np.dtype("float64") in dtypes else np.dtype("float32")


def as_step(step: Any, name: str = "step") -> jax.Array:
    """Return integers of any dtype and shape as int32, held to the range 0 to 2**31 - 1."""
    if not isinstance(step, jax.Array):
        step = np.asarray(step)
    if not jnp.issubdtype(step.dtype, jnp.integer):
        raise TypeError(
            f"{name} must be an integer or an array of integers, got dtype {step.dtype}. "
            "A fraction would be truncated in silence: round it as you mean it."
        )
    if np.iinfo(step.dtype).max > INT32_MAX:
        step = step.clip(max=INT32_MAX)
    return jnp.maximum(jnp.asarray(step, jnp.int32), 0)
