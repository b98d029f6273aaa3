"""JAX's debugging modes, which a range test must not set off by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

_CONFIG: Any = jax.config


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Run what has NaN on purpose, and hands the device numbers of its own.

    A range test trains until it diverges, and rows after that are NaN: ``jax_debug_nans`` and
    ``jax_debug_infs`` would raise for every one. Its numbers, such as the rates, are NumPy's, which
    ``jax.transfer_guard`` would refuse; of the caller's it transfers what it was given, and the
    other way nothing but by ``jax.device_get``.
    """
    with contextlib.ExitStack() as modes:
        modes.enter_context(jax.transfer_guard_host_to_device("allow"))
        if _CONFIG.jax_debug_nans:
            modes.enter_context(jax.debug_nans(False))
        if _CONFIG.jax_debug_infs:
            modes.enter_context(jax.debug_infs(False))
        yield
