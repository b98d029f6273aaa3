"""What functions refer to, and whether that has changed."""

from __future__ import annotations

import builtins
import contextlib
import functools
import itertools
import operator
import os
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Set
from typing import Any, NamedTuple

import jax
import numpy as np

from optax_clr._contents import BUILT_IN_METHODS, HOLDERS, MAPPINGS, PLAIN, parts, slots
from optax_clr._installed import is_installed, is_own, is_package
from optax_clr._states import nodes_of_others
from optax_clr._tracing import is_traced

Function = Callable[..., Any]

# Functions may refer to anything. Looking through this many objects takes a tenth of a second; if
# there are more, a program is not kept, since its validity could not be checked. The graph of a
# Flax module has 2,000 objects for each layer of a transformer.
MOST_OBJECTS = 100_000
_ATOMS: tuple[type, ...] = (bool, int, float, complex, str, bytes, type(None), np.generic)
_LEAVES = frozenset((*_ATOMS, types.CodeType))
# These are compared by their contents. A method is a new object at each access; others cannot be
# weakly referenced, and a strong reference could keep the function alive that a program belongs to.
_CONTAINERS = (
    *(list, tuple, *MAPPINGS, types.MethodType, *BUILT_IN_METHODS, functools.partial, *HOLDERS),
    *(types.SimpleNamespace, property, staticmethod, classmethod, types.MemberDescriptorType),
)
# With these a function may find attributes whose names do not appear in its code.
_BY_ANY_NAME = {"vars", "__dict__", "getattr", "dir", "attrgetter", "getmembers", "fields"}
_FINDERS = (operator.attrgetter, operator.methodcaller)  # whose names only they know
# With these it may find modules whose names are strings in its code.
_IMPORTERS = {"import_module", "__import__"}
# Methods that JAX and this library call on objects of any class.
_NAMES_OF_OTHERS = frozenset({"init", "update", "tree_flatten", "tree_unflatten"})


class Seen(NamedTuple):
    """An object that a function referred to, by a weak reference if that is possible."""

    kind: Callable[[], type | None]  # a weak reference
    get: Callable[[], Any] | None  # None for a container
    is_atom: bool

    @property
    def is_tracer(self) -> bool:
        """Whether the object is a JAX tracer."""
        return self.get is not None and is_traced(self.get())


class Sight(NamedTuple):
    """What functions, or the static parts of a pytree, referred to."""

    seen: list[Seen]
    names: frozenset[str]  # in the functions' code, by which attributes of objects are found


def look(values: tuple[Any, ...], names: frozenset[str] = _NAMES_OF_OTHERS) -> Sight:
    """Return what functions, or static parts, refer to; attributes are found by ``names`` too."""
    found, names = _referred_to(values, names)
    return Sight([_seen(value) for value in found], names)


def _seen(value: Any) -> Seen:
    kind = weakref.ref(type(value))
    if isinstance(value, _CONTAINERS):
        return Seen(kind, None, False)
    if not isinstance(value, _ATOMS):
        with contextlib.suppress(TypeError):
            return Seen(kind, weakref.ref(value), False)
        # Compared by its slots, unless a class in C, which has none, holds things elsewhere.
        if all("__slots__" in vars(each) for each in type(value).__mro__[:-1]) and slots(
            type(value)
        ):
            return Seen(kind, None, False)
    return Seen(kind, lambda: value, isinstance(value, _ATOMS))


def sees_the_same(
    values: tuple[Any, ...], then: Sight, names: frozenset[str] = _NAMES_OF_OTHERS
) -> bool:
    """Return whether functions, or static parts, still refer to what they did ``then``."""
    seen, (now, _) = then.seen, _referred_to(values, names)
    for (kind, get, is_atom), value in zip(seen, now, strict=False):
        if type(value) is not kind():
            return False
        if get is None:
            continue
        before = get()
        if before is not value and not (is_atom and _is_equal(before, value)):
            return False
    return len(seen) == len(now)


def _is_equal(then: Any, now: Any) -> bool:
    """Whether two numbers or strings are the same: NaN equals NaN, but 0.0 differs from -0.0."""
    if isinstance(now, (float, complex, np.inexact)):
        return repr(then) == repr(now)
    return bool(then == now)


def carried_by(tree: Any) -> tuple[Any, ...]:
    """Return a pytree's static parts: classes, functions, numbers and strings besides its leaves.

    Examples are a model's class, the ``apply_fn`` of a TrainState, and a config in a static field.
    Other objects in static fields may be replaced by equal ones, as in JAX.
    """
    waiting = [part for node in nodes_of_others(jax.tree.structure(tree)) for part in node][::-1]
    found: list[Any] = []
    met: set[int] = set()
    while waiting and len(found) <= MOST_OBJECTS:
        value = waiting.pop()
        if isinstance(value, (type, types.FunctionType, *_ATOMS)):
            found.append(value)
        elif id(value) not in met:
            met.add(id(value))
            waiting += parts(value)
    return tuple(found)


