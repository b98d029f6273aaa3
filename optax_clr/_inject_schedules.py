"""Schedules inside an optimizer whose state keeps its dtypes and owns its buffers."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_clr._arguments import function, native
from optax_clr._documentation import see
from optax_clr._factory_arguments import parameters_of, varies
from optax_clr._jaxprs import inputs_of
from optax_clr._states import holds_array, injected_in, own_buffers
from optax_clr._tracing import is_traced
from optax_clr._words import describe, shown

_GATHERED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

# In newer versions of JAX a class of its own.
_PROMOTION_ERROR: Any = getattr(jax.dtypes, "TypePromotionError", TypeError)


def inject_schedules(
    factory: Callable[..., optax.GradientTransformation],
    static_args: str | Sequence[str] = (),
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Wrap an optimizer factory so that any of its hyperparameters may be a schedule.

    This is a thin layer over ``optax.inject_hyperparams``. Only what can vary becomes a
    hyperparameter: schedules and arrays of numbers. Floats are kept in float32 whatever the dtype
    of the params (in float64 if it is a float64 JAX array). Numbers, dtypes, flags, names and
    tuples stay constants of the program. So a float32 run of Adam, AdamW, Lion or SGD with a
    scheduled learning rate is bit-identical to one that passes the schedule to the factory, and
    Adam in a bfloat16 model keeps its b2 of 0.999, which bfloat16 would round to 1.

    Every part of the optimizer gets the schedule's value at the current step, also in
    ``optax.contrib.schedule_free_sgd`` and its like, which would weight their average by the rate
    of the next one.

    The state keeps its dtypes from ``init`` on, even when a schedule drives the momentum of a
    bfloat16 model: the update compiles once under ``jax.jit``, and the state can be the carry of a
    ``jax.lax.scan``. Each of its arrays has its own buffer, so that a training step may donate it.

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
      TypeError: if ``factory`` is not callable, is an optimizer or has a positional-only argument,
        or ``static_args`` are not names; when the returned function is called, if an argument is a
        function that is neither a schedule nor one of the above, is a pair of bounds instead of a
        schedule, or would be gathered in the factory's ``*args`` or ``**kwargs``; from ``init``,
        if the factory returns something else than a ``GradientTransformation``.
      ValueError: if ``static_args`` names an argument that the factory does not have; when the
        returned function is called, if a schedule has a negative power of an integer, such as
        ``10 ** -(step // 30)``, which JAX makes 0; from
        ``init``, if a hyperparameter would stay at its first value, because the factory injects it
        a second time or reads it only in ``init``.

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
    parameters = _checked_parameters(factory)
    static = _names_in(static_args)
    if unknown := static - set(parameters):
        raise ValueError(
            f"static_args={sorted(unknown)} must be arguments of the factory, "
            f"which has {list(parameters)}."
        )

    @functools.wraps(factory)
    def build(*args: Any, **hyperparams: Any) -> optax.GradientTransformationExtraArgs:
        given = _bound(factory, parameters, args, hyperparams)
        varying = {
            name
            for name, value in given.arguments.items()
            if name not in static and varies(parameters[name], value)
        }
        for name in varying:
            given.arguments[name] = _as_varying(given.arguments[name])
        named = _of_named(factory)
        static_names = set(inspect.signature(named).parameters) - varying
        inject = optax.inject_hyperparams(
            named, static_args=static_names, hyperparam_dtype=jnp.float32
        )
        constants = {key: value for key, value in given.arguments.items() if key not in varying}
        make = functools.partial(named, **constants)
        return _with_steady_state(inject(*given.args, **given.kwargs), make)

    return build


def _checked_parameters(factory: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a factory, each of which can be passed by name."""
    if isinstance(factory, optax.GradientTransformation):
        raise TypeError(
            "factory must be a function that builds an optimizer, such as optax.adamw, got one "
            "already built. Write inject_schedules(optax.adamw)(learning_rate=schedule). "
            + see("optimizers/")
        )
    factory = function("factory", factory, form="of hyperparameters")
    try:
        parameters = parameters_of(factory)
    except ValueError:  # a class or a function that is written in C
        raise TypeError(
            "factory must be a function that builds an optimizer from named arguments, such as "
            f"optax.adamw, got {shown(factory)}."
        ) from None
    for parameter in parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise TypeError(
                f"factory must take its arguments by name, got {shown(factory)}, which takes "
                f"{parameter.name} by position only. Wrap it: lambda learning_rate: factory("
                "learning_rate)."
            )
    return parameters


def _bound(
    factory: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    args: tuple[Any, ...],
    hyperparams: dict[str, Any],
) -> inspect.BoundArguments:
    """Bind the arguments of a factory to their names, with arrays in a form that JAX takes."""
    try:
        given = inspect.signature(factory).bind(*args, **hyperparams)
    except TypeError as error:
        raise TypeError(
            f"factory must be given its own arguments, {', '.join(parameters)}, got "
            f"{', '.join([*map(shown, args), *hyperparams])}: {error}."
        ) from None
    for name, value in given.arguments.items():
        if parameters[name].kind in _GATHERED:
            raise TypeError(
                f"factory must name each argument that it is given, got {shown(value)} for its "
                f"{parameters[name]}. Add these to its signature."
            )
        given.arguments[name] = native(name, value)
    return given


