"""The fall of a curve to its lowest average, and how clearly it stands out from the noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from optax_clr._arrays import Array, numpy_of
from optax_clr._noise import MEDIAN, deviation, mean_where, median_size, together
from optax_clr._valley import MIN_ROWS, Rows, Scale, average_of, first_rows, mean

# Required depth of the lowest average below the first losses, in standard errors of the difference:
# if rows are independent, and if they wander. Of 500 curves of pure noise of each kind, with 300
# rows, none is read if the noise is normal, exponential or lognormal, and at most 2% are if it is
# AR(1) with a correlation of .5 to .95; with 1,000 rows at most 1 in 150. Of 63 development tests
# of 300 rows none is refused.
_MIN_SIGNIFICANCE = 4.0
_MIN_WANDER_SIGNIFICANCE = 9.5
# Divided by the number of rows, and added to the first of these: few rows are a poor estimate of
# their own noise, and of curves of noise with 6 to 20 rows one in ten would be read.
_FOR_FEW_ROWS = 56.0
# Values of Significance.far_over_near. Up to the first, rows count as independent; from the second
# on, they wander; in between, the weighted geometric mean of the two significances counts.
_INDEPENDENT, _WALK = 1.1, 1.5
# The level part of a curve is a slope if, among pairs of rows far apart, the shares that rise and
# that fall differ by more than this.
_SLOPE = 0.9
# No model learns at rates whose sum is below this share of that up to the lower end of the valley,
# where half of the fall is made: log10 of it.
_EARLY = math.log10(1 / 1000)
_LAGS = 3 ** np.arange(7, dtype=np.int32)  # 1 to 729


class Fall(NamedTuple):
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
    progress: Array  # f32[n] log10 of the sum of rates up to each, over that up to the lower end


class Significance(NamedTuple):
    """How far a curve fell, in standard errors of the difference of the two averages compared."""

    independent: Array  # if neighbouring rows are independent
    wandering: Array  # if they are as correlated as where the curve is level
    far_over_near: Array  # median difference between rows far apart, over that of neighbours


class Clarity(NamedTuple):
    """The significance of the fall over the required one."""

    independent: Array  # if rows are independent
    wandering: Array  # if rows are as correlated as they are where the curve is level
    of_many: Array  # if rows are independent, by what is required of many rows


def fall_to(rows: Rows, scales: Scale, lowest: Array, progress: Array) -> Fall:
    """Return the fall to the lowest average, measured on the losses themselves, without asinh.

    It begins at the average of the first rows, and of all others at which no model learns: the more
    of them, the less a fall must stand out from the noise of a row.
    """
    numpy = numpy_of(rows)
    heights = numpy.minimum(rows.curves, scales.ceiling[:, None]) - scales.lowest[:, None]
    has_begun = numpy.isfinite(heights).sum(-1, keepdims=True) >= MIN_ROWS
    losses = mean(numpy.where(has_begun, heights / scales.typical[:, None], np.nan))
    is_first = first_rows(rows.valid) | (rows.valid & (progress < _EARLY))
    num_first = is_first.sum(dtype=np.int32)
    first = mean_where(losses, is_first)
    average = average_of(rows.weights, losses, rows.valid)
    whole = first - average[lowest]
    share = numpy.where(rows.valid, rows.weights[lowest], 0)
    share = share / numpy.maximum(share.sum(), 1e-30)
    relative_error = numpy.sqrt(numpy.sum(share**2) + 1 / num_first.astype(share.dtype))
    losses, position, share, progress = (
        together(column, rows.valid) for column in (losses, rows.position, share, progress)
    )
    distance = numpy.abs(position - rows.grid[lowest])
    row = numpy.argmin(numpy.where(numpy.isnan(distance), np.inf, distance))
    num_before = numpy.maximum(num_first, row.astype(np.int32))
    height = (numpy.interp(position, rows.grid, average) - average[lowest]) / whole
    is_level, begins_level = _level_part(height, num_before)
    return Fall(
        losses,
        position,
        height=whole,
        relative_error=relative_error,
        noise_at_end=deviation(losses, share),
        num_before=num_before,
        is_level=is_level,
        begins_level=begins_level,
        progress=progress,
    )


def _level_part(height: Array, num_before: Array) -> tuple[Array, Array]:
    """Return the rows that tell how far the loss strays by chance, and whether it begins with them.

    ``height`` is that of the average at each row, 1 at the first rows and 0 where it is lowest.
    These are the rows up to where a quarter of the fall is made, in the order of the sweep, which
    may be downward. If these are too few, since the sweep begins within the fall, they are those in
    the last quarter of it; and if these are too few, all before the lowest average.
    """
    numpy = numpy_of(height)
    row = np.arange(height.shape[0], dtype=np.int32)
    enough = numpy.maximum(12, numpy.isfinite(height).sum(dtype=np.int32) // 10)
    last_high = numpy.max(row, initial=-1, where=(height > 3 / 4) & (row < num_before))
    is_low = height < 1 / 4
    is_long = is_low.sum(dtype=np.int32) >= enough
    otherwise = numpy.where(is_long, is_low, row < num_before)
    begins_level = last_high + 1 >= enough
    return numpy.where(begins_level, row <= last_high, otherwise), begins_level


def clarity_of(rows: Rows, fall: Fall) -> Clarity:
    """Return how clear the fall is."""
    numpy = numpy_of(rows)
    significance = significance_of(fall)
    num_valid = numpy.maximum(rows.valid.sum(dtype=np.float32), 1)
    least = _MIN_SIGNIFICANCE + _FOR_FEW_ROWS / num_valid
    is_walk = numpy.clip((significance.far_over_near - _INDEPENDENT) / (_WALK - _INDEPENDENT), 0, 1)
    of_many = significance.independent / _MIN_SIGNIFICANCE
    of_walk = significance.wandering / _MIN_WANDER_SIGNIFICANCE
    return Clarity(
        significance.independent / least, of_many ** (1 - is_walk) * of_walk**is_walk, of_many
    )


def significance_of(fall: Fall) -> Significance:
    """Return how significant the fall is."""
    rows, num_level = fall.losses, fall.is_level.sum(dtype=np.int32)
    numpy = numpy_of(rows)
    noise = deviation_of_first(fall.num_before, fall.losses)
    distances = median_size(_moves(numpy.where(fall.is_level, rows, np.nan)))
    near, is_slope = distances[0], _is_slope(fall)
    # Independent rows differ equally at every lag; those of a random walk differ more at longer
    # lags. A lag that does not fit into the level part twice says nothing.
    far = numpy.max(distances, initial=near, where=num_level >= 2 * _LAGS)
    # Distant rows of an AR(1) process differ r times as much as neighbours if its correlation is
    # 1 - 1/r^2; the variance of an average is then 2 r^2 - 1 times that of independent rows.
    ratio = numpy.where(near > 0, far / numpy.where(near > 0, near, 1), 1)
    correlated = numpy.sqrt(2 * numpy.square(ratio) - 1)
    wander = far / (MEDIAN * math.sqrt(2)) * numpy.minimum(correlated * fall.relative_error, 1)
    independent = _over(fall.height, noise * fall.relative_error)
    return Significance(
        independent=independent,
        wandering=numpy.where(is_slope, independent, _over(fall.height, wander)),
        far_over_near=numpy.where(is_slope, 1, ratio),
    )


def _moves(rows: Array) -> Array:
    """Return how far the loss moves from each row to that each lag later, ``f32[lags, n]``."""
    numpy = numpy_of(rows)
    later = np.arange(rows.shape[0], dtype=np.int32) + _LAGS[:, None]
    return numpy.pad(rows, (0, _LAGS[-1]), constant_values=np.nan)[later] - rows[None]


def _is_slope(fall: Fall) -> Array:
    """Return whether the rows before the fall, or within it if there are few, move one way."""
    numpy = numpy_of(fall.losses)
    row = np.arange(fall.losses.shape[0], dtype=np.int32)
    part = numpy.where(fall.begins_level, fall.is_level, row < fall.num_before)
    moves = _moves(numpy.where(part, fall.losses, np.nan))
    trends = numpy.nan_to_num(mean_where(numpy.sign(moves), ~numpy.isnan(moves)))
    # The longest lag that fits into these rows three times decides.
    longest = numpy.sum(part.sum(dtype=np.int32) >= 3 * _LAGS) - 1
    return (longest >= 0) & (numpy.abs(trends[longest]) > _SLOPE)


def _over(height: Array, error: Array) -> Array:
    numpy = numpy_of(height)
    ratio = height / numpy.where(error > 0, error, 1)
    return numpy.where(error > 0, ratio, numpy.where(height > 0, np.inf, 0))


def deviation_of_first(number: Array, rows: Array) -> Array:
    """Return the standard deviation of the noise in the first so many rows."""
    row = np.arange(rows.shape[0], dtype=np.int32)
    return deviation(rows, (row < number).astype(rows.dtype))
