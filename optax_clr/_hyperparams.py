"""Hyperparameters inside an optimizer: schedule them, read them, set them, resume them."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_clr._arguments import as_step, function, is_traced
from optax_clr._averaging import AveragingState
from optax_clr._documentation import see

_Injected = optax.InjectStatefulHyperparamsState


def inject_schedules(
    factory: Callable[..., optax.GradientTransformation],
    static_args: str | Sequence[str] = (),
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Wrap an optimizer factory so that any of its hyperparameters may be a schedule.

    A thin :func:`optax.inject_hyperparams` that makes hyperparameters only of what varies, which
    is schedules and arrays, and keeps them float32 whatever the dtype of the params. Python
    numbers stay constants of the program, so that a float32 run of Adam, AdamW, Lion or SGD with
    a scheduled learning rate is bit-identical to the one that passes the schedule to the factory,
    and an Adam in a bfloat16 model keeps its b2 of 0.999, which bfloat16 would round to 1.

    Args:
      factory: a function that returns a ``GradientTransformation``, such as ``optax.adamw``.
      static_args: names of the arguments that are functions but not schedules, such as ``mask``.

    Returns:
      A function of the factory's arguments, each of which may be a schedule (``step -> scalar``)
      or an array, that returns the ``GradientTransformationExtraArgs``. Its state holds the value
      of each, as used in the last update; see :func:`get_hyperparams`.

    Raises:
      TypeError: if ``factory`` is not callable; when it is called, if an argument is a function,
        not in ``static_args``, that does not map a step to a scalar.
      ValueError: if ``static_args`` names an argument that the factory does not have.

    Example:
      >>> rate = optax_clr.triangular_schedule(0.1, 0.5, rise_steps=2)
      >>> momentum = optax_clr.triangular_schedule(0.95, 0.85, rise_steps=2)
      >>> optimizer = inject_schedules(optax.sgd)(learning_rate=rate, momentum=momentum)
      >>> state = optimizer.init(jnp.zeros(3))
      >>> for _ in range(3):
      ...     _, state = optimizer.update(jnp.ones(3), state)
      >>> {name: f"{value:.2f}" for name, value in get_hyperparams(state).items()}
      {'learning_rate': '0.50', 'momentum': '0.85'}

    References:
      ``optax.inject_hyperparams``; Smith, `A disciplined approach
      <https://arxiv.org/abs/1803.09820>`_, 2018, on cycling the momentum with the rate.
    """
    if isinstance(factory, optax.GradientTransformation):
        raise TypeError(
            "factory must be a function that builds an optimizer, such as optax.adamw, got one "
            "already built. Write inject_schedules(optax.adamw)(learning_rate=schedule). "
            + see("optimizers/")
        )
    factory = function("factory", factory, form="of hyperparameters")
    signature = inspect.signature(factory)
    names = {static_args} if isinstance(static_args, str) else set(static_args)
    if unknown := names - set(signature.parameters):
        raise ValueError(
            f"static_args={sorted(unknown)} must be arguments of the factory, "
            f"which has {list(signature.parameters)}."
        )

    @functools.wraps(factory)
    def build(*args: Any, **hyperparams: Any) -> optax.GradientTransformationExtraArgs:
        given = signature.bind(*args, **hyperparams).arguments
        varying = {name for name in given.keys() - names if _varies(name, given[name])}
        inject = optax.inject_hyperparams(
            factory,
            static_args=set(signature.parameters) - varying,
            hyperparam_dtype=jnp.float32,
        )
        return inject(*args, **hyperparams)

    return build


def get_hyperparams(state: Any) -> dict[str, jax.Array]:
    """Return the live hyperparameters found anywhere in an optimizer's or trainer's state.

    Args:
      state: any pytree that holds states of :func:`inject_schedules` or
        ``optax.inject_hyperparams``: of ``optax.chain``, ``optax.partition``,
        ``optax.MultiSteps``, a Flax ``TrainState``; or an ``nnx.Optimizer``.

    Returns:
      A dictionary from names to scalars: the values used in the update that made this state, or
      those of step 0 in a new one. A name that occurs several times with different values (or
      with values not yet known, inside ``jax.jit``) comes back under its paths instead. Empty if
      nothing was injected.

    Example:
      >>> rate = optax_clr.triangular_schedule(0.1, 0.5, rise_steps=2)
      >>> optimizer = optax.chain(
      ...     optax.clip(1.0), inject_schedules(optax.adam)(learning_rate=rate)
      ... )
      >>> get_hyperparams(optimizer.init(jnp.zeros(3)))
      {'learning_rate': Array(0.1, dtype=float32)}
    """
    found: dict[str, dict[str, jax.Array]] = {}
    # An nnx.Optimizer of older Flax is no pytree, but its state is one.
    for path, node in _injected_states(getattr(state, "opt_state", state)):
        for name, value in node.hyperparams.items():
            found.setdefault(name, {})[_key(path, name)] = jnp.asarray(value)
    hyperparams: dict[str, jax.Array] = {}
    for name, values in found.items():
        first = next(iter(values.values()))
        alike = all(_known_equal(first, value) for value in values.values())
        hyperparams.update({name: first} if alike else values)
    return hyperparams


