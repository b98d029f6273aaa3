"""JAX's debugging modes, which a range test must not set off by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

_CONFIG: Any = jax.config


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Run code that produces NaN on purpose and sends its own numbers to the device.

    A range test trains until it diverges, and the rows after that are NaN: ``jax_debug_nans`` and
    ``jax_debug_infs`` would raise for each of them. Its own numbers, such as the rates, are NumPy
    arrays, whose transfer ``jax.transfer_guard`` would refuse. Of the caller's data it transfers
    only what it was given; from the device it reads only with ``jax.device_get``.
    """
    with contextlib.ExitStack() as modes:
        modes.enter_context(jax.transfer_guard_host_to_device("allow"))
        if _CONFIG.jax_debug_nans:
            modes.enter_context(jax.debug_nans(False))
        if _CONFIG.jax_debug_infs:
            modes.enter_context(jax.debug_infs(False))
        yield
