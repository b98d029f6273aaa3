"""What the traced program of a training step reveals, before anything is compiled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_clr._accumulation import steps_per_update
from optax_clr._arrays import varying_axes
from optax_clr._batch_facts import LAST_BATCH_AGAIN, ONE_BATCH, ONE_EXAMPLE, BatchFacts
from optax_clr._jaxprs import equations, inputs_of, num_operations
from optax_clr._other_rates import OTHER_RATE, trains_at_other_rates
from optax_clr._reading import RangeTestWarning
from optax_clr._swept_optimizer import SweptOptimizer
from optax_clr._tracing import is_traced


class StepFacts(NamedTuple):
    """What the engine needs to know about a training step."""

    has_convolution: bool
    reads_state: bool  # whether the loss depends on what is trained
    reads_value: bool  # whether the loss, of this step or a later one, depends on the value
    keeps_first_value: bool  # whether the loss depends on the value used to make the state
    closes_over_tracers: bool
    waits_along: frozenset[str]  # axes of shard_map along which devices wait and losses differ
    num_operations: int  # on scalars, roughly
    steps_per_update: int  # over which gradients are accumulated; 1 without
    batch_size: int | None  # examples in a batch, if known
    trains_at_other_rates: bool  # than the values: the optimizer has its own schedule or scale
    is_one_batch: bool  # whether a function makes the same batch in every step
    repeats_last_batch: bool  # or the same batch in the last steps
    optimizer_factor: float  # of the suggested rates


def facts_of(
    closed: Any,
    start: Any,
    state: Any,
    optimizer: SweptOptimizer,
    batches: BatchFacts,
    optimizer_factor: float,
) -> StepFacts:
    """Return the facts of a closed jaxpr ``(state, batch, value) -> (state, (loss, metrics))``.

    ``start`` is the closed jaxpr of ``(initial, value) -> state``.
    """
    jaxpr = closed.jaxpr
    num_leaves = len(jax.tree.leaves(state))
    matters, reads_value = _what_matters(jaxpr, num_leaves)
    return StepFacts(
        has_convolution=any(
            equation.primitive.name == "conv_general_dilated" for equation in equations(jaxpr)
        ),
        reads_state=_reads_state(jaxpr, num_leaves),
        reads_value=reads_value,
        keeps_first_value=inputs_of(start.jaxpr, matters)[-1],
        closes_over_tracers=any(map(is_traced, closed.consts)),
        waits_along=_waits_along(jaxpr, num_leaves),
        num_operations=num_operations(jaxpr),
        steps_per_update=steps_per_update(closed, state, optimizer),
        **batches._asdict(),
        trains_at_other_rates=trains_at_other_rates(optimizer),
        optimizer_factor=optimizer_factor,
    )


def remarks_on(facts: StepFacts, counts_batches: bool) -> Iterator[Warning]:
    """Yield the warnings about a test that do not depend on its curve.

    ``counts_batches`` is whether ``num_steps`` was left to the batches.
    """
    if facts.is_one_batch:
        yield RangeTestWarning(ONE_BATCH)
    if facts.repeats_last_batch:
        yield RangeTestWarning(LAST_BATCH_AGAIN)
    if facts.trains_at_other_rates:
        yield RangeTestWarning(OTHER_RATE)
    if counts_batches and facts.batch_size == 0:
        yield RangeTestWarning(ONE_EXAMPLE)


_COLLECTIVES = {
    *("psum", "psum2", "psum_invariant", "pmax", "pmin", "ppermute", "pgather", "reduce_scatter"),
    *("all_gather", "all_gather_invariant", "all_to_all"),
}


def _waits_along(jaxpr: Any, place_of_loss: int) -> frozenset[str]:
    """Return the axes of shard_map along which losses differ, if JAX knows, and devices wait.

    Each device would end the test by its own loss, and leave the others waiting.
    """
    calls = [each.params for each in equations(jaxpr) if each.primitive.name in _COLLECTIVES]
    names = [call.get("axes", call.get("axis_name")) for call in calls]
    return varying_axes(jaxpr.outvars[place_of_loss]).intersection(jax.tree.leaves(names))


def _reads_state(jaxpr: Any, num_state_leaves: int) -> bool:
    """Whether the loss depends on the state, and not just on its keys and counters."""
    is_read = inputs_of(jaxpr, _only_loss(jaxpr, num_state_leaves))[:num_state_leaves]
    read = itertools.compress(jaxpr.invars, is_read)
    return any(jnp.issubdtype(variable.aval.dtype, jnp.inexact) for variable in read)


def _only_loss(jaxpr: Any, num_state_leaves: int) -> list[bool]:
    """Return which output is the loss: the one right after the state."""
    return [place == num_state_leaves for place in range(len(jaxpr.outvars))]


def _what_matters(jaxpr: Any, num_state_leaves: int) -> tuple[list[bool], bool]:
    """Return which state leaves affect a loss, now or later, and whether the value does."""
    wanted = _only_loss(jaxpr, num_state_leaves)
    matters = wanted[:num_state_leaves]
    while True:
        needed = inputs_of(jaxpr, [*matters, *wanted[num_state_leaves:]])
        if needed[:num_state_leaves] == matters:
            return matters, needed[-1]
        matters = [old or new for old, new in zip(matters, needed[:num_state_leaves], strict=True)]
