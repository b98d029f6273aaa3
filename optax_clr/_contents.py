"""What an object consists of: its entries, attributes and slots, and the numbers in its buffers."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import functools
import gc
import inspect
import math
import threading
import types
import weakref
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from optax_clr._arguments import native
from optax_clr._installed import attribute

_SEQUENCES = (list, tuple, set, frozenset, collections.deque)
MAPPINGS = (dict, types.MappingProxyType)
# Numbers in a buffer, or in an array of any library, may be written to in place. They are compared
# up to this size; a larger buffer, such as a data set, is compared by identity alone.
_MOST_BYTES = 2**20
# What these hold cannot be seen, so they are compared by identity alone. They may hold the function
# itself, so no strong reference to them is kept.
HOLDERS: tuple[type, ...] = (
    *(map, filter, zip, enumerate, reversed, super, BaseException),
    *(type({}.keys()), type({}.values()), type({}.items())),
)
BUILT_IN_METHODS = (types.BuiltinMethodType, types.MethodWrapperType)  # such as those of a dict
# Exact types without attributes to look at; an object of a derived class may have some.
PLAIN = frozenset((*_SEQUENCES, *MAPPINGS, types.MethodType, *BUILT_IN_METHODS))
# Immutable, or nothing in them can be seen.
_OPAQUE = (types.CodeType, jax.Array, inspect.Signature)
_CACHE = type(functools.cache(len))


def parts(value: Any) -> list[Any]:
    """Return those parts of an object that its owner may change."""
    if isinstance(value, _OPAQUE):
        return []
    kind, entries = type(value), _entries(value)
    if kind in PLAIN:
        return entries
    wrapped = attribute(value, "__wrapped__")  # of jax.jit, staticmethod, classmethod
    wrapper = attribute(value, "_self_wrapper")  # of wrapt's decorators
    return [kind, wrapped, wrapper, *entries, *_attributes(value)]


def _entries(value: Any) -> list[Any]:
    """Return the contents of an object of a standard type, or of a class derived from one."""
    if isinstance(value, MAPPINGS):
        return _items(value)
    if isinstance(value, _SEQUENCES):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, BUILT_IN_METHODS):
        return [value.__self__, value.__name__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, contextvars.ContextVar):
        return [value.get(None)]
    if isinstance(value, threading.local):
        return _items(vars(value))  # this thread's values
    if isinstance(value, HOLDERS):
        return [id(value)]
    if isinstance(value, weakref.ProxyTypes):
        with contextlib.suppress(ReferenceError):
            return [value.__init__.__self__]  # the object itself, whose method this is
    if isinstance(value, _CACHE):
        return _in_cache(value)
    return _numbers(value)


def _in_cache(cache: Any) -> list[Any]:
    """Return the results that ``functools.lru_cache`` keeps, which no attribute shows."""
    tables = [each for each in gc.get_referents(cache) if isinstance(each, dict)]
    entries = [entry for table in tables for entry in table.values()]
    # A cache of limited size has each result in a link to the next.
    links = [entry for entry in entries if type(entry).__name__ == "_lru_list_elem"]
    return [*entries, *gc.get_referents(*links)]


def _numbers(value: Any) -> list[Any]:
    """Return a fingerprint of the numbers in a buffer or an array, if it is one."""
    try:
        numbers: Any = value if isinstance(value, np.ndarray) else memoryview(value)
    except (TypeError, ValueError, BufferError):
        numbers = _array_of(value)
    if numbers is None or numbers.nbytes > _MOST_BYTES:
        return []
    if isinstance(numbers, np.ndarray) and numbers.dtype.hasobject:
        return [numbers.tolist()]
    return [str(numbers.shape), hash(numbers.tobytes())]


def _array_of(value: Any) -> Any:
    """Return an array or table of another library, such as PyTorch, as NumPy's; else None."""
    if not (hasattr(type(value), "shape") and hasattr(type(value), "__array__")):
        return None
    try:
        is_small = 8 * math.prod(value.shape) <= _MOST_BYTES
        return np.asarray(native("value", value)) if is_small else None
    except Exception:  # whatever the other library raises, as PyTorch for a sparse tensor
        return None


def _attributes(value: Any) -> list[Any]:
    """Return the names and values of an object's attributes, and the contents of its slots."""
    in_slots = [_in_slot(place, name, value) for place, name in slots(type(value))]
    return [*_items(attribute(value, "__dict__") or {}), *in_slots]


def _in_slot(place: int, name: str, value: Any) -> Any:
    try:
        return vars(type(value).__mro__[place])[name].__get__(value)
    except AttributeError:  # the slot is empty
        return None


def _items(mapping: Mapping[Any, Any]) -> list[Any]:
    """Return the keys, joined to one string if they are strings, and the values."""
    try:
        keys: list[Any] = ["\n".join(mapping)]
    except TypeError:
        keys = list(mapping)
    return [*keys, *mapping.values()]


_slots_of: weakref.WeakKeyDictionary[type, list[tuple[int, str]]] = weakref.WeakKeyDictionary()


def slots(kind: type) -> list[tuple[int, str]]:
    """Return the slots of a class: the place of their owner in its MRO, and their names."""
    found = _slots_of.get(kind)
    if found is None:
        found = _slots_of[kind] = [
            (place, name)
            for place, each in enumerate(kind.__mro__)
            if "__slots__" in vars(each)  # not classes in C, whose members nobody changes
            for name, attribute in vars(each).items()
            if isinstance(attribute, types.MemberDescriptorType)
        ]
    return found
