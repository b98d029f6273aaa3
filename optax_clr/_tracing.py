"""What is known of values while a program is traced: numbers, shapes, shardings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


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


def traced_result(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the shapes and dtypes of the result of a function, which may be any callable.

    The lambda is for callables that cannot be weakly referenced, such as NumPy's ufuncs and objects
    with slots: they would leave JAX's own caches in a state that crashes Python.
    """
    return jax.eval_shape(lambda *traced: function(*traced), *arguments)
