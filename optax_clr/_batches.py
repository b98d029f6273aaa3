"""The batches of a range test: arrays held on the device, a traced function, or a stream."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import whole_number
from optax_clr._documentation import see
from optax_clr._training_step import PyTree, describe

_DEFAULT_NUM_STEPS = 300
# A chunk of a stream is no longer than this. With 256 rows the calls cost a few percent of the
# smallest training steps; 8 MiB are a transfer of good size, and memory that malloc uses again.
_CHUNK_ROWS = 256
_CHUNK_BYTES = 2**23
_ALIGNMENT = 64  # in bytes, of XLA's buffers on the CPU

_ShapeDtype: Any = jax.ShapeDtypeStruct

_FORM = (
    "a pytree of arrays with a leading axis, one entry a step; a function step -> batch; or an "
    "iterable of batches"
)


def is_stream(batches: Any) -> bool:
    """Whether ``batches`` is a Python iterable to read one batch after the other from.

    That is what JAX does not know as a pytree, such as a data loader or a generator. Lists are
    pytrees to JAX; one of tuples or dicts is a stream, one of arrays could be either.
    """
    if isinstance(batches, list):
        return bool(batches) and not any(_is_leaf(entry) for entry in batches)
    return isinstance(batches, Iterable) and _is_leaf(batches) and not _is_array(batches)


def _is_leaf(value: Any) -> bool:
    return jax.tree_util.all_leaves([value])


def _is_array(value: Any) -> bool:
    return type(value) is np.ndarray or isinstance(value, (jax.Array, np.ndarray))


def check_num_steps(
    num_steps: int | None, batches: Any, steps_per_value: int, default: int = _DEFAULT_NUM_STEPS
) -> int:
    """Return ``num_steps``, or the default for such batches, if it makes two rows or more."""
    if num_steps is None:
        sized = not callable(batches) and not is_stream(batches)
        available = _batch_length(batches) if sized else default
        num_steps = available - available % steps_per_value
    num_steps = whole_number("num_steps", num_steps, minimum=0)
    if num_steps < 2 * steps_per_value or num_steps % steps_per_value:
        raise ValueError(
            f"num_steps={num_steps} must be a multiple of steps_per_value={steps_per_value}, at "
            "least twice that: two rates or more."
        )
    return num_steps


def _batch_length(batches: PyTree) -> int:
    """Return the length of the leading axis that all the leaves share."""
    if isinstance(batches, list) and batches:
        raise TypeError(
            f"batches must be {_FORM}; got a list of arrays, which could be the batches or the "
            "parts of one. Put the stacked parts in a tuple; stream batches with iter(batches). "
            + see("range-test/#batches")
        )
    lengths: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batches):
        name = f"batches{jax.tree_util.keystr(path)}"
        if not _is_array(leaf):
            raise TypeError(f"batches must be {_FORM}; {name} is {describe(leaf)}.")
        if leaf.ndim == 0:
            raise ValueError(f"batches must be {_FORM}; {name} is a scalar.")
        lengths[name] = leaf.shape[0]
    if not lengths:
        raise ValueError(f"batches must be {_FORM}; got the empty pytree {batches!r}.")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"batches must have leading axes of one length, got {lengths}.")
    return next(iter(lengths.values()))


def stack_stream(batches: Any, num_batches: int) -> PyTree:
    """Return the next batches of a stream stacked, all of them on the device."""
    stream = StreamedBatches(batches, num_batches, steps_per_value=1)
    stream.capacity = num_batches
    chunk = stream.read(num_batches)
    if stream.ended_by is not None:
        raise stream.ended_by
    if chunk is None or chunk.num_rows < num_batches:
        raise ValueError(
            f"batches must give one batch for each of num_steps={num_batches} training steps, got "
            f"{0 if chunk is None else chunk.num_rows}; an iterator cannot be read again, a list "
            "or a data loader can."
        )
    return chunk.batches


# ------------------------------------------------------------------------------ chunks of rows


class Chunk(NamedTuple):
    """Batches for the next ``num_rows`` rows: those from row ``first`` of ``batches`` on."""

    batches: PyTree
    first: Any  # i32[], as is num_rows
    num_rows: Any


def open_batches(
    batches: Any, num_rows: int, steps_per_value: int
) -> HeldBatches | StreamedBatches:
    """Return the batches of a test of so many rows, if they are enough as far as can be known."""
    if is_stream(batches):
        return StreamedBatches(batches, num_rows, steps_per_value)
    if inspect.isgeneratorfunction(batches):
        raise TypeError(
            f"batches must be {_FORM}; got the generator function {batches!r}. Call it: what it "
            f"returns can be iterated over. {see('range-test/#batches')}"
        )
    if callable(batches):
        return HeldBatches((), num_rows, batch_fn=batches)
    length, num_needed = _batch_length(batches), num_rows * steps_per_value
    if length < num_needed:
        raise ValueError(
            f"batches must have a leading axis of at least {num_needed}, one entry for each "
            f"training step; got {length}."
        )
    return HeldBatches(batches, num_rows)


class HeldBatches:
    """Batches that are all there: arrays, or a function that makes them in the program."""

    def __init__(
        self, arrays: PyTree, num_rows: int, batch_fn: Callable[[jax.Array], PyTree] | None = None
    ) -> None:
        self.arrays = arrays
        self.batch_fn = batch_fn
        self.capacity = self._num_rows = num_rows
        self._next_row = 0
        self.ended_by: BaseException | None = None

    @property
    def example(self) -> PyTree:
        """Shapes and dtypes of one batch, or of the step that the function is given."""
        if self.batch_fn is not None:
            return _ShapeDtype((), jnp.int32)
        shape = lambda leaf: _on_device(leaf.shape[1:], leaf.dtype)
        return jax.tree.map(shape, self.arrays)

    def read(self, max_rows: int) -> Chunk | None:
        """Return the next chunk; None at the end."""
        self.arrays = jax.device_put(self.arrays)  # once: where they are, they stay
        first = self._next_row
        num_rows = min(max_rows, self.capacity, self._num_rows - first)
        self._next_row += num_rows
        return Chunk(self.arrays, np.int32(first), np.int32(num_rows)) if num_rows else None


class StreamedBatches:
    """Batches of a Python iterable, stacked in chunks that all have the same shape.

    One that can be iterated again is, when it runs out; ``ended_by`` is the exception that it
    ended with, if any.
    """

    arrays = ()  # none are there before they are read
    batch_fn = None

    def __init__(self, batches: Iterable[PyTree], num_rows: int, steps_per_value: int) -> None:
        self._iterable = batches
        self._rows_left = num_rows
        self._steps_per_value = steps_per_value
        self._structure: Any = None
        self._types: list[Any] = []
        self.ended_by: BaseException | None = None
        leaves = self._passes()
        first = next(leaves, None)
        if first is None:
            raise ValueError("batches must give at least one batch, got none.")
        self._leaves = itertools.chain([first], leaves)
        self._on_device = any(isinstance(leaf, jax.Array) for leaf in first)
        num_bytes = steps_per_value * sum(leaf.size * leaf.dtype.itemsize for leaf in first)
        self.capacity = max(1, min(num_rows, _CHUNK_ROWS, _CHUNK_BYTES // max(num_bytes, 1)))

    @property
    def example(self) -> PyTree:
        """Shapes and dtypes of one batch."""
        return jax.tree.unflatten(
            self._structure,
            [_on_device(*shape_and_dtype) for shape_and_dtype in self._types],
        )

    def read(self, max_rows: int) -> Chunk | None:
        """Return the next chunk; None at the end."""
        num_wanted = self._steps_per_value * min(max_rows, self.capacity, self._rows_left)
        num_slots = self._steps_per_value * self.capacity
        stack = _DeviceStack(num_slots) if self._on_device else _HostStack(self._types, num_slots)
        while stack.length < num_wanted and (leaves := self._next_leaves()) is not None:
            stack.append(leaves)
        num_rows = stack.length // self._steps_per_value
        if not num_rows:
            return None
        self._rows_left -= num_rows
        batches = jax.tree.unflatten(self._structure, stack.on_device())
        return Chunk(batches, np.int32(0), np.int32(num_rows))

    def _next_leaves(self) -> list[Any] | None:
        try:
            return next(self._leaves, None)
        except _UnfitBatchError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            self.ended_by = error  # whatever it is, the batches before it are good
            return None

    def _passes(self) -> Iterator[list[Any]]:
        """Yield the leaves of each batch, pass after pass if the iterable can be read again."""
        again = True
        while again:
            again = False
            iterator = iter(self._iterable)
            unfit: str | None = None
            for batch in iterator:
                if unfit is not None:
                    raise _UnfitBatchError(unfit)
                leaves, structure = jax.tree.flatten(batch)
                leaves = [leaf if _is_array(leaf) else np.asarray(leaf) for leaf in leaves]
                unfit = self._unfit(structure, [(leaf.shape, leaf.dtype) for leaf in leaves])
                if unfit is None:
                    again = iterator is not self._iterable
                    yield leaves
            # A last batch that does not fit is what remained of the data: it is left out.

    def _unfit(self, structure: Any, types: list[Any]) -> str | None:
        """Return what is wrong with a batch that is not like the first."""
        if self._structure is None:
            _check_first(structure, types)
            self._structure, self._types = structure, types
        if structure != self._structure:
            return (
                f"batches must all have the structure of the first, {self._structure}; got "
                f"{structure}."
            )
        if types != self._types:
            return (
                "batches must all have the shapes and dtypes of the first, "
                f"{_in_words(self._types)}; got {_in_words(types)}. Pad or crop them to one shape; "
                "only the last of an epoch may be another, and is left out."
            )
        return None


class _UnfitBatchError(ValueError):
    """A batch that cannot be stacked with the first."""


def _check_first(structure: Any, types: list[Any]) -> None:
    # By kind, since those of bfloat16 and of JAX's keys are no numbers to NumPy.
    if not types or any(getattr(dtype, "kind", "") in tuple("OSUM") for _, dtype in types):
        raise TypeError(
            f"batches must give pytrees of numeric arrays; got {structure} of {_in_words(types)}."
        )


def _on_device(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return shape and dtype as JAX has them: 64-bit types of NumPy become 32-bit ones."""
    is_key = jnp.issubdtype(dtype, jax.dtypes.extended)
    return _ShapeDtype(shape, dtype if is_key else jax.dtypes.canonicalize_dtype(dtype))


