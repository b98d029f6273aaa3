"""Hyperparameters inside an optimizer: schedule them, read them, set them."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_clr._arguments import function, native, shown
from optax_clr._documentation import see
from optax_clr._states import (
    RESTORE,
    Path,
    is_trainer,
    key_name,
    own_buffers,
    rebuild,
    walk,
    was_restored,
    with_optimizer_state,
)

_Injected = optax.InjectStatefulHyperparamsState


def inject_schedules(
    factory: Callable[..., optax.GradientTransformation],
    static_args: str | Sequence[str] = (),
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Wrap an optimizer factory so that any of its hyperparameters may be a schedule.

    This is a thin layer over ``optax.inject_hyperparams``. Only what varies becomes a
    hyperparameter, that is schedules and arrays of numbers, and it is kept in float32 whatever the
    dtype of the params. Numbers, dtypes, flags, names and tuples stay constants of the program.
    So a float32 run of Adam, AdamW, Lion or SGD with a scheduled learning rate is bit-identical to
    one that passes the schedule to the factory, and Adam in a bfloat16 model keeps its b2 of
    0.999, which bfloat16 would round to 1.

    The state keeps its dtypes from ``init`` on, also when a schedule drives the momentum of a
    bfloat16 model: it compiles once under ``jax.jit``, and can be the carry of a ``jax.lax.scan``.
    Each of its arrays has its own buffer, so that a training step may donate it.

    Args:
      factory: a function that returns a ``GradientTransformation``, such as ``optax.adamw``.
      static_args: names of arguments that are functions but not schedules. Needed only if a
        function could be mistaken for a schedule. Arguments with "mask" in their name or
        annotated as another kind of function, and functions of the params that return flags or
        labels, are recognised without it.

    Returns:
      A function with the factory's arguments, each of which may be a schedule
      (``step -> scalar``) or an array, that returns the ``GradientTransformationExtraArgs``. Its
      state holds the values used in the last update; see [`get_hyperparams`][].

    Raises:
      TypeError: if ``factory`` is not callable; when it is called, if an argument is a function
        that is neither a schedule nor one of the above, or bounds where a schedule belongs.
      ValueError: if ``static_args`` names an argument that the factory does not have.

    Examples:
      >>> rate = optax_clr.triangular_schedule(0.1, 0.5, rise_steps=2)
      >>> momentum = optax_clr.triangular_schedule(0.95, 0.85, rise_steps=2)
      >>> optimizer = inject_schedules(optax.sgd)(learning_rate=rate, momentum=momentum)
      >>> state = optimizer.init(jnp.zeros(3))
      >>> for _ in range(3):
      ...     _, state = optimizer.update(jnp.ones(3), state)
      >>> {name: f"{value:.2f}" for name, value in get_hyperparams(state).items()}
      {'learning_rate': '0.50', 'momentum': '0.85'}

    References:
      ``optax.inject_hyperparams``; Smith,
      [A disciplined approach](https://arxiv.org/abs/1803.09820), 2018, on cycling the momentum
      with the rate.
    """
    if isinstance(factory, optax.GradientTransformation):
        raise TypeError(
            "factory must be a function that builds an optimizer, such as optax.adamw, got one "
            "already built. Write inject_schedules(optax.adamw)(learning_rate=schedule). "
            + see("optimizers/")
        )
    factory = function("factory", factory, form="of hyperparameters")
    parameters = inspect.signature(factory).parameters
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    if unknown := static - set(parameters):
        raise ValueError(
            f"static_args={sorted(unknown)} must be arguments of the factory, "
            f"which has {list(parameters)}."
        )

    @functools.wraps(factory)
    def build(*args: Any, **hyperparams: Any) -> optax.GradientTransformationExtraArgs:
        given = inspect.signature(factory).bind(*args, **hyperparams)
        varying = {
            name
            for name, value in given.arguments.items()
            if name not in static and _varies(parameters[name], value)
        }
        for name in varying:
            given.arguments[name] = _as_varying(given.arguments[name])
        inject = optax.inject_hyperparams(
            factory, static_args=set(parameters) - varying, hyperparam_dtype=jnp.float32
        )
        return _with_steady_state(inject(*given.args, **given.kwargs))

    return build


