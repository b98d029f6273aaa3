"""Reading a range test: from the curve of losses over rates to the rates to train with."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optax_clr._arrays import Array, each, numpy_of
from optax_clr._curve import Curve
from optax_clr._doubts import (
    DOUBTS,
    PROBLEMS,
    RISEN,
    Doubts,
    Evidence,
    Problem,
    doubts_of,
    problem_of,
)
from optax_clr._fall import clarity_of, fall_to
from optax_clr._noise import mean_where
from optax_clr._tracing import any_traced
from optax_clr._valley import (
    GRID_SIZE,
    MIN_ROWS,
    Rows,
    Scale,
    after_last,
    average_of,
    centred,
    highest,
    last_rows,
    locate_valley,
    mean,
    rows_of,
    scale_of,
)

# Fitted to the development tasks of docs/study/suggestions.py, over all three lengths of tests.
_CONSTANT = 1 / 18
# peak_ratio over 1,000 steps of one cycle, and of four triangular cycles whose base is a quarter.
_ONE_CYCLE = 2.637
_PEAK = 1.758
# No rate that is read exceeds this share of the valley's upper end, if the test reached it. In a
# longer test of a model that is slow to start, the lower end hardly moves down, so what is read
# would rise with the square root of the length.
_HIGHEST = 0.7
# This many rows without a loss at the end of a curve may be a gap; more mean that it ended early.
_LONGEST_GAP = 3
# In docs/study/suggestions.txt 1/4 and 1/10 have a mean regret of .09, 1/2 and 1/50 of .11. Smith,
# 1506.01186, section 3.3, has a third or a quarter.
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


# Show the warning for every result: by default Python shows the same text only once per source
# line. Appended last, so that the caller's own filters take precedence.
warnings.filterwarnings("always", category=RangeTestWarning, append=True)


class Valley(NamedTuple):
    """Where the loss is low, ``f32[]`` each."""

    lower: Array  # rate at which the loss has made half of its fall
    upper: Array  # rate at which it has risen by half of its fall again
    steps: Array  # equivalent steps at the lower rate
    factor: Array  # for the kind of optimizer
    limit: Array  # no rate that is read is higher; inf if the test did not reach the upper end


def suggest(valley: Valley) -> Array:
    """Return the constant rate, the valley's centre times ``sqrt(steps) / 18``.

    On 22 held-out tasks, the median validation loss after training is 5, 5 and 3%
    above that with the best rate, after tests of 300, 600 and 1,000 steps; the geometric mean is
    14, 9 and 9% (docs/pages/suggestions.md).
    """
    return peak(valley, 1.0)


def peak(valley: Valley, ratio: ArrayLike) -> Array:
    """Return ``ratio`` times the constant rate, or the limit if that is lower."""
    numpy = numpy_of((valley, ratio))
    return numpy.minimum(_CONSTANT * _centre(valley) * ratio, valley.limit)


def one_cycle_peak(valley: Valley) -> Array:
    """Return the peak of one cycle, 2.64 times the constant rate, since it ends at a low rate.

    On the same tasks the median is 4, 3 and 2%.
    """
    return peak(valley, _ONE_CYCLE)


def bounds(valley: Valley) -> LRBounds:
    """Return the bounds of a cycle: a peak of 1.76 times the constant rate.

    On the same tasks the median is 6, 5 and 5%. The base is a quarter of the peak. In
    docs/study/suggestions.txt that has a mean regret of .09, and so has a tenth of the peak; bases
    read from where the loss begins to fall or stagnates have .10.
    """
    peak_value = peak(valley, _PEAK)
    return LRBounds(_BASE_OF_PEAK * peak_value, peak_value)


def _centre(valley: Valley) -> Array:
    """Return the valley's centre, corrected for the length of the test and the optimizer's kind.

    Twice the rate learns as much in half the steps, so a longer test moves the lower end of the
    valley down in proportion, and the centre down by the square root: multiplying by the root of
    the equivalent steps undoes that. The upper end, where training becomes unstable, does not
    depend on the length.
    """
    sqrt = numpy_of(valley).sqrt  # of each number: their product may be out of float32's range
    return valley.factor * sqrt(valley.lower) * sqrt(valley.upper) * sqrt(valley.steps)


def read_valley(curve: Curve) -> Valley:
    """Return the valley, and warn of its doubts at the line that called the result's method."""
    valley, doubts = find_valley(read_curve(curve))
    for doubt in doubts:
        warnings.warn(doubt, RangeTestWarning, stacklevel=5)  # the caller of a method of the result
    return valley


