"""Calling the loop from Python, a few rows at a time: for streams, bars, and single rows."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from optax_clr._batches import Batches
from optax_clr._curve import EndedBy
from optax_clr._loop import Columns, Inputs, Trained
from optax_clr._programs import CompiledLoop
from optax_clr._result import RangeTestResult
from optax_clr._step import PyTree
from optax_clr._stop_rule import ChunkRule, Past

# How long a call from Python should take: short enough for a smooth bar and a prompt Ctrl-C.
_SECONDS_PER_CALL = 0.5
_MAX_GROWTH = 8


class Driven(NamedTuple):
    """A test that was driven to its end."""

    result: RangeTestResult
    state: PyTree
    ended_by: EndedBy
    stopped_by: BaseException | None


@dataclasses.dataclass(frozen=True)
class Driver:
    """Calls the loop from Python.

    The next rows are read while the device computes the current ones. A test that ends early, by
    the end of the data, an exception in a loader or Ctrl-C, keeps the rows so far.
    """

    loop: CompiledLoop
    batches: Batches
    values: jax.Array | np.ndarray
    rule: ChunkRule
    held_out: PyTree
    steps_per_value: int
    rows_per_chunk: int
    most_rows: int  # in a call, a number of whole chunks

    def run(self, initial: PyTree, progress: bool) -> Driven:
        """Train from the initial state until the test ends."""
        num_rows = self.values.shape[0]
        stopped_by: BaseException | None = None
        with _bar(num_rows, progress) as report:
            first = self._first_inputs()
            inputs: Inputs | None = first
            record = _Record(self.loop.begin(initial, first.batches, self.values))
            values = np.asarray(jax.device_get(self.values))
            num_wanted = self.rows_per_chunk
            try:
                while inputs is not None and record.alive:
                    started = time.perf_counter()
                    num_trained = int(inputs.num_rows)
                    inputs = self._train(record, inputs, values, num_wanted)
                    last = max(record.num_valid, 1) - 1  # rows after divergence are not shown
                    report(record.num_valid, values[last], record.average)
                    num_wanted = self._paced(num_wanted, num_trained, time.perf_counter() - started)
            except KeyboardInterrupt as interrupt:
                stopped_by = interrupt
        stopped_by = stopped_by or self.batches.ended_by
        if not record.parts:
            assert stopped_by is not None
            raise stopped_by
        ended_by = record.ended_by(num_rows, stopped_by)
        result = self.loop.finish(
            values, record.columns(num_rows), np.int32(record.num_valid), np.int32(ended_by)
        )
        return Driven(result, record.trained.state, ended_by, stopped_by)

    def _first_inputs(self) -> Inputs:
        inputs = self.batches.read(self.rows_per_chunk, self.most_rows)
        if inputs is None:
            raise self.batches.ended_by or ValueError(
                "batches must give at least one batch for each of steps_per_value="
                f"{self.steps_per_value} steps, got fewer."
            )
        return inputs

    def _train(
        self, record: _Record, inputs: Inputs, values: np.ndarray, num_wanted: int
    ) -> Inputs | None:
        """Train these rows, read the next ones meanwhile, and return those."""
        numbers = np.arange(record.num_rows, record.num_rows + self.most_rows)
        record.trained, columns = self.loop.train_rows(
            record.trained, inputs, values.take(numbers, mode="clip"), self.rule, self.held_out
        )
        following = self.batches.read(min(num_wanted, self.most_rows), self.most_rows)
        record.add(int(inputs.num_rows), columns)  # waits for the device
        return following

    def _paced(self, num_wanted: int, num_trained: int, seconds: float) -> int:
        """Return the number of rows for the next call, in whole chunks."""
        if jax.process_count() > 1:
            return self.most_rows  # the clocks of several processes would not agree
        paced = min(_SECONDS_PER_CALL * num_trained / max(seconds, 1e-6), _MAX_GROWTH * num_wanted)
        return max(1, int(paced) // self.rows_per_chunk) * self.rows_per_chunk


@dataclasses.dataclass
class _Record:
    """What has been trained so far."""

    trained: Trained
    parts: list[tuple[int, Columns]] = dataclasses.field(default_factory=list)
    num_rows: int = 0  # also those after divergence
    num_valid: int = 0
    alive: bool = True
    average: float = 0.0  # the last smoothed loss

    def add(self, num_rows: int, columns: Columns) -> None:
        """Add the rows of a call, once they are trained."""
        watch = self.trained.watch
        num_valid, alive, past = jax.device_get((watch.num_rows, watch.alive, watch.past))
        self.parts.append((num_rows, columns))
        self.num_rows += num_rows
        self.num_valid, self.alive = int(num_valid), bool(alive)
        self.average = float(Past(*past).average)

    def ended_by(self, num_rows: int, stopped_by: BaseException | None) -> EndedBy:
        """Return what ended a test of so many rows."""
        if not self.alive:
            return EndedBy.DIVERGENCE
        if self.num_rows == num_rows:
            return EndedBy.LAST_VALUE
        return EndedBy.END_OF_DATA if stopped_by is None else EndedBy.INTERRUPT

    def columns(self, num_rows: int) -> Columns:
        """Return the rows of all calls, with zeros for those that are missing."""

        def join(*columns: jax.Array) -> np.ndarray:
            parts = [
                column[:length] for (length, _), column in zip(self.parts, columns, strict=True)
            ]
            num_missing = num_rows - sum(map(len, parts))
            missing = np.zeros((num_missing, *parts[0].shape[1:]), parts[0].dtype)
            return np.concatenate([*parts, missing])

        return jax.tree.map(join, *jax.device_get([rows for _, rows in self.parts]))  # type: ignore[no-any-return]


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