def _in_words(types: list[Any]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in types) or "nothing"


class _HostStack:
    """Batches of NumPy arrays, copied as they come: a loader may use its own memory again."""

    def __init__(self, types: list[Any], num_slots: int) -> None:
        self.length = 0
        self._columns = [_aligned((num_slots, *shape), dtype) for shape, dtype in types]

    def append(self, leaves: list[np.ndarray]) -> None:
        for column, leaf in zip(self._columns, leaves, strict=True):
            column[self.length] = leaf
        self.length += 1

    def on_device(self) -> list[jax.Array]:
        return jax.device_put(self._columns)  # type: ignore[no-any-return]


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an empty array for a batch's dtype, which the CPU backend takes without a copy."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    room = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    offset = -room.ctypes.data % _ALIGNMENT
    aligned: np.ndarray = room[offset : offset + num_bytes].view(dtype).reshape(shape)
    return aligned


class _DeviceStack:
    """Batches of JAX arrays, which keep their sharding."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._batches: list[list[jax.Array]] = []

    @property
    def length(self) -> int:
        return len(self._batches)

    def append(self, leaves: list[jax.Array]) -> None:
        self._batches.append(leaves)

    def on_device(self) -> list[jax.Array]:
        # Always so many, or the shapes, and the program, would change with the number read.
        spare = self._num_slots - self.length
        return _stack(*self._batches, *self._batches[-1:] * spare)  # type: ignore[no-any-return]


@jax.jit
def _stack(*batches: list[jax.Array]) -> list[jax.Array]:
    return jax.tree.map(lambda *parts: jnp.stack(parts), *batches)  # type: ignore[no-any-return]
