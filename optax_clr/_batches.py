"""The batches of a range test: arrays held on the device, a traced function, or a stream."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import whole_number
from optax_clr._arrays import (
    OPEN_IT,
    ShapeDtype,
    as_array,
    check_not_donated,
    has_axes_in_its_type,
    is_array,
    is_numeric,
    is_opaque,
    on_device,
)
from optax_clr._documentation import see
from optax_clr._loop import Inputs
from optax_clr._step import PyTree
from optax_clr._streams import StreamedBatches
from optax_clr._words import describe, shown

_DEFAULT_NUM_STEPS = 300
_FORM = (
    "a pytree of arrays with a leading axis, one entry a step; a function step -> batch; or an "
    "iterable of batches"
)


class Batches(Protocol):
    """Where the batches of a test come from.

    Attributes:
      held: whether all are available up front, so that the test can be one program.
      arrays: the batches, stacked; ``()`` if they are made by a function or read one by one.
      batch_fn: the function that makes them in the program, or None.
      example: shapes and dtypes of one batch, or of the argument of ``batch_fn``.
      most_rows: the most rows that one read can return.
      ended_by: the exception that ended the reading, if any.
    """

    held: bool
    arrays: PyTree
    batch_fn: Callable[[jax.Array], PyTree] | None
    most_rows: int
    ended_by: BaseException | None

    @property
    def example(self) -> PyTree: ...

    def read(self, num_rows: int, room: int) -> Inputs | None:
        """Return the next rows, in arrays with room for ``room`` rows; None at the end."""

    def close(self) -> None:
        """Release the source that is read."""


def is_stream(batches: Any) -> bool:
    """Whether ``batches`` is a Python iterable that gives one batch after the other.

    That is an iterable which JAX does not know as a pytree, such as a data loader or a generator.
    Lists are pytrees to JAX: one of tuples or dicts is a stream, one of arrays could be either.
    """
    if isinstance(batches, list):
        return bool(batches) and not any(_is_leaf(entry) for entry in batches)
    is_container = is_array(batches) or isinstance(batches, Mapping)
    return isinstance(batches, Iterable) and _is_leaf(batches) and not is_container


def _is_leaf(value: Any) -> bool:
    return jax.tree_util.all_leaves([value])


def check_num_steps(
    num_steps: int | None, batches: Any, steps_per_value: int, default: int = _DEFAULT_NUM_STEPS
) -> int:
    """Return ``num_steps``, or the default for these batches, if it makes two rows or more."""
    if num_steps is None:
        sized = not callable(batches) and not is_stream(batches)
        available = _batch_length(batches) if sized else default
        num_steps = available - available % steps_per_value
        if num_steps < 2 * steps_per_value:
            raise ValueError(
                f"num_steps must be given: of {available} steps, which are taken without it, "
                f"steps_per_value={steps_per_value} makes less than two rates. Pass num_steps="
                f"{2 * steps_per_value} or more, with as many batches."
            )
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
    check_not_donated("batches", batches)
    lengths: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batches):
        name = f"batches{jax.tree_util.keystr(path)}"
        if not is_array(leaf):
            is_data_set = hasattr(leaf, "__getitem__") and hasattr(leaf, "__len__")
            if is_data_set and not isinstance(leaf, (Mapping, str, bytes)):
                remedy = " Pass a data loader of it, or iter(batches)."
            else:
                remedy = f" {OPEN_IT}" if is_opaque(leaf) else ""
            raise TypeError(f"batches must be {_FORM}; {name} is {describe(leaf)}.{remedy}")
        if not is_numeric(leaf.dtype):
            raise TypeError(
                f"batches must be {_FORM}; {name} has dtype {leaf.dtype}, which JAX does not "
                "support. Encode it as numbers, or leave it out."
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
    """Raise for lists, which could be the batches or the parts of one batch."""
    is_list = lambda node: isinstance(node, list)
    for path, node in jax.tree_util.tree_leaves_with_path(batches, is_leaf=is_list):
        if not isinstance(node, list) or not node:
            continue
        if not path and _is_leaf(node[0]) and is_opaque(node[0]):
            raise TypeError(
                f"batches must be {_FORM}; got a list of {describe(node[0])}. {OPEN_IT}"
            )
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


def open_batches(batches: Any, num_rows: int, steps_per_value: int) -> Batches:
    """Return the batches of a test of ``num_rows`` rows; raise if they are known to be too few."""
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
    return HeldBatches(jax.tree.map(lambda leaf: _needed(leaf, num_needed), batches), num_rows)


def _needed(leaf: Any, num_needed: int) -> jax.Array | np.ndarray:
    """Return an array; of NumPy's, which may be a file or too large, only the part that is used."""
    array = as_array("batches", leaf)
    return array[:num_needed] if isinstance(array, np.ndarray) else array


def hold_batches(batches: Any, num_steps: int) -> HeldBatches:
    """Return the batches of ``num_steps`` training steps; a stream is read into memory."""
    source = open_batches(batches, num_steps, steps_per_value=1)
    arrays = source.arrays if source.held else _read_all(source, num_steps)
    return HeldBatches(arrays, num_steps, source.batch_fn)


def _read_all(source: Batches, num_batches: int) -> PyTree:
    """Return the next batches of a stream, all of them stacked on the device."""
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
    """Batches available up front: arrays, or a function that makes them in the program."""

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
        """Shapes and dtypes of one batch, or of the step number that the function is given."""
        if self.batch_fn is not None:
            return ShapeDtype((), jnp.int32)

        def first(leaf: Any) -> Any:
            if has_axes_in_its_type(leaf):
                return jax.eval_shape(lambda leaf: leaf[0], leaf)
            return on_device(leaf.shape[1:], leaf.dtype)

        return jax.tree.map(first, self.arrays)

    def read(self, num_rows: int, room: int) -> Inputs | None:
        del room  # the arrays have every row
        self.arrays = jax.device_put(self.arrays)  # only the first call moves them
        first = self._next_row
        num_rows = min(num_rows, self.most_rows - first)
        self._next_row += num_rows
        return Inputs(self.arrays, np.int32(first), np.int32(num_rows)) if num_rows else None

    def again(self) -> HeldBatches:
        """Return the same batches, starting again from the first."""
        return HeldBatches(self.arrays, self.most_rows, self.batch_fn)

    def close(self) -> None:
        """Do nothing, since nothing is open."""
