"""The batches of a range test: arrays held on the device, a traced function, or a stream."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from optax_clr._arguments import native, shown, whole_number
from optax_clr._documentation import see
from optax_clr._loop import Inputs
from optax_clr._step import PyTree, describe

_DEFAULT_NUM_STEPS = 300
# One read of a stream is no longer than this. With 256 rows the calls cost a few percent of the
# smallest training steps; 8 MiB are a transfer of good size, and memory that malloc uses again.
_READ_ROWS = 256
_READ_BYTES = 2**23
_ALIGNMENT = 64  # in bytes, of XLA's buffers on the CPU

_ShapeDtype: Any = jax.ShapeDtypeStruct

_FORM = (
    "a pytree of arrays with a leading axis, one entry a step; a function step -> batch; or an "
    "iterable of batches"
)


class Batches(Protocol):
    """Where the batches of a test come from.

    Attributes:
      held: whether all of them are there, so that the test can be one program.
      arrays: the batches, stacked; ``()`` where they are made or read.
      batch_fn: makes them in the program; None where it does not.
      example: shapes and dtypes of one batch, or of what ``batch_fn`` is given.
      most_rows: rows that one read can have.
      ended_by: the exception that reading ended with.
    """

    held: bool
    arrays: PyTree
    batch_fn: Callable[[jax.Array], PyTree] | None
    most_rows: int
    ended_by: BaseException | None

    @property
    def example(self) -> PyTree: ...

    def read(self, num_rows: int, room: int) -> Inputs | None:
        """Return the next rows, in arrays with room for ``room``; None at the end."""

    def close(self) -> None:
        """Let go of what is read from."""


def is_stream(batches: Any) -> bool:
    """Whether ``batches`` is a Python iterable to read one batch after the other from.

    That is what JAX does not know as a pytree, such as a data loader or a generator. Lists are
    pytrees to JAX; one of tuples or dicts is a stream, one of arrays could be either.
    """
    if isinstance(batches, list):
        return bool(batches) and not any(_is_leaf(entry) for entry in batches)
    return isinstance(batches, Iterable) and _is_leaf(batches) and not is_array(batches)


def _is_leaf(value: Any) -> bool:
    return jax.tree_util.all_leaves([value])


def is_array(value: Any) -> bool:
    """Whether ``value`` is an array, of NumPy, JAX or another library such as PyTorch."""
    known = isinstance(value, (jax.Array, np.ndarray))
    return known or (hasattr(value, "__array__") and hasattr(value, "shape"))


def as_array(value: Any) -> jax.Array | np.ndarray:
    """Return the array of another library as NumPy's."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return native(value)  # type: ignore[no-any-return]
    if hasattr(value, "detach"):  # PyTorch refuses to convert what has a gradient
        value = value.detach()
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError):  # of bfloat16 in PyTorch, or on a GPU
        if not hasattr(value, "__dlpack__"):
            raise
        return np.array(jnp.from_dlpack(value))


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
    _refuse_lists(batches)
    lengths: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batches):
        name = f"batches{jax.tree_util.keystr(path)}"
        if not is_array(leaf):
            is_data_set = hasattr(leaf, "__getitem__") and hasattr(leaf, "__len__")
            remedy = " Pass a data loader of it, or iter(batches)." if is_data_set else ""
            raise TypeError(f"batches must be {_FORM}; {name} is {describe(leaf)}.{remedy}")
        if not is_numeric(leaf.dtype):
            raise TypeError(
                f"batches must be {_FORM}; {name} has dtype {leaf.dtype}, which no device knows. "
                "Encode it as numbers, or leave it out."
            )
        if len(leaf.shape) == 0:
            raise ValueError(f"batches must be {_FORM}; {name} is a scalar.")
        lengths[name] = leaf.shape[0]
    if not lengths:
        raise ValueError(f"batches must be {_FORM}; got the empty pytree {shown(batches)}.")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"batches must have leading axes of one length, got {lengths}.")
    return next(iter(lengths.values()))


