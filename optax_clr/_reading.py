"""Reading a range test: from the curve of losses over rates to the rates to train with."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optax_clr._arguments import is_traced
from optax_clr._documentation import see
from optax_clr._noise import (
    Descent,
    deviation,
    fall_in_errors,
    largest_drop,
    typical_deviation,
    without_spikes,
)

# Rows are averaged with a Gaussian of this standard deviation, in decades: a narrower one reads
# noise, a wider one blurs the valley. From 0.2 to 0.4 it makes no difference on real tasks.
_WIDTH = 0.3
# Where the average is computed: enough for 0.03 decades over eight, and a bound on the memory.
_GRID_SIZE = 256
# Of the rows at a point of it: none is within three decades. Products of smaller ones underflow.
_LEAST_WEIGHT = 1e-20
_MIN_ROWS = 6
# How far below the first losses the lowest average must be, in standard errors of the two: if rows
# are independent, and if they wander. Of 500 curves of noise each, of 300 rows, fewer than 1 in 100
# are read if normal, exponential, lognormal or AR(1) with a correlation of .5, and 2% with one of
# .95; of 1,000 rows 1 in 200. Of 63 development tests of 300 rows none is refused.
_MIN_SIGNIFICANCE = 4.0
_MIN_WANDER_SIGNIFICANCE = 9.5
# Over the number of rows, what is added to that: few rows do not tell their own noise well, and of
# 6 to 20 one in ten would be read.
_FOR_FEW_ROWS = 56.0
# Of rows with others between them, how far apart they are over neighbours: where the second begins
# to count, and where alone.
_INDEPENDENT, _WALK = 1.2, 1.5
# In fewer rows than this that is not known well enough to refuse a test: it leaves a doubt.
_ROWS_TO_KNOW_WANDER = 200
# In less than so many decades the loss of a model that learns does not make so much of its fall,
# beyond two standard errors; nor does it fall again by so much once it has risen. Of 451
# development tests read without a doubt 2 do. Where one of 5 to 10 classes follows another and
# nothing is learned, 1 to 2% are read in silence, not 20 to 45%.
_JUMP_WIDTH, _JUMP = 0.24, 0.5
_FALLS_AGAIN = 0.3
# So many rows tell whether the loss had risen when a test ended.
_NUM_LAST = 3
# What is below so many times what it has to be is doubtful.
_CLEAR = 1.15
# Where there is no noise, the loss is told apart to this part of its fall.
_LEAST_NOISE = 0.01

# Fitted on the development tasks of docs/study/suggestions.py, all three lengths together.
_CONSTANT = 1 / 18
# What _peak_ratio gives for 1,000 steps of one cycle, and of four triangular cycles from a quarter.
_ONE_CYCLE = 2.637 * _CONSTANT
_PEAK = 1.758 * _CONSTANT
# Of 1/2 to 1/50 those from 1/4 to 1/10 do equally well there. Smith, 1506.01186, section 3.3, has a
# third or a quarter.
_BASE_OF_PEAK = 1 / 4


class RangeTestError(ValueError):
    """A range test whose curve cannot be read; the message says what to change.

    Examples:
      >>> rates, losses = jnp.geomspace(1e-3, 10.0, 50), jnp.linspace(1.0, 2.0, 50)
      >>> try:
      ...     optax_clr.RangeTestResult(rates, losses, losses, jnp.int32(50)).suggest()
      ... except RangeTestError as error:
      ...     print(str(error).partition(":")[0])
      the loss never fell
    """


class LRBounds(NamedTuple):
    """The two values between which a cyclical schedule moves; ``0 < base_value < peak_value``.

    Attributes:
      base_value: value at both ends of a cycle, a float or ``f32[]``.
      peak_value: value at its peak.

    Examples:
      >>> bounds = LRBounds(base_value=0.01, peak_value=0.04)
      >>> schedule = optax_clr.triangular_schedule(*bounds, rise_steps=100)
    """

    base_value: float | jax.Array
    peak_value: float | jax.Array


class RangeTestWarning(UserWarning):
    """A range test was read, but its curve leaves a doubt; the message says what to change.

    Examples:
      >>> import warnings
      >>> rates = jnp.geomspace(1e-5, 1e-2, 100)
      >>> losses = jnp.exp(-1e3 * rates)  # still falling at the last rate
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     _ = optax_clr.RangeTestResult(rates, losses, losses, jnp.int32(100)).suggest()
      >>> print(str(caught[0].message).partition(":")[0])
      the end of the sweep cuts the valley
    """


class Curve(NamedTuple):
    """The columns that are read, ``f32[..., n]`` each, how they ended, and of what optimizer."""

    learning_rates: jax.Array
    losses: jax.Array | np.ndarray
    equivalent_steps: jax.Array
    diverged: jax.Array | bool  # bool[...]
    ran_out: jax.Array | bool  # bool[...] of batches, or was interrupted
    factor: jax.Array | float  # f32[...] of the optimizer's kind


class Valley(NamedTuple):
    """Where the loss is low, ``f32[]`` each."""

    lower: jax.Array  # the rate at which it has made half of its fall
    upper: jax.Array  # the rate at which it has lost half of it again
    steps: jax.Array  # training at the lower rate, in steps at that rate
    factor: jax.Array  # of the optimizer's kind


def suggest(valley: Valley) -> jax.Array:
    """Return the constant rate, the valley's centre times ``sqrt(steps) / 18``.

    On 22 tasks that no choice was made on, the median validation loss after training is 5, 5 and 3%
    above that with the best rate, after tests of 300, 600 and 1,000 steps; the mean is 13, 9 and 8%
    (docs/pages/suggestions.md).
    """
    return _CONSTANT * _centre(valley)


def one_cycle_peak(valley: Valley) -> jax.Array:
    """Return the peak of one cycle, 2.64 times the constant rate, since the run ends at a low one.

    On the same tasks the median is 5, 3 and 2%.
    """
    return _ONE_CYCLE * _centre(valley)


def bounds(valley: Valley) -> LRBounds:
    """Return the bounds of a cycle: a peak of 1.76 times the constant rate.

    On the same tasks the median is 7, 5 and 5%. The base is a quarter of the peak: a tenth, and
    bases read from where the loss begins to fall or stagnates, came to 13 and 14% where a quarter
    came to 12 (docs/study/README.md).
    """
    peak_value = _PEAK * _centre(valley)
    return LRBounds(_BASE_OF_PEAK * peak_value, peak_value)


def _centre(valley: Valley) -> jax.Array:
    """Return the centre of the valley as a test of one step at each rate would have it.

    A rate twice as high learns as much in half the steps, so with the length of the test the lower
    end of the valley moves down, and the centre with the root of it. The upper end is where
    training is no longer stable, however long the test. What the optimizer makes of either is in
    its factor.
    """
    return valley.factor * jnp.sqrt(valley.lower * valley.upper * valley.steps)


def read_valley(curve: Curve) -> Valley:
    """Return what ``find_valley`` finds, and warn, where a method of the result was called."""
    valley, doubts = find_valley(curve)
    for doubt in doubts:
        warnings.warn(doubt, RangeTestWarning, stacklevel=4)  # the caller of a method of the result
    return valley


def find_valley(curve: Curve) -> tuple[Valley, list[str]]:
    """Return the valley of a curve and what is doubtful, or raise (NaN, and nothing, if traced)."""
    if isinstance(curve.losses, np.ndarray):
        # Here, since a float64 would become a float32 on its way into the program.
        curve = curve._replace(losses=_centred(curve.losses)[0])
    valley, problem, doubts = _find_valley(*curve)
    if is_traced(problem):
        return valley, []
    if int(problem) != _READABLE:
        raise RangeTestError(_PROBLEMS[int(problem)])
    return valley, [text for doubt, text in zip(np.asarray(doubts), _DOUBTS, strict=True) if doubt]


def checked(curve: Curve) -> Curve:
    """Return the curve as arrays, if they have one shape."""
    rates, losses = checked_columns(curve.learning_rates, curve.losses)
    steps = jnp.asarray(curve.equivalent_steps)
    if steps.shape != losses.shape:
        raise ValueError(
            f"equivalent_steps must have the shape of losses, {losses.shape}, got {steps.shape}."
        )
    # NumPy's may be float64 where JAX has none.
    as_given = curve.losses if isinstance(curve.losses, np.ndarray) else losses
    diverged, ran_out = (jnp.asarray(end, bool) for end in (curve.diverged, curve.ran_out))
    factor = jnp.asarray(curve.factor, jnp.float32)
    return Curve(rates, as_given, steps, diverged, ran_out, factor)


def checked_columns(learning_rates: ArrayLike, losses: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Return the two as arrays if they have the same shape, of at least one axis."""
    rates, curves = jnp.asarray(learning_rates), jnp.asarray(losses)
    if rates.shape != curves.shape or not curves.ndim:
        raise ValueError(
            f"learning_rates and losses must have the same shape [..., n], got {rates.shape} and "
            f"{curves.shape}."
        )
    return rates, curves


