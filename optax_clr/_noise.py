"""What of a curve is noise: lone bad batches, and how far its average strays by itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import INT32_MAX

# A loss is a lone spike if it is above two losses on either side by so many deviations of noise.
_SPIKE = 10.0
# The median of |x| of the normal distribution, whose deviation is one.
_MEDIAN = 0.6745
# The deviation of a second difference of rows whose own deviation is one.
_BEND = math.sqrt(6)
# On a slope this share more of the rows that are far apart have moved one way than the other.
_SLOPE = 0.6
# Rows are averaged until a drop is known to an eighth of the whole fall; three at least.
_ERROR_OF_DROP, _LEAST_BESIDE = 1 / 8, 3.0
_LARGEST = np.int32(INT32_MAX)
_LAGS = 3 ** np.arange(7, dtype=np.int32)  # 1 to 729


class Descent(NamedTuple):
    """A curve down to where its average is lowest; the rows that there are, as ``together``."""

    losses: jax.Array  # f32[n]
    position: jax.Array  # f32[n] log10 of their rates
    height: jax.Array  # f32[] from the average of the first rows to the lowest
    # Deviation of the difference of these two averages, if that of a row is 1 and rows are
    # independent.
    relative_error: jax.Array  # f32[]
    noise_at_end: jax.Array  # f32[] deviation of a row near the lowest average
    num_before: jax.Array  # i32[] rows before the lowest average, whose noise is that of the fall
    num_level: jax.Array  # i32[] rows before the fall began


class Fall(NamedTuple):
    """How far a curve fell, in standard errors of the two averages that are compared."""

    independent: jax.Array  # if the losses of neighbouring rows have nothing to do with each other
    wandering: jax.Array  # if they are as alike as the curve itself has them before its fall
    far_over_near: jax.Array  # distance of rows with others between, over that of neighbours


class Drop(NamedTuple):
    """From the average of some neighbouring rows to that of as many that follow them."""

    height: jax.Array  # f32[]
    error: jax.Array  # f32[] the standard error of the difference, if rows are independent


def without_spikes(curve: jax.Array) -> jax.Array:
    """Return the losses ``[n]`` with NaN for every lone one far above or below its neighbours.

    One bad batch among good ones says nothing of the rate; two in a row are left as they are.
    """
    if curve.shape[0] < 5:
        return curve
    known = jnp.isfinite(curve)
    rows = together(curve, known)
    around = jnp.stack([rows[:-4], rows[1:-3], rows[3:-1], rows[4:]])
    distance = jnp.maximum(rows[2:-2] - around.max(0), around.min(0) - rows[2:-2])
    is_spike = jnp.zeros(curve.shape, bool)
    is_spike = is_spike.at[2:-2].set(distance > _SPIKE * typical_deviation(rows))
    return jnp.where(known & is_spike[jnp.cumsum(known) - 1], jnp.nan, curve)


def together(column: jax.Array, known: jax.Array) -> jax.Array:
    """Return the known entries of ``[n]`` one after the other, and NaN after them."""
    places = jnp.where(known, jnp.cumsum(known) - 1, column.shape[0])
    return jnp.full_like(column, jnp.nan).at[places].set(column, mode="drop")


def typical_deviation(rows: jax.Array) -> jax.Array:
    """Return the deviation of a loss from the line through its neighbours, by the median.

    Rows are ``together``, here and below: next to each other are those that are known.
    """
    if rows.shape[0] < 3:
        return jnp.zeros((), rows.dtype)
    return median_size(rows[2:] - 2 * rows[1:-1] + rows[:-2]) / (_MEDIAN * _BEND)


def median_size(values: jax.Array) -> jax.Array:
    """Return the median of the finite entries without their signs, on the last axis; else 0.

    By the bits of float32, whose order is that of the numbers: of seven times a thousand entries
    that takes a CPU an eighth of the time of sorting, which was half of that of a reading.
    """
    known = jnp.isfinite(values)
    count = known.sum(-1, dtype=jnp.int32)
    bits = jax.lax.bitcast_convert_type(jnp.abs(values).astype(jnp.float32), jnp.int32)
    bits = jnp.where(known, bits, _LARGEST)
    num_lower = (count - 1) // 2

    def with_bit(place: jax.Array, found: jax.Array) -> jax.Array:
        larger = found | (jnp.int32(1) << (30 - jnp.int32(place)))  # int without jit
        num_below = jnp.sum(bits < larger[..., None], axis=-1, dtype=jnp.int32)
        return jnp.where(num_below <= num_lower, larger, found)

    lower = jax.lax.fori_loop(0, 31, with_bit, jnp.zeros_like(count))
    is_above = known & (bits > lower[..., None])
    above = jnp.min(bits, axis=-1, initial=_LARGEST, where=is_above)
    upper = jnp.where(2 * is_above.sum(-1, dtype=jnp.int32) >= count, above, lower)
    middle = jax.lax.bitcast_convert_type(jnp.stack([lower, upper]), jnp.float32)
    return jnp.where(count > 0, middle[0] / 2 + middle[1] / 2, 0)


def deviation(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the deviation of rows, weighted, from the line through their neighbours.

    A slope is not noise: the rows of a grid of rates are few, and far apart.
    """
    both = jnp.where((weights[2:] > 0) & (weights[:-2] > 0), weights[1:-1], 0)
    bends = jnp.where(both > 0, rows[2:] - 2 * rows[1:-1] + rows[:-2], 0)
    largest = jnp.max(jnp.abs(bends), initial=0.0)
    unit = jnp.where(largest > 0, largest, 1)  # in which squares are in the range of a float32
    variance = both @ jnp.square(bends / unit) / jnp.maximum(both.sum(), 1e-30)
    return unit * jnp.sqrt(variance) / _BEND


