"""Where cycles begin and end, for schedules, snapshots and averages alike."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from optax_clr._arguments import INT32_MAX, as_step, is_plain_number, whole_number
from optax_clr._tracing import is_on_explicit_axes
from optax_clr._words import shown

# The most cycles that ``total_steps`` sums one by one, if they go past the last int32 step.
_MAX_UNREACHABLE = 2**20
# Largest log2 of the ratio of the last length to the first: lengths must fit in a float.
_MAX_GROWTH_BITS = 960


@dataclasses.dataclass(frozen=True)
class Cycles:
    r"""Consecutive cycles, of equal or geometrically changing length.

    Cycle $i$, counted from 0, lasts

    $$\max(1, \operatorname{round}(\text{steps} \cdot \text{mult}^i))$$

    steps. Steps are counted in integers, exactly for every step from 0 to ``2**31 - 1``. Instances
    are frozen, hashable and picklable, so they can be static arguments of ``jax.jit``.

    Args:
      steps: length of cycle 0 in optimizer steps, a positive Python integer.
      mult: ratio of the length of each cycle to that of the one before, a positive Python number.
        Below 1 the cycles shrink, and ``num_cycles`` must be given.
      num_cycles: number of cycles; ``None`` means that they never end.

    Raises:
      TypeError: if a count is not an integer or ``mult`` is not a Python number.
      ValueError: if an argument is out of range, or ``num_cycles`` is so large that growing
        cycles last longer than any run.

    Examples:
      >>> import jax.numpy as jnp
      >>> cycles = Cycles(2, mult=2, num_cycles=2)
      >>> cycles.total_steps
      6
      >>> print(cycles.index(jnp.arange(8)))
      [0 0 1 1 1 1 2 2]
      >>> print(cycles.is_end(jnp.arange(8)))
      [False  True False False False  True False False]
    """

    steps: int
    mult: float = 1
    num_cycles: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole_number("steps", self.steps))
        if self.num_cycles is not None:
            object.__setattr__(self, "num_cycles", whole_number("num_cycles", self.num_cycles))
        object.__setattr__(self, "mult", _check_mult(self.mult, self.num_cycles))
        if self.mult != 1 and self.num_cycles is not None:
            _check_num_cycles(self, self.num_cycles)

    @property
    def total_steps(self) -> int | None:
        r"""Total length of the cycles, a Python integer of any size; None if they never end.

        $$\sum_{i < \text{num\_cycles}} \text{length}(i)$$

        Examples:
          >>> Cycles(2, mult=2, num_cycles=3).total_steps  # 2 + 4 + 8
          14
        """
        if self.num_cycles is None:
            return None
        if self.mult == 1:
            return self.steps * self.num_cycles
        if isinstance(self.mult, int):
            return self.steps * int(self.mult**self.num_cycles - 1) // (self.mult - 1)
        end = table(self).end
        return end or sum(exact_length(self, cycle) for cycle in range(self.num_cycles))

    def index(self, step: ArrayLike) -> jax.Array:
        r"""Return the cycle that contains ``step``.

        $$\max \{i : \text{start}(i) \le t\}$$

        Args:
          step: integers of any dtype and shape, counted from 0.

        Returns:
          ``i32`` in the shape of ``step``, counted from 0; ``num_cycles`` after the last cycle.

        Raises:
          TypeError: if ``step`` is not an integer.

        Examples:
          >>> print(Cycles(2, mult=2, num_cycles=2).index(jnp.arange(8)))
          [0 0 1 1 1 1 2 2]
        """
        step = as_step(step)
        cycle = locate(self, step).cycle
        return cycle if self.num_cycles is None else self._or_over(cycle, step, self.num_cycles)

    def fraction(self, step: ArrayLike) -> jax.Array:
        r"""Return how far into its cycle ``step`` is.

        $$(t - \text{start}(i)) / \text{length}(i), \quad i = \text{index}(t)$$

        Args:
          step: integers of any dtype and shape, counted from 0.

        Returns:
          ``f32`` in [0, 1), in the shape of ``step``; 0 after the last cycle.

        Raises:
          TypeError: if ``step`` is not an integer.

        Examples:
          >>> print(Cycles(2, mult=2, num_cycles=2).fraction(jnp.arange(8)))
          [0.   0.5  0.   0.25 0.5  0.75 0.   0.  ]
        """
        step = as_step(step)
        _, row, _, position = locate(self, step)
        length = self.steps if row is None else pick(table(self).float_lengths, row)
        fraction = self._or_over(position.astype(jnp.float32) / length, step, 0.0)
        # Near the end of a cycle of over 2**24 steps the quotient can round to 1.
        return jnp.minimum(fraction, 1 - 2.0**-24)

    def is_end(self, step: ArrayLike) -> jax.Array:
        r"""Return whether ``step`` is the last of its cycle: the time for a snapshot.

        $$t + 1 = \text{start}(i) + \text{length}(i), \quad i = \text{index}(t)$$

        Args:
          step: integers of any dtype and shape, counted from 0.

        Returns:
          ``bool`` in the shape of ``step``; False after the last cycle.

        Raises:
          TypeError: if ``step`` is not an integer.

        Examples:
          >>> print(Cycles(2, mult=2, num_cycles=2).is_end(jnp.arange(8)))
          [False  True False False False  True False False]
        """
        _, row, _, position = locate(self, as_step(step))
        # After the last cycle the position equals its length, so no step is an end. A cycle whose
        # length is cut to 2**31 - 1 has no last step in int32, unless that is its true length.
        return position + 1 == (self.steps if row is None else pick(table(self).lengths, row))

    def start(self, cycle: ArrayLike) -> jax.Array:
        r"""Return the first step of ``cycle``.

        $$\sum_{j < i} \text{length}(j)$$

        Args:
          cycle: integers of any dtype and shape, counted from 0.

        Returns:
          ``i32`` in the shape of ``cycle``, at most ``2**31 - 1``; for ``num_cycles`` and any later
          cycle, ``total_steps``.

        Raises:
          TypeError: if ``cycle`` is not an integer.

        Examples:
          >>> print(Cycles(2, mult=2, num_cycles=2).start(jnp.arange(4)))
          [0 2 6 6]
        """
        cycle = self._existing(cycle)
        if self.mult == 1:
            return jnp.where(cycle > INT32_MAX // self.steps, INT32_MAX, cycle * self.steps)
        row, cycle = _row_of(table(self), cycle)
        first, start, length = (
            pick(column, row)
            for column in (table(self).cycles, table(self).starts, table(self).lengths)
        )
        return start + (cycle - first) * length

    def length(self, cycle: ArrayLike) -> jax.Array:
        r"""Return the number of steps in ``cycle``.

        $$\max(1, \operatorname{round}(\text{steps} \cdot \text{mult}^i))$$

        Args:
          cycle: integers of any dtype and shape, counted from 0.

        Returns:
          ``i32`` in the shape of ``cycle``, at most ``2**31 - 1``; 0 after the last cycle. If
          ``mult`` is not 1, every existing cycle that begins after step ``2**31 - 1`` is reported
          with that length.

        Raises:
          TypeError: if ``cycle`` is not an integer.

        Examples:
          >>> print(Cycles(2, mult=2, num_cycles=2).length(jnp.arange(4)))
          [2 4 0 0]
        """
        cycle = self._existing(cycle)
        if self.mult == 1:
            length = jnp.full_like(cycle, self.steps)
        else:
            length = pick(table(self).lengths, _row_of(table(self), cycle)[0])
        return length if self.num_cycles is None else jnp.where(cycle < self.num_cycles, length, 0)

    def _existing(self, cycle: ArrayLike) -> jax.Array:
        """Return ``cycle``, or ``num_cycles`` for any cycle after the last one."""
        cycle = as_step(cycle, "cycle")
        return cycle if self.num_cycles is None else jnp.minimum(cycle, self.num_cycles)

    def _or_over(self, values: jax.Array, step: jax.Array, over: float) -> jax.Array:
        """Return ``values``, replaced by ``over`` where ``step`` is after the last cycle."""
        end = end_of_all(self)
        return values if end is None else jnp.where(step < end, values, over)


class CycleTable(NamedTuple):
    """Cycles of unequal length: ``r`` rows, one for each run of cycles of the same length.

    Every row has a different length, and the steps before 2**31 have room for 65,536 different
    lengths, so there are no more rows than that, however close to 1 ``mult`` is.

    Attributes:
      exact_lengths: the length of the cycles in each row, Python integers of any size.
      float_lengths: ``f32[r]`` the same as floats; the last may exceed 2**31.
      cycles: ``i32[r + 1]`` first cycle of each row, and the first that no step reaches; at most
        2**31 - 1.
      starts: ``i32[r + 1]`` first step of that cycle, at most 2**31 - 1.
      lengths: ``i32[r + 1]`` length of that cycle, at most 2**31 - 1; 0 after the last cycle.
      end: total steps of all cycles; None if the table does not have them all.
    """

    exact_lengths: tuple[int, ...]
    float_lengths: np.ndarray
    cycles: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    end: int | None


@functools.lru_cache(maxsize=16)
def table(cycles: Cycles) -> CycleTable:
    """Return the table of cycles of unequal length.

    A logarithm in floats would be simpler, but would miss some of the boundaries.
    """
    lengths: list[int] = []
    firsts, starts = [0], [0]
    while starts[-1] <= INT32_MAX and firsts[-1] != cycles.num_cycles:
        lengths.append(exact_length(cycles, firsts[-1]))
        num_equal = _num_equal(cycles, firsts[-1], starts[-1])
        firsts.append(firsts[-1] + num_equal)
        starts.append(starts[-1] + num_equal * lengths[-1])
    has_all = firsts[-1] == cycles.num_cycles
    return CycleTable(
        exact_lengths=tuple(lengths),
        float_lengths=np.array(list(map(float, lengths)), np.float32),
        cycles=np.array([min(first, INT32_MAX) for first in firsts], np.int32),
        starts=np.array([min(start, INT32_MAX) for start in starts], np.int32),
        lengths=np.array(
            [min(each, INT32_MAX) for each in [*lengths, 0 if has_all else INT32_MAX]], np.int32
        ),
        end=starts[-1] if has_all else None,
    )


def _num_equal(cycles: Cycles, first: int, start: int) -> int:
    """Return how many cycles from ``first`` on have its length, among those that a step reaches."""
    equal = exact_length(cycles, first)
    most = (INT32_MAX - start) // equal + 1
    if cycles.num_cycles is not None:
        most = min(most, cycles.num_cycles - first)
    # Lengths only grow or only shrink: double until they differ, then bisect.
    low, high = 1, 2
    while high < most and exact_length(cycles, first + high - 1) == equal:
        low, high = high, 2 * high
    high = min(high, most)
    while low < high:
        middle = (low + high + 1) // 2
        if exact_length(cycles, first + middle - 1) == equal:
            low = middle
        else:
            high = middle - 1
    return low


class Place(NamedTuple):
    """Where steps are: their cycles, and their positions within them.

    Attributes:
      step: ``i32[...]`` the steps, at most the end of all cycles.
      row: ``i32[...]`` row of the table; None for cycles of equal length, which need no table.
      cycle: ``i32[...]`` the cycle of each step.
      position: ``i32[...]`` steps since that cycle began.
    """

    step: jax.Array
    row: jax.Array | None
    cycle: jax.Array
    position: jax.Array


def locate(cycles: Cycles, step: jax.Array) -> Place:
    """Return the place of int32 steps; those after the last cycle are put at its end."""
    if cycles.num_cycles is not None:
        end = end_of_all(cycles)
        step = jnp.minimum(step, INT32_MAX if end is None else end)
    if cycles.mult == 1:
        cycle = _held(cycles, lax.div(step, np.int32(cycles.steps)))
        return Place(step, None, cycle, step - cycle * cycles.steps)
    columns = table(cycles)
    row = _last_at_most(columns.starts[:-1], step)
    first, start, length = (
        pick(column, row) for column in (columns.cycles, columns.starts, columns.lengths)
    )
    cycle = _held(cycles, first + lax.div(step - start, length))
    return Place(step, row, cycle, step - start - (cycle - first) * length)


def _held(cycles: Cycles, cycle: jax.Array) -> jax.Array:
    return cycle if cycles.num_cycles is None else jnp.minimum(cycle, cycles.num_cycles - 1)


def end_of_all(cycles: Cycles) -> int | None:
    """Return ``cycles.total_steps`` if a step can reach it, else None."""
    if cycles.num_cycles is None:
        return None
    end = cycles.steps * cycles.num_cycles if cycles.mult == 1 else table(cycles).end
    return end if end is not None and end <= INT32_MAX else None


def exact_length(cycles: Cycles, cycle: int) -> int:
    """Return the length of a cycle, a Python integer of any size."""
    return max(1, round(cycles.steps * cycles.mult**cycle))


def pick(column: np.ndarray, row: jax.Array) -> jax.Array:
    """Return the entries of a table's column at ``row``, which is never out of range."""
    # A new array in a dtype that is enabled now: JAX may have cached this column while 64-bit types
    # were enabled.
    column = column.astype(jax.dtypes.canonicalize_dtype(column.dtype))
    entries: jax.Array = _gather(column, row)
    return entries


