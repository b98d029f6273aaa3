"""Reading a range test: from the curve of losses over rates to the rates to train with."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optax_clr._arguments import is_traced

# The curve is averaged with a Gaussian of this width in decades: narrower reads noise, wider
# blurs the valley. Of 0.1 to 0.3, on the same tasks as the factors below, it gave the same answer
# most often when the seed was changed.
_WIDTH = 0.3
# Where the average is computed: enough for 0.03 decades over eight, and a bound on the memory.
_GRID_SIZE = 256
_MIN_ROWS = 10
# How far below the first losses the lowest average must be, in standard errors of the two. At 3
# about 1 of 30 curves of pure noise is read, and none of 144 real tests of 300 steps refused; at 4
# none, and one.
_MIN_SIGNIFICANCE = 3.0

# The lowest point of a sweep is at a rate too high to train with: there the loss falls no more
# because steps overshoot. A first calibration, the best of {1, 1.5, 2, 3, 4, 5, 6, 8, 10} for each
# use by validation loss after training, on nine small tasks with five optimizers, 300 steps each.
_CONSTANT_BELOW_LOWEST = 5.0
_ONE_CYCLE_BELOW_LOWEST = 2.0
_PEAK_BELOW_LOWEST = 3.0
# Smith, 1506.01186, section 3.3: the base at a third or a quarter of the peak.
_BASE_BELOW_PEAK = 4.0


class RangeTestError(ValueError):
    """A range test whose curve cannot be read; the message says what to change.

    Example:
      >>> rates, losses = jnp.geomspace(1e-3, 10.0, 50), jnp.linspace(1.0, 2.0, 50)
      >>> try:
      ...     optax_clr.RangeTest(rates, losses, losses, jnp.int32(50)).suggest()
      ... except RangeTestError as error:
      ...     print(str(error).partition(":")[0])
      the loss never fell
    """


class LRBounds(NamedTuple):
    """The two values between which a cyclical schedule moves; ``0 < base_value < peak_value``.

    Attributes:
      base_value: ``f32[]`` value at both ends of a cycle.
      peak_value: ``f32[]`` value at its peak.

    Example:
      >>> bounds = LRBounds(base_value=0.01, peak_value=0.04)
      >>> schedule = optax_clr.triangular_schedule(*bounds, rise_steps=100)
    """

    base_value: jax.Array
    peak_value: jax.Array


def suggest(learning_rates: jax.Array, losses: jax.Array) -> jax.Array:
    """Return the reading of :meth:`optax_clr.RangeTest.suggest`, of ``f32[..., n]`` each."""
    return lowest_rate(learning_rates, losses) / _CONSTANT_BELOW_LOWEST


def one_cycle_peak(learning_rates: jax.Array, losses: jax.Array) -> jax.Array:
    """Return the reading of :meth:`optax_clr.RangeTest.one_cycle_peak`, of ``f32[..., n]`` each."""
    return lowest_rate(learning_rates, losses) / _ONE_CYCLE_BELOW_LOWEST


def bounds(learning_rates: jax.Array, losses: jax.Array) -> LRBounds:
    """Return the reading of :meth:`optax_clr.RangeTest.bounds`, of ``f32[..., n]`` each."""
    peak_value = lowest_rate(learning_rates, losses) / _PEAK_BELOW_LOWEST
    return LRBounds(peak_value / _BASE_BELOW_PEAK, peak_value)


def lowest_rate(learning_rates: jax.Array, losses: jax.Array) -> jax.Array:
    """Return the rate at which the smoothed curve is lowest, or raise (NaN if traced)."""
    rate: jax.Array
    rate, problem = _find_lowest(*checked_columns(learning_rates, losses))
    if not is_traced(problem) and int(problem) != _READABLE:
        raise RangeTestError(_PROBLEMS[int(problem)])
    return rate


def checked_columns(learning_rates: ArrayLike, losses: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Return the two as arrays if they have the same shape, of at least one axis."""
    rates, curves = jnp.asarray(learning_rates), jnp.asarray(losses)
    if rates.shape != curves.shape or not curves.ndim:
        raise ValueError(
            f"learning_rates and losses must have the same shape [..., n], got {rates.shape} and "
            f"{curves.shape}."
        )
    return rates, curves


_READABLE, _TOO_FEW, _DIVERGED, _NEVER_FELL, _MIXED = range(5)
_PROBLEMS = (
    "",
    f"too few points: a curve needs at least {_MIN_ROWS} rows with a finite loss at a positive "
    "rate. Test with more steps.",
    f"the loss diverged at once: fewer than {_MIN_ROWS} rows are finite. Begin at a smaller rate "
    "(min_value); a loss that is NaN at any rate has another cause.",
    "the loss never fell: no rate made it clearly lower than it was in the first rows. If it rose "
    "from the start, begin at a smaller rate (min_value); if it stayed level, go on to a larger "
    "one (max_value) or take more steps; if neither helps, this model cannot learn from this loss.",
    "the curves are of different sweeps: only those over the same rates can be read together. Read "
    "each by itself: jax.vmap(lambda lane: lane.bounds())(result).",
)