def set_hyperparams(state: Any, **values: ArrayLike) -> Any:
    """Return the state with hyperparameters that no schedule drives set to new values.

    Args:
      state: as for :func:`get_hyperparams`; not changed.
      **values: scalars by name, or by path where :func:`get_hyperparams` gives paths; a name that
        occurs several times is set everywhere. They take the dtype that is there.

    Returns:
      A new state of the same structure, shapes and dtypes.

    Raises:
      TypeError: if a value is no number.
      ValueError: if no hyperparameter has that name, a schedule drives it (the next update would
        overwrite the value in silence), or the shape differs.

    Example:
      >>> optimizer = inject_schedules(optax.sgd)(learning_rate=jnp.float32(0.1))
      >>> state = set_hyperparams(optimizer.init(jnp.zeros(3)), learning_rate=0.05)
      >>> get_hyperparams(state)
      {'learning_rate': Array(0.05, dtype=float32)}
    """
    states = _injected_states(state)
    for name, value in values.items():
        _check_settable(states, name)
        if not (isinstance(value, numbers.Real) or hasattr(value, "dtype")):
            raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}.")

    def with_values(path: Sequence[Any], node: Any) -> Any:
        if not isinstance(node, _Injected):
            return node
        hyperparams = {
            name: _like(old, values.get(_key(path, name), values.get(name, old)), name)
            for name, old in node.hyperparams.items()
        }
        return node._replace(hyperparams=hyperparams)

    return _rebuild(with_values, state)


def set_step(state: Any, step: int | jax.Array) -> Any:
    """Return the state with every schedule moved to ``step``, so that a resumed run goes on there.

    Moves the counter of each injected state, of each schedule wrapped in it, of
    ``optax.scale_by_schedule``, of ``average_at_cycle_ends`` and the count of real updates of
    ``optax.MultiSteps``. The count of an Adam's moments, which is no schedule, stays.

    Args:
      state: an optimizer's or trainer's state, as for :func:`get_hyperparams`; not changed.
      step: integer scalar, optimizer steps done so far; the next update uses ``schedule(step)``.

    Returns:
      A new state of the same structure. The values that :func:`get_hyperparams` reads are still
      those of the last update, until the next one.

    Raises:
      TypeError: if ``step`` is not an integer.
      ValueError: if it is not a scalar or is negative, or the state has no such counter.

    Example:
      >>> rate = optax_clr.triangular_schedule(0.1, 0.5, rise_steps=2)
      >>> optimizer = inject_schedules(optax.sgd)(learning_rate=rate)
      >>> state = set_step(optimizer.init(jnp.zeros(3)), 2)
      >>> _, state = optimizer.update(jnp.ones(3), state)
      >>> get_hyperparams(state)
      {'learning_rate': Array(0.5, dtype=float32)}
    """
    count = as_step(step)
    if count.shape != () or (not is_traced(step) and int(step) < 0):
        raise ValueError(f"step must be a scalar of at least 0, got {step!r}.")
    num_moved = 0

    def moved(path: Sequence[Any], node: Any) -> Any:
        nonlocal num_moved
        num_moved += 1
        counter = _counters()[type(node)]
        return node._replace(**{counter: _like(getattr(node, counter), count, "step")})

    moved_state = _rebuild(moved, state)
    if not num_moved:
        raise ValueError(
            "state has no schedule whose step could be set: it was made with constants, or it is "
            "not the state of an optimizer."
        )
    return moved_state


