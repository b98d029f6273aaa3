"""The valley of a curve: its losses averaged over rates, and where they are low."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._noise import deviation, together, typical_deviation, without_spikes

# Rows are averaged with a Gaussian of this standard deviation, in decades: a narrower one reads
# noise, a wider one blurs the valley. From 0.2 to 0.4 it makes no difference on real tasks.
_WIDTH = 0.3
# Where the average is computed: enough for 0.03 decades over eight, and a bound on the memory.
GRID_SIZE = 256
# Of the rows at a point of it: none is within three decades. Products of smaller ones underflow.
_LEAST_WEIGHT = 1e-20
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

    position: jax.Array  # f32[n] log10 of the rate of each row; NaN where there is none
    valid: jax.Array  # bool[n] rows that some curve has
    grid: jax.Array  # f32[g] where the averages are computed, log10 of the rate
    weights: jax.Array  # f32[g, n]
    curves: jax.Array  # f32[c, n] without lone spikes, as they differ from their constants
    constants: jax.Array  # f32[c]
    mixed: jax.Array  # bool[] whether the curves are over different rates


def rows_of(learning_rates: jax.Array, losses: jax.Array) -> Rows:
    """Return the rows of curves ``[..., n]`` over one sweep."""
    num_rows = losses.shape[-1]
    curves = losses.reshape(-1, num_rows)
    curves, constants = centred(curves)
    curves = jax.vmap(without_spikes)(curves.astype(jnp.float32))
    # The same sweep in every curve, which may end early in some and then is NaN there.
    all_rates = learning_rates.reshape(-1, num_rows).astype(jnp.float32)
    rates = jnp.nanmax(all_rates, axis=0)
    position = jnp.log10(jnp.where(rates > 0, rates, jnp.nan))
    valid = jnp.isfinite(position) & jnp.isfinite(curves).any(0)
    start = jnp.min(position, initial=jnp.inf, where=valid)
    end = jnp.max(position, initial=-jnp.inf, where=valid)
    grid = jnp.linspace(start, end, GRID_SIZE)
    place = jnp.where(valid, position, start)
    weights = _gaussian(place[None] - grid[:, None])
    mixed = jnp.any(all_rates != rates[None], where=~jnp.isnan(all_rates))
    constants = constants[:, 0].astype(jnp.float32)
    return Rows(position, valid, grid, weights, curves, constants, mixed)


def centred(curves: Any) -> tuple[Any, Any]:
    """Return the losses less a constant that means nothing, which may hold most of their digits."""
    numpy = np if isinstance(curves, np.ndarray) else jnp
    some_row = numpy.argmax(numpy.isfinite(curves), axis=-1, keepdims=True)
    constants = numpy.nan_to_num(numpy.take_along_axis(curves, some_row, -1))
    return curves - constants, constants


def mean(columns: jax.Array) -> jax.Array:
    """Return the mean over curves, of those that have the row."""
    known = jnp.isfinite(columns)
    count = known.sum(0, dtype=columns.dtype)
    return jnp.where(known, columns, 0).sum(0) / jnp.maximum(count, 1)


class Within(NamedTuple):
    """Where on the grid the valley is, indices ``i32[]``."""

    lower: jax.Array
    lowest: jax.Array
    upper: jax.Array
    is_destroyed: jax.Array  # bool[] whether it is likely that the model is, beyond it
    falls_again: jax.Array  # bool[] whether the loss falls again after it has risen


def locate_valley(average: jax.Array, grid: jax.Array) -> Within:
    """Return the index of the lowest entry, between those of what is below half, in one piece.

    Where the loss does not rise by three quarters of its fall but by one, and stays there for two
    decades, the valley ends with that quarter: training began at a loss far worse than that of a
    guess, to which a model goes back that is destroyed.
    """
    index = jnp.arange(GRID_SIZE)
    lowest = jnp.argmin(average)
    is_high = average > average[lowest] / 2
    lower = jnp.max(index, initial=-1, where=is_high & (index < lowest)) + 1
    upper = jnp.min(index, initial=GRID_SIZE, where=is_high & (index > lowest)) - 1
    quarter = jnp.max(index, initial=0, where=average <= 0.75 * average[lowest])
    highest = jnp.max(average, initial=-jnp.inf, where=index > lowest)
    stays = (highest < 0.25 * average[lowest]) & (grid[-1] - grid[quarter] > 2)
    stays = stays & (quarter < upper)
    # What a model does that has been destroyed, above where it began, does not matter.
    seen = jnp.where(jnp.isfinite(average), jnp.minimum(average, 0), jnp.nan)
    rise = jnp.where(index[:, None] < index[None], seen[None] - seen[:, None], 0)
    rise = jnp.nan_to_num(rise)
    rises = jnp.max(rise, initial=0, where=index[None] <= lowest)
    falls = jnp.max(-rise, initial=0, where=index[:, None] >= lowest)
    falls_again = jnp.maximum(rises, falls) > -_FALLS_AGAIN * average[lowest]
    return Within(lower, lowest, jnp.where(stays, quarter, upper), stays, falls_again)


class Scale(NamedTuple):
    """How high a loss is above the lowest average of its curve, in units of the noise there.

    By ``asinh``: linearly within the noise, and logarithmically above. So a loss that begins
    hundreds of times higher than it ends, as with raw features or targets, has its valley at the
    lowest losses, and not where it has left the highest. Neither a factor nor a constant in the
    loss matters, and curves of different seeds can be averaged.
    """

    lowest: jax.Array  # f32[] the lowest average
    unit: jax.Array  # f32[] noise
    whole: jax.Array  # f32[] height of the first losses
    ceiling: jax.Array  # f32[] as far above the first losses as the lowest is below, twice
    typical: jax.Array  # f32[] noise anywhere, or a hundredth of the fall

    def depth(self, curve: jax.Array, ran_out: jax.Array | bool, valid: jax.Array) -> jax.Array:
        """Return 0 where the loss is as it began, -1 where its average is lowest, at most 1.

        Where the curve has ended and others go on, it is an explosion, unless it ran out of
        batches; where it has a gap, NaN.
        """
        finite = valid & jnp.isfinite(curve)
        row = jnp.arange(curve.shape[0])
        has_ended = (row > jnp.max(row, initial=-1, where=finite)) & ~jnp.asarray(ran_out)
        height = jnp.where(finite, jnp.minimum(curve, self.ceiling), 0) - self.lowest
        height = jnp.arcsinh(height / self.unit)
        depth = jnp.clip(height / jnp.where(self.whole > 0, self.whole, 1) - 1, -2, 1)
        depth = jnp.where(self.whole > 0, depth, 0)
        return jnp.where(finite, depth, jnp.where(has_ended, 1, jnp.nan))

    def loss(self, depth: jax.Array) -> jax.Array:
        """Return the loss that has this depth."""
        return self.lowest + self.unit * jnp.sinh((depth + 1) * self.whole)


def scale_of(curve: jax.Array, valid: jax.Array, weights: jax.Array) -> Scale:
    """Return the scale of one curve ``[n]``."""
    finite = valid & jnp.isfinite(curve)
    first = jnp.mean(jnp.where(finite, curve, 0), where=first_rows(finite))
    lowest_row = jnp.min(curve, initial=jnp.inf, where=finite)
    ceiling = first + 2 * jnp.maximum(first - lowest_row, 0)
    curve = jnp.where(finite, jnp.minimum(curve, ceiling), 0)
    average = average_of(weights, curve, finite)
    lowest = jnp.argmin(average)
    fall = jnp.maximum(first - average[lowest], 0)
    rows = together(curve, finite)
    at_lowest = deviation(rows, together(weights[lowest], finite))
    anywhere = typical_deviation(rows)
    unit, typical = (
        jnp.where(noise > 0, noise, 1)
        for noise in jnp.maximum(jnp.stack([at_lowest, anywhere]), _LEAST_NOISE * fall)
    )
    whole = jnp.arcsinh((first - average[lowest]) / unit)
    return Scale(average[lowest], unit, whole, ceiling, typical)


def average_of(weights: jax.Array, rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the weighted averages of the valid rows; inf where all of them are far away."""
    total = weights @ valid.astype(weights.dtype)
    near = total > _LEAST_WEIGHT
    average = (weights @ jnp.where(valid, rows, 0)) / jnp.where(near, total, 1)
    return jnp.where(near, average, jnp.inf)


def first_rows(known: jax.Array) -> jax.Array:
    """Return which of the rows that are known tell the loss before training."""
    num_first = jnp.maximum(3, known.sum() // _PART_BEFORE)
    return known & (jnp.cumsum(known) <= num_first)


def last_rows(valid: jax.Array) -> jax.Array:
    """Return which rows tell whether the loss had risen when the test ended."""
    return valid & (jnp.cumsum(valid) > valid.sum() - _NUM_LAST)


def _gaussian(distance: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * jnp.square(distance / _WIDTH))
