"""What is the caller's own, and what an installed package's."""

from __future__ import annotations

import functools
import pathlib
import sys
import sysconfig
import types
from typing import Any

_STDLIB = sysconfig.get_path("stdlib")
# Also those of the user, of the system below a virtual environment, and of Debian.
_INSTALLED = {"site-packages", "dist-packages"}
# Nor where they are elsewhere, as by pip install --target: JAX alone has too many objects.
_NEVER_OWN = {"optax_clr", "jax", "jaxlib", "numpy"}
_MOST_WRAPPERS = 20


@functools.lru_cache(maxsize=1000)
def is_own(module: Any) -> bool:
    """Whether a module is the caller's: a notebook, a script, and not an installed package."""
    # What exec was given no name for; and what is run, whose file may be that of what runs it, such
    # as a profiler, a debugger, or Python's prompt.
    if module is None or module == "__main__":
        return True
    # Of some classes of C the name of the module is a descriptor.
    if not isinstance(module, str) or module.partition(".")[0] in _NEVER_OWN:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module not in sys.builtin_module_names
    return not file.startswith(_STDLIB) and _INSTALLED.isdisjoint(pathlib.PurePath(file).parts)


def is_package(value: Any) -> bool:
    """Whether a value is a module, and not the caller's."""
    return isinstance(value, types.ModuleType) and not is_own(value.__name__)


def is_installed(value: Any) -> bool:
    """Whether a module of an installed package has an object by its own name, as ``jax.nn.relu``.

    One that the caller has put there may have taken the name, as by ``functools.wraps``.
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
    """Return an attribute, or None; not what the object's ``__getattr__`` would make of it."""
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return None