def get_hyperparams(state: Any) -> dict[str, jax.Array]:
    """Return the live hyperparameters found anywhere in an optimizer's or trainer's state.

    Args:
      state: any pytree that holds states of [`inject_schedules`][] or
        ``optax.inject_hyperparams``, such as that of ``optax.chain``, ``optax.partition``,
        ``optax.MultiSteps`` or a Flax ``TrainState``, or an ``nnx.Optimizer``; also one that a
        checkpoint gave back as dicts and lists.

    Returns:
      A dictionary from names to copies of the values used in the update that made this state, or
      of those of step 0 in a new state. If a name occurs more than once, its values come under
      their paths, even if they are equal, so that the keys are the same at every step. Empty if
      everything is constant.

    Raises:
      ValueError: if a schedule was passed to Optax itself, whose state does not hold its value.

    Examples:
      >>> rate = optax_clr.triangular_schedule(0.1, 0.5, rise_steps=2)
      >>> optimizer = optax.chain(
      ...     optax.clip(1.0), inject_schedules(optax.adam)(learning_rate=rate)
      ... )
      >>> get_hyperparams(optimizer.init(jnp.zeros(3)))
      {'learning_rate': Array(0.1, dtype=float32)}
    """
    state = _state_of(state)
    found = [
        (path, name, value)
        for path, node in _injected(state, restored=True)
        for name, value in _hyperparams_in(node).items()
    ]
    if not found:
        _check_no_bare_schedule(state)
    names = [name for _, name, _ in found]
    return {
        name if names.count(name) == 1 else _key(path, name): _own_array(value)
        for path, name, value in found
    }


def set_hyperparams(state: Any, **values: ArrayLike) -> Any:
    """Return the state with new values for hyperparameters that no schedule drives.

    Args:
      state: as for [`get_hyperparams`][]; not changed.
      **values: scalars by name, or by path where [`get_hyperparams`][] gives paths. A name that
        occurs several times is set everywhere. Values are converted to the dtype in the state.

    Returns:
      A new state of the same structure, shapes and dtypes, all of whose arrays are copies; a new
      ``nnx.Optimizer`` if it was given one.

    Raises:
      TypeError: if a value is not a number, or not an integer for a hyperparameter that is one;
        or if ``state`` is an ``nnx.Optimizer`` in a version of Flax in which it is not a pytree.
      ValueError: if no hyperparameter has that name, a schedule drives it (the next update would
        overwrite the value), the shape differs, or the state was restored from a checkpoint
        without its types.

    Examples:
      >>> optimizer = inject_schedules(optax.sgd)(learning_rate=jnp.float32(0.1))
      >>> state = set_hyperparams(optimizer.init(jnp.zeros(3)), learning_rate=0.05)
      >>> get_hyperparams(state)
      {'learning_rate': Array(0.05, dtype=float32)}
    """
    optimizer_state = _state_of(state)
    for name, value in values.items():
        _check_settable(optimizer_state, name)
        _check_number(name, value)

    def with_values(path: Path, node: Any) -> Any:
        if not isinstance(node, _Injected):
            return node
        hyperparams = {
            name: _like(old, values.get(_key(path, name), values.get(name, old)), name)
            for name, old in node.hyperparams.items()
        }
        return node._replace(hyperparams=hyperparams)

    if is_trainer(state):
        changed = with_optimizer_state(state, lambda inner: rebuild(with_values, inner))
    else:
        changed = rebuild(with_values, state)
    return own_buffers(changed)


# --------------------------------------------------------------------------- building optimizers


