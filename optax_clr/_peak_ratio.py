"""How much higher the peak of a schedule may be than the best constant rate."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_clr._arguments import float_dtype, is_real_dtype, is_traced, shown
from optax_clr._integer_powers import check_powers

# A run of more steps is divided into this many blocks, and some more near both ends; the value at
# one step stands for each block.
_NUM_BLOCKS = 2**15
# Blocks are then split where that matters most, until there are this many.
_MOST_BLOCKS = _NUM_BLOCKS + 2**14
# A block is at most this share of the steps before it, and of those after it: many schedules are
# steep at their start, and the steps near the end matter most.
_BLOCK_OF_REST = 1 / 256
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
# Share of the highest value: XLA may leave this much of 1 - 1, of either sign, when it divides by
# multiplying with a reciprocal. A last step of this size would have to make up for all before it.
_ROUNDING = 2.0**-22
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
    edges = _edges(num_steps)
    values, counts = _look(shape, edges)
    if num_steps > _NUM_BLOCKS:
        values, counts = _look(shape, _split(edges, values))
    constant = num_steps * (1 + _harmonic(num_steps - 1))
    numpy: Any = jnp if is_traced(values) else np
    bound = _bound if num_steps < _MIN_STEPS else _bound_of_best_stop
    ratio = numpy.sqrt(constant / bound(numpy, _heights(numpy, values), counts))
    if is_traced(values):
        return jnp.where(_is_legal(values.min(), values.max()), ratio, jnp.nan)
    return float(ratio)


def _heights(numpy: Any, values: Any) -> Any:
    """Return the values over the highest, with 0 for those that are its rounding errors."""
    heights = values / numpy.max(values)
    return numpy.where(heights < _ROUNDING, 0, heights)


def _look(shape: optax.Schedule, edges: Any) -> tuple[Any, Any]:
    """Return the value of a schedule at one step of each block, and the steps in each block.

    Both are float64 if they are concrete, and otherwise of the schedule's dtype, at least float32.
    """
    numpy: Any = jnp if is_traced(edges) else np
    counts = numpy.diff(edges)
    # The place within a block varies, lest short cycles be sampled at a single phase.
    place = np.arange(len(counts)) * _GOLDEN_RATIO % 1
    inner = numpy.floor(np.float32(place) * counts.astype(np.float32)).astype(np.int32)
    # Empty blocks take the value of the last step, which has no weight there.
    values: Any = schedule_values("shape", shape, numpy.minimum(edges[:-1] + inner, edges[-1] - 1))
    if not is_traced(values):
        values = np.asarray(jax.device_get(values), np.float64)
        _check(values, edges[-1])
    return values, numpy.asarray(counts, values.dtype)


def schedule_values(name: str, schedule: optax.Schedule, steps: Any) -> jax.Array:
    """Return the value of a schedule at each of the steps; errors call it by ``name``."""
    allowed = f"{name} must be a schedule that jax.jit can trace, step -> number; {shown(schedule)}"
    check_powers(name, schedule)
    try:
        values = jax.vmap(schedule)(steps)  # some of Optax's schedules refuse arrays of steps
    except Exception as error:
        raise ValueError(f"{allowed} failed: {error}") from error
    if not (isinstance(values, jax.Array) and values.shape == steps.shape) or not (
        is_real_dtype(values.dtype) or values.dtype == bool
    ):
        one = jax.tree.map(lambda leaf: leaf[0], values)
        raise ValueError(f"{allowed} returned {shown(one)} at step {steps[0]}.")
    return values.astype(float_dtype(values))


def _is_legal(lowest: Any, highest: Any) -> Any:
    return (lowest > -_ROUNDING * highest) & (highest > 0) & (highest < math.inf)


def _check(values: np.ndarray, num_steps: int) -> None:
    lowest, highest = values.min(), values.max()
    if not _is_legal(lowest, highest):
        raise ValueError(
            "shape must be a schedule of finite values of which none is negative and one is above "
            f"0; over {num_steps} steps it has values from {lowest:g} to {highest:g}."
        )


def _bound(numpy: Any, heights: Any, counts: Any) -> Any:
    """Return ``S_1`` times the bracket, for blocks of ``counts`` steps of the same height."""
    sums, squares = _after(numpy, counts * heights), _after(numpy, counts * heights**2)
    total, bracket = _total_and_bracket(numpy, heights, counts, sums, squares)
    return total * bracket


def _bound_of_best_stop(numpy: Any, heights: Any, counts: Any) -> Any:
    """Return the same for the most promising stop, if that allows a much higher peak."""
    sums, squares = _after(numpy, counts * heights), _after(numpy, counts * heights**2)
    stops = _stops(numpy, heights, sums)
    rest, rest_squares = sums[stops], squares[stops]
    row = np.arange(len(counts), dtype=np.int32)
    until = numpy.where(row[None] <= stops[:, None], heights[None], 0)
    # These lose digits only if most of the schedule follows the stop, which is of no use then.
    sums = numpy.maximum(sums[None] - rest[:, None], 0)
    squares = numpy.maximum(squares[None] - rest_squares[:, None], 0)
    total, bracket = _total_and_bracket(numpy, until, counts[None], sums, squares)
    bracket = bracket + 2 * rest
    # A stop with nothing but zeros up to it promises nothing.
    promise = numpy.where(total > 0, bracket / numpy.where(total > 0, total, 1), np.inf)
    bounds = total * bracket
    whole, best = bounds[-1], bounds[numpy.argmin(promise)]
    return numpy.where(whole > _MUCH_HIGHER**2 * best, best, whole)


def _total_and_bracket(
    numpy: Any, heights: Any, counts: Any, sums: Any, squares: Any
) -> tuple[Any, Any]:
    """Return ``S_1`` and the bracket, from the sums after each block."""
    first, count = heights[..., 0], counts[..., 0]
    total = count * first + sums[..., 0]
    whole = count * first**2 + squares[..., 0]
    terms = _terms(numpy, heights, counts, sums, squares).sum(-1)
    return total, whole / numpy.where(total > 0, total, 1) + terms


def _stops(numpy: Any, heights: Any, sums: Any) -> Any:
    """Return the blocks that are highest relative to the sum after them, and the last block."""
    falls = heights / numpy.where(sums > 0, sums, np.inf)
    num_stops = min(_NUM_STOPS, len(falls))
    stops = numpy.argpartition(falls, -num_stops)[-num_stops:]
    return numpy.append(stops, np.int32(len(falls) - 1))


def _terms(numpy: Any, heights: Any, counts: Any, sums: Any, squares: Any) -> Any:
    """Return what each block adds to the sum in the bracket, from the sums after it.

    Exact for blocks of one step. For longer ones, ``S_k`` and ``Q_k`` are taken at the middle.
    """
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


def _after(numpy: Any, parts: Any) -> Any:
    """Return the sum of all parts after each one."""
    return numpy.append(numpy.flip(numpy.cumsum(numpy.flip(parts[1:]))), 0)


def _harmonic(number: int) -> float:
    """Return ``1 + 1/2 + ... + 1/number``."""
    if number < 100:
        return sum(1 / k for k in range(1, number + 1))
    return math.log(number) + np.euler_gamma + 1 / (2 * number) - 1 / (12 * number**2)


@functools.lru_cache(maxsize=8)
def _edges(num_steps: int) -> np.ndarray:
    """Return where the blocks of a run begin, and its end, ``i32[b + 1]``.

    Unless every step is a block, empty blocks are appended, so that their number, for which JAX
    compiles, is always the same.
    """
    longest = num_steps / _NUM_BLOCKS
    if longest <= 1:
        return np.arange(num_steps + 1, dtype=np.int32)
    # Single steps at both ends, then blocks growing by a ratio, and even ones in between.
    one_by_one = 1 / _BLOCK_OF_REST
    num_growing = math.ceil(math.log(longest) / math.log1p(_BLOCK_OF_REST))
    growing = one_by_one * (1 + _BLOCK_OF_REST) ** np.arange(num_growing)
    near = np.round(np.concatenate([np.arange(one_by_one), growing]))
    even = np.round(np.linspace(0, num_steps, _NUM_BLOCKS + 1))
    edges = np.unique(np.concatenate([near, even, num_steps - near])).astype(np.int32)
    return np.pad(edges, (0, _MOST_BLOCKS + 1 - len(edges)), mode="edge")


def _split(edges: np.ndarray, values: Any) -> Any:
    """Return the edges of ``_MOST_BLOCKS`` blocks, with parts of others in place of empty ones.

    Blocks are split if the value changes there, or if they are long for what comes after them.
    """
    numpy: Any = jnp if is_traced(values) else np
    counts, highest = np.diff(edges), numpy.max(values)
    heights = values / numpy.where(highest > 0, highest, 1)
    parts = _num_parts(numpy, counts, heights, _MOST_BLOCKS - int(np.count_nonzero(counts)))
    ends = numpy.cumsum(parts, dtype=np.int32)
    row = np.arange(_MOST_BLOCKS, dtype=np.int32)
    block = numpy.minimum(numpy.searchsorted(ends, row, side="right"), _MOST_BLOCKS - 1)
    parts, counts, starts = parts[block], numpy.asarray(counts)[block], numpy.asarray(edges)[block]
    part = row - ends[block] + parts
    # No overflow: the longest block times the number of parts is below 2**31.
    return numpy.append(starts + counts * part // numpy.maximum(parts, 1), edges[-1])


def _num_parts(numpy: Any, counts: np.ndarray, heights: Any, num_more: int) -> Any:
    """Return how many parts each block is split into, ``i32[b]``, at most ``num_more`` more."""
    steps = np.asarray(counts, heights.dtype)
    changes = numpy.abs(numpy.diff(heights))
    changes = numpy.maximum(numpy.append(changes, 0), numpy.append(0, changes))
    rest = steps * heights + _after(numpy, steps * heights)
    of_rest = steps * heights / numpy.where(rest > 0, rest, 1)
    weights = steps * (changes + of_rest * heights)
    total = weights.sum()
    more = num_more * weights / numpy.where(total > 0, total, 1)
    return numpy.minimum(1 + numpy.floor(more).astype(np.int32), counts)
