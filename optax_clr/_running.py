"""Running a range test: as one program, or from Python where it cannot be one or would be slow."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import is_traced
from optax_clr._batches import HeldBatches, StreamedBatches, open_batches
from optax_clr._chunks import run_in_chunks
from optax_clr._divergence import StopRule
from optax_clr._documentation import see
from optax_clr._program import Plan, Programs, programs
from optax_clr._result import RangeTest
from optax_clr._training_step import PyTree, StepFn


def train_rows(
    step_fn: StepFn,
    has_aux: bool,
    steps_per_value: int,
    initial: PyTree,
    batches: Any,
    values: jax.Array | np.ndarray,
    rule: StopRule,
    *,
    held_out: PyTree = None,
    progress: bool = False,
) -> tuple[RangeTest, PyTree]:
    """Return the result of a test, and the state after it.

    It is one program, or runs in chunks where that cannot be or would be slow.
    """
    source = open_batches(batches, values.shape[0], steps_per_value)
    compiled = programs(Plan(step_fn, source.batch_fn, has_aux, steps_per_value))
    row_by_row = runs_row_by_row(compiled, initial, source, values)
    from_python = progress or isinstance(source, StreamedBatches)
    if from_python and _is_inside(compiled, (initial, values, source.arrays, held_out)):
        raise TypeError(
            "a range test with a stream of batches, or with progress=True, runs from Python: "
            "it cannot be inside jax.jit or jax.vmap. Pass stacked batches or a function step "
            f"-> batch, and progress=False. {see('range-test/#batches')}"
        )
    if from_python or row_by_row:
        return run_in_chunks(
            compiled,
            initial,
            source,
            values,
            rule,
            held_out,
            single_rows=row_by_row,
            progress=progress,
        )
    return compiled.whole(initial, source.arrays, values, rule, held_out)  # type: ignore[no-any-return]


def runs_row_by_row(
    compiled: Programs,
    initial: PyTree,
    source: HeldBatches | StreamedBatches,
    values: jax.Array | np.ndarray,
) -> bool:
    """Whether the step has a convolution, is on a CPU, and Python can call its rows one by one.

    A loop of XLA's CPU backend computes convolutions ten times slower than a program without.
    """
    facts = compiled.facts or compiled.inspect(initial, source.example, values)
    arrays = initial, values, source.arrays
    return facts.convolves and not _is_inside(compiled, arrays) and _lie_on_cpus(arrays)


def _is_inside(compiled: Programs, arrays: PyTree) -> bool:
    """Whether the test is inside a transformation, such as jax.jit, of the caller."""
    leaves = [*jax.tree.leaves(arrays), jnp.zeros(())]
    closes_over = compiled.facts is not None and compiled.facts.closes_over_tracers
    return closes_over or any(map(is_traced, leaves))


def _lie_on_cpus(arrays: PyTree) -> bool:
    leaves = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
    placed = leaves or [jnp.zeros(())]
    return all(device.platform == "cpu" for array in placed for device in array.devices())
