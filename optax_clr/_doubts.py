"""Why a curve cannot be read, and what makes a reading doubtful."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from optax_clr._arrays import Array, numpy_of
from optax_clr._documentation import see
from optax_clr._noise import (
    Descent,
    deviation,
    fall_in_errors,
    largest_drop,
    mean_where,
    together,
    typical_deviation,
)
from optax_clr._valley import (
    GRID_SIZE,
    MIN_ROWS,
    Rows,
    Scale,
    Within,
    average_of,
    first_rows,
    last_rows,
    mean,
)

# Required depth of the lowest average below the first losses, in standard errors of the difference:
# if rows are independent, and if they wander. Of 500 curves of pure noise of each kind, with 300
# rows, none is read if the noise is normal, exponential or lognormal, and at most 2% are if it is
# AR(1) with a correlation of .5 to .95; with 1,000 rows at most 1 in 150. Of 63 development tests
# of 300 rows none is refused.
_MIN_SIGNIFICANCE = 4.0
_MIN_WANDER_SIGNIFICANCE = 9.5
# Divided by the number of rows, and added to the first of these: few rows are a poor estimate of
# their own noise, and of curves of noise with 6 to 20 rows one in ten would be read.
_FOR_FEW_ROWS = 56.0
# Values of Fall.far_over_near. Up to the first, rows count as independent; from the second on, they
# wander; in between, the weighted geometric mean of the two significances counts.
_INDEPENDENT, _WALK = 1.1, 1.5
# The last rows, which ended the test, have risen if they lie this many standard deviations of the
# noise above the first rows.
RISEN = 4.0
# With fewer rows, wandering is not known well enough to refuse a test: it only leaves a doubt.
_ROWS_TO_KNOW_WANDER = 200
# A model that learns does not make this share of its fall at once, beyond two standard errors. The
# averages compared span at most this many decades each: over more, a drop may just be a steep fall.
# Of 451 development tests read without a doubt none jumps; of 343 of networks whose last layer is,
# or is not, initialised to zero, 3 do. If one of 5 to 10 classes follows another and nothing is
# learned, 1 to 5% of tests are read without a doubt, instead of 20 to 45%.
_JUMP, _JUMP_WIDTH = 0.45, 0.24
# Share of the rows on either side over which a jump lasts. Two outliers next to each other do not.
_JUMP_LENGTH = 1 / 50
# A fall of less than this many times the required significance is doubtful.
_CLEAR = 1.15
# Width in decades. If the sweep ends within a wider valley, a longer sweep would just read higher:
# of the six tasks of docs/study on which this happens four are read 1.3 to 60 times too high, and
# two 3 and 4 times too low. Within a narrower valley the reading is more often too low.
_ENDLESS = 2.75
# Fewest equivalent steps at the lower end of the valley: those of a sweep of 18 steps to a decade.
# In the development tests of docs/study the mean regret of a constant rate, without and with a
# held-out batch, is .18 and .20 with 9 steps to a decade, .12 and .10 with 19, .07 with 37.
_FEW_STEPS = 8.0

READABLE, _TOO_FEW, _DIVERGED, _NEVER_FELL, _WANDERS, _FALLS_AT_ONCE = range(6)
_MIXED, _SUDDEN, _FEW, _ENDED = range(6, 10)
PROBLEMS = (
    "",
    f"too few points: a curve needs at least {MIN_ROWS} rows with a finite loss, at positive rates "
    f"that differ. Test with more steps. {see('reading/#too-few-steps')}",
    f"the loss diverged at once: fewer than {MIN_ROWS} rows are finite. Begin at a smaller rate "
    "(min_lr); a loss that is NaN at any rate has another cause. "
    f"{see('reading/#too-high-a-start')}",
    "the loss never fell: no rate made it clearly lower than it was in the first rows. If it rose "
    "from the start, begin at a smaller rate (min_lr); if it stayed level, go on to a larger "
    "one (max_lr), or take four times the steps, best with a held-out batch (held_out), whose loss "
    "has less noise; if neither helps, this model cannot learn from this loss, or has already. "
    f"{see('reading/#a-model-that-cannot-learn')}",
    "the loss wanders: it fell, but not clearly by more than it strays where it is level. Where "
    "neighbouring batches are alike, shuffle the data; where they are shuffled, the test is too "
    "short to tell: take more steps, or have a held-out batch read (held_out), whose loss has less "
    f"noise. {see('reading/#batches-that-are-not-shuffled')}",
    "the loss falls from the first rows on: no level part is left to tell how far it strays by "
    "chance. Begin at a smaller rate (min_lr); if the loss falls there too, neighbouring batches "
    f"may be alike: shuffle the data. {see('reading/#too-high-a-start')}",
    "the curves are of different sweeps: only those over the same rates, with one kind of "
    "optimizer, can be read together. Read each by itself: "
    f"jax.vmap(lambda lane: lane.bounds())(result). {see('sweeps/')}",
    "the test ended suddenly: its losses were no longer finite, and had neither fallen nor risen "
    "before. Look for an example in the data that is not finite, or an operation that overflows. "
    f"{see('reading/#other-doubts')}",
    "too few points to tell: the loss fell, but so few rows may differ as much by chance. Take "
    f"more steps, or of a grid more rates (num_values). {see('reading/#too-few-steps')}",
    "the test ended before the loss fell, at the end of its batches or by an interrupt. Run it to "
    "its last row: a list or a data loader is read again when it runs out, a generator is not. "
    f"{see('range-test/#ending-early')}",
)
DOUBTS = (
    "the end of the sweep cuts the valley: after its lowest point the loss did not rise by half of "
    "its fall, and what is read may be far off. Go on to a larger rate (max_lr), and compare a run "
    "at what is read with one at a tenth of it. "
    f"{see('reading/#too-low-an-end')}",
    "the valley has no end: over a factor of hundreds, and up to the end of the sweep, the loss "
    "did not rise by half of its fall. Do not go on to larger rates: a model may be destroyed "
    "there whose loss is no higher than that of a guess. What is read may be far off, most often "
    "too high: compare a run at it with runs at a tenth of it and at three times it. "
    f"{see('reading/#other-doubts')}",
    "the test ended within the valley: after its lowest point the loss did not rise by half of its "
    "fall before the test ended, and what is read may be too low. Run it to its last row. "
    f"{see('reading/#too-low-an-end')}",
    "the test ended suddenly: its losses were no longer finite, and had not risen before. If an "
    "example in the data is not finite, or an operation overflows, that says nothing of the rate, "
    "and what is read may be far off, most often too low. Look for it. "
    f"{see('reading/#other-doubts')}",
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
    "the steps are few for so wide a sweep: what is read may be far off, most often too low. Take "
    "20 steps or more for each factor of ten in the rate (num_steps, steps_per_value), or begin "
    f"and end closer to the valley (min_lr, max_lr). {see('reading/#too-few-steps')}",
)


def descent_to(rows: Rows, scales: Scale, lowest: Array) -> Descent:
    """Return the fall to the lowest average, measured on the losses themselves, without asinh."""
    numpy = numpy_of(rows)
    heights = numpy.minimum(rows.curves, scales.ceiling[:, None]) - scales.lowest[:, None]
    losses = mean(heights / scales.typical[:, None])
    is_first = first_rows(rows.valid)
    num_first = is_first.sum(dtype=np.int32)
    first = mean_where(losses, is_first)
    average = average_of(rows.weights, losses, rows.valid)
    fall = first - average[lowest]
    share = numpy.where(rows.valid, rows.weights[lowest], 0)
    share = share / numpy.maximum(share.sum(), 1e-30)
    relative_error = numpy.sqrt(numpy.sum(share**2) + 1 / num_first.astype(share.dtype))
    losses, position, share = (
        together(column, rows.valid) for column in (losses, rows.position, share)
    )
    distance = numpy.abs(position - rows.grid[lowest])
    row = numpy.argmin(numpy.where(numpy.isnan(distance), np.inf, distance))
    num_before = numpy.maximum(num_first, row.astype(np.int32))
    height = (numpy.interp(position, rows.grid, average) - average[lowest]) / fall
    is_level, begins_level = _level_part(height, num_before)
    return Descent(
        losses,
        position,
        height=fall,
        relative_error=relative_error,
        noise_at_end=deviation(losses, share),
        num_before=num_before,
        is_level=is_level,
        begins_level=begins_level,
    )


def _level_part(height: Array, num_before: Array) -> tuple[Array, Array]:
    """Return the rows that tell how far the loss strays by chance, and whether it begins with them.

    ``height`` is that of the average at each row, 1 at the first rows and 0 where it is lowest.
    These are the rows up to where a quarter of the fall is made, in the order of the sweep, which
    may be downward. If these are too few, since the sweep begins within the fall, they are those in
    the last quarter of it; and if these are too few, all before the lowest average.
    """
    numpy = numpy_of(height)
    row = np.arange(height.shape[0], dtype=np.int32)
    enough = numpy.maximum(12, numpy.isfinite(height).sum(dtype=np.int32) // 10)
    last_high = numpy.max(row, initial=-1, where=(height > 3 / 4) & (row < num_before))
    is_low = height < 1 / 4
    is_long = is_low.sum(dtype=np.int32) >= enough
    otherwise = numpy.where(is_long, is_low, row < num_before)
    begins_level = last_high + 1 >= enough
    return numpy.where(begins_level, row <= last_high, otherwise), begins_level


class Clarity(NamedTuple):
    """The significance of the fall over the required one."""

    independent: Array  # if rows are independent
    wandering: Array  # if rows are as correlated as they are where the curve is level
    of_many: Array  # if rows are independent, by what is required of many rows


def clarity_of(rows: Rows, descent: Descent) -> Clarity:
    """Return how clear the fall is."""
    numpy = numpy_of(rows)
    fall = fall_in_errors(descent)
    num_valid = numpy.maximum(rows.valid.sum(dtype=np.float32), 1)
    least = _MIN_SIGNIFICANCE + _FOR_FEW_ROWS / num_valid
    is_walk = numpy.clip((fall.far_over_near - _INDEPENDENT) / (_WALK - _INDEPENDENT), 0, 1)
    of_many = fall.independent / _MIN_SIGNIFICANCE
    of_walk = fall.wandering / _MIN_WANDER_SIGNIFICANCE
    return Clarity(fall.independent / least, of_many ** (1 - is_walk) * of_walk**is_walk, of_many)


def _is_jump(descent: Descent) -> Array:
    """Return whether a large part of the fall is clearly made at once."""
    drops = [largest_drop(descent, _JUMP_WIDTH, share) for share in (0.0, _JUMP_LENGTH)]
    is_large = [drop.height - 2 * drop.error > _JUMP * descent.height for drop in drops]
    return is_large[0] & is_large[1]


def problem_of(
    rows: Rows, lowest_rate: Array, descent: Descent, clarity: Clarity, diverged: Array
) -> Array:
    """Return the index into ``PROBLEMS``; of several problems, the one found last here counts."""
    numpy = numpy_of(rows)
    num_rows, valid, is_first = rows.valid.shape[0], rows.valid, first_rows(rows.valid)
    can_tell = valid.sum() >= _ROWS_TO_KNOW_WANDER
    wanders = numpy.where(descent.begins_level, _WANDERS, _FALLS_AT_ONCE)
    problem = numpy.where(can_tell & (clarity.wandering <= 1), wanders, READABLE)
    among_first = (lowest_rate >= numpy.min(rows.position, initial=np.inf, where=is_first)) & (
        lowest_rate <= numpy.max(rows.position, initial=-np.inf, where=is_first)
    )
    losses, is_last = mean(rows.curves), last_rows(valid)
    before = numpy.max(losses, initial=-np.inf, where=valid & ~is_last)
    # The highest loss so far is not enough: while the loss rises, a single batch may set it.
    noise = typical_deviation(together(losses, valid))
    level = mean_where(losses, is_first) + RISEN * noise
    last = mean_where(losses, is_last)
    is_sudden = diverged & (last <= before) & (last <= level)
    never_fell = (clarity.independent <= 1) | among_first
    instead = numpy.where((clarity.of_many > 1) & ~among_first, _FEW, _NEVER_FELL)
    instead = numpy.where(~diverged & ~valid[-1], _ENDED, instead)
    problem = numpy.where(never_fell, numpy.where(is_sudden, _SUDDEN, instead), problem)
    # Enough losses may be finite, but too few of them at positive rates, or all at the same one.
    num_finite = numpy.isfinite(rows.curves).any(0).sum()
    has_few = (num_finite >= MIN_ROWS) | (num_rows < MIN_ROWS)
    few = numpy.where(has_few, _TOO_FEW, _DIVERGED)
    is_sweep = rows.grid[-1] > rows.grid[0]
    problem = numpy.where((valid.sum() >= MIN_ROWS) & is_sweep, problem, few)
    return numpy.where(rows.mixed, _MIXED, problem)


def doubts_of(
    rows: Rows,
    within: Within,
    steps: Array,
    descent: Descent,
    clarity: Clarity,
    diverged: Array,
    ended_suddenly: Array,
) -> Array:
    """Return which of ``DOUBTS`` apply, ``bool[d]``.

    ``steps`` is the number of equivalent steps at the lower end of the valley; ``diverged`` is
    whether all curves diverged, ``ended_suddenly`` whether one ended before it rose.
    """
    numpy = numpy_of(rows)
    first_end = numpy.max(rows.position, initial=-np.inf, where=first_rows(rows.valid))
    begins_within = (rows.grid[within.lower] <= first_end) & (rows.grid[within.lowest] > first_end)
    rises = ~numpy.any(numpy.diff(descent.position) < 0)
    is_cut = within.upper == GRID_SIZE - 1
    is_whole = is_cut & ~diverged & rows.valid[-1]
    # Count the steps that the sweep would have had before its start, had it begun near zero.
    part_before = 10 ** (rows.grid[0] - rows.grid[within.lower])
    are_few = steps < _FEW_STEPS * (1 - part_before)
    is_endless = rows.grid[within.upper] - rows.grid[within.lower] > _ENDLESS
    return numpy.stack(
        [
            is_whole & ~is_endless,
            is_whole & is_endless,
            is_cut & ~diverged & ~rows.valid[-1],
            ended_suddenly,
            begins_within & rises,  # a falling sweep begins at the other end
            numpy.minimum(clarity.independent, clarity.wandering) <= _CLEAR,
            # Near the start of the sweep, a model may well learn much within a few rows.
            (within.falls_again | _is_jump(descent)) & ~begins_within,
            ~rises,
            within.is_destroyed,
            are_few & ~begins_within,
        ]
    )