_READABLE, _TOO_FEW, _DIVERGED, _NEVER_FELL, _WANDERS, _MIXED, _SUDDEN = range(7)
_PROBLEMS = (
    "",
    f"too few points: a curve needs at least {_MIN_ROWS} rows with a finite loss at a positive "
    f"rate. Test with more steps. {see('reading/#too-few-steps')}",
    f"the loss diverged at once: fewer than {_MIN_ROWS} rows are finite. Begin at a smaller rate "
    "(min_lr); a loss that is NaN at any rate has another cause. "
    f"{see('reading/#too-high-a-start')}",
    "the loss never fell: no rate made it clearly lower than it was in the first rows. If it rose "
    "from the start, begin at a smaller rate (min_lr); if it stayed level, go on to a larger "
    "one (max_lr) or take more steps; if neither helps, this model cannot learn from this loss. "
    f"{see('reading/#a-model-that-cannot-learn')}",
    "the loss wanders: it fell, but not clearly by more than it strays where it is level. Where "
    "neighbouring batches are alike, shuffle the data; where they are shuffled, the test is too "
    "short to tell: take more steps, or have a held-out batch read (held_out), whose loss has less "
    f"noise. {see('reading/#batches-that-are-not-shuffled')}",
    "the curves are of different sweeps: only those over the same rates can be read together. Read "
    f"each by itself: jax.vmap(lambda lane: lane.bounds())(result). {see('sweeps/')}",
    "the test ended suddenly: its losses were no longer finite, and had neither fallen nor risen "
    "before. Look for an example in the data that is not finite, or an operation that overflows. "
    f"{see('reading/#other-doubts')}",
)
_DOUBTS = (
    "the end of the sweep cuts the valley: after its lowest point the loss did not rise by half of "
    "its fall, and what is read may be too low. Go on to a larger rate (max_lr). "
    f"{see('reading/#too-low-an-end')}",
    "the test ended within the valley: after its lowest point the loss did not rise by half of its "
    "fall before the test ended, and what is read may be too low. Give it batches for all of its "
    f"rows. {see('reading/#too-low-an-end')}",
    "the test ended suddenly: its losses were no longer finite, and had not risen before. If an "
    "example in the data is not finite, or an operation overflows, that says nothing of the rate, "
    f"and what is read may be far too low. Look for it. {see('reading/#other-doubts')}",
    "the start of the sweep cuts the valley: the loss had made half of its fall within the first "
    "rows, and what is read may be too high. Begin at a smaller rate (min_lr). "
    f"{see('reading/#too-high-a-start')}",
    "the loss fell little in comparison with its noise: take more steps, larger batches "
    "(steps_per_value), or several seeds (jax.vmap), whose curves are read together. "
    f"{see('reading/#too-few-steps')}",
    "the loss jumps: it fell by most of its fall at once, or fell again after it had risen, as it "
    "does where batches of one kind follow those of another, whatever the rate. Shuffle the data; "
    "if they are shuffled, take more steps, or several seeds (jax.vmap), whose curves are read "
    "together. "
    f"{see('reading/#batches-that-are-not-shuffled')}",
    "the rates do not rise: what a low rate does to a model that a higher one has trained, or "
    "destroyed, says little, and what is read may be far off. Sweep from the lowest rate to the "
    "highest.",
    "after its lowest point the loss rose by less than half of its fall, and stayed: it is taken "
    "for that of a guess, by a model that is destroyed and began far worse. If it still learns "
    "there, what is read may be too low. Look at the curve.",
)


