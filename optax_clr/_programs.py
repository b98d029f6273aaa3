"""Compiled programs, kept from one range test to the next while they are still true.

A program is true while the functions that were traced into it refer to the same things. That is
more than ``jax.jit`` asks for: nobody sees a ``jit`` in the call of a range test, and nobody would
look for an old curve there. They live as long as these functions, and hold none of them.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from optax_clr._arguments import is_traced
from optax_clr._documentation import see
from optax_clr._loop import Loop, with_step_types
from optax_clr._step import PyTree, Step, shape_in_words
from optax_clr._traced import StepFacts, facts_of, makes_one_batch

_CONFIG: Any = jax.config

Function = Callable[..., Any]


class CompiledLoop:
    """The programs of a loop, compiled for the shapes that they are called with."""

    def __init__(self, loop: Loop) -> None:
        self.whole = jax.jit(loop.whole)
        self.begin = jax.jit(loop.begin)
        self.train_rows = jax.jit(loop.train_rows, donate_argnums=0)
        self.finish = jax.jit(loop.finish)


class Programs:
    """The compiled programs of a step and of what makes its batches, if a function does.

    They share one trace of the training step.
    """

    def __init__(self, step: Step, batch_fn: Function | None) -> None:
        self.num_traces = 0
        self.evaluate = jax.jit(step.evaluate)
        self._step = step
        self._batch_fn = batch_fn
        self._train = jax.jit(functools.partial(_train, step, batch_fn))
        self._facts: dict[Any, StepFacts] = {}
        self._loops: dict[Any, CompiledLoop] = {}

    def facts(self, initial: PyTree, batch: PyTree, values: ArrayLike) -> StepFacts:
        """Trace the step, and return what it shows of itself; refuse one that ignores its value."""
        arguments = initial, batch, values
        key = jax.tree.structure(arguments), *map(_type_of, jax.tree.leaves(arguments))
        if key not in self._facts:
            self.num_traces += 1
            value = jax.eval_shape(lambda values: values[0], values)
            start = lambda initial, value: with_step_types(self._step.start(initial, value))
            state = jax.eval_shape(start, initial, value)
            traced = jax.make_jaxpr(self._train)(state, batch, value)
            is_one_batch = False
            if self._batch_fn is not None:
                made = jax.make_jaxpr(self._batch_fn)(batch)
                is_one_batch, batch = makes_one_batch(made), made.out_avals
            facts = facts_of(traced, state, batch, is_one_batch)
            if not facts.reads_value:
                raise ValueError(self._step.unread_value)
            self._facts[key] = facts
        return self._facts[key]

    def loop(self, **shape: Any) -> CompiledLoop:
        """Return the loop of that shape: see ``Loop``."""
        key = tuple(sorted(shape.items()))
        if key not in self._loops:
            loop = Loop(
                start=self._step.start,
                train=self._train,
                evaluate=self._step.evaluate,
                makes_batches=self._batch_fn is not None,
                **shape,
            )
            self._loops[key] = CompiledLoop(loop)
        return self._loops[key]


def _train(
    step: Step, batch_fn: Function | None, state: PyTree, batch: PyTree, value: jax.Array
) -> Any:
    if batch_fn is not None:
        batch = batch_fn(batch)
    try:
        return step.train(state, batch, value)
    except Exception as error:
        error.add_note(
            f"A step of the range test was given the batch {jax.tree.map(shape_in_words, batch)}. "
            "The leading axis of batches that are arrays counts the steps. "
            + see("range-test/#batches")
        )
        raise


def _type_of(leaf: Any) -> Any:
    return getattr(leaf, "shape", ()), getattr(leaf, "dtype", type(leaf))


# ----------------------------------------------------------------------------- keeping programs


class _Kept(NamedTuple):
    programs: Programs
    seen: list[_Seen]  # what the functions referred to when they were traced
    watches: list[Any]  # that remove this entry when one of the functions is gone


_kept: dict[Any, _Kept] = {}


@contextlib.contextmanager
def programs_of(step: Step, batch_fn: Function | None) -> Iterator[Programs]:
    """Give the programs of a step: those of before if its functions see the same things."""
    functions = step.functions if batch_fn is None else (*step.functions, batch_fn)
    key = type(step), step.has_aux, *map(_identity, functions)
    kept = _kept.pop(key, None)  # back when all has gone well
    if kept is None or not _sees_the_same(functions, kept.seen):
        kept = _new(step, functions, key)
    num_traces = kept.programs.num_traces
    yield kept.programs
    if kept.programs.num_traces > num_traces:  # tracing may have changed what they refer to
        kept = kept._replace(seen=_look(functions))
    is_known = len(kept.seen) <= _MOST_OBJECTS
    if kept.watches and is_known and not any(seen.is_tracer for seen in kept.seen):
        _kept[key] = kept


def _new(step: Step, functions: tuple[Function, ...], key: Any) -> _Kept:
    """Return new programs, which know the functions by weak references if that is possible."""
    try:
        # Where JAX looks for leaks of tracers, its own caches keep nothing either.
        if _CONFIG.jax_check_tracer_leaks:
            raise TypeError
        forget = lambda _: _kept.pop(key, None)
        owners = [getattr(function, "__self__", function) for function in functions]
        watches: list[Any] = [weakref.ref(owner, forget) for owner in owners]
        functions = tuple(map(_Borrowed, functions))
    except TypeError:
        watches = []
    count = len(step.functions)
    batch_fn = functions[count] if len(functions) > count else None
    programs = Programs(step.with_functions(functions[:count]), batch_fn)
    return _Kept(programs, [], watches)


class _Borrowed:
    """A function that is called while its owner has it, and not kept."""

    def __init__(self, function: Function) -> None:
        is_method = isinstance(function, types.MethodType)
        self._function = weakref.WeakMethod(function) if is_method else weakref.ref(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)  # type: ignore[misc]

    def __repr__(self) -> str:
        return repr(self._function())


def _identity(function: Function) -> Any:
    """Return what tells functions apart; each look at a method makes a new object of it."""
    if isinstance(function, types.MethodType):
        return id(function.__self__), id(function.__func__)
    return id(function)


# ---------------------------------------------------------------------- what functions refer to

# There may be anything among what functions refer to. With more objects than this, of which a look
# takes a tenth of a second, a program is not kept, for nobody could say whether it is still true.
# The graph of a Flax module has 2,000 for each layer of a transformer.
_MOST_OBJECTS = 100_000
_ATOMS: tuple[type, ...] = (bool, int, float, complex, str, bytes, type(None), np.generic)
_SEQUENCES = (list, tuple, set, frozenset, collections.deque)
_MAPPINGS = (dict, types.MappingProxyType)
_BUILT_IN_METHODS = (types.BuiltinMethodType, types.MethodWrapperType)  # as those of a dictionary
# Of these what is in them counts; a method is a new object at each look.
_CONTAINERS = (list, tuple, *_MAPPINGS, types.MethodType, *_BUILT_IN_METHODS, functools.partial)
# One of a class that is derived from these may have attributes too.
_PLAIN = frozenset((*_SEQUENCES, *_MAPPINGS, types.MethodType, *_BUILT_IN_METHODS))
# What nobody changes, or where nothing can be seen.
_OPAQUE = (types.ModuleType, jax.Array, np.ndarray)


class _Seen(NamedTuple):
    """An object that a function referred to, not kept alive by this where that is possible."""

    kind: type
    get: Callable[[], Any] | None  # None of a container
    is_atom: bool

    @property
    def is_tracer(self) -> bool:
        return self.get is not None and is_traced(self.get())


def _look(functions: tuple[Function, ...]) -> list[_Seen]:
    return [_seen(value) for value in _referred_to(functions)]


def _seen(value: Any) -> _Seen:
    if isinstance(value, _CONTAINERS):
        return _Seen(type(value), None, False)
    if not isinstance(value, _ATOMS):
        with contextlib.suppress(TypeError):
            return _Seen(type(value), weakref.ref(value), False)
    return _Seen(type(value), lambda: value, isinstance(value, _ATOMS))


def _sees_the_same(functions: tuple[Function, ...], seen: list[_Seen]) -> bool:
    now = _referred_to(functions)
    for (kind, get, is_atom), value in zip(seen, now, strict=False):
        if type(value) is not kind:
            return False
        if get is None:
            continue
        then = get()
        if then is not value and not (is_atom and bool(then == value)):
            return False
    return len(seen) == len(now)


def _referred_to(functions: tuple[Function, ...]) -> list[Any]:
    """Return what functions see: variables, globals, attributes, entries, and what these see.

    Functions and classes of installed packages are not looked into, but their objects are; arrays
    are not. Of a class those attributes count that some function names.
    """
    waiting = list(functions)[::-1]
    found: list[Any] = []
    met: set[int] = set()
    names: set[str] = {"__call__"}
    classes: list[type] = []
    while waiting and len(found) <= _MOST_OBJECTS:
        value = waiting.pop()
        found.append(value)
        if type(value) in _ATOMS or id(value) in met:
            continue
        met.add(id(value))
        if isinstance(value, type):
            if _is_own(value.__module__):
                classes.append(value)
                waiting += [*value.__bases__, *_named(value, names)]
        elif isinstance(value, types.FunctionType):
            if _is_own(value.__module__):
                new_names = set(_names(value.__code__)) - names
                names |= new_names
                waiting += _variables(value)
                waiting += [part for each in classes for part in _named(each, new_names)]
        else:
            waiting += _parts(value)
    return found


def _named(owner: type, names: set[str]) -> list[Any]:
    return [vars(owner)[name] for name in sorted(names & vars(owner).keys())]


def _parts(value: Any) -> list[Any]:
    """Return what an object is made of, as far as its owner may change it."""
    if isinstance(value, (np.generic, *_OPAQUE)):
        return []
    kind, entries = type(value), _entries(value)
    if kind in _PLAIN:
        return entries
    wrapped = getattr(value, "__wrapped__", None)  # of jax.jit, staticmethod, classmethod
    return [kind, wrapped, *entries, *_attributes(value)]


def _entries(value: Any) -> list[Any]:
    """Return what is in an object of Python's own types, or of a class derived from one."""
    if isinstance(value, _MAPPINGS):
        return _items(value)
    if isinstance(value, _SEQUENCES):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, _BUILT_IN_METHODS):
        return [value.__self__, value.__name__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, weakref.ref):
        return [value()]
    return []