@jax.jit
def _gather(column: jax.Array, row: jax.Array) -> jax.Array:
    column = jnp.asarray(column)  # a NumPy array if jit is disabled
    if not is_on_explicit_axes(row):
        return column.at[row].get(mode="clip")
    # Indexing on Explicit axes must say how the entries are sharded: unknown inside jax.vmap.
    along = (1,) * row.ndim + column.shape
    is_entry = row[..., None] == np.arange(len(column), dtype=np.int32).reshape(along)
    return jnp.where(is_entry, column.reshape(along), 0).sum(-1, dtype=column.dtype)


@jax.jit
def _bisect(column: jax.Array, values: jax.Array) -> jax.Array:
    def halve(_: jax.Array, rows: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = rows
        middle = (low + high + 1) // 2
        reached = _gather(column, middle) <= values
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle - 1)

    first = values - values  # zeros that are sharded like the values
    rows = first, first + (column.size - 1)
    row: jax.Array = lax.fori_loop(0, column.size.bit_length(), halve, rows)[0]
    return row


def _last_at_most(column: np.ndarray, values: jax.Array) -> jax.Array:
    """Return the last row at which an increasing column is at most the value, or row 0.

    ``jnp.searchsorted`` fails on values that are sharded over Explicit axes.
    """
    row: jax.Array = _bisect(column, values)
    return row