@functools.cache
def _counters() -> dict[type, str]:
    """Return every kind of state with a schedule's counter, and the field that counts."""
    # Optax does not export the class of the last. Not at import, which must not trace anything.
    wrapped = jax.eval_shape(optax.schedules.WrappedSchedule(lambda step: step).init)
    return {
        _Injected: "count",
        AveragingState: "step",
        optax.ScaleByScheduleState: "count",
        optax.MultiStepsState: "gradient_step",
        type(wrapped): "count",
    }


# The fields in which such states hold other states.
_CHILDREN = {
    _Injected: ("hyperparams_states", "inner_state"),
    optax.MultiStepsState: ("inner_opt_state",),
}


def _rebuild(visit: Callable[..., Any], tree: Any, path: Sequence[Any] = ()) -> Any:
    """Return ``tree`` with each state that has a counter replaced by ``visit(path, state)``."""
    counters = _counters()

    def descend(inner: Sequence[Any], node: Any) -> Any:
        here = (*path, *inner)
        children = {
            field: _rebuild(visit, getattr(node, field), (*here, field))
            for field in _CHILDREN.get(type(node), ())
        }
        if type(node) not in counters:
            return node
        return visit(here, node._replace(**children))

    return jax.tree_util.tree_map_with_path(
        descend, tree, is_leaf=lambda node: type(node) in counters
    )


def _injected_states(state: Any) -> list[tuple[Sequence[Any], Any]]:
    """Return the path and the node of every injected state."""
    found: list[tuple[Sequence[Any], Any]] = []

    def collect(path: Sequence[Any], node: Any) -> Any:
        if isinstance(node, _Injected):
            found.append((path, node))
        return node

    _rebuild(collect, state)
    return found


def _varies(name: str, value: Any) -> bool:
    if isinstance(value, (jax.Array, np.ndarray, optax.schedules.StatefulSchedule)):
        return True
    if not callable(value):
        return False
    try:
        result = jax.eval_shape(value, np.int32(0))
        is_schedule = (
            isinstance(result, jax.ShapeDtypeStruct)
            and result.shape == ()
            and np.issubdtype(result.dtype, np.number)
        )
    except Exception as error:
        raise TypeError(_not_a_schedule(name, value)) from error
    if not is_schedule:
        raise TypeError(_not_a_schedule(name, value))
    return True


def _not_a_schedule(name: str, value: Any) -> str:
    return (
        f"{name} must be a number, an array or a schedule, a traceable function from the step to "
        f"a scalar; got {value!r}. If it is meant to be another kind of function, such as a mask, "
        f"say so: inject_schedules(factory, static_args={name!r})."
    )


def _key(path: Sequence[Any], name: str) -> str:
    """Return a path such as ``1/inner_states/fast/inner_state/learning_rate``."""
    parts = []
    for entry in path:
        attributes = (getattr(entry, field, None) for field in ("name", "key", "idx"))
        known = [str(attribute) for attribute in attributes if attribute is not None]
        parts.append(known[0] if known else str(entry))
    return "/".join([*parts, name])


def _known_equal(first: jax.Array, second: jax.Array) -> bool:
    if first is second:
        return True
    return not (is_traced(first) or is_traced(second)) and bool(np.array_equal(first, second))


def _check_settable(states: Sequence[tuple[Sequence[Any], Any]], name: str) -> None:
    """Raise unless some hyperparameter has that name or path and no schedule drives it."""
    driven = {
        _key(path, key): (key, key in node.hyperparams_states)
        for path, node in states
        for key in node.hyperparams
    }
    targets = [path for path, (key, _) in driven.items() if name in (path, key)]
    if not targets:
        raise ValueError(
            f"{name} is no hyperparameter of this state, which has {sorted(driven)}. To make it "
            "one, pass it to inject_schedules(factory) as an array."
        )
    for path in targets:
        if driven[path][1]:
            raise ValueError(
                f"{name} is driven by a schedule at {path}, which would overwrite the "
                "value at the next update. Build the optimizer with an array instead, or move the "
                "schedule with set_step."
            )


def _like(old: Any, value: Any, name: str) -> Any:
    """Return ``value`` in the dtype, and in the nnx.Variable if there is one, of ``old``."""
    if value is old:
        return old
    array = jnp.asarray(old)
    if np.shape(value) not in ((), array.shape):
        raise ValueError(
            f"{name} must have shape {array.shape} or (), got an array of shape {np.shape(value)}."
        )
    array = jnp.broadcast_to(jnp.asarray(value, array.dtype), array.shape)
    return old.replace(array) if hasattr(old, "replace") else array