def _attributes(value: Any) -> list[Any]:
    """Return names and values of an object's attributes, and what is in its slots."""
    slots = [_in_slot(slot, value) for slot in _slots(type(value))]  # type: ignore[arg-type]
    return [*_items(getattr(value, "__dict__", {})), *slots]


def _in_slot(slot: types.MemberDescriptorType, value: Any) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:  # it is not filled
        return None


def _items(mapping: Mapping[Any, Any]) -> list[Any]:
    """Return the keys, in one string if they are names, and the values."""
    try:
        keys: list[Any] = ["\n".join(mapping)]
    except TypeError:
        keys = list(mapping)
    return [*keys, *mapping.values()]


def _variables(function: types.FunctionType) -> list[Any]:
    """Return a function's defaults, its free variables and attributes, and the globals it names."""
    values: list[Any] = [function.__defaults__, function.__kwdefaults__, vars(function)]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # one that is not filled yet
            values.append(cell.cell_contents)
    names = _names(function.__code__)
    for name in names:
        if name in function.__globals__:
            found = function.__globals__[name]
            values.append(found)
            if isinstance(found, types.ModuleType):  # whose attributes are among the names
                values += [vars(found)[each] for each in names if each in vars(found)]
    return values


@functools.lru_cache(maxsize=1000)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that a function's code, and that of functions in it, looks up."""
    parts = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    inner = [name for part in parts for name in _names(part)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


@functools.lru_cache(maxsize=1000)
def _slots(kind: type) -> tuple[types.MemberDescriptorType, ...]:
    """Return what reads the slots of a class: under their own names, which may be mangled."""
    return tuple(
        attribute
        for each in kind.__mro__
        if "__slots__" in vars(each)  # and not a class of C, whose members nobody changes
        for attribute in vars(each).values()
        if isinstance(attribute, types.MemberDescriptorType)
    )


_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platlib", "purelib"))


@functools.lru_cache(maxsize=1000)
def _is_own(module: str | None) -> bool:
    """Whether a module is the caller's: a notebook, a script, and not an installed package."""
    if module is None or module.partition(".")[0] == "optax_clr":
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module not in sys.builtin_module_names
    return not file.startswith(_INSTALLED)
