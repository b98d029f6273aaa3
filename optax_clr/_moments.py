"""Moments that may fall between two steps, and the place of a step in its cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from optax_clr._arguments import INT32_MAX, as_step
from optax_clr._cycles import Cycles, Place, locate, pick, table


class Moment(NamedTuple):
    """A moment that may fall between two steps: ``whole + rest``, where ``abs(rest) <= 1/2``.

    The two are kept apart so that the distance from a step to the moment is accurate to a float32
    rounding. The whole part is limited to the int32 values from 0 up, so that the difference of two
    never overflows; the excess goes into the rest. Both are Python numbers, or arrays of one shape.
    """

    whole: Any
    rest: Any


def moment(numerator: int, denominator: int = 1) -> Moment:
    """Return the moment ``numerator / denominator``."""
    nearest = (2 * numerator + denominator) // (2 * denominator)
    whole = min(max(nearest, 0), INT32_MAX)
    return Moment(whole, (numerator - whole * denominator) / denominator)


def moment_at(time: float) -> Moment:
    return moment(*time.as_integer_ratio())


def time_between(earlier: Moment, later: Moment, dtype: DTypeLike) -> jax.Array:
    whole, rest = later.whole - earlier.whole, later.rest - earlier.rest
    return jnp.asarray(whole, dtype) + jnp.asarray(rest, dtype)


def climb(
    position: jax.Array, peak: Moment, end: Moment, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the height at ``position`` in a cycle, ``1 - height``, and whether it is rising."""
    now = Moment(position, 0.0)
    until_peak = time_between(now, peak, dtype)
    rising = until_peak > 0
    rise, fall = time_between(Moment(0, 0.0), peak, dtype), time_between(peak, end, dtype)
    above_base = jnp.where(rising, position.astype(dtype), time_between(now, end, dtype))
    slope = jnp.where(rising, rise, fall)
    return above_base / slope, jnp.abs(until_peak) / slope, rising


def between(low: ArrayLike, high: ArrayLike, up: jax.Array, down: jax.Array) -> jax.Array:
    """Return the value ``up`` of the way from ``low`` to ``high``, where ``down`` is ``1 - up``.

    This form is exact at both ends and keeps its digits near the smaller one.
    """
    return jnp.asarray(low, up.dtype) * down + jnp.asarray(high, up.dtype) * up


def locator(
    cycles: Cycles, peak_of: Callable[[int], Moment]
) -> Callable[[ArrayLike], tuple[Place, Moment, Moment]]:
    """Return a function that maps steps to their places, and the peaks and ends of their cycles.

    After the last cycle every step is at the end of that cycle. ``peak_of`` maps the length of a
    cycle to the moment of its peak, counted from the start of the cycle.
    """
    if cycles.mult == 1:
        peaks, ends = peak_of(cycles.steps), moment(cycles.steps)
    else:
        lengths = table(cycles).exact_lengths
        peaks, ends = _column(map(peak_of, lengths)), _column(map(moment, lengths))

    def place_of(step: ArrayLike) -> tuple[Place, Moment, Moment]:
        place = locate(cycles, as_step(step))
        if (row := place.row) is None:
            return place, peaks, ends
        return place, *jax.tree.map(lambda column: pick(column, row), (peaks, ends))

    return place_of


def _column(moments: Iterable[Moment]) -> Moment:
    wholes, rests = zip(*moments, strict=True)
    return Moment(np.array(wholes, np.int32), np.array(rests, np.float64))
