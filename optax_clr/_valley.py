"""The valley of a curve: its losses averaged over rates, and where they are low."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from optax_clr._arrays import Array, each, numpy_of
from optax_clr._noise import deviation, mean_where, together, typical_deviation, without_spikes

# Rows are averaged with a Gaussian of this standard deviation, in decades: a narrower one reads
# noise, a wider one blurs the valley. From 0.2 to 0.4 it makes no difference on real tasks.
_WIDTH = 0.3
# Number of grid points: a spacing of 0.03 decades over eight decades, with bounded memory.
GRID_SIZE = 256
# Minimum total weight at a grid point; below it no row lies within three decades. Products of
# smaller weights underflow.
_LEAST_WEIGHT = 1e-20
# Fewest rows that can show a loss falling and rising.
MIN_ROWS = 6
# Share of its depth that a loss may fall after its lowest point, or rise before it. Of 45 tasks,
# only three fall again by more, and only one, with raw features, rises by more on its way down.
_FALLS_AGAIN = 0.3
# Lower bound of the noise, as a share of the fall, for curves with hardly any noise.
_LEAST_NOISE = 0.01
# One in so many recorded rows counts as before training. Padding does not count, so that the same
# rows read the same in an array of any length: a twentieth of the array was as accurate, but there
# the length alone could decide whether the rows were read or refused.
_PART_BEFORE = 15
# Number of last rows that tell whether the loss had risen when a test ended.
_NUM_LAST = 3


class Rows(NamedTuple):
    """The curves, and the Gaussian weights by which their rows are averaged on a grid of rates."""

    position: Array  # f32[n] log10 of the rate of each row; NaN where there is none
    valid: Array  # bool[n] rows that at least one curve has
    grid: Array  # f32[g] where the averages are computed, log10 of the rate
    weights: Array  # f32[g, n]
    curves: Array  # f32[c, n] losses less their constants, NaN for lone spikes
    mixed: Array  # bool[] whether the curves are over different rates


def rows_of(learning_rates: Array, losses: Array) -> Rows:
    """Return the rows of curves ``[..., n]`` over one sweep, whose constants are subtracted."""
    numpy = numpy_of(losses)
    num_rows = losses.shape[-1]
    # All curves share one sweep; the rates of a curve that ended early are NaN from there on.
    all_rates = learning_rates.reshape(-1, num_rows).astype(np.float32)
    rates = highest(all_rates)
    rises = rates[0] < rates[1] if num_rows > 1 else False
    curves = losses.reshape(-1, num_rows).astype(np.float32)
    curves = each(functools.partial(without_spikes, rises=rises))(curves)
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
    """Return each curve less one of its first losses, to save float32's digits, and that loss.

    It is the middle one of three, since any single one may be far from all others.
    """
    numpy = numpy_of(curves)
    known = numpy.isfinite(curves)
    place = numpy.cumsum(known, axis=-1)
    first, second, third = (
        numpy.sum(curves, axis=-1, keepdims=True, where=known & (place == count))
        for count in (1, 2, 3)
    )
    low, high = numpy.minimum(first, second), numpy.maximum(first, second)
    constants = numpy.maximum(low, numpy.minimum(high, third))
    return curves - constants, constants


def highest(columns: Array) -> Array:
    """Return the highest entry of each row over the curves that have it; NaN if none has it."""
    numpy = numpy_of(columns)
    known = ~numpy.isnan(columns)
    found = numpy.max(columns, axis=0, initial=-np.inf, where=known)
    return numpy.where(known.any(0), found, np.nan)


def mean(columns: Array) -> Array:
    """Return the mean of each row over the curves that have it."""
    numpy = numpy_of(columns)
    known = numpy.isfinite(columns)
    count = known.sum(0, dtype=columns.dtype)
    total = numpy.where(known, columns, 0).sum(0)
    return total / numpy.maximum(count, 1)


class Within(NamedTuple):
    """Where the valley is, as indices ``i32[]`` of the grid."""

    lower: Array
    lowest: Array
    upper: Array
    is_destroyed: Array  # bool[] whether the model is likely to be destroyed beyond the valley
    falls_again: Array  # bool[] whether the loss falls again after it has risen


def locate_valley(average: Array, grid: Array) -> Within:
    """Return the lowest point of the average, and the stretch around it below half its depth.

    If the loss rises by a quarter of its fall and stays there for two decades, but never rises by
    three quarters, the valley ends where it rose by that quarter: training began at a loss far
    worse than that of a guess, and a destroyed model goes back to guessing.
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
    # Ignore changes above the initial loss: the model is destroyed there.
    seen = numpy.where(numpy.isfinite(average), numpy.minimum(average, 0), np.nan)
    rise = numpy.where(index[:, None] < index[None], seen[None] - seen[:, None], 0)
    rise = numpy.nan_to_num(rise)
    rises = numpy.max(rise, initial=0, where=~above[None])
    falls = numpy.max(-rise, initial=0, where=~below[:, None])
    falls_again = numpy.maximum(rises, falls) > -_FALLS_AGAIN * average[lowest]
    return Within(lower, lowest, numpy.where(stays, quarter, upper), stays, falls_again)


