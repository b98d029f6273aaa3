"""The loop of a range test: rows are trained in chunks, each of which is judged afterwards.

A chunk is a scan of known length, in which no device waits for a decision. The stop rule looks at
its losses once it is trained, so at most the rest of a chunk is trained in vain after divergence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike

from optax_clr._curve import EndedBy
from optax_clr._result import RangeTestResult
from optax_clr._step import PyTree
from optax_clr._stop_rule import ChunkRule, Watch, new_watch, watch_rows


class Inputs(NamedTuple):
    """Batches for the next ``num_rows`` rows, which start at row ``first`` of ``batches``."""

    batches: PyTree  # () if a function makes them
    first: Any  # i32[], as is num_rows
    num_rows: Any


class Columns(NamedTuple):
    """The recorded columns of the result, ``[n, ...]``."""

    losses: jax.Array
    smoothed_losses: jax.Array
    metrics: PyTree
    held_out_losses: Any  # () without a held-out batch


class Trained(NamedTuple):
    """The state of a test after some rows."""

    state: PyTree
    watch: Watch


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """The programs of a test, as functions of its arrays.

    Attributes:
      start: ``(initial, value) -> state``.
      train: ``(state, batch, value) -> (state, (loss, metrics))``, one training step. If a
        function makes the batches, it takes the step number in place of a batch.
      evaluate: ``(state, batch) -> loss``.
      makes_batches: whether a function makes the batches.
      steps_per_value: training steps per row.
      rows_per_chunk: rows that are trained before they are judged.
      unrolls_rows: whether the steps of a row are unrolled instead of compiled as a loop.
      keeps_state: whether the state must be that after the last row, unchanged by padding.
      steps_per_update: steps that the optimizer takes for one update; only updates move the params.
      batch_size: see ``RangeTestResult``; None if unknown.
      optimizer_factor: see ``RangeTestResult``.
    """

    start: Callable[..., PyTree]
    train: Callable[..., Any]
    evaluate: Callable[..., jax.Array]
    makes_batches: bool
    steps_per_value: int
    rows_per_chunk: int
    unrolls_rows: bool
    keeps_state: bool
    steps_per_update: int
    batch_size: int | None
    optimizer_factor: float

    def whole(
        self,
        initial: PyTree,
        batches: PyTree,
        values: jax.Array,
        rule: ChunkRule,
        held_out: PyTree,
    ) -> tuple[RangeTestResult, PyTree]:
        """Return the result of a test, and the state after it."""
        trained = self._begin(initial, batches, values)
        inputs = Inputs(batches, np.int32(0), np.int32(values.shape[0]))
        trained, rows = self.train_rows(trained, inputs, values, rule, held_out)
        ended_by = jnp.where(trained.watch.alive, EndedBy.LAST_VALUE, EndedBy.DIVERGENCE)
        num_valid, ended_by = trained.watch.num_rows, ended_by.astype(jnp.int32)
        return self.finish(values, rows, num_valid, ended_by), trained.state

    def begin(self, initial: PyTree, batches: PyTree, values: jax.Array) -> Trained:
        """Return the state before the first row, in buffers that may be donated."""
        return jax.tree.map(jnp.copy, self._begin(initial, batches, values))  # type: ignore[no-any-return]

    def _begin(self, initial: PyTree, batches: PyTree, values: jax.Array) -> Trained:
        state = with_step_types(self.start(initial, values[0]))
        loss, _ = self._entry_shapes(state, batches, values)
        return Trained(state, new_watch(jnp.full_like(loss, 0)))

    def train_rows(
        self,
        trained: Trained,
        inputs: Inputs,
        values: jax.Array,
        rule: ChunkRule,
        held_out: PyTree,
    ) -> tuple[Trained, Columns]:
        """Train rows chunk by chunk, until all runs have diverged; return the new state and rows.

        There is room for as many rows as there are values. ``inputs`` may have fewer, but only
        whole chunks, unless they are the last rows of the test.
        """
        size = self.rows_per_chunk
        num_chunks = -(-values.shape[0] // size)

        def train_chunk(trained: Trained, first: ArrayLike) -> tuple[Trained, Columns]:
            first = jnp.asarray(first)
            state, entries = self._train_chunk(trained.state, first, inputs, values, held_out)
            num_recorded = jnp.clip(inputs.num_rows - first, 0, size)
            losses, metrics, held_out_losses = entries
            watch, smoothed = watch_rows(trained.watch, losses, num_recorded, rule)
            return Trained(state, watch), Columns(losses, smoothed, metrics, held_out_losses)

        if num_chunks == 1:
            trained, rows = train_chunk(trained, np.int32(0))
            return trained, _first_rows(rows, values.shape[0])

        def goes_on(carry: tuple[jax.Array, Trained, Columns]) -> jax.Array:
            first, trained, _ = carry
            alive: jax.Array = any_lane(trained.watch.alive)
            return jnp.logical_and(alive, first < inputs.num_rows)

        def train_next(
            carry: tuple[jax.Array, Trained, Columns],
        ) -> tuple[jax.Array, Trained, Columns]:
            first, trained, rows = carry
            trained, chunk = train_chunk(trained, first)
            put = lambda column, part: lax.dynamic_update_slice_in_dim(column, part, first, 0)
            return first + size, trained, jax.tree.map(put, rows, chunk)

        rows = self._empty_rows(trained, num_chunks * size, inputs.batches, values, held_out)
        _, trained, rows = lax.while_loop(goes_on, train_next, (jnp.int32(0), trained, rows))
        return trained, _first_rows(rows, values.shape[0])

    def finish(
        self, values: jax.Array, rows: Columns, num_valid: jax.Array, ended_by: jax.Array
    ) -> RangeTestResult:
        """Return the result, with NaN in all rows that are not data."""
        recorded = jnp.arange(values.shape[0], dtype=jnp.int32) < num_valid

        def mask(column: jax.Array) -> jax.Array:
            shaped = recorded.reshape(recorded.shape + (1,) * (column.ndim - 1))
            return jnp.where(shaped, column, jnp.nan)

        losses, smoothed_losses, metrics, held_out_losses = jax.tree.map(mask, rows)
        sizes = jnp.abs(values)
        updates_per_value = self.steps_per_value / self.steps_per_update
        return RangeTestResult(
            learning_rates=mask(values),
            losses=losses,
            smoothed_losses=smoothed_losses,
            num_valid=num_valid,
            metrics=metrics,
            held_out_losses=held_out_losses,
            equivalent_steps=mask(updates_per_value * jnp.cumsum(sizes) / sizes),
            ended_by=ended_by,
            batch_size=() if self.batch_size is None else jnp.int32(self.batch_size),
            optimizer_factor=jnp.float32(self.optimizer_factor),
        )

    def _train_chunk(
        self,
        state: PyTree,
        first: jax.Array,
        inputs: Inputs,
        values: jax.Array,
        held_out: PyTree,
    ) -> tuple[PyTree, Any]:
        """Train a chunk of rows; return the state and what the rows record, ``[chunk, ...]``."""
        size = self.rows_per_chunk
        last = inputs.num_rows - 1

        def train_row(state: PyTree, row: jax.Array) -> tuple[PyTree, Any]:
            # Padding of the last chunk repeats the last row, and is not recorded.
            row = jnp.minimum(row, last)
            value = lax.dynamic_index_in_dim(values, row, keepdims=False)
            batches = self._row_batches(inputs.batches, inputs.first + row)
            after, (loss, metrics) = self._train_row(state, batches, value)
            held_out_loss = () if held_out is None else self.evaluate(after, held_out)
            return after, (loss, metrics, held_out_loss)

        def train_unless_padding(state: PyTree, row: jax.Array) -> tuple[PyTree, Any]:
            after, entry = train_row(state, row)
            keep = lambda new, old: jnp.where(row <= last, new, old)
            return jax.tree.map(keep, after, state), entry

        is_padded = self.keeps_state and values.shape[0] % size != 0
        turn = train_unless_padding if is_padded else train_row
        if size == 1:
            state, entry = turn(state, first)
            return state, jax.tree.map(lambda leaf: leaf[None], entry)
        rows = first + jnp.arange(size, dtype=jnp.int32)
        return lax.scan(turn, state, rows)

    def _train_row(self, state: PyTree, batches: PyTree, value: jax.Array) -> tuple[PyTree, Any]:
        """Train the steps of one row; return the state and their mean loss and metrics."""
        if self.steps_per_value == 1:
            trained: tuple[PyTree, Any] = self.train(
                state, jax.tree.map(lambda leaf: leaf[0], batches), value
            )
            return trained
        train = lambda state, batch: self.train(state, batch, value)
        state, outputs = lax.scan(train, state, batches, unroll=self.unrolls_rows)
        return state, jax.tree.map(lambda leaf: leaf.mean(0), outputs)

    def _row_batches(self, batches: PyTree, row: jax.Array) -> PyTree:
        """Return the batches, or step numbers, of a row, ``[steps_per_value, ...]``."""
        length = self.steps_per_value
        start = row * length
        if self.makes_batches:
            return start + jnp.arange(length, dtype=jnp.int32)
        return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, length), batches)

    def _entry_shapes(self, state: PyTree, batches: PyTree, values: jax.Array) -> Any:
        """Return the shapes and dtypes of the loss and metrics of a row."""
        inputs = self._row_batches(batches, jnp.int32(0))
        batch = jax.tree.map(lambda leaf: leaf[0], inputs)
        return jax.eval_shape(self.train, state, batch, values[0])[1]

    def _empty_rows(
        self, trained: Trained, length: int, batches: PyTree, values: jax.Array, held_out: PyTree
    ) -> Columns:
        loss, metrics = self._entry_shapes(trained.state, batches, values)
        column = lambda entry: jnp.broadcast_to(jnp.full_like(entry, 0), (length, *entry.shape))
        held_out_losses = () if held_out is None else loss
        rows: Columns = jax.tree.map(column, Columns(loss, loss, metrics, held_out_losses))
        return rows


def with_step_types(state: PyTree) -> PyTree:
    """Return a state with the array types that a training step returns."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), state)


def _first_rows(rows: Columns, length: int) -> Columns:
    return jax.tree.map(lambda column: column[:length], rows)  # type: ignore[no-any-return]


@custom_vmap
def any_lane(alive: jax.Array) -> jax.Array:
    """Return ``alive``; under ``jax.vmap`` one answer for all runs: whether any is alive.

    Otherwise each run would have its own row counter, and with it its own copy of every batch.
    """
    return alive


@any_lane.def_vmap
def _any_of_many(
    axis_size: int, in_batched: list[bool], alive: jax.Array
) -> tuple[jax.Array, bool]:
    del axis_size, in_batched
    return any_lane(alive.any(0)), False  # any_lane again, for an outer vmap
