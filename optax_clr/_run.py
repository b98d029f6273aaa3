"""Running a range test: choosing how, driving the loop, and showing progress.

Every test runs the same loop. It is one program if all batches are available up front, and is
called from Python, a few rows at a time, for streams, progress bars, and convolutions on a CPU.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from optax_clr._arguments import any_traced, is_inside_program, is_traced
from optax_clr._batches import Batches
from optax_clr._curve import EndedBy
from optax_clr._documentation import see
from optax_clr._loop import Columns, Inputs
from optax_clr._programs import CompiledLoop, programs_of
from optax_clr._result import RangeTestResult
from optax_clr._step import PyTree, Step
from optax_clr._step_facts import StepFacts
from optax_clr._stop_rule import ChunkRule, Past, StopRule, for_chunks

_CONFIG: Any = jax.config
# How long a call from Python should take: short enough for a smooth bar and a prompt Ctrl-C.
_SECONDS_PER_CALL = 0.5
_MAX_GROWTH = 8


class Device(NamedTuple):
    """The limits on a chunk, for one kind of device.

    A chunk that diverges is trained to its end, and judging one costs as much as training a few
    rows of the smallest network. So a chunk has no more rows than pay off, and no more operations
    than take about a tenth of a second, to an order of magnitude.
    """

    rows_per_chunk: int
    operations_per_chunk: float


_CPU = Device(rows_per_chunk=64, operations_per_chunk=4e9)
_ACCELERATOR = Device(rows_per_chunk=128, operations_per_chunk=1e12)


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
      steps_per_value: training steps for each value.
      held_out: a batch whose loss is recorded after each row, or None.
      keeps_state: whether the caller needs the state after the last row.
      progress: whether to show a bar.
    """
    with (
        contextlib.closing(batches),
        programs_of(step, batches.batch_fn, (initial, batches.example, held_out)) as programs,
    ):
        num_steps = values.shape[0] * steps_per_value
        facts = programs.facts(initial, batches.example, values, num_steps)
        arrays = initial, values, batches.arrays, held_out, rule
        by_rows = _runs_by_rows(facts, arrays)
        from_python = by_rows or progress or not batches.held
        if from_python and _is_inside(facts, arrays):
            raise TypeError(
                "a range test with a stream of batches, or with progress=True, runs from Python: "
                "it cannot be inside jax.jit or jax.vmap. Pass stacked batches or a function step "
                f"-> batch, and progress=False. {see('range-test/#batches')}"
            )
        _check_step(step, facts, values.shape[0], steps_per_value, keeps_state)
        device = _CPU if _platform(arrays) == "cpu" else _ACCELERATOR
        size = 1
        if not by_rows:
            size = _rows_per_chunk(
                device, facts.num_operations * steps_per_value, values.shape[0], batches.most_rows
            )
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
        if from_python:
            driver = _Driver(
                loop=loop,
                batches=batches,
                values=values,
                rule=chunk_rule,
                held_out=held_out,
                steps_per_value=steps_per_value,
                size=size,
                room=1 if by_rows else batches.most_rows // size * size,
            )
            result, state, stopped_by, ended_early = driver.run(initial, progress)
        else:
            result, state = loop.whole(initial, batches.arrays, values, chunk_rule, held_out)
            stopped_by, ended_early = None, False
            if device is _CPU and _has_host_arrays((initial, batches.arrays, held_out)):
                # The program reads the caller's own memory, which may be overwritten later.
                result, state = jax.block_until_ready((result, state))  # type: ignore[no-untyped-call]
        return Outcome(result, state, programs.evaluate, facts, ended_early, stopped_by)


def _has_host_arrays(arrays: PyTree) -> bool:
    return any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(arrays))


