"""The valley of a curve: its losses averaged over rates, and where they are low."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from optax_clr._arrays import Array, each, numpy_of
from optax_clr._noise import deviation, mean_where, together, typical_deviation, without_spikes

# Rows are averaged with a Gaussian of this standard deviation, in decades: a narrower one reads
# noise, a wider one blurs the valley. From 0.2 to 0.4 it makes no difference on real tasks.
_WIDTH = 0.3
# Where the average is computed: enough for 0.03 decades over eight, and a bound on the memory.
GRID_SIZE = 256
# Of the rows at a point of it: none is within three decades. Products of smaller ones underflow.
_LEAST_WEIGHT = 1e-20
# So many rows tell a loss that falls and rises.
MIN_ROWS = 6
# By so much of its depth no valley of 45 tasks but three is lower again, once it has been left, and
# no loss but that of one, of raw features, rises on its way down.
_FALLS_AGAIN = 0.3
# Where there is no noise, the loss is told apart to this part of its fall.
_LEAST_NOISE = 0.01
# Of the rows that a test has, the part before training. Whatever room it had for more, it is read
# alike: a twentieth of the room was as good, but read the same rows or refused them by that.
_PART_BEFORE = 15
# So many rows tell whether the loss had risen when a test ended.
_NUM_LAST = 3


class Rows(NamedTuple):
    """The curves, and the Gaussian weights by which their rows are averaged on a grid of rates."""

    position: Array  # f32[n] log10 of the rate of each row; NaN where there is none
    valid: Array  # bool[n] rows that some curve has
    grid: Array  # f32[g] where the averages are computed, log10 of the rate
    weights: Array  # f32[g, n]
    curves: Array  # f32[c, n] without lone spikes, as they differ from their constants
    mixed: Array  # bool[] whether the curves are over different rates


def rows_of(learning_rates: Array, losses: Array) -> Rows:
    """Return the rows of curves ``[..., n]``, without their constants, over one sweep."""
    numpy = numpy_of(losses)
    num_rows = losses.shape[-1]
    curves = each(without_spikes)(losses.reshape(-1, num_rows).astype(np.float32))
    # The same sweep in every curve, which may end early in some and then is NaN there.
    all_rates = learning_rates.reshape(-1, num_rows).astype(np.float32)
    rates = highest(all_rates)
    position = numpy.log10(numpy.where(rates > 0, rates, np.nan))
    valid = numpy.isfinite(position) & numpy.isfinite(curves).any(0)
    start = numpy.min(position, initial=np.inf, where=valid)
    end = numpy.max(position, initial=-np.inf, where=valid)
    grid = numpy.linspace(start, end, GRID_SIZE, dtype=np.float32)
    place = numpy.where(valid, position, start)
    weights = _gaussian((place[None] - grid[:, None]) / _WIDTH)
    mixed = numpy.any((all_rates != rates[None]) & ~numpy.isnan(all_rates))
    return Rows(position, valid, grid, weights, curves, mixed)


def centred(curves: Any) -> tuple[Any, Any]:
    """Return the losses less a constant that means nothing, which may hold most of their digits."""
    numpy = numpy_of(curves)
    some_row = numpy.argmax(numpy.isfinite(curves), axis=-1, keepdims=True)
    constants = numpy.nan_to_num(numpy.take_along_axis(curves, some_row, -1))
    return curves - constants, constants


def highest(columns: Array) -> Array:
    """Return the highest entry over curves, of those that have the row; NaN where none has."""
    numpy = numpy_of(columns)
    known = ~numpy.isnan(columns)
    found = numpy.max(columns, axis=0, initial=-np.inf, where=known)
    return numpy.where(known.any(0), found, np.nan)


def mean(columns: Array) -> Array:
    """Return the mean over curves, of those that have the row."""
    numpy = numpy_of(columns)
    known = numpy.isfinite(columns)
    count = known.sum(0, dtype=columns.dtype)
    total = numpy.where(known, columns, 0).sum(0)
    return total / numpy.maximum(count, 1)


class Within(NamedTuple):
    """Where on the grid the valley is, indices ``i32[]``."""

    lower: Array
    lowest: Array
    upper: Array
    is_destroyed: Array  # bool[] whether it is likely that the model is, beyond it
    falls_again: Array  # bool[] whether the loss falls again after it has risen


def locate_valley(average: Array, grid: Array) -> Within:
    """Return the index of the lowest entry, between those of what is below half, in one piece.

    Where the loss does not rise by three quarters of its fall but by one, and stays there for two
    decades, the valley ends with that quarter: training began at a loss far worse than that of a
    guess, to which a model goes back that is destroyed.
    """
    numpy = numpy_of(average)
    index = np.arange(GRID_SIZE, dtype=np.int32)
    lowest = numpy.argmin(average).astype(np.int32)
    is_high = average > average[lowest] / 2
    below, above = index < lowest, index > lowest
    lower = numpy.max(index, initial=-1, where=is_high & below) + 1
    upper = numpy.min(index, initial=GRID_SIZE, where=is_high & above) - 1
    quarter = numpy.max(index, initial=0, where=average <= 0.75 * average[lowest])
    highest_above = numpy.max(average, initial=-np.inf, where=above)
    stays = (highest_above < 0.25 * average[lowest]) & (grid[-1] - grid[quarter] > 2)
    stays = stays & (quarter < upper)
    # What a model does that has been destroyed, above where it began, does not matter.
    seen = numpy.where(numpy.isfinite(average), numpy.minimum(average, 0), np.nan)
    rise = numpy.where(index[:, None] < index[None], seen[None] - seen[:, None], 0)
    rise = numpy.nan_to_num(rise)
    rises = numpy.max(rise, initial=0, where=~above[None])
    falls = numpy.max(-rise, initial=0, where=~below[:, None])
    falls_again = numpy.maximum(rises, falls) > -_FALLS_AGAIN * average[lowest]
    return Within(lower, lowest, numpy.where(stays, quarter, upper), stays, falls_again)


class Scale(NamedTuple):
    """How high a loss is above the lowest average of its curve, in units of the noise there.

    By ``asinh``: linearly within the noise, and logarithmically above. So a loss that begins
    hundreds of times higher than it ends, as with raw features or targets, has its valley at the
    lowest losses, and not where it has left the highest. Neither a factor nor a constant in the
    loss matters, and curves of different seeds can be averaged.
    """

    lowest: Array  # f32[] the lowest average
    unit: Array  # f32[] noise
    whole: Array  # f32[] height of the first losses
    ceiling: Array  # f32[] as far above the first losses as the lowest is below, twice
    typical: Array  # f32[] noise anywhere, or a hundredth of the fall

    def depth(self, curve: Array, ran_out: Array | bool, valid: Array) -> Array:
        """Return 0 where the loss is as it began, -1 where its average is lowest, at most 1.

        Where the curve has ended and others go on, it is an explosion, unless it ran out of
        batches, or has hardly begun; where it has a gap, NaN.
        """
        numpy = numpy_of(curve)
        finite = valid & numpy.isfinite(curve)
        has_ended = after_last(finite) & (finite.sum() >= MIN_ROWS) & numpy.logical_not(ran_out)
        height = numpy.where(finite, numpy.minimum(curve, self.ceiling), 0) - self.lowest
        height = numpy.arcsinh(height / self.unit)
        depth = numpy.clip(height / numpy.where(self.whole > 0, self.whole, 1) - 1, -2, 1)
        depth = numpy.where(self.whole > 0, depth, 0)
        return numpy.where(finite, depth, numpy.where(has_ended, 1, np.nan))

    def loss(self, depth: Array) -> Array:
        """Return the loss that has this depth."""
        height = numpy_of(depth).sinh((depth + 1) * self.whole)
        return self.lowest + self.unit * height


def scale_of(curve: Array, valid: Array, weights: Array) -> Scale:
    """Return the scale of one curve ``[n]``."""
    numpy = numpy_of(curve)
    finite = valid & numpy.isfinite(curve)
    first = mean_where(curve, first_rows(finite))
    lowest_row = numpy.min(curve, initial=np.inf, where=finite)
    ceiling = first + 2 * numpy.maximum(first - lowest_row, 0)
    curve = numpy.where(finite, numpy.minimum(curve, ceiling), 0)
    average = average_of(weights, curve, finite)
    lowest = numpy.argmin(average)
    fall = numpy.maximum(first - average[lowest], 0)
    rows = together(curve, finite)
    at_lowest = deviation(rows, together(weights[lowest], finite))
    anywhere = typical_deviation(rows)
    unit, typical = (
        numpy.where(noise > 0, noise, 1)
        for noise in numpy.maximum(numpy.stack([at_lowest, anywhere]), _LEAST_NOISE * fall)
    )
    whole = numpy.arcsinh((first - average[lowest]) / unit)
    return Scale(average[lowest], unit, whole, ceiling, typical)


def average_of(weights: Array, rows: Array, valid: Array) -> Array:
    """Return the weighted averages of the valid rows; inf where all of them are far away."""
    numpy = numpy_of(weights)
    total = weights @ valid.astype(weights.dtype)
    near = total > _LEAST_WEIGHT
    average = (weights @ numpy.where(valid, rows, 0)) / numpy.where(near, total, 1)
    return numpy.where(near, average, np.inf)


def first_rows(known: Array) -> Array:
    """Return which of the rows that are known tell the loss before training."""
    numpy = numpy_of(known)
    num_first = numpy.maximum(3, known.sum() // _PART_BEFORE)
    return known & (numpy.cumsum(known) <= num_first)


def after_last(known: Array) -> Array:
    """Return which rows come after the last one that is known."""
    row = np.arange(known.shape[0], dtype=np.int32)
    return row > numpy_of(known).max(row, initial=-1, where=known)


def last_rows(valid: Array) -> Array:
    """Return which rows tell whether the loss had risen when the test ended."""
    return valid & (numpy_of(valid).cumsum(valid) > valid.sum() - _NUM_LAST)


def _gaussian(deviations: Array) -> Array:
    numpy = numpy_of(deviations)
    # What is below the normal numbers takes a processor ten times as long.
    deviations = numpy.clip(deviations, -12, 12)
    return numpy.exp(-0.5 * deviations**2)