def _refuse_lists(batches: PyTree) -> None:
    """Raise for lists, of which nobody can tell whether they are the batches or parts of one."""
    is_list = lambda node: isinstance(node, list)
    for path, node in jax.tree_util.tree_leaves_with_path(batches, is_leaf=is_list):
        if not isinstance(node, list) or not node:
            continue
        if not path:
            raise TypeError(
                f"batches must be {_FORM}; got a list of arrays, which could be the batches or the "
                "parts of one. Put the stacked parts in a tuple; stream batches with "
                f"iter(batches). {see('range-test/#batches')}"
            )
        raise TypeError(
            f"batches must be {_FORM}; batches{jax.tree_util.keystr(path)} is a list. Stack it, "
            "numpy.stack(the_list), or make it a tuple if it is one part of a batch after the "
            f"other. {see('range-test/#batches')}"
        )


def is_numeric(dtype: Any) -> bool:
    """Whether there are arrays of that dtype on devices."""
    # By kind, since those of bfloat16 and of JAX's keys are no numbers to NumPy. A dtype of another
    # library is told by its array.
    return not isinstance(dtype, np.dtype) or dtype.kind not in "OSUMm"


def open_batches(batches: Any, num_rows: int, steps_per_value: int) -> Batches:
    """Return the batches of a test of so many rows, if they are enough as far as can be known."""
    if is_stream(batches):
        return StreamedBatches(batches, num_rows, steps_per_value)
    if inspect.isgeneratorfunction(batches):
        raise TypeError(
            f"batches must be {_FORM}; got the generator function {shown(batches)}. Call it: what "
            f"it returns can be iterated over. {see('range-test/#batches')}"
        )
    if callable(batches) and not is_array(batches):
        return HeldBatches((), num_rows, batch_fn=batches)
    length, num_needed = _batch_length(batches), num_rows * steps_per_value
    if length < num_needed:
        raise ValueError(
            f"batches must have a leading axis of at least {num_needed}, one entry for each "
            f"training step; got {length}."
        )
    return HeldBatches(jax.tree.map(as_array, batches), num_rows)


def hold_batches(batches: Any, num_steps: int) -> HeldBatches:
    """Return the batches of ``num_steps`` training steps; a stream is read for it."""
    source = open_batches(batches, num_steps, steps_per_value=1)
    arrays = source.arrays if source.held else _read_all(source, num_steps)
    return HeldBatches(arrays, num_steps, source.batch_fn)


def _read_all(source: Batches, num_batches: int) -> PyTree:
    """Return the next batches of a stream stacked, all of them on the device."""
    try:
        inputs = source.read(num_batches, num_batches)
    finally:
        source.close()
    if source.ended_by is not None:
        raise source.ended_by
    num_read = 0 if inputs is None else int(inputs.num_rows)
    if inputs is None or num_read < num_batches:
        raise ValueError(
            f"batches must give one batch for each of num_steps={num_batches} training steps, got "
            f"{num_read}; an iterator cannot be read again, a list or a data loader can."
        )
    return inputs.batches


class HeldBatches:
    """Batches that are all there: arrays, or a function that makes them in the program."""

    held = True

    def __init__(
        self, arrays: PyTree, num_rows: int, batch_fn: Callable[[jax.Array], PyTree] | None = None
    ) -> None:
        self.arrays = arrays
        self.batch_fn = batch_fn
        self.most_rows = num_rows
        self.ended_by: BaseException | None = None
        self._next_row = 0

    @property
    def example(self) -> PyTree:
        """Shapes and dtypes of one batch, or of the step that the function is given."""
        if self.batch_fn is not None:
            return _ShapeDtype((), jnp.int32)
        shape = lambda leaf: _on_device(leaf.shape[1:], leaf.dtype)
        return jax.tree.map(shape, self.arrays)

    def read(self, num_rows: int, room: int) -> Inputs | None:
        del room  # the arrays have every row
        self.arrays = jax.device_put(self.arrays)  # once: where they are, they stay
        first = self._next_row
        num_rows = min(num_rows, self.most_rows - first)
        self._next_row += num_rows
        return Inputs(self.arrays, np.int32(first), np.int32(num_rows)) if num_rows else None

    def again(self) -> HeldBatches:
        """Return the same batches, from the first on."""
        return HeldBatches(self.arrays, self.most_rows, self.batch_fn)

    def close(self) -> None:
        """Nothing is open."""


