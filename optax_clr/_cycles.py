"""Where cycles begin and end: the one clock that schedules, snapshots and averages share."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from optax_clr._arguments import INT32_MAX, as_step, whole_number

# Cycles of unequal length are looked up in a table; a mult very close to 1 would make it huge.
_MAX_TABLE_ROWS = 2**20
# Of the factor from the first cycle to the last: their lengths stay within the range of a float.
_MAX_GROWTH_BITS = 960


@dataclasses.dataclass(frozen=True)
class Cycles:
    r"""Consecutive cycles, of equal or geometrically changing length.

    Cycle :math:`i`, counted from 0, lasts

    .. math:: \max(1, \operatorname{round}(\text{steps} \cdot \text{mult}^i))

    steps. Everything is integer arithmetic, exact at every step from 0 to 2**31 - 1. Instances are
    frozen, hashable and picklable, so they can be static arguments of ``jax.jit``.

    Args:
      steps: length of cycle 0 in optimizer steps, a positive Python integer.
      mult: how many times longer each cycle is than the one before, a positive Python number.
        Below 1 cycles shrink, and ``num_cycles`` must be given.
      num_cycles: how many cycles there are; ``None`` means without end.

    Raises:
      TypeError: if a count is not an integer or ``mult`` is not a Python number.
      ValueError: if an argument is out of range, ``mult`` so close to 1 that over a million
        different cycles would have to be tabulated, or ``num_cycles`` so large that the last one
        is longer than any run.

    Example:
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
        if self.mult != 1:
            table(self)

    @property
    def total_steps(self) -> int | None:
        """Length of all the cycles together, a Python integer of any size; None without end."""
        if self.num_cycles is None:
            return None
        if self.mult == 1:
            return self.steps * self.num_cycles
        if isinstance(self.mult, int):
            return self.steps * int(self.mult**self.num_cycles - 1) // (self.mult - 1)
        return sum(length(self, cycle) for cycle in range(self.num_cycles))

    def index(self, step: ArrayLike) -> jax.Array:
        """Return the cycle that contains ``step``, i32; ``num_cycles`` after the last one."""
        step = as_step(step)
        if self.mult != 1:
            boundaries = jnp.asarray(table(self).boundaries)
            return jnp.searchsorted(boundaries, step, side="right").astype(jnp.int32)
        cycle = lax.div(step, np.int32(self.steps))
        return cycle if self.num_cycles is None else jnp.minimum(cycle, self.num_cycles)

    def fraction(self, step: ArrayLike) -> jax.Array:
        """Return how far into its cycle ``step`` is, f32 in [0, 1); 0 after the last cycle."""
        step = as_step(step)
        cycle = self.index(step)
        position = (step - self.start(cycle)).astype(jnp.float32)
        if self.mult != 1:
            fraction = position / pick(table(self).float_lengths, cycle)
        else:
            fraction = position / self.steps
        if self.num_cycles is not None:
            fraction = jnp.where(cycle < self.num_cycles, fraction, 0.0)
        # Near the end of a cycle of over 2**24 steps the quotient rounds to 1.
        return jnp.minimum(fraction, 1 - 2.0**-24)

    def is_end(self, step: ArrayLike) -> jax.Array:
        """Return whether ``step`` is the last of its cycle, bool: the moment for a snapshot."""
        step = as_step(step)
        if self.mult != 1:
            return step == pick(table(self).last_steps, self.index(step))
        is_end = lax.rem(step, np.int32(self.steps)) == self.steps - 1
        return is_end if self.num_cycles is None else is_end & (self.index(step) < self.num_cycles)

    def start(self, cycle: ArrayLike) -> jax.Array:
        """Return the first step of ``cycle``, i32; at most 2**31 - 1, which no step passes.

        ``start(num_cycles)`` is ``total_steps``, and so is that of any later cycle.
        """
        cycle = self._existing(cycle)
        if self.mult != 1:
            return pick(table(self).starts, cycle)
        return jnp.where(cycle > INT32_MAX // self.steps, INT32_MAX, cycle * self.steps)

    def length(self, cycle: ArrayLike) -> jax.Array:
        """Return the steps that ``cycle`` lasts, i32, at most 2**31 - 1; 0 after the last one.

        Where lengths differ, cycles that begin after step 2**31 - 1 are all given that length.
        """
        cycle = self._existing(cycle)
        if self.mult != 1:
            return pick(table(self).lengths, cycle)
        length = jnp.full_like(cycle, self.steps)
        return length if self.num_cycles is None else jnp.where(cycle < self.num_cycles, length, 0)

    def _existing(self, cycle: ArrayLike) -> jax.Array:
        """Return ``cycle`` held to those that exist, and to what follows them."""
        cycle = as_step(cycle, "cycle")
        return cycle if self.num_cycles is None else jnp.minimum(cycle, self.num_cycles)


class CycleTable(NamedTuple):
    """The cycles that an int32 step can reach, of which there are ``r``, and what follows them.

    Attributes:
      exact_lengths: their lengths as ``r`` Python integers of any size.
      float_lengths: ``f32[r + 1]`` the same; the last may be past 2**31. 1 for what follows.
      boundaries: i32, the first steps of all but cycle 0, and the end of the last if reachable.
      starts: ``i32[r + 1]`` first step of each, and of what follows, held to 2**31 - 1.
      lengths: ``i32[r + 1]`` length of each, and of what follows, held to 2**31 - 1.
      last_steps: ``i32[r + 1]`` last step of each, -1 where no step reaches it.
    """

    exact_lengths: tuple[int, ...]
    float_lengths: np.ndarray
    boundaries: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    last_steps: np.ndarray


@functools.lru_cache(maxsize=16)
def table(cycles: Cycles) -> CycleTable:
    """Tabulate cycles of unequal length; a float logarithm would miss their boundaries."""
    lengths: list[int] = []
    starts = [0]
    while starts[-1] <= INT32_MAX and len(lengths) != cycles.num_cycles:
        if len(lengths) == _MAX_TABLE_ROWS:
            raise ValueError(
                f"mult={cycles.mult} makes over {_MAX_TABLE_ROWS:,} cycles that differ in length. "
                "Use mult=1 for cycles of equal length, or a mult further from 1."
            )
        lengths.append(length(cycles, len(lengths)))
        starts.append(starts[-1] + lengths[-1])
    following = 0 if len(lengths) == cycles.num_cycles else INT32_MAX
    return CycleTable(
        exact_lengths=tuple(lengths),
        float_lengths=np.array([*map(float, lengths), 1.0], np.float32),
        boundaries=np.array([start for start in starts[1:] if start <= INT32_MAX], np.int32),
        starts=np.array([min(start, INT32_MAX) for start in starts], np.int32),
        lengths=np.array([min(each, INT32_MAX) for each in [*lengths, following]], np.int32),
        last_steps=np.array(
            [*(end - 1 if end - 1 <= INT32_MAX else -1 for end in starts[1:]), -1], np.int32
        ),
    )


def end_of_all(cycles: Cycles) -> int | None:
    """Return ``cycles.total_steps``, at most 2**31 - 1, which no step passes; None without end."""
    if cycles.num_cycles is None:
        return None
    end = cycles.steps * cycles.num_cycles if cycles.mult == 1 else int(table(cycles).starts[-1])
    return min(end, INT32_MAX)


def length(cycles: Cycles, cycle: int) -> int:
    """Length of a cycle as a Python integer of any size."""
    return max(1, round(cycles.steps * cycles.mult**cycle))


def pick(column: np.ndarray, cycle: jax.Array) -> jax.Array:
    """Return the entries of a table's column for ``cycle``; no index is out of range."""
    # A new array in the types that are on at this moment: JAX may remember one of the same column
    # from where 64-bit types were.
    column = column.astype(jax.dtypes.canonicalize_dtype(column.dtype))
    return jnp.take(jnp.asarray(column), cycle, mode="clip")


def _check_mult(mult: Any, num_cycles: int | None) -> float:
    allowed = "a positive Python number of at most 2**31 - 1"
    if isinstance(mult, bool) or not isinstance(mult, numbers.Real):
        raise TypeError(f"mult must be {allowed}, got {mult!r}.")
    if not 0 < float(mult) <= INT32_MAX:
        raise ValueError(f"mult must be {allowed}, got {mult!r}.")
    factor = int(mult) if isinstance(mult, numbers.Integral) else float(mult)
    if factor < 1 and num_cycles is None:
        raise ValueError(
            f"mult={factor} makes every cycle shorter than the one before; "
            "say with num_cycles how many there are."
        )
    if factor > 1 and num_cycles is not None:
        growth_bits = (num_cycles - 1) * math.log2(factor)
        if num_cycles > _MAX_TABLE_ROWS or growth_bits > _MAX_GROWTH_BITS:
            raise ValueError(
                f"num_cycles={num_cycles} cycles that grow by mult={factor} last longer than any "
                "run; use fewer, or num_cycles=None for cycles without end."
            )
    return factor
