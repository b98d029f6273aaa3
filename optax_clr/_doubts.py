"""Why a curve cannot be read, and what makes a reading doubtful."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import numpy as np

from optax_clr._arrays import Array, numpy_of
from optax_clr._documentation import see
from optax_clr._fall import Clarity, Fall
from optax_clr._noise import mean_where, together, typical_deviation
from optax_clr._order import drifts, jumps
from optax_clr._valley import GRID_SIZE, MIN_ROWS, Rows, Within, first_rows, last_rows, mean

# The last rows, which ended the test, have risen if they lie this many standard deviations of the
# noise above the first rows.
RISEN = 4.0
# With fewer rows, wandering is not known well enough to refuse a test: it only leaves a doubt.
_ROWS_TO_KNOW_WANDER = 200
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


class Problem(enum.IntEnum):
    """Why a curve cannot be read."""

    NONE = 0
    TOO_FEW_ROWS = 1
    DIVERGED_AT_ONCE = 2
    NEVER_FELL = 3
    WANDERS = 4
    FALLS_AT_ONCE = 5
    MIXED_SWEEPS = 6
    ENDED_SUDDENLY = 7
    TOO_FEW_TO_TELL = 8
    ENDED_BEFORE_THE_FALL = 9


PROBLEMS = {
    Problem.TOO_FEW_ROWS: (
        f"too few points: a curve needs at least {MIN_ROWS} rows with a finite loss, at positive "
        f"rates that differ. Test with more steps. {see('reading/#too-few-steps')}"
    ),
    Problem.DIVERGED_AT_ONCE: (
        f"the loss diverged at once: fewer than {MIN_ROWS} rows are finite. Begin at a smaller "
        "rate (min_lr); a loss that is NaN at any rate has another cause. "
        f"{see('reading/#too-high-a-start')}"
    ),
    Problem.NEVER_FELL: (
        "the loss never fell: no rate made it clearly lower than it was in the first rows. If it "
        "rose from the start, begin at a smaller rate (min_lr); if it stayed level, go on to a "
        "larger one (max_lr), or take four times the steps, best with a held-out batch (held_out), "
        "whose loss has less noise; if neither helps, this model cannot learn from this loss, or "
        f"has already learned all it can. {see('reading/#a-model-that-cannot-learn')}"
    ),
    Problem.WANDERS: (
        "the loss wanders: it fell, but not clearly by more than it strays where it is level. "
        "Where neighbouring batches are alike, shuffle the data; where they are shuffled, the test "
        "is too short to tell: take more steps, or have a held-out batch read (held_out), whose "
        f"loss has less noise. {see('reading/#batches-that-are-not-shuffled')}"
    ),
    Problem.FALLS_AT_ONCE: (
        "the loss falls from the first rows on: there is no level part from which to estimate the "
        "noise. Begin at a smaller rate (min_lr); if the loss falls there too, neighbouring "
        f"batches may be alike: shuffle the data. {see('reading/#too-high-a-start')}"
    ),
    Problem.MIXED_SWEEPS: (
        "the curves are of different sweeps: only those over the same rates, with one kind of "
        "optimizer, can be read together. Read each by itself: jax.vmap(lambda lane: "
        f"lane.bounds())(result). {see('sweeps/')}"
    ),
    Problem.ENDED_SUDDENLY: (
        "the test ended suddenly: it diverged before the loss had fallen or clearly risen. Shuffle "
        "the data; look for an example in them that is not finite, or an operation that "
        f"overflows. {see('reading/#other-doubts')}"
    ),
    Problem.TOO_FEW_TO_TELL: (
        "too few points to tell: the loss fell, but so few rows may differ as much by chance. Take "
        f"more steps, or of a grid more rates (num_values). {see('reading/#too-few-steps')}"
    ),
    Problem.ENDED_BEFORE_THE_FALL: (
        "the test ended before the loss fell, at the end of its batches or by an interrupt. Run it "
        "to its last row: a list or a data loader is read again when it runs out, a generator is "
        f"not. {see('range-test/#ending-early')}"
    ),
}


class Doubts(NamedTuple):
    """What makes a reading doubtful: whether it does, ``bool[]``, or what is said of it."""

    ends_within_valley: Any
    valley_is_endless: Any
    stopped_within_valley: Any
    ended_suddenly: Any
    begins_within_valley: Any
    is_faint: Any
    jumps: Any
    drifts: Any
    does_not_rise: Any
    is_destroyed: Any
    has_few_steps: Any


DOUBTS = Doubts(
    ends_within_valley=(
        "the end of the sweep cuts the valley: after its lowest point the loss did not rise by "
        "half of its fall, and the suggested rates may be far off. Go on to a larger rate "
        "(max_lr), and compare a training run at the suggested rate with one at a tenth of it. "
        f"{see('reading/#too-low-an-end')}"
    ),
    valley_is_endless=(
        "the valley has no end: over a factor of hundreds, and up to the end of the sweep, the "
        "loss did not rise by half of its fall. Do not go on to larger rates: a model that has "
        "broken down may have no higher loss than a guess there. The suggested rates may be far "
        "off, most often too high: compare a training run at the suggested rate with runs at a "
        f"tenth of it and at three times it. {see('reading/#other-doubts')}"
    ),
    stopped_within_valley=(
        "the test ended within the valley: after its lowest point the loss did not rise by half of "
        "its fall before the test ended, and the suggested rates may be too low. Run it to its "
        "last row. "
        f"{see('reading/#too-low-an-end')}"
    ),
    ended_suddenly=(
        "the test ended suddenly: it diverged, and the loss had not clearly risen before. If an "
        "example in the data is not finite, an operation overflows, or the batches come in an "
        "order by which their losses rise, that says nothing about the rate, and the suggested "
        f"rates may be far off. Look for it. {see('reading/#other-doubts')}"
    ),
    begins_within_valley=(
        "the start of the sweep cuts the valley: the loss had made half of its fall within the "
        "first rows, and the suggested rates may be too high. Begin at a smaller rate (min_lr), or "
        "space the rates geometrically (spacing='log') if they are spaced linearly. "
        f"{see('reading/#too-high-a-start')}"
    ),
    is_faint=(
        "the loss fell little in comparison with its noise: take more steps, larger batches "
        "(steps_per_value), or several seeds (jax.vmap), whose curves are read together. "
        f"{see('reading/#too-few-steps')}"
    ),
    jumps=(
        "the loss jumps: it fell by most of its fall at once, or fell again after it had risen, as "
        "it does where batches of one kind follow those of another, whatever the rate. Shuffle the "
        "data; if they are shuffled, take more steps, or several seeds (jax.vmap), whose curves "
        f"are read together. {see('reading/#batches-that-are-not-shuffled')}"
    ),
    drifts=(
        "the loss drifts: it moved by a large part of its fall where a model has hardly begun to "
        "learn, as it does where batches come in an order, by target, length or time. Shuffle the "
        "data, or have a held-out batch read (held_out); if they are shuffled, the loss falls in "
        "two stages, and the suggested rates may be far off. "
        f"{see('reading/#batches-that-are-not-shuffled')}"
    ),
    does_not_rise=(
        "the rates do not rise: what a low rate does to a model that a higher one has trained, or "
        "destroyed, says little, and the suggested rates may be far off. Sweep from the lowest "
        "rate to the highest."
    ),
    is_destroyed=(
        "after its lowest point the loss rose by less than half of its fall, and stayed: it is "
        "taken for that of a guess, by a model that is destroyed and began far worse. If it still "
        "learns there, the suggested rates may be too low. Look at the curve."
    ),
    has_few_steps=(
        "the steps are few for so wide a sweep: the suggested rates may be far off, most often too "
        "low. Take 20 steps or more for each factor of ten in the rate (num_steps, "
        "steps_per_value), or begin and end closer to the valley (min_lr, max_lr). "
        f"{see('reading/#too-few-steps')}"
    ),
)


class Evidence(NamedTuple):
    """What the curves show, by which problems and doubts are judged."""

    rows: Rows
    within: Within
    fall: Fall
    clarity: Clarity
    steps: Array  # f32[] equivalent steps at the lower end of the valley
    diverged: Array  # bool[] whether all curves did
    ended_suddenly: Array  # bool[] whether one ended before it rose


def problem_of(evidence: Evidence) -> Array:
    """Return the ``Problem``, ``i32[]``; of several, the one found last here counts."""
    rows, within, fall, clarity = evidence[:4]
    numpy = numpy_of(rows)
    num_rows, valid, is_first = rows.valid.shape[0], rows.valid, first_rows(rows.valid)
    can_tell = valid.sum() >= _ROWS_TO_KNOW_WANDER
    wanders = numpy.where(fall.begins_level, Problem.WANDERS, Problem.FALLS_AT_ONCE)
    problem = numpy.where(can_tell & (clarity.wandering <= 1), wanders, Problem.NONE)
    lowest_rate = rows.grid[within.lowest]
    among_first = (lowest_rate >= numpy.min(rows.position, initial=np.inf, where=is_first)) & (
        lowest_rate <= numpy.max(rows.position, initial=-np.inf, where=is_first)
    )
    never_fell = (clarity.independent <= 1) | among_first
    instead = numpy.where(
        (clarity.of_many > 1) & ~among_first, Problem.TOO_FEW_TO_TELL, Problem.NEVER_FELL
    )
    instead = numpy.where(~evidence.diverged & ~valid[-1], Problem.ENDED_BEFORE_THE_FALL, instead)
    is_sudden = evidence.diverged & ~_ends_high(rows)
    problem = numpy.where(
        never_fell, numpy.where(is_sudden, Problem.ENDED_SUDDENLY, instead), problem
    )
    # Enough losses may be finite, but too few of them at positive rates, or all at the same one.
    num_finite = numpy.isfinite(rows.curves).any(0).sum()
    has_few = (num_finite >= MIN_ROWS) | (num_rows < MIN_ROWS)
    few = numpy.where(has_few, Problem.TOO_FEW_ROWS, Problem.DIVERGED_AT_ONCE)
    is_sweep = rows.grid[-1] > rows.grid[0]
    problem = numpy.where((valid.sum() >= MIN_ROWS) & is_sweep, problem, few)
    return numpy.where(rows.mixed, Problem.MIXED_SWEEPS, problem)


def _ends_high(rows: Rows) -> Array:
    """Return whether the last rows lie above all before them, or clearly above the first."""
    numpy = numpy_of(rows)
    losses, is_last = mean(rows.curves), last_rows(rows.valid)
    before = numpy.max(losses, initial=-np.inf, where=rows.valid & ~is_last)
    # The highest loss so far is not enough: while the loss rises, a single batch may set it.
    noise = typical_deviation(together(losses, rows.valid))
    level = mean_where(losses, first_rows(rows.valid)) + RISEN * noise
    last = mean_where(losses, is_last)
    return ~((last <= before) & (last <= level))


def doubts_of(evidence: Evidence) -> Doubts:
    """Return which doubts there are."""
    rows, within, fall, clarity = evidence[:4]
    numpy = numpy_of(rows)
    first_end = numpy.max(rows.position, initial=-np.inf, where=first_rows(rows.valid))
    begins_within = (rows.grid[within.lower] <= first_end) & (rows.grid[within.lowest] > first_end)
    rises = ~numpy.any(numpy.diff(fall.position) < 0)
    is_cut = (within.upper == GRID_SIZE - 1) & ~evidence.diverged
    is_whole = is_cut & rows.valid[-1]
    # Count the steps that the sweep would have had before its start, had it begun near zero.
    part_before = 10 ** (rows.grid[0] - rows.grid[within.lower])
    are_few = evidence.steps < _FEW_STEPS * (1 - part_before)
    is_endless = rows.grid[within.upper] - rows.grid[within.lower] > _ENDLESS
    return Doubts(
        ends_within_valley=is_whole & ~is_endless,
        valley_is_endless=is_whole & is_endless,
        stopped_within_valley=is_cut & ~rows.valid[-1],
        ended_suddenly=evidence.ended_suddenly,
        begins_within_valley=begins_within & rises,  # a falling sweep begins at the other end
        is_faint=numpy.minimum(clarity.independent, clarity.wandering) <= _CLEAR,
        # Near the start of the sweep, a model may well learn much within a few rows.
        jumps=(within.falls_again | jumps(fall)) & ~begins_within,
        drifts=drifts(fall),
        does_not_rise=~rises,
        is_destroyed=within.is_destroyed,
        has_few_steps=are_few & ~begins_within,
    )