@jax.jit
def _find_lowest(learning_rates: jax.Array, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the rate (NaN if there is none) and the index of the problem."""
    num_rows = losses.shape[-1]
    curves = losses.reshape(-1, num_rows).astype(jnp.float32)
    # The same sweep in every curve, which may end early in some and then is NaN there.
    all_rates = learning_rates.reshape(-1, num_rows).astype(jnp.float32)
    rates = jnp.nanmax(all_rates, axis=0)
    mixed = jnp.any(all_rates != rates[None], where=~jnp.isnan(all_rates))
    position = jnp.log10(jnp.where(rates > 0, rates, jnp.nan))
    valid = jnp.isfinite(position) & jnp.isfinite(curves).any(0)
    grid = jnp.linspace(
        jnp.min(position, initial=jnp.inf, where=valid),
        jnp.max(position, initial=-jnp.inf, where=valid),
        _GRID_SIZE,
    )
    weights = jnp.where(valid[None], _gaussian(position[None] - grid[:, None]), 0)
    depths = jax.vmap(lambda curve: _relative_depth(curve, weights))(curves)
    depth = jnp.where(valid, depths.mean(0), 0)
    average = _average(weights, depth)
    lowest = jnp.argmin(average)

    error = _standard_error(depth, valid & (position <= grid[lowest]), weights[lowest])
    begins = valid & (jnp.cumsum(valid) <= _num_first(num_rows))
    after = grid[lowest] > jnp.max(position, initial=-jnp.inf, where=begins)
    before = grid[lowest] < jnp.min(position, initial=jnp.inf, where=begins)
    fell = (average[lowest] < -_MIN_SIGNIFICANCE * error) & (after | before)
    problem = jnp.where(fell, _READABLE, _NEVER_FELL)
    few = _DIVERGED if num_rows >= _MIN_ROWS else _TOO_FEW
    problem = jnp.where(valid.sum() < _MIN_ROWS, few, problem)
    problem = jnp.where(mixed, _MIXED, problem)
    return jnp.where(problem == _READABLE, 10 ** grid[lowest], jnp.nan), problem


def _relative_depth(curve: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the loss in units of its fall: 0 where it began, -1 where lowest, at most 1.

    So curves of different seeds can be averaged, an explosion of the loss (or a NaN, when other
    curves go on) is worth no more than a loss as far above the start as the best is below, and
    neither a factor nor a constant in the loss matters.
    """
    finite = jnp.isfinite(curve)
    is_first = finite & (jnp.cumsum(finite) <= _num_first(curve.shape[0]))
    first = jnp.sum(curve, where=is_first) / jnp.maximum(is_first.sum(dtype=jnp.float32), 1)
    below = jnp.where(finite, jnp.minimum(curve - first, 0), 0)
    fall = -jnp.min(_average(jnp.where(finite[None], weights, 0), below))
    depth = jnp.clip((curve - first) / jnp.where(fall > 0, fall, 1), -2, 1)
    return jnp.where(finite, depth, 1)


def _average(weights: jax.Array, rows: jax.Array) -> jax.Array:
    total = weights.sum(1)
    return jnp.where(total > 0, (weights @ rows) / jnp.where(total > 0, total, 1), jnp.inf)


def _standard_error(depth: jax.Array, rows: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the error of the lowest average, and of the first rows, from the noise between rows.

    Noise is what differs from one row to the next, in the rows up to the lowest point.
    """
    pairs = rows[1:] & rows[:-1]
    num_pairs = jnp.maximum(pairs.sum(dtype=jnp.float32), 1)
    variance = jnp.sum(jnp.diff(depth) ** 2, where=pairs) / (2 * num_pairs)
    share = weights / jnp.maximum(weights.sum(), 1e-30)
    return jnp.sqrt(variance * (jnp.sum(share**2) + 1 / _num_first(depth.shape[0])))


def _num_first(num_rows: int) -> int:
    """Return how many rows tell the loss before training."""
    return max(3, num_rows // 20)


def _gaussian(distance: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * jnp.square(distance / _WIDTH))


def spread(learning_rates: jax.Array, losses: jax.Array) -> tuple[float, float] | None:
    """Return the smallest and largest lowest rate of the single curves; None if there is one."""
    num_rows = losses.shape[-1]
    rates, _ = jax.vmap(_find_lowest)(
        learning_rates.reshape(-1, num_rows), losses.reshape(-1, num_rows)
    )
    found = np.asarray(rates)[np.isfinite(rates)]
    return (float(found.min()), float(found.max())) if found.size > 1 else None
