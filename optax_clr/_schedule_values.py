"""The values of a schedule: at any steps, and sampled over a run of up to 2**31 of them."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import optax

from optax_clr._arguments import float_dtype, is_real_dtype
from optax_clr._arrays import Array, numpy_of
from optax_clr._integer_powers import check_powers
from optax_clr._tracing import is_traced
from optax_clr._words import shown

# A run of more steps is divided into this many blocks, and some more near both ends; the value at
# one step stands for each block.
_NUM_BLOCKS = 2**15
# Blocks are then split where that matters most, until there are this many.
_MOST_BLOCKS = _NUM_BLOCKS + 2**14
# A block is at most this share of the steps before it, and of those after it: many schedules are
# steep at their start, and the steps near the end matter most.
_BLOCK_OF_REST = 1 / 256
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
# Share of the highest value: XLA may leave this much of 1 - 1, of either sign, when it divides by
# multiplying with a reciprocal. A last step of this size would have to make up for all before it.
ROUNDING = 2.0**-22


def values_at(name: str, schedule: optax.Schedule, steps: Any) -> jax.Array:
    """Return the value of a schedule at each of the steps; errors call it by ``name``."""
    allowed = f"{name} must be a schedule that jax.jit can trace, step -> number; {shown(schedule)}"
    try:
        values = jax.vmap(schedule)(steps)  # some of Optax's schedules refuse arrays of steps
    except Exception as error:
        raise ValueError(f"{allowed} failed: {error}") from error
    if not (isinstance(values, jax.Array) and values.shape == steps.shape) or not (
        is_real_dtype(values.dtype) or values.dtype == bool
    ):
        one = jax.tree.map(lambda leaf: leaf[0], values)
        raise ValueError(f"{allowed} returned {shown(one)} at step {steps[0]}.")
    return values.astype(float_dtype(values))


def sampled(shape: optax.Schedule, num_steps: int) -> tuple[Array, Array]:
    """Return the values of a schedule over a run of so many steps, and for how many steps each is.

    Both are float64 if they are concrete, and otherwise of the schedule's dtype, at least float32.
    A concrete schedule must have legal values; of a traced one, that is not known.
    """
    check_powers("shape", shape)
    edges = _edges(num_steps)
    values, counts = _look(shape, edges)
    if num_steps > _NUM_BLOCKS:
        values, counts = _look(shape, _split(edges, values))
    return values, counts


def _look(shape: optax.Schedule, edges: Array) -> tuple[Array, Array]:
    """Return the value of a schedule at one step of each block, and the steps in each block."""
    numpy = numpy_of(edges)
    counts = numpy.diff(edges)
    # The place within a block varies, lest short cycles be sampled at a single phase.
    place = np.arange(len(counts)) * _GOLDEN_RATIO % 1
    inner = numpy.floor(np.float32(place) * counts.astype(np.float32)).astype(np.int32)
    # Empty blocks take the value of the last step, which has no weight there.
    values: Array = values_at("shape", shape, numpy.minimum(edges[:-1] + inner, edges[-1] - 1))
    if not is_traced(values):
        values = np.asarray(jax.device_get(values), np.float64)
        _check(values, edges[-1])
    return values, numpy.asarray(counts, values.dtype)


def is_legal(values: Array) -> Array:
    """Return whether no value of a schedule is negative or infinite, and one is above 0."""
    lowest, highest = values.min(), values.max()
    return (lowest > -ROUNDING * highest) & (highest > 0) & (highest < math.inf)


def _check(values: np.ndarray, num_steps: int) -> None:
    if not is_legal(values):
        lowest, highest = values.min(), values.max()
        raise ValueError(
            "shape must be a schedule of finite values of which none is negative and one is above "
            f"0; over {num_steps} steps it has values from {lowest:g} to {highest:g}."
        )


def sums_after(parts: Array) -> Array:
    """Return the sum of all parts after each one."""
    numpy = numpy_of(parts)
    return numpy.append(numpy.flip(numpy.cumsum(numpy.flip(parts[1:]))), 0)


@functools.lru_cache(maxsize=8)
def _edges(num_steps: int) -> np.ndarray:
    """Return where the blocks of a run begin, and its end, ``i32[b + 1]``.

    Unless every step is a block, empty blocks are appended, so that their number, for which JAX
    compiles, is always the same.
    """
    longest = num_steps / _NUM_BLOCKS
    if longest <= 1:
        return np.arange(num_steps + 1, dtype=np.int32)
    # Single steps at both ends, then blocks growing by a ratio, and even ones in between.
    one_by_one = 1 / _BLOCK_OF_REST
    num_growing = math.ceil(math.log(longest) / math.log1p(_BLOCK_OF_REST))
    growing = one_by_one * (1 + _BLOCK_OF_REST) ** np.arange(num_growing)
    near = np.round(np.concatenate([np.arange(one_by_one), growing]))
    even = np.round(np.linspace(0, num_steps, _NUM_BLOCKS + 1))
    edges = np.unique(np.concatenate([near, even, num_steps - near])).astype(np.int32)
    return np.pad(edges, (0, _MOST_BLOCKS + 1 - len(edges)), mode="edge")


def _split(edges: np.ndarray, values: Array) -> Array:
    """Return the edges of ``_MOST_BLOCKS`` blocks, with parts of others in place of empty ones.

    Blocks are split if the value changes there, or if they are long for what comes after them.
    """
    numpy = numpy_of(values)
    counts, highest = np.diff(edges), numpy.max(values)
    heights = values / numpy.where(highest > 0, highest, 1)
    parts = _num_parts(counts, heights, _MOST_BLOCKS - int(np.count_nonzero(counts)))
    ends = numpy.cumsum(parts, dtype=np.int32)
    row = np.arange(_MOST_BLOCKS, dtype=np.int32)
    block = numpy.minimum(numpy.searchsorted(ends, row, side="right"), _MOST_BLOCKS - 1)
    parts, counts, starts = parts[block], numpy.asarray(counts)[block], numpy.asarray(edges)[block]
    part = row - ends[block] + parts
    # No overflow: the longest block times the number of parts is below 2**31.
    return numpy.append(starts + counts * part // numpy.maximum(parts, 1), edges[-1])


def _num_parts(counts: np.ndarray, heights: Array, num_more: int) -> Array:
    """Return how many parts each block is split into, ``i32[b]``, at most ``num_more`` more."""
    numpy = numpy_of(heights)
    steps = np.asarray(counts, heights.dtype)
    changes = numpy.abs(numpy.diff(heights))
    changes = numpy.maximum(numpy.append(changes, 0), numpy.append(0, changes))
    rest = steps * heights + sums_after(steps * heights)
    of_rest = steps * heights / numpy.where(rest > 0, rest, 1)
    weights = steps * (changes + of_rest * heights)
    total = weights.sum()
    more = num_more * weights / numpy.where(total > 0, total, 1)
    return numpy.minimum(1 + numpy.floor(more).astype(np.int32), counts)
