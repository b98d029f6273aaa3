"""Signs that a loss follows the order of the batches, whatever the rate: it jumps, or drifts."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from optax_clr._arrays import Array, numpy_of
from optax_clr._fall import Fall, deviation_of_first

# A model that learns does not make this share of its fall at once, beyond two standard errors. The
# averages compared span at most this many decades each: over more, a drop may just be a steep fall.
# Of 451 development tests read without a doubt none jumps; of 343 of networks whose last layer is,
# or is not, initialised to zero, 3 do. If one of 5 to 10 classes follows another and nothing is
# learned, 1 to 5% of tests are read without a doubt, instead of 20 to 45%.
_JUMP, _JUMP_WIDTH = 0.45, 0.24
# Share of the rows on either side over which a jump lasts. Two outliers next to each other do not.
_JUMP_LENGTH = 1 / 50
# To measure a drop, as many rows are averaged as bring its standard error down to an eighth of the
# whole fall, and at least three.
_ERROR_OF_DROP, _LEAST_BESIDE = 1 / 8, 3.0
# A loss drifts if the averages of four parts of the first rows, up to where the sum of the rates is
# a thirtieth of that up to the lower end of the valley, differ by more than this share of the fall,
# and by more than so many standard errors. Of 692 development tests without a doubt none differs by
# more than .27. Of 210 tests on data in an order, by target, feature or time, 3 are read wrong
# without a doubt, and would be 22 without this one (docs/study/ordered.py).
_HARDLY_BEGUN = math.log10(1 / 30)
_PARTS, _LEAST_ROWS = 4, 12
_DRIFT, _ERRORS_OF_DRIFT = 0.4, 5.0


class Drop(NamedTuple):
    """The drop from the average of some neighbouring rows to that of as many rows after them."""

    height: Array  # f32[]
    error: Array  # f32[] the standard error of the difference, if rows are independent


def jumps(fall: Fall) -> Array:
    """Return whether a large part of the fall is clearly made at once, and for longer than a row.

    A gradual fall is smaller between averages of few rows, a short dip between averages of more:
    only a jump is large between both.
    """
    drops = [largest_drop(fall, share) for share in (0.0, _JUMP_LENGTH)]
    is_large = [drop.height - 2 * drop.error > _JUMP * fall.height for drop in drops]
    return is_large[0] & is_large[1]


def largest_drop(fall: Fall, least_share: float) -> Drop:
    """Return the largest sudden drop before the lowest average.

    It is measured between averages of as few rows as their noise allows, of at least a share of all
    rows, and of no more than lie close together. It is 0 if no rows do.
    """
    numpy = numpy_of(fall.losses)
    rows, position = fall.losses, fall.position
    noise = numpy.maximum(deviation_of_first(fall.num_before, rows), fall.noise_at_end)
    num_known = numpy.isfinite(position).sum(dtype=np.int32)
    num_beside = _num_beside(fall, noise, num_known.astype(rows.dtype), least_share)
    shift = num_beside.astype(np.int32)
    sums = _sums_before(rows)
    row = np.arange(rows.shape[0], dtype=np.int32)
    is_within = (row >= shift) & (row + shift <= num_known) & (row <= fall.num_before)
    left, right = numpy.maximum(row - shift, 0), numpy.minimum(row + shift, num_known)
    drops = 2 * sums[row] - sums[left] - sums[right]
    is_near = position[right - 1] - position[left] <= 2 * _JUMP_WIDTH
    height = numpy.max(drops, initial=0.0, where=is_within & is_near) / num_beside
    return Drop(height, noise * numpy.sqrt(2 / num_beside))


def _num_beside(fall: Fall, noise: Array, num_rows: Array, least_share: float) -> Array:
    """Return how many rows are averaged on either side of a drop, as a float."""
    numpy = numpy_of(fall.losses)
    needed = 2 * numpy.square(noise / (_ERROR_OF_DROP * fall.height))
    needed = numpy.nan_to_num(numpy.ceil(needed))
    is_known = numpy.isfinite(fall.position)
    start = numpy.min(fall.position, initial=np.inf, where=is_known)
    end = numpy.max(fall.position, initial=-np.inf, where=is_known)
    near = numpy.round(num_rows / (end - start) * _JUMP_WIDTH)
    most = numpy.minimum(near, float(fall.losses.shape[0]))
    least = numpy.maximum(needed, numpy.ceil(num_rows * least_share))
    return numpy.maximum(numpy.minimum(least, most), _LEAST_BESIDE)


def drifts(fall: Fall) -> Array:
    """Return whether the loss moves by much of its fall where a model has hardly begun to learn."""
    rows = fall.losses
    numpy = numpy_of(rows)
    num_first = numpy.sum(fall.progress < _HARDLY_BEGUN, dtype=np.int32)
    size = num_first // _PARTS
    num_rows = numpy.maximum(size, 1).astype(rows.dtype)
    ends = np.arange(_PARTS + 1, dtype=np.int32) * size
    averages = numpy.diff(_sums_before(rows)[ends]) / num_rows
    move = averages.max() - averages.min()
    error = deviation_of_first(num_first, rows) * numpy.sqrt(2 / num_rows)
    is_large = (move > _DRIFT * fall.height) & (move > _ERRORS_OF_DRIFT * error)
    return is_large & (num_first >= _LEAST_ROWS)


def _sums_before(rows: Array) -> Array:
    """Return the sum of the rows before each one, and of all, ``f32[n + 1]``."""
    numpy = numpy_of(rows)
    return numpy.concatenate([numpy.zeros(1, rows.dtype), numpy.cumsum(numpy.nan_to_num(rows))])
