"""Which arguments of an optimizer factory are hyperparameters: schedules and arrays."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_clr._arguments import is_real_dtype
from optax_clr._documentation import see
from optax_clr._integer_powers import check_powers
from optax_clr._tracing import traced_result
from optax_clr._words import shown


def parameters_of(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a factory, with string annotations evaluated if possible."""
    try:
        return inspect.signature(factory, eval_str=True).parameters
    except Exception:  # names imported only for type checkers, or anything else
        return inspect.signature(factory).parameters


def varies(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether an argument of a factory becomes a hyperparameter: a schedule or an array."""
    if isinstance(value, optax.schedules.StatefulSchedule):
        return True
    if isinstance(value, (jax.Array, np.ndarray)):
        is_float = jnp.issubdtype(value.dtype, jnp.inexact)
        return is_float or (jnp.issubdtype(value.dtype, jnp.integer) and value.ndim == 0)
    if isinstance(value, _NO_NUMBERS) and _takes_schedule(parameter):
        raise TypeError(
            f"{parameter.name} must be a number, an array or a schedule, got {shown(value)}. "
            + _instead_of(value, parameter.name)
        )
    # A class, such as jnp.float32, is a dtype.
    if not callable(value) or isinstance(value, type) or _takes_another_function(parameter):
        return False
    problem = _problem_as_schedule(value)
    if problem is None:
        check_powers(parameter.name, value)
        return True
    if _gives_flags_or_labels(value):
        return False
    raise TypeError(
        f"{parameter.name} must be a number, an array or a schedule (a traceable function from the "
        f"step to a scalar), got {shown(value)}. If it is meant to be another kind of function, "
        f"such as a mask, name it: inject_schedules(factory, static_args={parameter.name!r})."
    ) from problem


def _instead_of(value: Any, name: str) -> str:
    """Return advice on what to pass instead of a container, a string or a boolean."""
    if isinstance(value, (str, bool, np.bool_)):  # YAML reads 1e-3, without a point, as a string
        return f"Convert it: {name}=float(...)."
    if isinstance(value, dict):
        return "Pass one of its values."
    return (
        f"To cycle between two bounds pass {name}=optax_clr.triangular_schedule(*bounds, "
        f"rise_steps=...). {see('schedules/')}"
    )


_NO_NUMBERS = (tuple, list, str, dict, bool, np.bool_)

# Origins of annotations that stand for trees or for several numbers.
_CONTAINERS = {
    *(tuple, list, dict, collections.abc.Iterable),
    *(collections.abc.Mapping, collections.abc.Sequence),
}


def _takes_schedule(parameter: inspect.Parameter) -> bool:
    kinds = _alternatives(parameter.annotation)
    if any(typing.get_origin(kind) in _CONTAINERS for kind in kinds):
        return False
    is_number = float in kinds or jax.Array in kinds
    is_of_a_step = any([int] in typing.get_args(kind) for kind in kinds)  # Callable[[int], float]
    is_rate = parameter.name.endswith("learning_rate")
    return is_rate or is_of_a_step or (is_number and _takes_function(parameter))


def _takes_another_function(parameter: inspect.Parameter) -> bool:
    """Whether the name or annotation of an argument shows that it takes a non-schedule function."""
    if "mask" in parameter.name:
        return True
    is_schedule = optax.Schedule in _alternatives(parameter.annotation)
    return _takes_function(parameter) and not (is_schedule or _takes_schedule(parameter))


def _takes_function(parameter: inspect.Parameter) -> bool:
    # An annotation without arguments, such as a bare Callable, says nothing.
    return any(
        typing.get_origin(kind) is collections.abc.Callable and typing.get_args(kind)
        for kind in _alternatives(parameter.annotation)
    )


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, nested ones too, or the annotation itself."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return [annotation]
    return [kind for member in typing.get_args(annotation) for kind in _alternatives(member)]


def _problem_as_schedule(value: Callable[..., Any]) -> Exception | None:
    """Return what keeps a function from being a schedule, or None."""
    try:
        result = traced_result(value, np.int32(0))
    except Exception as error:  # the function may be anything, and raise anything
        return error
    is_scalar = isinstance(result, jax.ShapeDtypeStruct) and result.shape == ()
    if is_scalar and is_real_dtype(result.dtype):
        return None
    return TypeError(f"It maps a step to {shown(result)}.")


def _gives_flags_or_labels(value: Callable[..., Any]) -> bool:
    """Whether a function of params returns flags, as masks do, or labels, as partitions do."""
    try:
        leaves = jax.tree.leaves(value({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}))
    except Exception:  # the function may be anything, and raise anything
        return False
    return bool(leaves) and all(isinstance(leaf, (bool, np.bool_, str)) for leaf in leaves)