def _check_step(
    step: Step, facts: StepFacts, num_rows: int, steps_per_value: int, keeps_state: bool
) -> None:
    """Raise unless the step trains with each value, and every loss belongs to one value."""
    # Only a grid test keeps the state; each of its runs trains at one rate throughout.
    if keeps_state:
        trains_with_value = facts.reads_value or facts.keeps_first_value
        _check_some_update(facts, num_rows)
    else:
        trains_with_value = facts.reads_value and not facts.keeps_first_value
        _check_whole_updates(facts, steps_per_value)
    if not trains_with_value:
        raise ValueError(step.unread_value if facts.reads_state else step.unread_state)
    _check_one_loss(facts)


def _check_whole_updates(facts: StepFacts, steps_per_value: int) -> None:
    if steps_per_value % facts.steps_per_update:
        raise ValueError(
            f"steps_per_value={steps_per_value} must be a multiple of the "
            f"{facts.steps_per_update} steps that the optimizer takes for one update, so that each "
            "loss belongs to its own value. Pass steps_per_value="
            f"{facts.steps_per_update}. {see('training-steps/')}"
        )


def _check_one_loss(facts: StepFacts) -> None:
    if axes := tuple(sorted(facts.waits_along)):
        raise ValueError(
            f"the loss differs along {list(axes)}, axes of jax.shard_map along which the step "
            "needs all devices: one would end the test while others wait for its gradients. Return "
            f"the mean, jax.lax.pmean(loss, {axes}). {see('sweeps/')}"
        )