def _names_in(static_args: Any) -> set[str]:
    is_one = isinstance(static_args, str) or not isinstance(static_args, Iterable)
    names = [static_args] if is_one else list(static_args)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"static_args must be names of arguments of the factory, got {shown(static_args)}."
        )
    return set(names)


def _of_named(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Return the factory without ``*args`` and ``**kwargs``, which Optax would pass by name."""
    parameters = inspect.signature(factory).parameters.values()
    named = [parameter for parameter in parameters if parameter.kind not in _GATHERED]

    @functools.wraps(factory)
    def build(**hyperparams: Any) -> Any:
        optimizer = factory(**hyperparams)
        # Not checked by type: optax.MultiSteps is not a GradientTransformation, but works as one.
        if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise TypeError(
                f"factory must return a GradientTransformation, got {describe(optimizer)} from "
                f"{shown(factory)}."
            )
        return optimizer

    build.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    return build


def _as_varying(value: Any) -> Any:
    if isinstance(value, optax.schedules.StatefulSchedule):
        return value
    if callable(value):
        return lambda step: _as_hyperparam(value(step))
    return _as_hyperparam(value)


def _as_hyperparam(value: Any) -> jax.Array:
    """Return a number as a new array: floats in float32, or in float64 if a float64 JAX array."""
    value = native("a hyperparameter", value)
    dtype = jnp.result_type(value)
    is_double = isinstance(value, jax.Array) and not value.weak_type and dtype == jnp.float64
    if jnp.issubdtype(dtype, jnp.floating) and not is_double:
        dtype = jnp.dtype(jnp.float32)
    return jnp.array(value, dtype)


def _with_steady_state(
    inner: optax.GradientTransformationExtraArgs, make: Callable[..., Any]
) -> optax.GradientTransformationExtraArgs:
    """Return the same transformation with a state that keeps its dtypes and shares no buffers.

    ``make`` builds the wrapped optimizer from its hyperparameters, as ``inner`` does each update.
    """

    def init(params: Any) -> Any:
        state = inner.init(params)
        _check_trains_with_them(make, state, params)
        return own_buffers(jax.tree.map(_strong, state))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        try:
            new_updates, new_state = inner.update(updates, state, params, **extra_args)
        except (TypeError, _PROMOTION_ERROR) as error:
            error.add_note(
                "Hyperparameters are float32 whatever the params are. Where that is wrong, "
                "convert one in the factory: optax.clip_by_global_norm(max_norm.astype(jnp.bfloat16"
                f")). {see('optimizers/')}"
            )
            raise
        # A float32 rate would widen bfloat16 updates, but wrappers that choose between updates and
        # gradients need one dtype. So updates are made no wider than gradients and params.
        narrowed = _map_alike(_narrow, new_updates, updates, updates if params is None else params)
        return narrowed, own_buffers(_map_alike(_in_dtype, new_state, state))

    return optax.GradientTransformationExtraArgs(init, update)


def _check_trains_with_them(make: Callable[..., Any], state: Any, params: Any) -> None:
    """Raise if the optimizer from ``make`` would keep the first value of a hyperparameter."""
    hyperparams = state.hyperparams
    if any(injected_in(state.inner_state)):
        kept_inside = lambda given: _injected_values(make(**given).init(params))
        if kept := _names_read(kept_inside, hyperparams):
            raise ValueError(
                f"factory must not inject {' and '.join(sorted(kept))} once more: the state of the "
                "inner one would keep the first value, and train with it at every step. Leave out "
                "the inner inject_schedules, or optax.inject_hyperparams, or give the schedule to "
                f"that one alone. {see('optimizers/')}"
            )
    # A traced value may belong to one vmapped run of a sweep, and is never set later.
    varying = {name for name, value in hyperparams.items() if not is_traced(value)}
    varying |= state.hyperparams_states.keys()
    if varying:
        varying &= _names_read(lambda given: make(**given).init(params), hyperparams) or set()
    if not varying:
        return
    extras = {"value": jnp.float32(0), "grad": params, "value_fn": lambda params: jnp.float32(0)}

    def update(given: dict[str, Any]) -> Any:
        optimizer = optax.with_extra_args_support(make(**given))
        return optimizer.update(params, state.inner_state, params, **extras)

    in_updates = _names_read(update, hyperparams)
    if in_updates is not None and (ignored := sorted(varying - in_updates)):
        raise ValueError(
            f"{' and '.join(ignored)} must be a number: the optimizer reads it once, when its "
            "state is made. A schedule would stay at its first value, and what is set later be "
            "ignored."
        )


def _names_read(function: Callable[..., Any], hyperparams: dict[str, Any]) -> set[str] | None:
    """Return the hyperparameters from which the arrays in a function's result are computed.

    None if the function cannot be traced by itself: it may need more than is known here.
    """
    arrays = lambda given: [leaf for leaf in jax.tree.leaves(function(given)) if holds_array(leaf)]
    try:
        jaxpr = jax.make_jaxpr(arrays)(hyperparams).jaxpr
    except Exception:
        return None
    needed = inputs_of(jaxpr, [True] * len(jaxpr.outvars))
    return set(itertools.compress(sorted(hyperparams), needed))


def _injected_values(state: Any) -> list[Any]:
    """Return the hyperparameters inside a state that no schedule recomputes in each update."""
    return [
        value
        for _, node in injected_in(state)
        for name, value in node.hyperparams.items()
        if name not in node.hyperparams_states
    ]


def _map_alike(change: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return the tree with its leaves changed, or unchanged if the others differ in structure."""
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
