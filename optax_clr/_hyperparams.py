"""Read and set hyperparameters in the state of an optimizer."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optax_clr._arguments import is_plain_number, is_real_dtype, native
from optax_clr._documentation import see
from optax_clr._states import (
    RESTORE,
    Injected,
    Path,
    check_state,
    in_place_of,
    injected_in,
    is_trainer,
    key_name,
    own_buffers,
    rebuild,
    walk,
    with_optimizer_state,
)
from optax_clr._tracing import is_traced
from optax_clr._words import shown


def get_hyperparams(state: Any) -> dict[str, jax.Array]:
    """Return the current hyperparameters found anywhere in an optimizer's or trainer's state.

    Args:
      state: any pytree that holds states of [`inject_schedules`][] or
        ``optax.inject_hyperparams``, such as that of ``optax.chain``, ``optax.partition`` or
        ``optax.MultiSteps``, a Flax ``TrainState`` or an ``nnx.Optimizer``; also one that a
        checkpoint restored as dicts and lists.

    Returns:
      A dictionary from names to copies of the values: those used in the update that produced this
      state, or those of step 0 in a new state. If a name occurs more than once, its values are
      listed by path, even if they are equal, so that the keys are the same at every step. The
      dictionary is empty if everything is constant.

    Raises:
      TypeError: if ``state`` holds shapes, as from ``jax.eval_shape``, or is an optimizer.
      ValueError: if there is no such state, and a schedule was passed to Optax directly, which
        does not keep its value; if a checkpoint restored the state as plain tuples; or if two
        values have one path, since a key in it has a ``/`` of its own.

    Examples:
      >>> rate = optax_clr.triangular_schedule(0.1, 0.5, rise_steps=2)
      >>> optimizer = optax.chain(
      ...     optax.clip(1.0), inject_schedules(optax.adam)(learning_rate=rate)
      ... )
      >>> get_hyperparams(optimizer.init(jnp.zeros(3)))
      {'learning_rate': Array(0.1, dtype=float32)}
    """
    check_state(state)
    state = _state_of(state)
    found = [
        (_key(path, name), name, value)
        for path, node in injected_in(state, restored=True)
        for name, value in _hyperparams_in(node).items()
    ]
    if not found:
        _check_no_bare_schedule(state)
    _check_apart([key for key, _, _ in found])
    names = [name for _, name, _ in found]
    return {
        name if names.count(name) == 1 else key: _own_array(value) for key, name, value in found
    }


def set_hyperparams(state: Any, **values: ArrayLike) -> Any:
    """Return the state with new values for hyperparameters that no schedule drives.

    Args:
      state: as for [`get_hyperparams`][]; not changed.
      **values: scalars by name, or by path if [`get_hyperparams`][] returns paths. A name that
        occurs several times is set everywhere. Values are converted to the dtype in the state.

    Returns:
      A new state with the same structure, shapes and dtypes, all of whose arrays are copies; for
      an ``nnx.Optimizer``, a new one.

    Raises:
      TypeError: if a value is not a number, or not an integer for a hyperparameter that is one;
        or if ``state`` holds shapes, as from ``jax.eval_shape``, is an optimizer, or is an
        ``nnx.Optimizer`` in a version of Flax in which it is not a pytree.
      ValueError: if no hyperparameter has that name, a schedule drives it (the next update would
        overwrite the value), the shape differs, the value is NaN or outside the range of the dtype
        (a float in a JAX array is not checked, since that would wait for the device), or the state
        was restored from a checkpoint without its types.

    Examples:
      >>> optimizer = inject_schedules(optax.sgd)(learning_rate=jnp.float32(0.1))
      >>> state = set_hyperparams(optimizer.init(jnp.zeros(3)), learning_rate=0.05)
      >>> get_hyperparams(state)
      {'learning_rate': Array(0.05, dtype=float32)}
    """
    check_state(state)
    optimizer_state = _state_of(state)
    values = {name: native(name, value) for name, value in values.items()}
    for name, value in values.items():
        _check_settable(optimizer_state, name)
        _check_number(name, value)

    def with_values(path: Path, node: Any) -> Any:
        if not isinstance(node, Injected):
            return node
        hyperparams = {
            name: _like(old, values.get(_key(path, name), values.get(name, old)), name)
            for name, old in node.hyperparams.items()
        }
        return node._replace(hyperparams=hyperparams)

    if optimizer_state is state:
        changed = rebuild(with_values, state)
    else:
        changed = with_optimizer_state(state, lambda inner: rebuild(with_values, inner))
    return own_buffers(changed)


def _state_of(state: Any) -> Any:
    """Return the optimizer state of a trainer, or the state itself.

    A trainer with several optimizer states, such as a ``critic_opt_state``, is taken whole.
    """
    if not is_trainer(state):
        return state
    whole, inner = (
        len(list(injected_in(part, restored=True))) for part in (state, state.opt_state)
    )
    return state if whole > inner else state.opt_state


def _hyperparams_in(node: Any) -> Any:
    return node.hyperparams if isinstance(node, Injected) else node["hyperparams"]


def _own_array(value: Any) -> jax.Array:
    # An entry of an nnx.state holds the array as its only leaf.
    return jnp.array(jax.tree.leaves(value)[0])


def _key(path: Path, name: str) -> str:
    """Return a path such as ``1/inner_states/fast/inner_state/learning_rate``.

    For the outermost state it is ``./learning_rate``, because the name alone stands for every
    hyperparameter of that name.
    """
    return "/".join([*(map(key_name, path) if path else "."), name])


def _check_apart(keys: list[str]) -> None:
    """Raise if two hyperparameters have one path, as one at "a/b" and one at "b" within "a"."""
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(
            f"state must have one hyperparameter at each path, got two at {twice[0]}: one of its "
            "keys has a / in it, such as the label of a group. Rename it."
        )


def _check_no_bare_schedule(state: Any) -> None:
    """Raise if a schedule was passed to Optax directly."""
    for path, node in walk(state):
        if type(node).__name__ in ("ScaleByScheduleState", "WeightDecaySchedule"):
            raise ValueError(
                f"state{''.join(map(str, path))} is that of a schedule passed to Optax itself, "
                "which does not keep its values. To read them, build the optimizer with "
                "inject_schedules(optax.adam)(learning_rate=schedule). " + see("optimizers/")
            )


def _check_settable(state: Any, name: str) -> None:
    """Raise unless a hyperparameter has that name or path, and no schedule drives it."""
    found = [
        (_key(path, key), (key, key in node.hyperparams_states))
        for path, node in injected_in(state)
        for key in node.hyperparams
    ]
    _check_apart([key for key, _ in found])
    driven = dict(found)
    targets = [path for path, (key, _) in driven.items() if name in (path, key)]
    restored = [node for _, node in injected_in(state, restored=True)]
    if restored and not any(isinstance(node, Injected) for node in restored):
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
    is_number = is_plain_number(value)
    # The class np.float32 has a dtype, too, and so have the shapes from jax.eval_shape.
    if hasattr(value, "dtype") and not isinstance(value, (type, jax.ShapeDtypeStruct)):
        is_number = jnp.issubdtype(value.dtype, jnp.inexact) or is_real_dtype(value.dtype)
    if not is_number:
        raise TypeError(f"{name} must be a number or an array of numbers, got {shown(value)}.")


def _like(old: Any, value: Any, name: str) -> Any:
    """Return ``value`` in the dtype of ``old``, and in its nnx.Variable if it has one."""
    if value is old:
        return old
    array = jnp.asarray(old)
    if np.shape(value) not in ((), array.shape):
        wanted = f"have shape {array.shape} or ()" if array.shape else "be a scalar"
        raise ValueError(f"{name} must {wanted}, got an array of shape {np.shape(value)}.")
    _check_fits(name, value, array.dtype)
    return in_place_of(old, jnp.broadcast_to(jnp.asarray(value, array.dtype), array.shape))


def _check_fits(name: str, value: Any, dtype: Any) -> None:
    """Raise unless ``dtype`` can hold a value; traced ones and JAX floats are not checked."""
    given, is_whole = getattr(value, "dtype", type(value)), jnp.issubdtype(dtype, jnp.integer)
    if is_whole and not jnp.issubdtype(given, jnp.integer):
        raise TypeError(f"{name} must be an integer, as it is in the state, got {shown(value)}.")
    is_complex = jnp.issubdtype(given, jnp.complexfloating)
    if is_complex and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be a real number, as it is in the state, got {shown(value)}.")
    if isinstance(value, jax.Array):
        if is_traced(value) or not is_whole or np.can_cast(value.dtype, dtype):
            return
        value = jax.device_get(value)  # an integer of another dtype, which might wrap around
    info: Any = jnp.iinfo if is_whole else jnp.finfo
    least, largest = (int(end) for end in (info(dtype).min, info(dtype).max))
    for number in np.ravel(value).tolist() if hasattr(value, "dtype") else [value]:
        size = number if is_whole else abs(number)
        is_within = least <= size <= largest  # False for NaN
        is_lost = is_within and size != 0 and np.asarray(size, dtype) == 0
        if is_lost or not (is_within or size == math.inf):
            raise ValueError(f"{name} must be a number that {dtype} holds, got {shown(value)}.")