def _varies(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether an argument of a factory becomes a hyperparameter: a schedule or an array."""
    if isinstance(value, optax.schedules.StatefulSchedule):
        return True
    if isinstance(value, (jax.Array, np.ndarray)):
        is_float = jnp.issubdtype(value.dtype, jnp.inexact)
        return is_float or (jnp.issubdtype(value.dtype, jnp.integer) and value.ndim == 0)
    if isinstance(value, (tuple, list)) and _takes_schedule(parameter):
        raise TypeError(
            f"{parameter.name} must be a number, an array or a schedule, got {shown(value)}. To "
            f"cycle between two bounds pass {parameter.name}=optax_clr.triangular_schedule("
            f"*bounds, rise_steps=...). {see('schedules/')}"
        )
    # A class, such as jnp.float32, is a dtype.
    if not callable(value) or isinstance(value, type) or _takes_another_function(parameter):
        return False
    problem = _problem_as_schedule(value)
    if problem is None:
        return True
    if _gives_flags_or_labels(value):
        return False
    raise TypeError(
        f"{parameter.name} must be a number, an array or a schedule (a traceable function from the "
        f"step to a scalar), got {shown(value)}. If it is meant to be another kind of function, "
        f"such as a mask, name it: inject_schedules(factory, static_args={parameter.name!r})."
    ) from problem


def _takes_schedule(parameter: inspect.Parameter) -> bool:
    is_rate = parameter.name.endswith("learning_rate")
    return is_rate or optax.Schedule in _alternatives(parameter.annotation)


def _takes_another_function(parameter: inspect.Parameter) -> bool:
    """Whether the name or annotation of an argument shows that it takes another function."""
    if "mask" in parameter.name:
        return True
    kinds = _alternatives(parameter.annotation)
    functions = [kind for kind in kinds if typing.get_origin(kind) is collections.abc.Callable]
    return bool(functions) and optax.Schedule not in kinds


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, nested ones too, or the annotation itself."""
    members = typing.get_args(annotation)
    if not members or typing.get_origin(annotation) is collections.abc.Callable:
        return [annotation]
    return [kind for member in members for kind in _alternatives(member)]


def _problem_as_schedule(value: Callable[..., Any]) -> Exception | None:
    """Return what keeps a function from being a schedule, or None."""
    try:
        result = jax.eval_shape(value, np.int32(0))
    except Exception as error:  # the function may be anything, and raise anything
        return error
    is_array = isinstance(result, jax.ShapeDtypeStruct)
    if is_array and result.shape == () and jnp.issubdtype(result.dtype, jnp.number):
        return None
    return TypeError(f"It maps a step to {shown(result)}.")


def _gives_flags_or_labels(value: Callable[..., Any]) -> bool:
    """Whether a function of params returns flags, as masks do, or labels, as partitions do."""
    try:
        leaves = jax.tree.leaves(value({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}))
    except Exception:  # the function may be anything, and raise anything
        return False
    return bool(leaves) and all(isinstance(leaf, (bool, np.bool_, str)) for leaf in leaves)


def _as_varying(value: Any) -> Any:
    if isinstance(value, optax.schedules.StatefulSchedule):
        return value
    if callable(value):
        return lambda step: _as_hyperparam(value(step))
    return _as_hyperparam(value)


def _as_hyperparam(value: Any) -> jax.Array:
    """Return a number as a new array: a float in float32, or float64 if it is a JAX array of it."""
    value = native(value)
    dtype = jnp.result_type(value)
    is_double = isinstance(value, jax.Array) and not value.weak_type and dtype == jnp.float64
    if jnp.issubdtype(dtype, jnp.floating) and not is_double:
        dtype = jnp.dtype(jnp.float32)
    return jnp.array(value, dtype)


def _with_steady_state(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Return the same transformation, whose state keeps its dtypes and shares no buffer."""

    def init(params: Any) -> Any:
        return own_buffers(jax.tree.map(_strong, inner.init(params)))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        new_updates, new_state = inner.update(updates, state, params, **extra_args)
        # A float32 rate would widen bfloat16 updates, and wrappers that choose between updates and
        # gradients need one dtype. So updates are no wider than gradients and params.
        narrowed = _map_alike(_narrow, new_updates, updates, updates if params is None else params)
        return narrowed, own_buffers(_map_alike(_in_dtype, new_state, state))

    return optax.GradientTransformationExtraArgs(init, update)


def _map_alike(change: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return the tree with its leaves changed, or as it is if the others differ in structure."""
    structures: list[Any] = [jax.tree.structure(other) for other in (tree, *others)]
    if any(structure != structures[0] for structure in structures):
        return tree
    return jax.tree.map(change, tree, *others)


def _strong(leaf: Any) -> Any:
    """Return a number as an array that is not weakly typed."""
    if isinstance(leaf, (jax.Array, int, float, complex)) and not isinstance(leaf, bool):
        return jnp.asarray(leaf, jnp.result_type(leaf))
    return leaf


def _in_dtype(new: Any, old: Any) -> Any:
    if not hasattr(old, "dtype"):
        return _strong(new)
    dtype = jnp.result_type(old)
    for kind in (jnp.floating, jnp.integer, jnp.complexfloating):
        if jnp.issubdtype(dtype, kind) and jnp.issubdtype(jnp.result_type(new), kind):
            return jnp.asarray(new, dtype)
    return new


def _narrow(update: Any, gradient: Any, param: Any) -> Any:
    dtypes = [jnp.result_type(leaf) for leaf in (update, gradient, param)]
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        return update
    widest = max(dtypes[1:], key=lambda dtype: dtype.itemsize)
    return update.astype(widest) if dtypes[0].itemsize > widest.itemsize else update


# ------------------------------------------------------------------------------- reading, setting


def _state_of(state: Any) -> Any:
    """Return the optimizer's state of a trainer, or the state itself."""
    return state.opt_state if is_trainer(state) else state


def _injected(state: Any, *, restored: bool) -> Iterator[tuple[Path, Any]]:
    """Yield the path and node of every injected state; with ``restored``, also of dicts of one."""
    for path, node in walk(state):
        is_dict = restored and was_restored(node, "count", "hyperparams", "inner_state")
        if is_dict or isinstance(node, _Injected):
            yield path, node


def _hyperparams_in(node: Any) -> Any:
    return node.hyperparams if isinstance(node, _Injected) else node["hyperparams"]


def _own_array(value: Any) -> jax.Array:
    # An entry of an nnx.state holds the array as its only leaf.
    return jnp.array(jax.tree.leaves(value)[0])


def _key(path: Path, name: str) -> str:
    """Return a path such as ``1/inner_states/fast/inner_state/learning_rate``.

    In the outermost state it is ``./learning_rate``, because the name alone stands for every
    hyperparameter of that name.
    """
    return "/".join([*(map(key_name, path) if path else "."), name])


def _check_no_bare_schedule(state: Any) -> None:
    """Raise if a schedule was passed to Optax itself."""
    for path, node in walk(state):
        if type(node).__name__ in ("ScaleByScheduleState", "WeightDecaySchedule"):
            raise ValueError(
                f"state{''.join(map(str, path))} is that of a schedule passed to Optax itself, "
                "which does not keep its values. To read them, build the optimizer with "
                "inject_schedules(optax.adam)(learning_rate=schedule). " + see("optimizers/")
            )


def _check_settable(state: Any, name: str) -> None:
    """Raise unless a hyperparameter has that name or path, and no schedule drives it."""
    driven = {
        _key(path, key): (key, key in node.hyperparams_states)
        for path, node in _injected(state, restored=False)
        for key in node.hyperparams
    }
    targets = [path for path, (key, _) in driven.items() if name in (path, key)]
    if not driven and any(_injected(state, restored=True)):
        raise ValueError(f"{name} cannot be set in a state of dicts and lists. {RESTORE}")
    if not targets:
        raise ValueError(
            f"{name} is not a hyperparameter of this state, which has "
            f"{sorted(key.removeprefix('./') for key in driven)}. To make it "
            "one, pass it to inject_schedules(factory) as an array."
        )
    for path in targets:
        if driven[path][1]:
            raise ValueError(
                f"{name} is driven by a schedule at {path.removeprefix('./')}, which would "
                "overwrite the value at the next update. Build the optimizer with an array "
                "instead, or move the schedule with set_step. To scale a schedule's values, see "
                + see("optimizers/#scale-a-schedule-by-hand").removeprefix("See ")
            )


def _check_number(name: str, value: Any) -> None:
    is_number = isinstance(value, numbers.Real) or (
        hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.number)
    )
    if not is_number:
        raise TypeError(f"{name} must be a number or an array of numbers, got {shown(value)}.")


def _like(old: Any, value: Any, name: str) -> Any:
    """Return ``value`` in the dtype and, if it has one, the nnx.Variable of ``old``."""
    if value is old:
        return old
    array = jnp.asarray(old)
    if np.shape(value) not in ((), array.shape):
        raise ValueError(
            f"{name} must have shape {array.shape} or (), got an array of shape {np.shape(value)}."
        )
    new = native(value)
    kinds = [jnp.issubdtype(jnp.result_type(each), jnp.integer) for each in (array, new)]
    if kinds == [True, False]:
        raise TypeError(f"{name} must be an integer, as it is in the state, got {shown(value)}.")
    array = jnp.broadcast_to(jnp.asarray(new, array.dtype), array.shape)
    return old.replace(array) if hasattr(old, "replace") else array
