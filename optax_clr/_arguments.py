"""Argument checks: each error names the argument, its value and what is allowed."""

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

from optax_clr._tracing import any_traced, is_traced, known_float
from optax_clr._words import shown

INT32_MAX = 2**31 - 1
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def whole_number(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return ``value`` as a Python int from ``minimum`` to 2**31 - 1."""
    allowed = f"a Python integer from {minimum} to 2**31 - 1"
    if is_traced(value):
        raise TypeError(
            f"{name} must be {allowed}, known when the object is built; got a traced value. "
            "Mark it static (static_argnames) in the surrounding jax.jit."
        )
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be {allowed}, got {value!r}.")
    try:
        number = operator.index(value)
    except TypeError:
        remedy = ""
        if isinstance(value, numbers.Real):
            remedy = " Divide with // instead of /, or use round()."
        raise TypeError(f"{name} must be {allowed}, got {shown(value)}.{remedy}") from None
    if not minimum <= number <= INT32_MAX:
        raise ValueError(f"{name} must be {allowed}, got {number}.")
    return number


def real_scalar(name: str, value: Any, *, positive: bool = False) -> ArrayLike:
    """Return ``value`` if it is a real scalar in float32's range, or in float64's for its arrays.

    Only the type and shape of a traced value are checked.
    """
    allowed = f"a finite {'positive ' if positive else ''}real number"
    value = native(name, value)
    if isinstance(value, (bool, np.bool_, jax.ShapeDtypeStruct)) or not (
        isinstance(value, numbers.Real) or hasattr(value, "dtype")
    ):
        remedy = ""
        if hasattr(value, "_fields"):  # bounds, or the result of a range test
            remedy = " Pass one number of it: bounds.peak_value, or result.one_cycle_peak()."
        raise TypeError(f"{name} must be {allowed}, got {shown(value)}.{remedy}")
    if np.shape(value) != ():
        raise ValueError(
            f"{name} must be a scalar, got an array of shape {np.shape(value)}. "
            "Use jax.vmap to build one for each of many values."
        )
    if hasattr(value, "dtype") and not is_real_dtype(value.dtype):
        raise TypeError(f"{name} must be {allowed}, got {shown(value)}.")
    number = known_float(value)
    if number is None:
        return value  # type: ignore[no-any-return]
    if not math.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")
    if not fits_float32(number) and float_dtype(value) != np.float64:
        raise ValueError(
            f"{name} must be {allowed} {'' if positive else 'that is 0 or '}between 1.2e-38 and "
            f"3.4e+38 in size, as float32 holds it, got {value!r}. Arrays of dtype float64 may "
            "be smaller and larger, where jax_enable_x64 is on."
        )
    if isinstance(value, np.ndarray):
        return value.copy()  # its owner may write to it
    return value if hasattr(value, "dtype") else number


def fits_float32(number: float) -> bool:
    """Whether a number is 0 or a normal float32: XLA flushes anything smaller to 0."""
    return number == 0 or _TINY <= abs(number) <= _HUGE


def is_plain_number(value: Any) -> bool:
    """Whether a value is a real number of Python or NumPy; a boolean is none."""
    # To NumPy a timedelta64 is an integer, here and below.
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.timedelta64))


def is_real_dtype(dtype: Any) -> bool:
    others = (jnp.complexfloating, np.timedelta64)
    return jnp.issubdtype(dtype, jnp.number) and not any(jnp.issubdtype(dtype, x) for x in others)


def function(name: str, value: Any, *, form: str) -> Callable[..., Any]:
    """Return ``value`` if it is callable; ``form`` is the expected signature, for the message."""
    if not callable(value):
        raise TypeError(f"{name} must be a function {form}, got {shown(value)}.")
    return value  # type: ignore[no-any-return]


def float_dtype(*values: Any) -> np.dtype[Any]:
    """Return float64 if any value is a float64 array and x64 is on, else float32."""
    dtypes = {jnp.result_type(value) for value in values if hasattr(value, "dtype")}
    return np.dtype("float64") if np.dtype("float64") in dtypes else np.dtype("float32")


def as_step(step: Any, name: str = "step") -> jax.Array:
    """Return integers of any dtype and shape as int32, clipped to the range 0 to 2**31 - 1."""
    if hasattr(step, "__jax_array__") or any_traced(step):  # an nnx.Variable, a list of tracers
        step = jnp.asarray(step)
    elif not isinstance(step, jax.Array):
        if isinstance(step, int) and not isinstance(step, bool):
            step = max(-1, min(step, INT32_MAX))  # a Python integer may be of any size
        step = numpy_array(name, step)  # in NumPy, int64 keeps its values
    if not (jnp.issubdtype(step.dtype, jnp.integer) and is_real_dtype(step.dtype)):
        is_float = jnp.issubdtype(step.dtype, jnp.floating)
        remedy = " A fraction would be truncated: round it as you mean it." if is_float else ""
        raise TypeError(
            f"{name} must be an integer or an array of integers, got dtype {step.dtype}.{remedy}"
        )
    if not np.can_cast(step.dtype, np.int32):
        step = step.clip(0, INT32_MAX)
    return jnp.maximum(jnp.asarray(step, jnp.int32), 0)


def native(name: str, value: Any) -> Any:
    """Return an array as JAX takes it: one of another library as NumPy's, in native byte order."""
    if isinstance(value, (np.ndarray, np.generic)):
        if np.ma.is_masked(value):  # masked values would be taken for data
            raise ValueError(
                f"{name} must have no masked entries, which JAX does not support; got "
                f"{shown(value)}. Fill them: array.filled(value)."
            )
        value = np.asarray(value) if isinstance(value, np.ma.MaskedArray) else value
        if value.dtype.type is np.longdouble:  # of which JAX has none
            return value.astype(np.float64)
        return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
    is_array = all(hasattr(value, name) for name in ("dtype", "shape", "__array__"))
    is_class = isinstance(value, type)  # the class np.float32 has all three
    if not is_array or is_class or isinstance(value, jax.Array) or hasattr(value, "__jax_array__"):
        return value
    if hasattr(value, "detach"):  # PyTorch does not convert a tensor that requires grad
        value = value.detach()
    try:
        return native(name, np.asarray(value))
    except (TypeError, RuntimeError):  # a PyTorch tensor in bfloat16, or on a GPU
        if not hasattr(value, "__dlpack__"):
            raise
        return np.array(jnp.from_dlpack(value))


def numpy_array(name: str, value: Any) -> np.ndarray:
    """Return an array of any library but JAX, a number, or nested lists of numbers as NumPy's."""
    try:
        array: np.ndarray = native(name, np.asarray(native(name, value)))  # as are those of a list
        return array
    except ValueError as error:  # NumPy's own message does not name the argument
        if not isinstance(value, (list, tuple)):
            raise
        raise ValueError(
            f"{name} must be an array, or lists of one length, got {shown(value)}."
        ) from error
