"""Compiled programs, kept from one range test to the next while they are still valid.

A program is valid while the functions traced into it refer to the same things. That is stricter
than ``jax.jit``: nobody sees a ``jit`` in the call of a range test, so nobody would suspect a stale
curve there. Programs live as long as these functions, and keep none of them alive.
"""

from __future__ import annotations

import contextlib
import types
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from optax_clr._programs import Programs
from optax_clr._references import (
    MOST_OBJECTS,
    Function,
    Seen,
    Sight,
    carried_by,
    look,
    sees_the_same,
)
from optax_clr._step import PyTree, Step

_CONFIG: Any = jax.config


class _Kept(NamedTuple):
    programs: Programs
    sight: Sight  # what the functions referred to when they were traced
    sight_of: dict[Any, Sight]  # the same of the arguments' static parts, by structure
    watches: list[Any]  # which remove this entry when one of the functions is gone


_kept: dict[Any, _Kept] = {}


@contextlib.contextmanager
def programs_of(step: Step, batch_fn: Function | None, arguments: PyTree) -> Iterator[Programs]:
    """Yield the programs of a step: the kept ones if its functions still see the same things.

    The static parts of ``arguments``, such as the functions of a TrainState, must do so too.
    """
    functions = step.functions if batch_fn is None else (*step.functions, batch_fn)
    key = type(step), step.has_aux, _kind_of_keys(), *map(_identity, functions)
    kept = _kept.pop(key, None)  # put back if all goes well
    structure, carried = jax.tree.structure(arguments), carried_by(arguments)
    # Static parts are searched by the functions' names too: a loss names methods of its model.
    is_true = kept is not None and sees_the_same(functions, kept.sight)
    if kept is not None and structure in kept.sight_of:
        is_true = is_true and sees_the_same(carried, kept.sight_of[structure], kept.sight.names)
    if kept is None or not is_true:
        kept = _new(step, functions, key)
    num_traces = kept.programs.num_traces
    yield kept.programs
    if kept.programs.num_traces > num_traces:  # tracing may have changed what they refer to
        kept = kept._replace(sight=look(functions))
        kept.sight_of.pop(structure, None)
    elif structure in kept.sight_of:
        _kept[key] = kept
        return
    sight = kept.sight_of[structure] = look(carried, kept.sight.names)
    if kept.watches and _can_be_seen_again([*kept.sight.seen, *sight.seen]):
        _kept[key] = kept


def _can_be_seen_again(seen: list[Seen]) -> bool:
    return len(seen) <= MOST_OBJECTS and not any(each.is_tracer for each in seen)


def _new(step: Step, functions: tuple[Function, ...], key: Any) -> _Kept:
    """Return new programs, with weak references to the functions if that is possible."""
    try:
        # When JAX checks for tracer leaks, its own caches keep nothing either.
        if _CONFIG.jax_check_tracer_leaks:
            raise TypeError
        forget = lambda _, kept=_kept: kept.pop(key, None)  # works without globals too, at exit
        owners = [getattr(function, "__self__", function) for function in functions]
        watches: list[Any] = [weakref.ref(owner, forget) for owner in owners]
        functions = tuple(map(_Borrowed, functions))
    except TypeError:
        watches = []
    count = len(step.functions)
    batch_fn = functions[count] if len(functions) > count else None
    programs = Programs(step.with_functions(functions[:count]), batch_fn)
    return _Kept(programs, Sight([], frozenset()), {}, watches)


class _Borrowed:
    """A function by weak reference: it can be called while something else keeps it alive."""

    def __init__(self, function: Function) -> None:
        # A method is kept as its two parts: weakref.WeakMethod prints an error if both die at once.
        parts: tuple[Any, ...] = (function,)
        if isinstance(function, types.MethodType):
            parts = function.__func__, function.__self__
        self._parts = [weakref.ref(part) for part in parts]

    @property
    def _function(self) -> Any:
        parts: list[Any] = [part() for part in self._parts]
        return types.MethodType(*parts) if len(parts) > 1 else parts[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._function)


def _kind_of_keys() -> Any:
    """Return the settings that decide which random numbers a key gives, which jax.jit ignores."""
    return _CONFIG.jax_default_prng_impl, getattr(_CONFIG, "jax_enable_custom_prng", None)


def _identity(function: Function) -> Any:
    """Return what identifies a function: of a method its parts, as each access makes a new one."""
    if isinstance(function, types.MethodType):
        return id(function.__self__), id(function.__func__)
    return id(function)