class StreamedBatches:
    """Batches of a Python iterable, stacked in arrays that all have the same shape.

    One that can be iterated again is, when it runs out; ``ended_by`` is the exception that it
    ended with, if any.
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
        shapes = [_on_device(leaf.shape, leaf.dtype) for leaf in self._like.leaves]
        return jax.tree.unflatten(self._like.structure, shapes)

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
        """Return the leaves that are stacked by NumPy, and those by JAX."""
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
            self.ended_by = error  # whatever it is, the batches before it are good
            self._next_batches = iter(())  # Ctrl-C may come between two batches, with more to come
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

    A loader's own iterator, with its workers and threads, is closed with this generator.
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
                leaves = [as_array(leaf) for leaf in leaves]
                batch = _Batch(leaves, structure, [(leaf.shape, leaf.dtype) for leaf in leaves])
                if first is None:
                    first = _checked_first(batch)
                unfit = _difference(batch, first)
                if unfit is None:
                    again = iterator is not batches
                    yield batch
            # A last batch that does not fit is what remained of the data: it is left out.
            is_exhausted = True
        finally:
            if not is_exhausted and iterator is not batches and hasattr(iterator, "close"):
                iterator.close()


def _checked_first(batch: _Batch) -> _Batch:
    if not batch.leaves or not all(is_numeric(leaf.dtype) for leaf in batch.leaves):
        raise TypeError(
            f"batches must give pytrees of numeric arrays; got {batch.structure} of "
            f"{_in_words(batch.types)}. Encode what is not a number, or leave it out."
        )
    return batch


def _difference(batch: _Batch, first: _Batch) -> str | None:
    """Return what is wrong with a batch that is not like the first."""
    if batch.structure != first.structure:
        return (
            f"batches must all have the structure of the first, {first.structure}; got "
            f"{batch.structure}."
        )
    if batch.types != first.types:
        return (
            "batches must all have the shapes and dtypes of the first, "
            f"{_in_words(first.types)}; got {_in_words(batch.types)}. Pad or crop them to one "
            "shape; only the last of an epoch may be another, and is left out."
        )
    return None


class _UnfitBatchError(ValueError):
    """A batch that cannot be stacked with the first."""


def _on_device(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return shape and dtype as JAX has them: 64-bit types of NumPy become 32-bit ones."""
    is_key = jnp.issubdtype(dtype, jax.dtypes.extended)
    return _ShapeDtype(shape, dtype if is_key else jax.dtypes.canonicalize_dtype(dtype))


def _in_words(types: list[Any]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in types) or "nothing"


# ------------------------------------------------------------------------- stacking one by one


def _is_stacked_by_jax(leaf: Any) -> bool:
    """Whether a leaf is to stay on its devices, with its sharding; on the host NumPy is faster."""
    if not isinstance(leaf, jax.Array):
        return False
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    first = jax.devices()[0]
    return is_key or first.platform != "cpu" or leaf.devices() != {first}


class _HostColumn:
    """A NumPy array, into which batches are copied: a loader may use its own memory again."""

    def __init__(self, like: Any, num_slots: int) -> None:
        self._array = aligned((num_slots, *like.shape), like.dtype)

    def put(self, leaf: Any, slot: int) -> None:
        self._array[slot] = leaf

    def filled(self, length: int) -> np.ndarray:
        """Return the array; free slots have the last batch, which nothing records."""
        self._array[length:] = self._array[length - 1]
        return self._array


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an empty array for a batch's dtype, which the CPU backend takes without a copy."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    room = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    offset = -room.ctypes.data % _ALIGNMENT
    array: np.ndarray = room[offset : offset + num_bytes].view(dtype).reshape(shape)
    return array


class _DeviceColumns:
    """JAX arrays, into which batches are copied on their devices."""

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
