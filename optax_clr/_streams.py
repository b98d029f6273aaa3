"""Batches that are read one by one, and stacked while the device computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from optax_clr._arrays import has_axes_in_its_type, on_device
from optax_clr._loop import Inputs
from optax_clr._passes import Batch, UnfitBatchError, passes_of
from optax_clr._stacking import Stack, is_stacked_by_jax
from optax_clr._step import PyTree

# Limits of one read of a stream. With 256 rows the calls cost a few percent of the smallest
# training steps; 8 MiB is an efficient size for a transfer, and memory that malloc reuses.
_READ_ROWS = 256
_READ_BYTES = 2**23


class StreamedBatches:
    """Batches of a Python iterable, stacked in arrays that all have the same shape.

    When the iterable runs out, it is iterated again if that is possible; ``ended_by`` is the
    exception that ended it, if any.
    """

    held = False
    arrays: PyTree = ()
    batch_fn: Callable[[jax.Array], PyTree] | None = None

    def __init__(self, batches: Iterable[PyTree], num_rows: int, steps_per_value: int) -> None:
        self.ended_by: BaseException | None = None
        self._rows_left = num_rows
        self._steps_per_value = steps_per_value
        passes = passes_of(batches)
        first = next(passes, None)
        if first is None:
            raise ValueError("batches must give at least one batch, got none.")
        self._like = first
        self._by_jax = [is_stacked_by_jax(leaf) for leaf in first.leaves]
        self._passes = passes
        self._next_batches: Iterator[Batch] = itertools.chain([first], passes)
        num_bytes = steps_per_value * sum(leaf.size * leaf.dtype.itemsize for leaf in first.leaves)
        self.most_rows = max(1, min(num_rows, _READ_ROWS, _READ_BYTES // max(num_bytes, 1)))

    @property
    def example(self) -> PyTree:
        """Shapes and dtypes of one batch."""
        shape = lambda leaf: (
            leaf if has_axes_in_its_type(leaf) else on_device(leaf.shape, leaf.dtype)
        )
        return jax.tree.unflatten(self._like.structure, map(shape, self._like.leaves))

    def read(self, num_rows: int, room: int) -> Inputs | None:
        num_wanted = self._steps_per_value * min(num_rows, self._rows_left)
        stack = Stack(self._like.leaves, self._by_jax, self._steps_per_value * room)
        length = 0
        while length < num_wanted and (leaves := self._next_leaves()) is not None:
            stack.put(leaves, length)
            length += 1
        num_rows = length // self._steps_per_value
        if not num_rows:
            return None
        self._rows_left -= num_rows
        batches = jax.tree.unflatten(self._like.structure, stack.filled(length))
        return Inputs(batches, np.int32(0), np.int32(num_rows))

    def _next_leaves(self) -> list[Any] | None:
        try:
            batch = next(self._next_batches, None)
        except UnfitBatchError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            self.ended_by = error  # whatever it is, the batches before it are valid
            self._next_batches = iter(())  # read no more, even if Ctrl-C left some
            return None
        return None if batch is None else batch.leaves

    def close(self) -> None:
        self._next_batches = iter(())
        self._passes.close()