class _Rows(NamedTuple):
    """The curves, and the Gaussian weights by which their rows are averaged on a grid of rates."""

    position: jax.Array  # f32[n] log10 of the rate of each row; NaN where there is none
    valid: jax.Array  # bool[n] rows that some curve has
    grid: jax.Array  # f32[g] where the averages are computed, log10 of the rate
    weights: jax.Array  # f32[g, n]
    curves: jax.Array  # f32[c, n] without lone spikes, as they differ from their constants
    constants: jax.Array  # f32[c]
    mixed: jax.Array  # bool[] whether the curves are over different rates


def _rows(learning_rates: jax.Array, losses: jax.Array) -> _Rows:
    num_rows = losses.shape[-1]
    curves = losses.reshape(-1, num_rows)
    curves, constants = _centred(curves)
    curves = jax.vmap(without_spikes)(curves.astype(jnp.float32))
    # The same sweep in every curve, which may end early in some and then is NaN there.
    all_rates = learning_rates.reshape(-1, num_rows).astype(jnp.float32)
    rates = jnp.nanmax(all_rates, axis=0)
    position = jnp.log10(jnp.where(rates > 0, rates, jnp.nan))
    valid = jnp.isfinite(position) & jnp.isfinite(curves).any(0)
    start = jnp.min(position, initial=jnp.inf, where=valid)
    end = jnp.max(position, initial=-jnp.inf, where=valid)
    grid = jnp.linspace(start, end, _GRID_SIZE)
    place = jnp.where(valid, position, start)
    weights = _gaussian(place[None] - grid[:, None])
    mixed = jnp.any(all_rates != rates[None], where=~jnp.isnan(all_rates))
    constants = constants[:, 0].astype(jnp.float32)
    return _Rows(position, valid, grid, weights, curves, constants, mixed)