def _check_some_update(facts: StepFacts, num_steps: int) -> None:
    if num_steps < facts.steps_per_update:
        raise ValueError(
            f"num_steps={num_steps} must be at least the {facts.steps_per_update} steps that the "
            "optimizer takes for one update, or no rate is ever used."
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
        return facts, _runs_by_rows(facts, (initial, values, batches.arrays))


def _runs_by_rows(facts: StepFacts, arrays: PyTree) -> bool:
    """Whether the step has a convolution, runs on a CPU, and Python can call its rows one by one.

    XLA's CPU backend computes convolutions ten times slower inside a loop.
    """
    return facts.has_convolution and not _is_inside(facts, arrays) and _platform(arrays) == "cpu"


def _is_inside(facts: StepFacts, arrays: PyTree) -> bool:
    """Whether the test is inside one of the caller's transformations, such as jax.jit."""
    return facts.closes_over_tracers or any_traced(arrays) or is_inside_program()


def _platform(arrays: PyTree) -> str:
    """Return the platform that the arrays are on, or will be put on."""
    for leaf in jax.tree.leaves(arrays):
        if isinstance(leaf, jax.Array) and not is_traced(leaf):
            return str(next(iter(leaf.devices())).platform)
    # A device or the name of a platform, which jax.default_backend ignores.
    default = _CONFIG.jax_default_device
    return str(getattr(default, "platform", default) or jax.default_backend())


def _rows_per_chunk(device: Device, operations_per_row: int, num_rows: int, most_rows: int) -> int:
    """Return the rows per chunk: about as many as suit the device, with little padding."""
    suitable = int(device.operations_per_chunk / max(operations_per_row, 1))
    most = max(1, min(suitable, device.rows_per_chunk, num_rows, most_rows))
    sizes = range(most, most // 2, -1)
    return min(sizes, key=lambda size: -num_rows % size)


class _Driver(NamedTuple):
    """Calls the loop from Python, a few rows at a time.

    The next rows are read while the device computes the current ones. A test that ends early, by
    the end of the data, an exception in a loader or Ctrl-C, keeps the rows so far.
    """

    loop: CompiledLoop
    batches: Batches
    values: jax.Array | np.ndarray
    rule: ChunkRule
    held_out: PyTree
    steps_per_value: int
    size: int  # rows in a chunk; a call may have several chunks
    room: int  # most rows in a call

    def run(
        self, initial: PyTree, progress: bool
    ) -> tuple[RangeTestResult, PyTree, BaseException | None, bool]:
        """Return result, state, the exception that stopped the test, and whether it ended early."""
        num_rows = self.values.shape[0]
        with _bar(num_rows, progress) as report:
            first = self._first()
            inputs: Inputs | None = first
            trained = self.loop.begin(initial, first.batches, self.values)
            values = np.asarray(jax.device_get(self.values))
            outputs: list[tuple[int, Columns]] = []
            num_done, num_valid, alive = 0, 0, True
            stopped_by: BaseException | None = None
            wanted = self.size
            try:
                while inputs is not None and alive:
                    started = time.perf_counter()
                    numbers = np.arange(num_done, num_done + self.room)
                    trained, rows = self.loop.train_rows(
                        trained, inputs, values.take(numbers, mode="clip"), self.rule, self.held_out
                    )
                    count = int(inputs.num_rows)
                    inputs = self.batches.read(min(wanted, self.room), self.room)
                    watch = trained.watch
                    seen = jax.device_get((watch.num_rows, watch.alive, watch.past))
                    outputs.append((count, rows))
                    num_done += count
                    num_valid, alive = int(seen[0]), bool(seen[1])
                    last = max(num_valid, 1) - 1  # rows after divergence are not shown
                    report(num_valid, values[last], float(Past(*seen[2]).average))
                    wanted = self._paced(wanted, count, time.perf_counter() - started)
            except KeyboardInterrupt as interrupt:
                stopped_by = interrupt
        stopped_by = stopped_by or self.batches.ended_by
        if not outputs:
            assert stopped_by is not None
            raise stopped_by
        ended_by = EndedBy.LAST_VALUE if alive else EndedBy.DIVERGENCE
        ended_early = alive and num_done < num_rows
        if ended_early:
            ended_by = EndedBy.END_OF_DATA if stopped_by is None else EndedBy.INTERRUPT
        rows = _joined(outputs, num_rows)
        result = self.loop.finish(values, rows, np.int32(num_valid), np.int32(ended_by))
        return result, trained.state, stopped_by, ended_early

    def _first(self) -> Inputs:
        inputs = self.batches.read(self.size, self.room)
        if inputs is None:
            raise self.batches.ended_by or ValueError(
                "batches must give at least one batch for each of steps_per_value="
                f"{self.steps_per_value} steps, got fewer."
            )
        return inputs

    def _paced(self, wanted: int, count: int, seconds: float) -> int:
        """Return the number of rows for the next call, in whole chunks."""
        if jax.process_count() > 1:
            return self.room  # the clocks of several processes would not agree
        paced = min(_SECONDS_PER_CALL * count / max(seconds, 1e-6), _MAX_GROWTH * wanted)
        return max(1, int(paced) // self.size) * self.size


def _joined(outputs: list[tuple[int, Columns]], num_rows: int) -> Columns:
    """Return the rows of all calls, with zeros for those that are missing."""

    def join(*columns: jax.Array) -> np.ndarray:
        parts = [column[:count] for (count, _), column in zip(outputs, columns, strict=True)]
        length = sum(map(len, parts))
        rest = np.zeros((num_rows - length, *parts[0].shape[1:]), parts[0].dtype)
        return np.concatenate([*parts, rest])

    return jax.tree.map(join, *jax.device_get([rows for _, rows in outputs]))  # type: ignore[no-any-return]


@contextlib.contextmanager
def _bar(num_rows: int, show: bool) -> Iterator[Callable[[int, float, float], None]]:
    """Show a bar, if asked; yield the function that updates it after each call."""
    if not show:
        yield lambda num_done, value, loss: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm.") from error
    with tqdm(total=num_rows, desc="range test (compiling)", unit="row") as bar:

        def report(num_done: int, value: float, loss: float) -> None:
            bar.set_description("range test", refresh=False)
            bar.set_postfix(rate=f"{value:.2e}", loss=f"{loss:.4g}", refresh=False)
            bar.update(num_done - bar.n)

        yield report