def deviation_before(descent: Descent) -> jax.Array:
    """Return the deviation of a row before the lowest average."""
    row = jnp.arange(descent.losses.shape[0])
    return deviation(descent.losses, (row < descent.num_before).astype(descent.losses.dtype))


def fall_in_errors(descent: Descent) -> Fall:
    """Return how significant a fall is."""
    rows, num_level = descent.losses, descent.num_level
    noise = deviation_before(descent)
    level = jnp.where(jnp.arange(rows.shape[0]) < num_level, rows, jnp.nan)
    distances, drifts = _distances(level)
    near = distances[0]
    # The longest that is not too long decides.
    longest = jnp.sum(num_level >= 3 * _LAGS) - 1
    is_slope = (longest >= 0) & (jnp.abs(drifts[longest]) > _SLOPE)
    # Of independent rows all pairs are equally far apart. Those of a walk are the farther apart the
    # more rows are between them; a level part shorter than twice that says nothing of it.
    far = jnp.max(distances, initial=near, where=num_level >= 2 * _LAGS)
    # Those of an AR(1) process are r times as far apart as neighbours where its correlation is
    # 1 - 1/r^2; the variance of an average is then 2 r^2 - 1 times that of independent rows.
    ratio = jnp.where(near > 0, far / jnp.where(near > 0, near, 1), 1)
    correlated = jnp.sqrt(2 * jnp.square(ratio) - 1)
    wander = far / (_MEDIAN * math.sqrt(2)) * jnp.minimum(correlated * descent.relative_error, 1)
    independent = _over(descent.height, noise * descent.relative_error)
    return Fall(
        independent=independent,
        wandering=jnp.where(is_slope, independent, _over(descent.height, wander)),
        far_over_near=jnp.where(is_slope, 1, ratio),
    )


def largest_drop(descent: Descent, width: float) -> Drop:
    """Return the largest drop before the lowest average, at once.

    Between averages of as few rows as their noise allows, and no more than are in ``width``
    decades: a jump is one between any two rows, and a fall over several is smaller between few. It
    is 0 where no rows are so near to each other.
    """
    rows, position = jnp.nan_to_num(descent.losses), descent.position
    num_known = jnp.isfinite(position).sum()
    noise = jnp.maximum(deviation_before(descent), descent.noise_at_end)
    needed = 2 * jnp.square(noise / (_ERROR_OF_DROP * descent.height))
    start = jnp.min(position, initial=jnp.inf, where=jnp.isfinite(position))
    end = jnp.max(position, initial=-jnp.inf, where=jnp.isfinite(position))
    rows_per_decade = num_known.astype(rows.dtype) / (end - start)
    most = jnp.minimum(jnp.round(rows_per_decade * width), float(rows.shape[0]))
    num_beside = jnp.maximum(jnp.minimum(jnp.nan_to_num(jnp.ceil(needed)), most), _LEAST_BESIDE)
    shift = num_beside.astype(jnp.int32)
    sums = jnp.concatenate([jnp.zeros(1, rows.dtype), jnp.cumsum(rows)])
    row = jnp.arange(rows.shape[0])
    left, right = row - shift, row + shift
    drops = 2 * sums[row] - sums[left] - sums[right]
    is_near = position[jnp.minimum(right, num_known) - 1] - position[left] <= 2 * width
    is_within = (left >= 0) & (right <= num_known) & (row <= descent.num_before)
    height = jnp.max(drops, initial=0.0, where=is_within & is_near) / num_beside
    return Drop(height, noise * jnp.sqrt(2 / num_beside))


def _distances(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return how far apart rows are, by how many others are between them.

    The median distance, ``f32[lags]``, 0 where no rows are so far apart; and how many more have
    risen than fallen, as a share of them.
    """
    later = np.arange(rows.shape[0], dtype=np.int32) + _LAGS[:, None]
    moves = rows.at[later].get(mode="fill", fill_value=jnp.nan) - rows[None]
    return median_size(moves), jnp.nan_to_num(jnp.nanmean(jnp.sign(moves), axis=1))


def _over(fall: jax.Array, error: jax.Array) -> jax.Array:
    return jnp.where(
        error > 0, fall / jnp.where(error > 0, error, 1), jnp.where(fall > 0, jnp.inf, 0)
    )