def _row_of(columns: CycleTable, cycle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the row of a cycle, and the cycle, cut to the first one that no step reaches."""
    cycle = jnp.minimum(cycle, columns.cycles[-1])
    return _last_at_most(columns.cycles, cycle), cycle


def _check_mult(mult: Any, num_cycles: int | None) -> float:
    allowed = "a positive Python number of at most 2**31 - 1"
    if not is_plain_number(mult):
        raise TypeError(f"mult must be {allowed}, got {shown(mult)}.")
    number: Any = mult  # as it is, since an integer may be too large for a float
    if not 0 < number <= INT32_MAX:
        raise ValueError(f"mult must be {allowed}, got {shown(mult)}.")
    # Equal values must be identical, 2.0 and 2: equal instances share cached tables and programs.
    factor = round(float(mult)) if float(mult).is_integer() else float(mult)
    if factor < 1 and num_cycles is None:
        raise ValueError(
            f"mult={factor} makes every cycle shorter than the one before, so give their number, "
            "num_cycles."
        )
    return factor


def _check_num_cycles(cycles: Cycles, num_cycles: int) -> None:
    """Raise if cycles past the last int32 step are too many, or grow too long, to be summed."""
    growth_bits = (num_cycles - 1) * math.log2(cycles.mult)
    is_huge = num_cycles > _MAX_UNREACHABLE or growth_bits > _MAX_GROWTH_BITS
    if is_huge and table(cycles).end is None:
        endless = ", or num_cycles=None for cycles without end" if cycles.mult > 1 else ""
        raise ValueError(
            f"num_cycles={num_cycles} cycles with mult={cycles.mult} last longer than any run; "
            f"use fewer{endless}."
        )
