"""Which code is the caller's own, and which belongs to an installed package."""

from __future__ import annotations

import functools
import pathlib
import sys
import sysconfig
import types
from typing import Any

_STDLIB = sysconfig.get_path("stdlib")
# These cover the user's packages, the system's below a virtual environment, and Debian's too.
_INSTALLED = {"site-packages", "dist-packages"}
# Even if they are elsewhere, as by pip install --target: JAX alone has too many objects.
_NEVER_OWN = {"optax_clr", "jax", "jaxlib", "numpy"}
_MOST_WRAPPERS = 20


@functools.lru_cache(maxsize=1000)
def is_own(module: Any) -> bool:
    """Whether the module of this name is the caller's, such as a notebook or a script."""
    # Code that exec ran without a name; and the main module, whose file may be that of its runner,
    # such as a profiler, a debugger, or Python's prompt.
    if module is None or module == "__main__":
        return True
    # For some classes written in C, __module__ is a descriptor.
    if not isinstance(module, str) or module.partition(".")[0] in _NEVER_OWN:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module not in sys.builtin_module_names
    return not file.startswith(_STDLIB) and _INSTALLED.isdisjoint(pathlib.PurePath(file).parts)


def is_package(value: Any) -> bool:
    """Whether a value is a module from an installed package."""
    return isinstance(value, types.ModuleType) and not is_own(value.__name__)


def is_installed(value: Any) -> bool:
    """Whether an object is found by its own name in an installed module, as ``jax.nn.relu`` is.

    A replacement by the caller does not count, even if it took the name, by ``functools.wraps``.
    """
    if is_own(type(value).__module__):
        return False
    module, name = attribute(value, "__module__"), attribute(value, "__name__")
    if not (isinstance(module, str) and isinstance(name, str)) or is_own(module):
        return False
    if getattr(sys.modules.get(module), "__dict__", {}).get(name) is not value:
        return False
    for _ in range(_MOST_WRAPPERS):
        if isinstance(value, types.FunctionType) and is_own(value.__globals__.get("__name__")):
            return False
        value = attribute(value, "__wrapped__")
        if value is None:
            return True
    return False


def attribute(value: Any, name: str) -> Any:
    """Return an attribute, or None, without calling the object's own ``__getattr__``."""
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return None
