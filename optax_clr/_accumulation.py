"""The number of steps per update of an optimizer that accumulates gradients."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np

from optax_clr._states import key_name
from optax_clr._swept_optimizer import SweptOptimizer
from optax_clr._tracing import is_traced


def _is_place_in_period(path: tuple[str, ...], paths: list[tuple[str, ...]]) -> bool:
    """Whether a leaf counts the steps since an update, in MultiSteps, apply_every or SAM."""
    for name, neighbour in (("count", "grad_acc"), ("steps_since_sync", "cache")):
        if name in path:
            place = path.index(name)
            beside = (*path[:place], neighbour)
            return any(other[: place + 1] == beside for other in paths)
    return "mini_step" in path


_MOST_STEPS_PER_UPDATE = 1000


def steps_per_update(closed: Any, state: Any, optimizer: SweptOptimizer) -> int:
    """Return the number of steps per update, found by running the optimizer's own counters."""
    # This also finds them in a state from nnx.split, whose entries are named like the fields.
    leaves = jax.tree_util.tree_leaves_with_path(state)
    paths = [tuple(map(key_name, path)) for path, _ in leaves]
    is_place = [
        _is_place_in_period(names, paths) and optimizer.may_have(path)
        for (path, _), names in zip(leaves, paths, strict=True)
    ]
    is_counter = [
        place or ("gradient_step" in names and optimizer.may_have(path))
        for place, (path, _), names in zip(is_place, leaves, paths, strict=True)
    ]
    if not any(is_place):
        return 1
    # Cut the step down to its counters, which is a few operations on integers.
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
    from jax.interpreters.partial_eval import dce_jaxpr

    num_others = len(closed.jaxpr.outvars) - len(paths)
    counting, is_needed = dce_jaxpr(closed.jaxpr, [*is_counter, *[False] * num_others])
    if any(needed and not counts for needed, counts in zip(is_needed, is_counter, strict=False)):
        return 1  # the counters depend on gradients too, as when steps are skipped
    count = jaxpr_as_fun(ClosedJaxpr(counting, closed.consts))
    is_read = [needed for needed, counts in zip(is_needed, is_counter, strict=False) if counts]
    is_mini = list(itertools.compress(is_place, is_counter))
    with jax.ensure_compile_time_eval():
        # In an ensemble, each member has its own.
        counters: list[Any] = [
            np.zeros(leaf.shape, leaf.dtype)
            for (_, leaf), counts in zip(leaves, is_counter, strict=True)
            if counts
        ]
        for steps in range(1, _MOST_STEPS_PER_UPDATE + 1):
            counters = count(*itertools.compress(counters, is_read))
            if any(map(is_traced, counters)):  # vmapped runs may differ in it
                return 1
            if not any(np.any(counter) for counter in itertools.compress(counters, is_mini)):
                return steps
    raise ValueError(
        "optimizer must make an update within a thousand steps, but by its own counter, as of "
        f"optax.MultiSteps, it takes more than {_MOST_STEPS_PER_UPDATE}. Accumulate over fewer."
    )