def _referred_to(
    values: tuple[Any, ...], names: frozenset[str]
) -> tuple[list[Any], frozenset[str]]:
    """Return what functions see: variables, globals, attributes, entries, and what these see.

    Instances of installed classes are looked into, the classes themselves are not; nor are JAX
    arrays, which do not change. Of a class or a module, the attributes that some function names
    count; of a class, also what others may call: its operators, and everything it defines if it
    derives from an installed class. Of a function made by an installed package, only what it
    carries counts, such as the function passed to ``jax.vmap``; of one found in an installed
    module, nothing.

    Also return ``names``, extended by the names in the code of these functions.
    """
    waiting: list[Any] = list(values)[::-1]
    found: list[Any] = []
    met: set[int] = set()
    owners: list[type | types.ModuleType] = []
    while waiting and len(found) <= MOST_OBJECTS:
        value = waiting.pop()
        found.append(value)
        if type(value) in _LEAVES or id(value) in met:
            continue
        met.add(id(value))
        if isinstance(value, type):
            if is_own(value.__module__):
                owners.append(value)
                waiting += [*value.__bases__, *_read_by_others(value), *_named(value, names)]
                waiting += [type(value)]  # a metaclass may have attributes that a class lacks
            else:  # such as the class that flax.linen.remat makes
                waiting += [base for base in value.__mro__[1:] if is_own(base.__module__)]
        elif isinstance(value, types.ModuleType):
            owners.append(value)
            waiting += _named(value, names)
        elif not _is_plain(value) and is_installed(value):
            continue
        elif type(value) is types.FunctionType:  # not isinstance, which wrapt's proxies pass
            waiting += _carried_by(value)
            # Judged by its globals: functools.wraps copies the name of another module.
            if is_own(value.__globals__.get("__name__")):
                new_names = set(_names(value.__code__)) - names
                names |= new_names
                waiting += _globals_of(value)
                waiting += [part for each in owners for part in _named(each, new_names)]
        elif isinstance(value, _FINDERS) or value is getattr:
            names |= {"getattr"}
            waiting += [part for each in owners for part in _named(each, _BY_ANY_NAME)]
        else:
            waiting += parts(value)
    return found, names


def _is_plain(value: Any) -> bool:
    return type(value) in PLAIN or isinstance(value, functools.partial)


def _named(owner: type | types.ModuleType, names: Set[str]) -> list[Any]:
    """Return the attributes with these names; of a package, only callables and modules."""
    attributes = vars(owner)
    if is_package(owner):
        found = [attributes[name] for name in sorted(names & attributes.keys())]
        return [each for each in found if callable(each) or isinstance(each, types.ModuleType)]
    wanted = attributes if names & _BY_ANY_NAME else names & attributes.keys()
    return [attributes[name] for name in sorted(wanted)]


def _read_by_others(owner: type) -> list[Any]:
    """Return what is read without being named: ``__call__``, ``__mul__``, Flax's ``setup``.

    Attributes other than operators count if an installed base class, or a pattern, may read them.
    """
    has_installed_base = not all(is_own(base.__module__) for base in owner.__mro__[:-1])
    is_read = has_installed_base or "__match_args__" in vars(owner)
    return [
        value
        for name, value in vars(owner).items()
        if (_is_method(value) if name.startswith("__") else is_read)
    ]


def _is_method(value: Any) -> bool:
    kind = type(value)
    is_bound_to_objects = hasattr(kind, "__get__")  # such as functools.partialmethod
    return (callable(value) or is_bound_to_objects) and kind is not types.GetSetDescriptorType


def _carried_by(function: types.FunctionType) -> list[Any]:
    """Return a function's code, defaults, attributes and free variables."""
    # A notebook's autoreload replaces the code of a function that has been edited.
    values: list[Any] = [function.__code__, function.__defaults__, function.__kwdefaults__]
    values.append(vars(function))
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a cell that is still empty
            values.append(cell.cell_contents)
    return values


def _globals_of(function: types.FunctionType) -> list[Any]:
    """Return the globals that a function names, and the modules that it imports."""
    names, variables = _names(function.__code__), function.__globals__
    if "globals" in names:
        return list(variables.values())
    modules = _modules_by(names, variables.get("__package__") or "")
    if _IMPORTERS & set(names):
        modules = [*modules, *_strings(function.__code__)]
    values = [variables[name] for name in names if name in variables]
    values += [vars(builtins)[name] for name in names if name in vars(builtins)]
    values += [sys.modules[name] for name in modules if name in sys.modules]
    if "getenv" in names:
        values.append(os.environ)
    # From a package, not only callables, as in _named: here the names are this function's own, and
    # not those of another, which could match anything.
    packages = [vars(value) for value in values if is_package(value)]
    return values + [package[name] for package in packages for name in names if name in package]


@functools.lru_cache(maxsize=1000)
def _modules_by(names: tuple[str, ...], package: str) -> list[str]:
    """Return the names of modules that these names may import, including by ``from .``.

    Whatever a function takes from such a module is found by its own name.
    """
    parents = list(itertools.accumulate(package.split("."), "{}.{}".format))
    return [each for name in names for each in (name, *(f"{parent}.{name}" for parent in parents))]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a function's code, and that of nested functions."""
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def _strings(code: types.CodeType) -> list[str]:
    """Return the strings in a function's code, including that of nested functions."""
    consts = [const for each in _codes(code) for const in each.co_consts]
    return [const for const in consts if isinstance(const, str)]


@functools.lru_cache(maxsize=1000)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that a function's code looks up, including that of nested functions."""
    names: list[str] = []
    for each in _codes(code):
        # The keywords of a pattern, as in case Config(scale=s), are in a constant tuple.
        tuples = [const for const in each.co_consts if isinstance(const, tuple)]
        names += [
            *each.co_names,
            *(name for part in tuples for name in part if isinstance(name, str)),
        ]
    return tuple(dict.fromkeys(names))
