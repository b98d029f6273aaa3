"""Batches that are read one by one, and stacked while the device computes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from optax_clr._arrays import (
    OPEN_IT,
    as_array,
    has_axes_in_its_type,
    is_numeric,
    is_opaque,
    on_device,
)
from optax_clr._loop import Inputs
from optax_clr._step import PyTree

# Limits of one read of a stream. With 256 rows the calls cost a few percent of the smallest
# training steps; 8 MiB is an efficient size for a transfer, and memory that malloc reuses.
_READ_ROWS = 256
_READ_BYTES = 2**23
_ALIGNMENT = 64  # in bytes, of XLA's CPU buffers


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
        passes = _passes(batches)
        first = next(passes, None)
        if first is None:
            raise ValueError("batches must give at least one batch, got none.")
        self._like = first
        self._by_jax = [_is_stacked_by_jax(leaf) for leaf in first.leaves]
        self._passes = passes
        self._next_batches: Iterator[_Batch] = itertools.chain([first], passes)
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
        num_slots = self._steps_per_value * room
        on_host = [_HostColumn(like, num_slots) for like in self._split(self._like.leaves)[0]]
        on_device = _DeviceColumns(num_slots)
        length = 0
        while length < num_wanted and (leaves := self._next_leaves()) is not None:
            host_leaves, device_leaves = self._split(leaves)
            for column, leaf in zip(on_host, host_leaves, strict=True):
                column.put(leaf, length)
            if device_leaves:
                on_device.put(device_leaves, length)
            length += 1
        num_rows = length // self._steps_per_value
        if not num_rows:
            return None
        self._rows_left -= num_rows
        stacked = jax.device_put([column.filled(length) for column in on_host])
        batches = jax.tree.unflatten(self._like.structure, self._join(stacked, on_device.columns))
        return Inputs(batches, np.int32(0), np.int32(num_rows))

    def _split(self, leaves: list[Any]) -> tuple[list[Any], list[Any]]:
        """Return the leaves that NumPy stacks, and those that JAX stacks."""
        if not any(self._by_jax):
            return leaves, []
        parts: tuple[list[Any], list[Any]] = ([], [])
        for leaf, by_jax in zip(leaves, self._by_jax, strict=True):
            parts[by_jax].append(leaf)
        return parts

    def _join(self, host_leaves: list[Any], device_leaves: list[Any]) -> list[Any]:
        parts = iter(host_leaves), iter(device_leaves)
        return [next(parts[by_jax]) for by_jax in self._by_jax]

    def _next_leaves(self) -> list[Any] | None:
        try:
            batch = next(self._next_batches, None)
        except _UnfitBatchError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            self.ended_by = error  # whatever it is, the batches before it are valid
            self._next_batches = iter(())  # read no more, even if Ctrl-C left some
            return None
        return None if batch is None else batch.leaves

    def close(self) -> None:
        self._next_batches = iter(())
        self._passes.close()


class _Batch(NamedTuple):
    leaves: list[Any]
    structure: Any
    types: list[Any]  # shapes and dtypes of the leaves


def _passes(batches: Iterable[PyTree]) -> Generator[_Batch, None, None]:
    """Yield the batches, pass after pass if they can be read again.

    Closing this generator closes the loader's own iterator too, with its workers and threads.
    """
    first: _Batch | None = None
    again = True
    while again:
        again = False
        iterator = iter(batches)
        is_exhausted = False
        unfit: str | None = None
        try:
            for tree in iterator:
                if unfit is not None:
                    raise _UnfitBatchError(unfit)
                leaves, structure = jax.tree.flatten(tree)
                leaves = [as_array("batches", leaf) for leaf in leaves]
                batch = _Batch(leaves, structure, [(leaf.shape, leaf.dtype) for leaf in leaves])
                if first is None:
                    first = _checked_first(batch, tree)
                unfit = _difference(batch, first)
                if unfit is None:
                    # Do not restart an iterator: at its end one, such as a queue's, may block.
                    again = iterator is not batches
                    yield batch
            # A last batch that does not fit is the remainder of the data, and is left out.
            is_exhausted = True
        finally:
            if not is_exhausted and iterator is not batches and hasattr(iterator, "close"):
                iterator.close()


def _checked_first(batch: _Batch, tree: PyTree) -> _Batch:
    if not batch.leaves or not all(is_numeric(leaf.dtype) for leaf in batch.leaves):
        for leaf in filter(is_opaque, jax.tree.leaves(tree)):
            raise TypeError(
                "batches must give pytrees of numeric arrays; got one with a "
                f"{type(leaf).__name__} in it. {OPEN_IT}"
            )
        raise TypeError(
            f"batches must give pytrees of numeric arrays; got {batch.structure} of "
            f"{_in_words(batch.types)}. Encode what is not a number, or leave it out."
        )
    return batch


def _difference(batch: _Batch, first: _Batch) -> str | None:
    """Return what is wrong with a batch that differs from the first; None if it does not."""
    if batch.structure != first.structure:
        return (
            f"batches must all have the structure of the first, {first.structure}; got "
            f"{batch.structure}."
        )
    if batch.types != first.types:
        shapes = [[shape for shape, _ in each.types] for each in (batch, first)]
        remedy = "Convert them to one dtype."
        if shapes[0] != shapes[1]:
            remedy = (
                "Pad or crop them to one shape. Only the last of an epoch may be another, and is "
                "left out; in a generator that goes on with the next epoch leave it out yourself."
            )
        return (
            "batches must all have the shapes and dtypes of the first, "
            f"{_in_words(first.types)}; got {_in_words(batch.types)}. {remedy}"
        )
    return None


class _UnfitBatchError(ValueError):
    """A batch that cannot be stacked with the first."""


def _in_words(types: list[Any]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in types) or "nothing"


# ------------------------------------------------------------------------- stacking one by one


def _is_stacked_by_jax(leaf: Any) -> bool:
    """Whether a leaf should stay on its devices, sharded as it is; on the host NumPy is faster."""
    if not isinstance(leaf, jax.Array):
        return False
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    first = jax.local_devices()[0]
    return is_key or first.platform != "cpu" or leaf.devices() != {first}


class _HostColumn:
    """A NumPy array that batches are copied into: a loader may reuse its own memory."""

    def __init__(self, like: Any, num_slots: int) -> None:
        self._array = aligned((num_slots, *like.shape), like.dtype)

    def put(self, leaf: Any, slot: int) -> None:
        self._array[slot] = leaf

    def filled(self, length: int) -> np.ndarray:
        """Return the array, its free slots filled with the last batch, which is not recorded."""
        self._array[length:] = self._array[length - 1]
        return self._array


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an uninitialized array, in JAX's dtype, that the CPU backend takes without a copy."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    room = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    offset = -room.ctypes.data % _ALIGNMENT
    array: np.ndarray = room[offset : offset + num_bytes].view(dtype).reshape(shape)
    return array


class _DeviceColumns:
    """JAX arrays that batches are copied into, on their devices."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self.columns: list[jax.Array] = []

    def put(self, leaves: list[jax.Array], slot: int) -> None:
        if slot:
            self.columns = _put(self.columns, leaves, np.int32(slot))
        else:
            self.columns = _filled(leaves, num_slots=self._num_slots)


@functools.partial(jax.jit, static_argnames="num_slots")
def _filled(leaves: list[jax.Array], *, num_slots: int) -> list[jax.Array]:
    """Return columns with the first batch in each slot."""
    return [jnp.broadcast_to(leaf[None], (num_slots, *leaf.shape)) for leaf in leaves]


@functools.partial(jax.jit, donate_argnums=0)
def _put(columns: list[jax.Array], leaves: list[jax.Array], slot: ArrayLike) -> list[jax.Array]:
    return [
        lax.dynamic_update_index_in_dim(column, leaf, slot, 0)
        for column, leaf in zip(columns, leaves, strict=True)
    ]
