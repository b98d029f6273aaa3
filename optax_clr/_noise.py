"""The noise of a curve: lone bad batches, and how far its average strays by chance."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import INT32_MAX
from optax_clr._arrays import Array, numpy_of

# A loss is a lone spike if it lies above, or below, all of the two losses on either side by more
# than this many standard deviations of the noise.
_SPIKE = 10.0
# Median of |x| for a standard normal x.
_MEDIAN = 0.6745
# Standard deviation of a second difference of independent rows with standard deviation 1.
_BEND = math.sqrt(6)
# The level part of a curve is a slope if, among pairs of rows far apart, the shares that rise and
# that fall differ by more than this.
_SLOPE = 0.9
# To measure a drop, as many rows are averaged as bring its standard error down to an eighth of the
# whole fall, and at least three.
_ERROR_OF_DROP, _LEAST_BESIDE = 1 / 8, 3.0
_LARGEST = np.int32(INT32_MAX)
_LAGS = 3 ** np.arange(7, dtype=np.int32)  # 1 to 729


class Descent(NamedTuple):
    """A curve, and its fall to the lowest average; its rows come from ``together``."""

    losses: Array  # f32[n]
    position: Array  # f32[n] log10 of their rates
    height: Array  # f32[] from the average of the first rows to the lowest
    # Standard error of the difference of these two averages, if rows are independent and have a
    # standard deviation of 1.
    relative_error: Array  # f32[]
    noise_at_end: Array  # f32[] standard deviation of a row near the lowest average
    num_before: Array  # i32[] rows before the lowest average, from which the noise is estimated
    is_level: Array  # bool[n] rows that tell how far the loss strays by chance
    begins_level: Array | bool  # bool[] whether the sweep begins with them


class Fall(NamedTuple):
    """How far a curve fell, in standard errors of the difference of the two averages compared."""

    independent: Array  # if neighbouring rows are independent
    wandering: Array  # if they are as correlated as where the curve is level
    far_over_near: Array  # median difference between rows far apart, over that of neighbours


class Drop(NamedTuple):
    """The drop from the average of some neighbouring rows to that of as many rows after them."""

    height: Array  # f32[]
    error: Array  # f32[] the standard error of the difference, if rows are independent


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
    return median_size(rows[2:] - 2 * rows[1:-1] + rows[:-2]) / (_MEDIAN * _BEND)


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


def deviation_before(descent: Descent) -> Array:
    """Return the standard deviation of the noise before the lowest average."""
    row = np.arange(descent.losses.shape[0], dtype=np.int32)
    return deviation(descent.losses, (row < descent.num_before).astype(descent.losses.dtype))


def fall_in_errors(descent: Descent) -> Fall:
    """Return how significant the fall is."""
    rows, num_level = descent.losses, descent.is_level.sum(dtype=np.int32)
    numpy = numpy_of(rows)
    noise = deviation_before(descent)
    distances = median_size(_moves(numpy.where(descent.is_level, rows, np.nan)))
    near, is_slope = distances[0], _is_slope(descent)
    # Independent rows differ equally at every lag; those of a random walk differ more at longer
    # lags. A lag that does not fit into the level part twice says nothing.
    far = numpy.max(distances, initial=near, where=num_level >= 2 * _LAGS)
    # Distant rows of an AR(1) process differ r times as much as neighbours if its correlation is
    # 1 - 1/r^2; the variance of an average is then 2 r^2 - 1 times that of independent rows.
    ratio = numpy.where(near > 0, far / numpy.where(near > 0, near, 1), 1)
    correlated = numpy.sqrt(2 * numpy.square(ratio) - 1)
    wander = far / (_MEDIAN * math.sqrt(2)) * numpy.minimum(correlated * descent.relative_error, 1)
    independent = _over(descent.height, noise * descent.relative_error)
    return Fall(
        independent=independent,
        wandering=numpy.where(is_slope, independent, _over(descent.height, wander)),
        far_over_near=numpy.where(is_slope, 1, ratio),
    )


def largest_drop(descent: Descent, width: float, least: float) -> Drop:
    """Return the largest sudden drop before the lowest average.

    It is measured between averages of as few rows as their noise allows, of at least the share
    ``least`` of all rows, and of no more than lie in ``width`` decades: a jump is as high between
    averages of any number of rows, but a gradual fall is smaller between averages of few. It is 0
    if no rows are that close together.
    """
    numpy = numpy_of(descent.losses)
    rows, position = numpy.nan_to_num(descent.losses), descent.position
    is_known = numpy.isfinite(position)
    num_known = is_known.sum(dtype=np.int32)
    noise = numpy.maximum(deviation_before(descent), descent.noise_at_end)
    needed = 2 * numpy.square(noise / (_ERROR_OF_DROP * descent.height))
    start = numpy.min(position, initial=np.inf, where=is_known)
    end = numpy.max(position, initial=-np.inf, where=is_known)
    num_rows = num_known.astype(rows.dtype)
    most = numpy.minimum(numpy.round(num_rows / (end - start) * width), float(rows.shape[0]))
    needed = numpy.maximum(numpy.nan_to_num(numpy.ceil(needed)), numpy.ceil(num_rows * least))
    num_beside = numpy.maximum(numpy.minimum(needed, most), _LEAST_BESIDE)
    shift = num_beside.astype(np.int32)
    sums = numpy.concatenate([numpy.zeros(1, rows.dtype), numpy.cumsum(rows)])
    row = np.arange(rows.shape[0], dtype=np.int32)
    is_within = (row >= shift) & (row + shift <= num_known) & (row <= descent.num_before)
    left, right = numpy.maximum(row - shift, 0), numpy.minimum(row + shift, num_known)
    drops = 2 * sums[row] - sums[left] - sums[right]
    is_near = position[right - 1] - position[left] <= 2 * width
    height = numpy.max(drops, initial=0.0, where=is_within & is_near) / num_beside
    return Drop(height, noise * numpy.sqrt(2 / num_beside))


def _moves(rows: Array) -> Array:
    """Return how far the loss moves from each row to that each lag later, ``f32[lags, n]``."""
    numpy = numpy_of(rows)
    later = np.arange(rows.shape[0], dtype=np.int32) + _LAGS[:, None]
    return numpy.pad(rows, (0, _LAGS[-1]), constant_values=np.nan)[later] - rows[None]


def _is_slope(descent: Descent) -> Array:
    """Return whether the rows before the fall, or within it if there are few, move one way."""
    numpy = numpy_of(descent.losses)
    row = np.arange(descent.losses.shape[0], dtype=np.int32)
    part = numpy.where(descent.begins_level, descent.is_level, row < descent.num_before)
    moves = _moves(numpy.where(part, descent.losses, np.nan))
    drifts = numpy.nan_to_num(mean_where(numpy.sign(moves), ~numpy.isnan(moves)))
    # The longest lag that fits into these rows three times decides.
    longest = numpy.sum(part.sum(dtype=np.int32) >= 3 * _LAGS) - 1
    return (longest >= 0) & (numpy.abs(drifts[longest]) > _SLOPE)


def _over(fall: Array, error: Array) -> Array:
    numpy = numpy_of(fall)
    ratio = fall / numpy.where(error > 0, error, 1)
    return numpy.where(error > 0, ratio, numpy.where(fall > 0, np.inf, 0))
