"""How much higher the peak of a schedule may be than the best constant rate."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_clr._arrays import Array, numpy_of
from optax_clr._schedule_values import ROUNDING, is_legal, sampled, sums_after
from optax_clr._tracing import is_traced

# The theorem is taken as printed for fewer steps, and if no stop allows a peak this much higher.
_MIN_STEPS, _MUCH_HIGHER = 64, 1.1
# Number of stops that are tried. In 3,000 random schedules of up to 60 steps that fall by up to 12
# decades, this many find the best; 8 may miss it, which can cost half of the peak.
_NUM_STOPS = 12


def peak_ratio(shape: optax.Schedule, num_steps: int) -> float | jax.Array:
    r"""Return the best peak of a schedule of this shape over the best constant rate.

    For a convex loss whose gradients have norm at most $G$, started at distance $D$ from the best
    params, the loss of the last params, after rates $\gamma s_1, \dots, \gamma s_T$, is within

    $$
    \frac{D^2}{2 \gamma S_1} + \frac{\gamma G^2}{2} \Big( \frac{Q_1}{S_1}
    + \sum_{k=1}^{T-1} \frac{s_k}{S_{k+1}} \frac{Q_k}{S_k} \Big), \quad
    S_k = \sum_{t \ge k} s_t, \quad Q_k = \sum_{t \ge k} s_t^2
    $$

    of the minimum. The $\gamma$ that minimises this is a constant over the square root of
    $S_1$ times the bracket; for a constant rate that product is $T (1 + H_{T-1})$.

    If hardly any rate is left after a high one, as in a decay that ends just above 0, the bound is
    large, since the last steps cannot make up for that one. But they hardly move the params: as
    gradients are at most $G$, the loss after step $T$ is within $\gamma G^2 S_{T'+1}$ of that
    after $T'$. So from 64 steps on the bracket is that of a stop at $T'$, plus $2 S_{T'+1}$, for
    the most promising $T'$, if that makes the peak a tenth higher.

    References:
      Defazio et al., [When, Why and How Much?](https://arxiv.org/abs/2310.07831), 2023,
      theorem 10.
    """
    values, counts = sampled(shape, num_steps)
    constant = num_steps * (1 + _harmonic(num_steps - 1))
    bound = _bound if num_steps < _MIN_STEPS else _bound_of_best_stop
    ratio = numpy_of(values).sqrt(constant / bound(_heights(values), counts))
    if is_traced(values):
        return jnp.where(is_legal(values), ratio, jnp.nan)
    return float(ratio)


def _heights(values: Array) -> Array:
    """Return the values over the highest, with 0 for those that are its rounding errors."""
    numpy = numpy_of(values)
    heights = values / numpy.max(values)
    return numpy.where(heights < ROUNDING, 0, heights)


def _bound(heights: Array, counts: Array) -> Array:
    """Return ``S_1`` times the bracket, for blocks of ``counts`` steps of the same height."""
    sums, squares = sums_after(counts * heights), sums_after(counts * heights**2)
    total, bracket = _total_and_bracket(heights, counts, sums, squares)
    return total * bracket


def _bound_of_best_stop(heights: Array, counts: Array) -> Array:
    """Return the same for the most promising stop, if that allows a much higher peak."""
    numpy = numpy_of(heights)
    sums, squares = sums_after(counts * heights), sums_after(counts * heights**2)
    stops = _stops(heights, sums)
    rest, rest_squares = sums[stops], squares[stops]
    row = np.arange(len(counts), dtype=np.int32)
    until = numpy.where(row[None] <= stops[:, None], heights[None], 0)
    # These lose digits only if most of the schedule follows the stop, which is of no use then.
    sums = numpy.maximum(sums[None] - rest[:, None], 0)
    squares = numpy.maximum(squares[None] - rest_squares[:, None], 0)
    total, bracket = _total_and_bracket(until, counts[None], sums, squares)
    bracket = bracket + 2 * rest
    # A stop with nothing but zeros up to it promises nothing.
    promise = numpy.where(total > 0, bracket / numpy.where(total > 0, total, 1), np.inf)
    bounds = total * bracket
    whole, best = bounds[-1], bounds[numpy.argmin(promise)]
    return numpy.where(whole > _MUCH_HIGHER**2 * best, best, whole)


def _total_and_bracket(
    heights: Array, counts: Array, sums: Array, squares: Array
) -> tuple[Array, Array]:
    """Return ``S_1`` and the bracket, from the sums after each block."""
    numpy = numpy_of(heights)
    first, count = heights[..., 0], counts[..., 0]
    total = count * first + sums[..., 0]
    whole = count * first**2 + squares[..., 0]
    terms = _terms(heights, counts, sums, squares).sum(-1)
    return total, whole / numpy.where(total > 0, total, 1) + terms


def _stops(heights: Array, sums: Array) -> Array:
    """Return the blocks that are highest relative to the sum after them, and the last block."""
    numpy = numpy_of(heights)
    falls = heights / numpy.where(sums > 0, sums, np.inf)
    num_stops = min(_NUM_STOPS, len(falls))
    stops = numpy.argpartition(falls, -num_stops)[-num_stops:]
    return numpy.append(stops, np.int32(len(falls) - 1))


def _terms(heights: Array, counts: Array, sums: Array, squares: Array) -> Array:
    """Return what each block adds to the sum in the bracket, from the sums after it.

    Exact for blocks of one step. For longer ones, ``S_k`` and ``Q_k`` are taken at the middle.
    """
    numpy = numpy_of(heights)
    middle = sums + heights * (counts + 1) / 2
    middle_after = sums + heights * (counts - 1) / 2
    middle_squares = squares + heights**2 * (counts + 1) / 2
    # A block with nothing but zeros after it adds what a run at a constant rate would.
    at_end = numpy.log(numpy.maximum(counts, 2) - 0.5) + np.euler_gamma
    at_end = numpy.where(counts > 1, heights * at_end, 0)
    is_last = sums == 0
    # Divide by each in turn, since their product underflows float32 if heights are small.
    of_sums = heights / numpy.where(is_last, 1, middle_after)
    of_squares = middle_squares / numpy.where(is_last, 1, middle)
    return numpy.where(is_last, at_end, counts * of_sums * of_squares)


def _harmonic(number: int) -> float:
    """Return ``1 + 1/2 + ... + 1/number``."""
    if number < 100:
        return sum(1 / k for k in range(1, number + 1))
    return math.log(number) + np.euler_gamma + 1 / (2 * number) - 1 / (12 * number**2)
