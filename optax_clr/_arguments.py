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

INT32_MAX = 2**31 - 1
# The range of normal float32 numbers: XLA flushes anything smaller to 0.
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def is_traced(value: Any) -> bool:
    """Whether ``value`` is a tracer, known only while a compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def any_traced(tree: Any) -> bool:
    """Whether a leaf of a pytree is traced."""
    try:
        leaves = jax.tree.leaves(tree)
    except ValueError:  # dict keys that cannot be sorted, which JAX rejects
        return False
    return any(map(is_traced, leaves))


def is_inside_program() -> bool:
    """Whether the call is being traced, as by ``jax.jit``, so that no array has a value."""
    # By a transfer, since launching a program takes half a millisecond on a GPU.
    return is_traced(jax.device_put(np.float32(0)))


def explicit_sharding(array: Any) -> Any:
    """Return the sharding of an array over Explicit mesh axes, or None if there is none."""
    sharding = _sharding_in_type(array)
    is_sharded = any(axis is not None for axis in getattr(sharding, "spec", ()))
    return sharding if is_sharded else None


def is_on_explicit_axes(array: Any) -> bool:
    """Whether an array is on a mesh with Explicit axes, even if not sharded along them."""
    kinds = getattr(getattr(_sharding_in_type(array), "mesh", None), "axis_types", ())
    return any(kind.name == "Explicit" for kind in kinds)


def _sharding_in_type(array: Any) -> Any:
    return getattr(jax.typeof(array), "sharding", None) if hasattr(jax, "typeof") else None


def known_float(value: Any) -> float | None:
    """Return ``value`` as a Python float, or None if it is traced."""
    if is_traced(value):
        return None
    try:
        return float(value)
    except OverflowError:  # a Python integer of over 308 digits
        return math.inf


_MOST_CHARACTERS = 200


def shown(value: Any) -> str:
    """Return ``value`` as a message shows it: on one line, and only the beginning if it is long.

    A traced value is only called that, since JAX's own text for a tracer tells the reader nothing.
    """
    if any_traced(value):
        return "a traced value"
    try:
        whole = " ".join(repr(value).split())
    except Exception:  # the error that this text is a part of says more
        return f"an object of {type(value).__name__}"
    return whole if len(whole) <= _MOST_CHARACTERS else f"{whole[:_MOST_CHARACTERS]}..."


def describe(value: Any) -> str:
    """Describe ``value`` for a message: its type, and its shape if it has one."""
    if isinstance(value, jax.Array):  # or a tracer, whose type tells a caller nothing
        return f"an array {shape_in_words(value)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"


def shape_in_words(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else describe(leaf)


_MOST_NAMED = 20  # arrays in a message


def shapes_in_words(tree: Any) -> str:
    """List the arrays of a pytree with their paths, for a message."""
    # Not with jax.tree.map: the tree's classes may reject strings in place of arrays.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = leaves[:_MOST_NAMED]
    words = [f"{jax.tree_util.keystr(path)} {shape_in_words(leaf)}" for path, leaf in named]
    if len(leaves) > len(named):
        words.append(f"and {len(leaves) - len(named)} more")
    return ", ".join(words).strip() or "of no arrays"


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
    if number and not _TINY <= abs(number) <= _HUGE and float_dtype(value) != np.float64:
        raise ValueError(
            f"{name} must be {allowed} {'' if positive else 'that is 0 or '}between 1.2e-38 and "
            f"3.4e+38 in size, as float32 holds it, got {value!r}. Arrays of dtype float64 may "
            "be smaller and larger, where jax_enable_x64 is on."
        )
    if isinstance(value, np.ndarray):
        return value.copy()  # its owner may write to it
    return value if hasattr(value, "dtype") else number


def is_real_dtype(dtype: Any) -> bool:
    # To NumPy a timedelta64 is an integer.
    others = (jnp.complexfloating, np.timedelta64)
    return jnp.issubdtype(dtype, jnp.number) and not any(jnp.issubdtype(dtype, x) for x in others)


def traced_result(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the shapes and dtypes of the result of a function, which may be any callable.

    The lambda is for callables that cannot be weakly referenced, such as NumPy's ufuncs and objects
    with slots: they would leave JAX's own caches in a state that crashes Python.
    """
    return jax.eval_shape(lambda *traced: function(*traced), *arguments)


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
        step = np.asarray(native(name, step))  # in NumPy, int64 keeps its values
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
