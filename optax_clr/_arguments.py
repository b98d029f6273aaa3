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
# The normal numbers of float32: XLA takes what is smaller for 0.
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def is_traced(value: Any) -> bool:
    """Whether ``value`` is known only while a compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def any_traced(tree: Any) -> bool:
    """Whether a leaf of a pytree is traced."""
    try:
        leaves = jax.tree.leaves(tree)
    except ValueError:  # keys of a dict that have no order, which JAX does not take
        return False
    return any(map(is_traced, leaves))


def is_inside_program() -> bool:
    """Whether this is traced into a program, as by ``jax.jit``, so that nothing has a value."""
    # A transfer, since a program for it takes half a millisecond to start on a GPU.
    return is_traced(jax.device_put(np.float32(0)))


def explicit_sharding(array: Any) -> Any:
    """Return the sharding of an array over Explicit axes of a mesh; None of any other."""
    sharding = _sharding_in_type(array)
    is_sharded = any(axis is not None for axis in getattr(sharding, "spec", ()))
    return sharding if is_sharded else None


def is_on_explicit_axes(array: Any) -> bool:
    """Whether an array is on a mesh with Explicit axes, along which it need not be sharded."""
    kinds = getattr(getattr(_sharding_in_type(array), "mesh", None), "axis_types", ())
    return any(kind.name == "Explicit" for kind in kinds)


def _sharding_in_type(array: Any) -> Any:
    return getattr(jax.typeof(array), "sharding", None) if hasattr(jax, "typeof") else None


def known_float(value: Any) -> float | None:
    """Return ``value`` as a Python float, or None where it is traced."""
    if is_traced(value):
        return None
    try:
        return float(value)
    except OverflowError:  # a Python integer of over 308 digits
        return math.inf


_MOST_CHARACTERS = 200


def shown(value: Any) -> str:
    """Return how a message shows ``value``: JAX's own name for a traced one tells nothing.

    On one line; of what is long, such as the params of a model, only the beginning.
    """
    if any_traced(value):
        return "a traced value"
    try:
        whole = " ".join(repr(value).split())
    except Exception:  # the error that this is a part of says more
        return f"an object of {type(value).__name__}"
    return whole if len(whole) <= _MOST_CHARACTERS else f"{whole[:_MOST_CHARACTERS]}..."


def describe(value: Any) -> str:
    """Return what ``value`` is for a message: an array with its shape, or the name of its type."""
    if isinstance(value, jax.Array):  # also a traced one, whose type says nothing to a caller
        return f"an array {shape_in_words(value)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"


def shape_in_words(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else describe(leaf)


_MOST_NAMED = 20  # arrays in a message


def shapes_in_words(tree: Any) -> str:
    """Return the arrays of a pytree, by their paths, in words."""
    # Not by jax.tree.map: the classes of the tree may refuse words in the place of arrays.
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
    """Return ``value`` if it is a real scalar that float32 holds, or a float64 array.

    Of a traced one only type and shape are checked.
    """
    allowed = f"a finite {'positive ' if positive else ''}real number"
    value = native(name, value)
    if isinstance(value, (bool, np.bool_)) or not (
        isinstance(value, numbers.Real) or hasattr(value, "dtype")
    ):
        remedy = ""
        if isinstance(value, (tuple, list)):
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
        return value.copy()  # which its owner may write to
    return value if hasattr(value, "dtype") else number


def is_real_dtype(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating)


def traced_result(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return shapes and dtypes of what a function returns, whatever object it is.

    Of one without weak references, as NumPy's functions and objects with slots are, JAX's own
    caches would be left in a state that crashes Python.
    """
    return jax.eval_shape(lambda *traced: function(*traced), *arguments)


def function(name: str, value: Any, *, form: str) -> Callable[..., Any]:
    """Return ``value`` if it can be called; ``form`` shows what is expected of it."""
    if not callable(value):
        raise TypeError(f"{name} must be a function {form}, got {shown(value)}.")
    return value  # type: ignore[no-any-return]


def float_dtype(*values: Any) -> np.dtype[Any]:
    """float64 where any value is a float64 array and x64 is on, else float32."""
    dtypes = {jnp.result_type(value) for value in values if hasattr(value, "dtype")}
    return np.dtype("float64") if np.dtype("float64") in dtypes else np.dtype("float32")


def as_step(step: Any, name: str = "step") -> jax.Array:
    """Return integers of any dtype and shape as int32, held to the range 0 to 2**31 - 1."""
    if hasattr(step, "__jax_array__") or any_traced(step):  # an nnx.Variable, a list of tracers
        step = jnp.asarray(step)
    elif not isinstance(step, jax.Array):
        if isinstance(step, int) and not isinstance(step, bool):
            step = max(-1, min(step, INT32_MAX))  # a Python integer may be of any size
        step = np.asarray(native(name, step))  # where int64 keeps its values
    if not jnp.issubdtype(step.dtype, jnp.integer):
        is_float = jnp.issubdtype(step.dtype, jnp.floating)
        remedy = " A fraction would be truncated: round it as you mean it." if is_float else ""
        raise TypeError(
            f"{name} must be an integer or an array of integers, got dtype {step.dtype}.{remedy}"
        )
    if not np.can_cast(step.dtype, np.int32):
        step = step.clip(0, INT32_MAX)
    return jnp.maximum(jnp.asarray(step, jnp.int32), 0)


def native(name: str, value: Any) -> Any:
    """Return an array as JAX takes it: of another library as NumPy's, in this byte order."""
    if isinstance(value, (np.ndarray, np.generic)):
        if np.ma.is_masked(value):  # what is under the mask would be taken for data
            raise ValueError(
                f"{name} must have no masked entries, which JAX does not support; got "
                f"{shown(value)}. Fill them: array.filled(value)."
            )
        value = np.asarray(value) if isinstance(value, np.ma.MaskedArray) else value
        return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
    is_array = all(hasattr(value, name) for name in ("dtype", "shape", "__array__"))
    is_class = isinstance(value, type)  # np.float32 has all of them
    if not is_array or is_class or isinstance(value, jax.Array) or hasattr(value, "__jax_array__"):
        return value
    if hasattr(value, "detach"):  # PyTorch refuses to convert what has a gradient
        value = value.detach()
    try:
        return native(name, np.asarray(value))
    except (TypeError, RuntimeError):  # of bfloat16 in PyTorch, or on a GPU
        if not hasattr(value, "__dlpack__"):
            raise
        return np.array(jnp.from_dlpack(value))