def _centred(curves: Any) -> tuple[Any, Any]:
    """Return the losses less a constant that means nothing, which may hold most of their digits."""
    numpy = np if isinstance(curves, np.ndarray) else jnp
    some_row = numpy.argmax(numpy.isfinite(curves), axis=-1, keepdims=True)
    constants = numpy.nan_to_num(numpy.take_along_axis(curves, some_row, -1))
    return curves - constants, constants


def averages(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return the average that is read of each curve: rates ``[g]`` and losses ``[c, g]``."""
    losses, constants = _centred(curve.losses)
    rates, found = _averages(curve.learning_rates, losses)
    return np.asarray(rates), np.asarray(found) + np.reshape(constants, (-1, 1))


@jax.jit
def _averages(learning_rates: jax.Array, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = _rows(learning_rates, losses)

    def average(curve: jax.Array, constant: jax.Array) -> jax.Array:
        scale = _scale(curve, rows.valid, rows.weights)
        finite = rows.valid & jnp.isfinite(curve)
        depth = scale.depth(curve, True, rows.valid)
        read = scale.loss(_average(rows.weights, depth, finite))
        # A curve that never fell has no depth.
        plain = _average(rows.weights, jnp.minimum(curve, scale.ceiling), finite)
        return constant + jnp.where(scale.whole > 0, read, plain)

    return 10**rows.grid, jax.vmap(average)(rows.curves, rows.constants)


@jax.jit
def _find_valley(
    learning_rates: jax.Array,
    losses: jax.Array,
    equivalent_steps: jax.Array,
    diverged: jax.Array,
    ran_out: jax.Array,
    factor: jax.Array,
) -> tuple[Valley, jax.Array, jax.Array]:
    """Return the valley (NaN if there is none), the index of the problem, and the doubts."""
    num_rows = losses.shape[-1]
    rows = _rows(learning_rates, losses)
    valid, grid, weights = rows[1:4]
    steps = jnp.nanmax(equivalent_steps.reshape(-1, num_rows).astype(jnp.float32), axis=0)
    scales = jax.vmap(lambda curve: _scale(curve, valid, weights))(rows.curves)
    ran_out = jnp.broadcast_to(ran_out.reshape(-1), rows.curves.shape[:1])
    depths = jax.vmap(lambda scale, *curve: scale.depth(*curve, valid))(
        scales, rows.curves, ran_out
    )
    depth = _mean(depths)
    average = _average(weights, depth, valid)
    within = _valley_of(average, grid)
    log_steps = _average(weights[within.lower][None], jnp.log(steps), valid)[0]
    valley = Valley(
        lower=10 ** grid[within.lower],
        upper=10 ** grid[within.upper],
        steps=jnp.exp(log_steps),
        factor=factor.mean(),  # the same for all
    )
    descent = _descent(rows, scales, within.lowest)
    clarity = _clarity(rows, descent)
    problem = _problem_of(rows, grid[within.lowest], clarity, diverged.all())
    has_risen = jnp.mean(depth, where=_is_last(valid)) > average[within.lowest] / 2
    jumps = within.falls_again | _is_jump(rows, descent)
    doubts = _doubts_of(rows, within, clarity, jumps, diverged.all(), has_risen)
    found = problem == _READABLE
    return jax.tree.map(lambda part: jnp.where(found, part, jnp.nan), valley), problem, doubts


class _Clarity(NamedTuple):
    """How many times the fall is as large as it has to be."""

    independent: jax.Array  # if rows are independent
    wandering: jax.Array  # if they wander as they do before it


def _clarity(rows: _Rows, descent: Descent) -> _Clarity:
    fall = fall_in_errors(descent)
    num_valid = jnp.maximum(rows.valid.sum(dtype=jnp.float32), 1)
    least = _MIN_SIGNIFICANCE + _FOR_FEW_ROWS / num_valid
    is_walk = jnp.clip((fall.far_over_near - _INDEPENDENT) / (_WALK - _INDEPENDENT), 0, 1)
    least_wander = _MIN_SIGNIFICANCE + is_walk * (_MIN_WANDER_SIGNIFICANCE - _MIN_SIGNIFICANCE)
    return _Clarity(fall.independent / least, fall.wandering / least_wander)


def _is_jump(rows: _Rows, descent: Descent) -> jax.Array:
    """Return whether most of the fall is made at once, clearly."""
    width = _JUMP_WIDTH / (rows.grid[-1] - rows.grid[0])
    drop = largest_drop(descent, width)
    return drop.height - 2 * drop.error > _JUMP * descent.height


def _problem_of(
    rows: _Rows, lowest_rate: jax.Array, clarity: _Clarity, diverged: jax.Array
) -> jax.Array:
    """Return the index of what keeps a curve from being read; that which comes last here counts."""
    num_rows, valid, is_first = rows.valid.shape[0], rows.valid, _is_first(rows.valid)
    can_tell = num_rows >= _ROWS_TO_KNOW_WANDER
    problem = jnp.where(can_tell & (clarity.wandering <= 1), _WANDERS, _READABLE)
    among_first = (lowest_rate >= jnp.min(rows.position, initial=jnp.inf, where=is_first)) & (
        lowest_rate <= jnp.max(rows.position, initial=-jnp.inf, where=is_first)
    )
    losses, is_last = _mean(rows.curves), _is_last(valid)
    before = jnp.max(losses, initial=-jnp.inf, where=valid & ~is_last)
    is_sudden = diverged & (jnp.mean(losses, where=is_last) <= before)
    never_fell = (clarity.independent <= 1) | among_first
    problem = jnp.where(never_fell, jnp.where(is_sudden, _SUDDEN, _NEVER_FELL), problem)
    few = _DIVERGED if num_rows >= _MIN_ROWS else _TOO_FEW
    problem = jnp.where(valid.sum() < _MIN_ROWS, few, problem)
    return jnp.where(rows.mixed, _MIXED, problem)


def _doubts_of(
    rows: _Rows,
    within: _Within,
    clarity: _Clarity,
    jumps: jax.Array,
    diverged: jax.Array,
    has_risen: jax.Array,
) -> jax.Array:
    """Return which of the doubts there are, ``bool[d]``."""
    first_end = jnp.max(rows.position, initial=-jnp.inf, where=_is_first(rows.valid))
    begins_within = (rows.grid[within.lower] <= first_end) & (rows.grid[within.lowest] > first_end)
    highest_before = jax.lax.cummax(jnp.where(rows.valid, rows.position, -jnp.inf))
    rises = jnp.all(rows.position >= highest_before, where=rows.valid)
    is_cut = within.upper == _GRID_SIZE - 1
    return jnp.stack(
        [
            is_cut & ~diverged & rows.valid[-1],
            is_cut & ~diverged & ~rows.valid[-1],
            is_cut & diverged & ~has_risen,
            begins_within & rises,  # a falling sweep begins at the other end
            jnp.minimum(*clarity) <= _CLEAR,
            jumps & ~begins_within,  # there a model may learn much in a few rows
            ~rises,
            within.is_destroyed,
        ]
    )


def _descent(rows: _Rows, scales: _Scale, lowest: jax.Array) -> Descent:
    """Return the fall to the lowest average, of the losses as they are."""
    heights = jnp.minimum(rows.curves, scales.ceiling[:, None]) - scales.lowest[:, None]
    losses = jnp.where(rows.valid, _mean(heights / scales.typical[:, None]), jnp.nan)
    is_first = _is_first(jnp.isfinite(losses))
    num_first = is_first.sum(dtype=losses.dtype)
    order = jnp.arange(losses.shape[0])
    share = jnp.where(rows.valid, rows.weights[lowest], 0)
    share = share / jnp.maximum(share.sum(), 1e-30)
    first = jnp.mean(losses, where=is_first)
    average = _average(rows.weights, losses, rows.valid)
    fall = first - average[lowest]
    row = jnp.nanargmin(jnp.abs(rows.position - rows.grid[lowest]))
    is_before = is_first | (order < row)
    # In the order of the sweep, which may be downward: before a quarter of the fall was made.
    is_high = jnp.interp(rows.position, rows.grid, average) > first - fall / 4
    last_high = jnp.max(order, initial=-1, where=is_high & is_before)
    is_level = order <= last_high
    enough = is_level.sum() >= jnp.maximum(12, losses.shape[0] // 10)
    return Descent(
        losses,
        height=fall,
        relative_error=jnp.sqrt(jnp.sum(share**2) + 1 / num_first),
        is_before=is_before,
        is_level=jnp.where(enough, is_level, is_before),
    )


def _mean(columns: jax.Array) -> jax.Array:
    """Return the mean over curves, of those that have the row."""
    known = jnp.isfinite(columns)
    count = known.sum(0, dtype=columns.dtype)
    return jnp.where(known, columns, 0).sum(0) / jnp.maximum(count, 1)


class _Within(NamedTuple):
    """Where on the grid the valley is, indices ``i32[]``."""

    lower: jax.Array
    lowest: jax.Array
    upper: jax.Array
    is_destroyed: jax.Array  # bool[] whether it is likely that the model is, beyond it
    falls_again: jax.Array  # bool[] whether the loss falls again after it has risen


def _valley_of(average: jax.Array, grid: jax.Array) -> _Within:
    """Return the index of the lowest entry, between those of what is below half, in one piece.

    Where the loss does not rise by three quarters of its fall but by one, and stays there for two
    decades, the valley ends with that quarter: training began at a loss far worse than that of a
    guess, to which a model goes back that is destroyed.
    """
    index = jnp.arange(_GRID_SIZE)
    lowest = jnp.argmin(average)
    is_high = average > average[lowest] / 2
    lower = jnp.max(index, initial=-1, where=is_high & (index < lowest)) + 1
    upper = jnp.min(index, initial=_GRID_SIZE, where=is_high & (index > lowest)) - 1
    quarter = jnp.max(index, initial=0, where=average <= 0.75 * average[lowest])
    highest = jnp.max(average, initial=-jnp.inf, where=index > lowest)
    stays = (highest < 0.25 * average[lowest]) & (grid[-1] - grid[quarter] > 2)
    stays = stays & (quarter < upper)
    seen = jnp.where((index >= lowest) & jnp.isfinite(average), average, -jnp.inf)
    falls = jnp.where(jnp.isfinite(seen), jax.lax.cummax(seen) - seen, 0)
    falls_again = jnp.max(falls) > -_FALLS_AGAIN * average[lowest]
    return _Within(lower, lowest, jnp.where(stays, quarter, upper), stays, falls_again)


class _Scale(NamedTuple):
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
        has_ended = (jnp.cumsum(finite[::-1])[::-1] == 0) & ~jnp.asarray(ran_out)
        height = jnp.where(finite, jnp.minimum(curve, self.ceiling), 0) - self.lowest
        height = jnp.arcsinh(height / self.unit)
        depth = jnp.clip(height / jnp.where(self.whole > 0, self.whole, 1) - 1, -2, 1)
        depth = jnp.where(self.whole > 0, depth, 0)
        return jnp.where(finite, depth, jnp.where(has_ended, 1, jnp.nan))

    def loss(self, depth: jax.Array) -> jax.Array:
        """Return the loss that has this depth."""
        return self.lowest + self.unit * jnp.sinh((depth + 1) * self.whole)


def _scale(curve: jax.Array, valid: jax.Array, weights: jax.Array) -> _Scale:
    finite = valid & jnp.isfinite(curve)
    first = jnp.mean(jnp.where(finite, curve, 0), where=_is_first(finite))
    lowest_row = jnp.min(curve, initial=jnp.inf, where=finite)
    ceiling = first + 2 * jnp.maximum(first - lowest_row, 0)
    curve = jnp.where(finite, jnp.minimum(curve, ceiling), 0)
    average = _average(weights, curve, finite)
    lowest = jnp.argmin(average)
    fall = jnp.maximum(first - average[lowest], 0)
    at_lowest = deviation(curve, jnp.where(finite, weights[lowest], 0))
    anywhere = typical_deviation(jnp.where(finite, curve, jnp.nan))
    unit, typical = (
        jnp.where(noise > 0, noise, 1)
        for noise in jnp.maximum(jnp.stack([at_lowest, anywhere]), _LEAST_NOISE * fall)
    )
    whole = jnp.arcsinh((first - average[lowest]) / unit)
    return _Scale(average[lowest], unit, whole, ceiling, typical)


def _average(weights: jax.Array, rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the weighted averages of the valid rows; inf where all of them are far away."""
    total = weights @ valid.astype(weights.dtype)
    near = total > _LEAST_WEIGHT
    average = (weights @ jnp.where(valid, rows, 0)) / jnp.where(near, total, 1)
    return jnp.where(near, average, jnp.inf)


def _is_first(known: jax.Array) -> jax.Array:
    """Return which of the rows that are known tell the loss before training."""
    return known & (jnp.cumsum(known) <= max(3, known.shape[0] // 20))


def _is_last(valid: jax.Array) -> jax.Array:
    """Return which rows tell whether the loss had risen when the test ended."""
    return valid & (jnp.cumsum(valid[::-1])[::-1] <= _NUM_LAST)


def _gaussian(distance: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * jnp.square(distance / _WIDTH))


def spread(curve: Curve) -> tuple[float, float] | None:
    """Return the lowest and highest suggestion of the single curves; None if there is one."""
    lanes = [jnp.reshape(column, (-1, column.shape[-1])) for column in curve[:3]]
    if len(lanes[0]) == 1:
        return None
    of_lanes = [jnp.broadcast_to(part, curve.losses.shape[:-1]).reshape(-1) for part in curve[3:]]
    valleys, _, _ = jax.vmap(_find_valley)(*lanes, *of_lanes)
    rates = np.asarray(suggest(valleys))
    found = rates[np.isfinite(rates)]
    return (float(found.min()), float(found.max())) if found.size > 1 else None