class Scale(NamedTuple):
    """The scale of a curve: heights above its lowest average, in units of the noise there.

    Heights are taken through ``asinh``: linear within the noise, and logarithmic above. So a loss
    that begins hundreds of times higher than it ends, as with raw features or targets, has its
    valley around its lowest values, not wherever it is below the highest. The scale is invariant to
    a factor and an offset of the loss, so curves of different seeds can be averaged.
    """

    lowest: Array  # f32[] the lowest average
    unit: Array  # f32[] noise near the lowest average, at least a hundredth of the fall
    whole: Array  # f32[] height of the first losses, through asinh
    ceiling: Array  # f32[] twice as far above the first losses as the lowest loss is below them
    typical: Array  # f32[] noise anywhere in the curve, at least a hundredth of the fall

    def depth(self, curve: Array, ran_out: Array | bool, valid: Array) -> Array:
        """Return 0 where the loss is as it began, -1 where its average is lowest, at most 1.

        After the last row of a curve it is 1, as for an explosion, if other curves go on, unless
        this one ran out of batches or had hardly begun; in a gap it is NaN.
        """
        numpy = numpy_of(curve)
        finite = valid & numpy.isfinite(curve)
        has_ended = after_last(finite) & (finite.sum() >= MIN_ROWS) & numpy.logical_not(ran_out)
        height = numpy.where(finite, numpy.minimum(curve, self.ceiling), 0) - self.lowest
        height = numpy.arcsinh(height / self.unit)
        depth = numpy.clip(height / numpy.where(self.whole > 0, self.whole, 1) - 1, -2, 1)
        depth = numpy.where(self.whole > 0, depth, 0)
        return numpy.where(finite, depth, numpy.where(has_ended, 1, np.nan))

    def has_fallen(self) -> Array:
        """Return whether the lowest average is below the first losses by more than the noise."""
        return self.whole > math.asinh(1)

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
    """Return the weighted averages of the valid rows; inf at grid points far from all of them."""
    numpy = numpy_of(weights)
    total = weights @ valid.astype(weights.dtype)
    near = total > _LEAST_WEIGHT
    average = (weights @ numpy.where(valid, rows, 0)) / numpy.where(near, total, 1)
    return numpy.where(near, average, np.inf)


def first_rows(known: Array) -> Array:
    """Return which of the known rows tell the loss before training."""
    numpy = numpy_of(known)
    num_first = numpy.maximum(3, known.sum() // _PART_BEFORE)
    return known & (numpy.cumsum(known) <= num_first)


def after_last(known: Array) -> Array:
    """Return which rows come after the last known one."""
    row = np.arange(known.shape[0], dtype=np.int32)
    return row > numpy_of(known).max(row, initial=-1, where=known)


def last_rows(valid: Array) -> Array:
    """Return which rows tell whether the loss had risen when the test ended."""
    return valid & (numpy_of(valid).cumsum(valid) > valid.sum() - _NUM_LAST)


def _gaussian(deviations: Array) -> Array:
    numpy = numpy_of(deviations)
    # Clipped, since subnormal numbers take a CPU ten times as long.
    deviations = numpy.clip(deviations, -12, 12)
    return numpy.exp(-0.5 * deviations**2)
