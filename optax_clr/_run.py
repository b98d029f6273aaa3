"""Running a range test: tracing its step, deciding how to run it, and running it.

Every test runs the same loop. It is one program if all batches are available up front, and is
called from Python, a few rows at a time, for streams, progress bars, and convolutions on a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from optax_clr._batches import Batches
from optax_clr._curve import EndedBy
from optax_clr._driver import Driver
from optax_clr._kept_programs import programs_of
from optax_clr._plan import check_outside, is_on_cpu, rows_per_chunk, runs_by_rows
from optax_clr._result import RangeTestResult
from optax_clr._step import PyTree, Step
from optax_clr._step_facts import StepFacts
from optax_clr._stop_rule import StopRule, for_chunks


class Outcome(NamedTuple):
    """A finished test.

    Attributes:
      result: its rows.
      state: the trained state after the last row.
      evaluate: ``(state, batch) -> loss``, compiled.
      facts: the facts of its training step.
      ended_early: whether it ended before its last value for a reason other than divergence.
      stopped_by: the exception that stopped it, if any.
    """

    result: RangeTestResult
    state: PyTree
    evaluate: Callable[[PyTree, PyTree], jax.Array]
    facts: StepFacts
    ended_early: bool = False
    stopped_by: BaseException | None = None


def run(
    step: Step,
    batches: Batches,
    initial: PyTree,
    values: jax.Array | np.ndarray,
    rule: StopRule,
    *,
    check: Callable[[StepFacts], None],
    steps_per_value: int = 1,
    held_out: PyTree = None,
    keeps_state: bool = False,
    progress: bool = False,
) -> Outcome:
    """Train with each of the values in turn, and record the rows.

    Args:
      step: the training step.
      batches: the batches to train on.
      initial: what the step makes its initial state from.
      values: ``[n]``.
      rule: when the test ends.
      check: raises if the facts of the step are such that the test would say nothing.
      steps_per_value: training steps for each value.
      held_out: a batch whose loss is recorded after each row, or None.
      keeps_state: whether the caller needs the state after the last row.
      progress: whether to show a bar.
    """
    with (
        contextlib.closing(batches),
        programs_of(step, batches.batch_fn, (initial, batches.example, held_out)) as programs,
    ):
        num_rows = values.shape[0]
        facts = programs.facts(initial, batches.example, values, num_rows * steps_per_value)
        arrays = initial, values, batches.arrays, held_out, rule
        by_rows = runs_by_rows(facts, arrays)
        from_python = by_rows or progress or not batches.held
        if from_python:
            check_outside(facts, arrays)
        check(facts)
        size = 1
        if not by_rows:
            num_operations = facts.num_operations * steps_per_value
            size = rows_per_chunk(arrays, num_operations, num_rows, batches.most_rows)
        loop = programs.loop(
            steps_per_value=steps_per_value,
            rows_per_chunk=size,
            unrolls_rows=by_rows,  # called row by row, the program has no loop at all
            keeps_state=keeps_state,
            steps_per_update=facts.steps_per_update,
            batch_size=facts.batch_size,
            optimizer_factor=facts.optimizer_factor,
        )
        chunk_rule = for_chunks(rule, size)
        if not from_python:
            result, state = loop.whole(initial, batches.arrays, values, chunk_rule, held_out)
            if is_on_cpu(arrays) and _has_host_arrays((initial, batches.arrays, held_out)):
                # The program reads the caller's own memory, which may be overwritten later.
                jax.block_until_ready((result, state))  # type: ignore[no-untyped-call]
            return Outcome(result, state, programs.evaluate, facts)
        driver = Driver(
            loop,
            batches,
            values,
            chunk_rule,
            held_out,
            steps_per_value=steps_per_value,
            rows_per_chunk=size,
            most_rows=1 if by_rows else batches.most_rows // size * size,
        )
        driven = driver.run(initial, progress)
        ended_early = driven.ended_by in (EndedBy.END_OF_DATA, EndedBy.INTERRUPT)
        return Outcome(
            driven.result, driven.state, programs.evaluate, facts, ended_early, driven.stopped_by
        )


def look_ahead(
    step: Step,
    batches: Batches,
    initial: PyTree,
    values: jax.Array | np.ndarray,
    held_out: PyTree,
) -> tuple[StepFacts, bool]:
    """Return the facts of a test with one step per value, and whether it runs row by row.

    If so, Python drives it, and it cannot run under ``jax.vmap``.
    """
    with programs_of(step, batches.batch_fn, (initial, batches.example, held_out)) as programs:
        facts = programs.facts(initial, batches.example, values, values.shape[0])
        return facts, runs_by_rows(facts, (initial, values, batches.arrays))


def _has_host_arrays(arrays: PyTree) -> bool:
    return any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(arrays))