def find_valley(reading: Reading) -> tuple[Valley, list[str]]:
    """Return the valley and its doubts, or raise; if traced, NaN for an error, and no doubts."""
    if any_traced(reading):
        return reading.valley, []
    problem = Problem(int(reading.problem))
    if problem != Problem.NONE:
        raise RangeTestError(PROBLEMS[problem])
    doubts = zip(reading.doubts, DOUBTS, strict=True)
    return reading.valley, [text for is_doubted, text in doubts if is_doubted]


def read_curve(curve: Curve) -> Reading:
    """Return what a curve says, read once for everything that is shown of it.

    Uses NumPy when the curve is concrete: compiling takes seconds, again for every new length.
    """
    read = _read_compiled if numpy_of(curve) is jnp else _read
    with np.errstate(all="ignore"):  # from entries that are masked afterwards
        losses, constants = centred(curve.losses)
        reading: Reading = read(*curve._replace(losses=losses))
    return reading._replace(constants=constants)


def averages(reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """Return the averages that are read, one per curve: rates ``[g]`` and losses ``[c, g]``."""
    losses = np.asarray(reading.averages) + np.reshape(reading.constants, (-1, 1))
    return np.asarray(reading.rates), losses


class Reading(NamedTuple):
    """What a curve says; in the caller's jitted program, XLA drops the parts that are not used."""

    valley: Valley  # NaN if the curve cannot be read
    problem: Array  # i32[], a Problem
    doubts: Doubts
    rates: Array  # f32[g] grid of the averages
    averages: Array  # f32[c, g] average losses of each curve, less its constant
    constants: Any = ()  # subtracted from each curve before reading


def _read(
    learning_rates: Array,
    losses: Array,
    equivalent_steps: Array,
    diverged: Array,
    ran_out: Array,
    factor: Array,
) -> Reading:
    numpy = numpy_of(losses)
    rows = rows_of(learning_rates, losses)
    rows = rows._replace(mixed=rows.mixed | (factor.min() < factor.max()))
    scales = each(lambda curve: scale_of(curve, rows.valid, rows.weights))(rows.curves)
    ran_out = numpy.broadcast_to(ran_out.reshape(-1), rows.curves.shape[:1])
    depths = each(lambda scale, *curve: scale.depth(*curve, rows.valid))(
        scales, rows.curves, ran_out
    )
    average = average_of(rows.weights, mean(depths), rows.valid)
    within = locate_valley(average, rows.grid)
    steps, progress = _steps_at(within.lower, rows, equivalent_steps)
    fall = fall_to(rows, scales, within.lowest, progress)
    has_risen = each(functools.partial(_has_risen, half=average[within.lowest] / 2))(
        rows.curves, depths, scales
    )
    # A curve that ended before the others, for an unknown reason, counts as diverged.
    has_exploded = each(lambda curve: _ends_before(curve, rows.valid))(rows.curves) & ~ran_out
    evidence = Evidence(
        rows,
        within,
        fall,
        clarity_of(rows, fall),
        steps,
        diverged=diverged.all(),
        ended_suddenly=numpy.any((diverged.reshape(-1) | has_exploded) & ~has_risen),
    )
    problem = problem_of(evidence)
    found = problem == Problem.NONE
    valley = _valley_of(evidence, factor)
    return Reading(
        valley=jax.tree.map(lambda part: numpy.where(found, part, np.nan), valley),
        problem=problem,
        doubts=doubts_of(evidence),
        rates=10**rows.grid,
        averages=each(functools.partial(_losses_read, rows))(rows.curves, scales),
    )


_read_compiled = jax.jit(_read)


def _steps_at(lower: Array, rows: Rows, equivalent_steps: Array) -> tuple[Array, Array]:
    """Return the equivalent steps at the lower end of the valley, and how far each row is from it.

    That is log10 of the sum of the rates up to the row, over their sum up to the lower end.
    """
    numpy, num_rows = numpy_of(rows), rows.valid.shape[0]
    steps = highest(equivalent_steps.reshape(-1, num_rows).astype(np.float32))
    at_lower = numpy.exp(average_of(rows.weights[lower][None], numpy.log(steps), rows.valid)[0])
    log_sum = numpy.log10(at_lower) + rows.grid[lower]
    return at_lower, numpy.log10(steps) + rows.position - log_sum


def _valley_of(evidence: Evidence, factor: Array) -> Valley:
    rows, within = evidence.rows, evidence.within
    lower, upper = 10 ** rows.grid[within.lower], 10 ** rows.grid[within.upper]
    is_known = (within.upper < GRID_SIZE - 1) | evidence.diverged  # whether the upper end is
    return Valley(
        lower,
        upper,
        steps=evidence.steps,
        factor=factor.mean(),  # all the same, or the curves are refused as mixed
        limit=numpy_of(rows).where(is_known, _HIGHEST * upper, np.inf),
    )


def _has_risen(curve: Array, depth: Array, scale: Scale, half: Array) -> Array:
    """Return whether a curve had risen when it ended: by half of its fall, or above its start."""
    known = numpy_of(curve).isfinite(curve)
    is_last = last_rows(known)
    rises = scale.has_fallen() & (mean_where(depth, is_last) > half)
    is_above = mean_where(curve, is_last) > scale.loss(0 * scale.whole) + RISEN * scale.typical
    return (known.sum() >= MIN_ROWS) & (rises | is_above)


def _ends_before(curve: Array, valid: Array) -> Array:
    """Return whether a curve ends more rows before the others than a gap may have."""
    known = numpy_of(curve).isfinite(curve) & valid
    return (valid & after_last(known)).sum() > _LONGEST_GAP


def _losses_read(rows: Rows, curve: Array, scale: Scale) -> Array:
    """Return the average of one curve on the grid, as losses."""
    numpy = numpy_of(rows)
    finite = rows.valid & numpy.isfinite(curve)
    depth = scale.depth(curve, True, rows.valid)
    read = scale.loss(average_of(rows.weights, depth, finite))
    # A curve that never fell has no depth: average its losses directly.
    plain = average_of(rows.weights, numpy.minimum(curve, scale.ceiling), finite)
    return numpy.where(scale.whole > 0, read, plain)


def spread(curve: Curve) -> tuple[float, float] | None:
    """Return the lowest and highest suggestion of single curves; None below two suggestions."""
    num_rows, leading = np.shape(curve.losses)[-1], np.shape(curve.losses)[:-1]
    if math.prod(leading) == 1:
        return None
    numpy = numpy_of(curve)
    columns = curve.learning_rates, curve.losses, curve.equivalent_steps
    lanes = [numpy.reshape(column, (-1, num_rows)) for column in columns]
    of_tests = curve.diverged, curve.ran_out, curve.factor
    of_lanes = [numpy.broadcast_to(part, leading).reshape(-1) for part in of_tests]
    rates = np.asarray(suggest(each(read_curve)(Curve(*lanes, *of_lanes)).valley))
    found = rates[np.isfinite(rates)]
    return (float(found.min()), float(found.max())) if found.size > 1 else None
