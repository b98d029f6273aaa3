"""A range test in chunks of rows, called from Python: for streams, for a bar, for convolutions."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator

import jax
import numpy as np

from optax_clr._batches import Chunk, HeldBatches, StreamedBatches
from optax_clr._divergence import StopRule, Tracker
from optax_clr._documentation import see
from optax_clr._program import Programs, Rows, finish
from optax_clr._result import RangeTest
from optax_clr._training_step import PyTree

# How long a chunk should take: short enough for a bar that moves, and for Ctrl-C.
_SECONDS_PER_CHUNK = 0.5
_MAX_GROWTH = 8


def run_in_chunks(
    programs: Programs,
    initial: PyTree,
    batches: HeldBatches | StreamedBatches,
    values: jax.Array | np.ndarray,
    rule: StopRule,
    held_out: PyTree,
    *,
    single_rows: bool,
    progress: bool,
) -> tuple[RangeTest, PyTree]:
    """Return the result of a test whose chunks are run one after the other, and the state after it.

    The next chunk is read while the device computes the last. What ends it early, be it the end of
    the data, an exception in a loader or Ctrl-C, leaves the rows so far and a warning.
    """
    train = programs.train_single if single_rows else programs.train_chunk
    if single_rows:
        batches.capacity = 1
    outputs: list[tuple[int, jax.Array, Rows]] = []
    num_done, alive = 0, True
    ended_by: BaseException | None = None
    with _bar(values.shape[0], progress) as report:
        first = _first_chunk(batches, programs)
        state, tracker = programs.start(initial, first.batches, values)
        chunk: Chunk | None = first
        host_values = np.asarray(jax.device_get(values))
        try:
            while chunk is not None and alive:
                started = time.perf_counter()
                row_numbers = np.arange(num_done, num_done + batches.capacity)
                chunk_values = host_values.take(row_numbers, mode="clip")
                state, tracker, rows = train(state, tracker, chunk, chunk_values, rule, held_out)
                count = int(chunk.num_rows)
                outputs.append((count, tracker, rows))
                num_done += count
                chunk = batches.read(programs.rows_per_chunk)
                seen = Tracker.unpack(np.asarray(tracker))
                alive = bool(seen.alive)
                report(int(seen.num_rows), host_values[num_done - 1], float(seen.average))
                programs.rows_per_chunk = _pace(
                    programs.rows_per_chunk, count, time.perf_counter() - started
                )
        except KeyboardInterrupt as interrupt:
            ended_by = interrupt
    if not outputs and ended_by is not None:
        raise ended_by
    if alive and num_done < values.shape[0]:
        _warn_of_early_end(num_done, values.shape[0], ended_by or batches.ended_by)
    rows = _joined(outputs, values.shape[0])
    steps_per_value = programs.plan.steps_per_value
    return _finish(host_values, rows, outputs[-1][1], steps_per_value), state


_finish = jax.jit(finish, static_argnums=3)


def _first_chunk(batches: HeldBatches | StreamedBatches, programs: Programs) -> Chunk:
    chunk = batches.read(programs.rows_per_chunk)
    if chunk is None:
        raise batches.ended_by or ValueError(
            "batches must give at least one batch for each of steps_per_value="
            f"{programs.plan.steps_per_value} steps, got fewer."
        )
    return chunk


def _pace(rows_per_chunk: int, count: int, seconds: float) -> int:
    """Return how many rows the next chunk should have."""
    if jax.process_count() > 1:
        return 2**31 - 1  # as many as fit: the clocks of several processes would not agree
    wanted = int(_SECONDS_PER_CHUNK * count / seconds)
    return max(1, min(wanted, _MAX_GROWTH * rows_per_chunk))


def _joined(outputs: list[tuple[int, jax.Array, Rows]], num_rows: int) -> Rows:
    """Return the rows of all chunks, and NaN after them."""

    def join(*columns: jax.Array) -> np.ndarray:
        parts = [
            np.asarray(column)[:count] for (count, *_), column in zip(outputs, columns, strict=True)
        ]
        length = sum(map(len, parts))
        rest = np.full((num_rows - length, *parts[0].shape[1:]), np.nan, parts[0].dtype)
        return np.concatenate([*parts, rest])

    return jax.tree.map(join, *(rows for _, _, rows in outputs))  # type: ignore[no-any-return]


def _warn_of_early_end(num_done: int, num_rows: int, ended_by: BaseException | None) -> None:
    if isinstance(ended_by, KeyboardInterrupt):
        reason = "it was interrupted"
    elif ended_by is not None:
        reason = f"reading the batches raised {ended_by!r}"
    else:
        reason = (
            "there were no more batches, and an iterator cannot be read again: a list or a data "
            "loader can"
        )
    warnings.warn(
        f"the range test ended after {num_done} of {num_rows} rows, which are its result; "
        f"{reason}. {see('range-test/#ending-early')}",
        RuntimeWarning,
        stacklevel=5,
    )


@contextlib.contextmanager
def _bar(num_rows: int, show: bool) -> Iterator[Callable[[int, float, float], None]]:
    """Show a bar, if asked, that is told rows, value and smoothed loss after each chunk."""
    if not show:
        yield lambda num_done, value, loss: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError('progress=True needs tqdm: pip install "optax-clr[progress]".') from error
    with tqdm(total=num_rows, desc="range test", unit="row") as bar:

        def report(num_done: int, value: float, loss: float) -> None:
            bar.set_postfix(rate=f"{value:.2e}", loss=f"{loss:.4g}", refresh=False)
            bar.update(num_done - bar.n)

        yield report
