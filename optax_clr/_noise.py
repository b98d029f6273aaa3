"""The noise of a curve: lone bad batches, and the standard deviation of a row."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import INT32_MAX
from optax_clr._arrays import Array, numpy_of

# A loss is a lone spike if it lies above, or below, all of the two losses on either side by more
# than this many standard deviations of the noise.
_SPIKE = 10.0
# Median of |x| for a standard normal x.
MEDIAN = 0.6745
# Standard deviation of a second difference of independent rows with standard deviation 1.
_BEND = math.sqrt(6)
_LARGEST = np.int32(INT32_MAX)


def without_spikes(curve: Array, rises: Array | bool = True) -> Array:
    """Return the losses ``[n]`` with NaN for every lone one far above or below its neighbours.

    One bad batch among good ones says nothing about the rate; two in a row are left as they are.
    ``rises`` is whether the sweep begins at its lowest rate, at which no step learns much.
    """
    if curve.shape[0] < 5:
        return curve
    numpy = numpy_of(curve)
    known = numpy.isfinite(curve)
    rows = together(curve, known)
    # Each row and its neighbours, two on either side if there are as many. The last two rows, which
    # may have begun to explode, are left as they are.
    first = np.array([[1, 2, 3, 4], [0, 2, 3, 4]]).T
    inner = np.arange(2, curve.shape[0] - 2)
    around = rows[np.concatenate([first, inner + np.array([[-2], [-1], [1], [2]])], axis=1)]
    high, low = around.max(0), around.min(0)
    distance = numpy.maximum(rows[:-2] - high, low - rows[:-2])
    least = _SPIKE * typical_deviation(rows)
    # The first row has neighbours on one side only. If they fall, so may it.
    is_first = np.arange(curve.shape[0] - 2) == 0
    is_level = rises & (high - low <= least)
    is_spike = numpy.pad((distance > least) & (is_level | ~is_first), (0, 2))
    return numpy.where(known & is_spike[numpy.cumsum(known) - 1], np.nan, curve)


def together(column: Array, known: Array) -> Array:
    """Return ``[n]`` with the known entries moved to the front, and NaN after them."""
    if numpy_of(column) is np:
        rows = column[known]
        return np.pad(rows, (0, len(column) - len(rows)), constant_values=np.nan)
    places = jnp.where(known, jnp.cumsum(known) - 1, column.shape[0])
    return jnp.full_like(column, jnp.nan).at[places].set(column, mode="drop")


def mean_where(values: Array, where: Array) -> Array:
    """Return the mean of the selected entries along the last axis; NaN if there are none."""
    numpy = numpy_of(values)
    count = where.sum(-1, dtype=values.dtype)
    return numpy.where(where, values, 0).sum(-1, dtype=values.dtype) / count


def typical_deviation(rows: Array) -> Array:
    """Return the standard deviation of the noise, from the median size of second differences.

    Here and below, rows come from ``together``, so that known rows are adjacent.
    """
    if rows.shape[0] < 3:
        return numpy_of(rows).zeros((), rows.dtype)
    return median_size(rows[2:] - 2 * rows[1:-1] + rows[:-2]) / (MEDIAN * _BEND)


def median_size(values: Array) -> Array:
    """Return the median magnitude of the finite entries along the last axis; 0 if there are none.

    When compiled, it is found bit by bit, since the bits of positive float32s sort as the numbers
    do. For 7 x 1,000 entries this takes a CPU an eighth of the time of sorting, which took half of
    the time of a reading.
    """
    if numpy_of(values) is np:
        return _median_of_sorted(values)
    known = jnp.isfinite(values)
    count = known.sum(-1, dtype=jnp.int32)
    bits = jax.lax.bitcast_convert_type(jnp.abs(values).astype(jnp.float32), jnp.int32)
    bits = jnp.where(known, bits, _LARGEST)
    num_lower = (count - 1) // 2

    def with_bit(place: Array, found: Array) -> Array:
        larger = found | (jnp.int32(1) << (30 - jnp.int32(place)))  # int without jit
        num_below = jnp.sum(bits < larger[..., None], axis=-1, dtype=jnp.int32)
        return jnp.where(num_below <= num_lower, larger, found)

    lower = jax.lax.fori_loop(0, 31, with_bit, jnp.zeros_like(count))
    is_above = known & (bits > lower[..., None])
    above = jnp.min(bits, axis=-1, initial=_LARGEST, where=is_above)
    upper = jnp.where(2 * is_above.sum(-1, dtype=jnp.int32) >= count, above, lower)
    middle = jax.lax.bitcast_convert_type(jnp.stack([lower, upper]), jnp.float32)
    return jnp.where(count > 0, middle[0] / 2 + middle[1] / 2, 0)


def _median_of_sorted(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    count = known.sum(-1, keepdims=True)
    ordered = np.sort(np.where(known, np.abs(values), np.inf), axis=-1)
    middle = [
        np.take_along_axis(ordered, np.maximum(place, 0), -1)
        for place in ((count - 1) // 2, np.minimum(count // 2, count - 1))
    ]
    return np.where(count > 0, middle[0] / 2 + middle[1] / 2, 0)[..., 0]


def deviation(rows: Array, weights: Array) -> Array:
    """Return the standard deviation of the noise, from the weighted squares of second differences.

    First differences would count a slope as noise: the rows of a grid of rates are few, and far
    apart.
    """
    numpy = numpy_of(rows)
    both = numpy.where((weights[2:] > 0) & (weights[:-2] > 0), weights[1:-1], 0)
    bends = numpy.where(both > 0, rows[2:] - 2 * rows[1:-1] + rows[:-2], 0)
    largest = numpy.max(numpy.abs(bends), initial=0.0)
    unit = numpy.where(largest > 0, largest, 1)  # keeps the squares within float32's range
    variance = both @ numpy.square(bends / unit) / numpy.maximum(both.sum(), 1e-30)
    return unit * numpy.sqrt(variance) / _BEND
