"""Figures of range tests and schedules. Needs Matplotlib: ``pip install matplotlib``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
import optax

from optax_clr._arguments import function, whole_number
from optax_clr._drawing import labelled, pyplot_axes
from optax_clr._integer_powers import check_powers
from optax_clr._presentation import Rule
from optax_clr._result import RangeTestResult
from optax_clr._schedule_values import values_at
from optax_clr._words import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_range_test", "plot_schedule"]


def plot_range_test(
    result: RangeTestResult, ax: Axes | None = None, rules: Sequence[Rule] = ()
) -> Axes:
    """Draw a range test and the rates read from it: [`optax_clr.RangeTestResult.plot`][].

    Args:
      result: the result of [`optax_clr.lr_range_test`][] or [`optax_clr.range_test`][].
      ax: Matplotlib Axes to draw on; ``None`` makes a new figure. Nothing is shown or saved.
      rules: functions such as those of [`optax_clr.peer_rules`][], whose answers are drawn too.

    Returns:
      The Axes.

    Raises:
      ImportError: if Matplotlib is not installed.
      TypeError: if ``result`` is not a ``RangeTestResult``, ``ax`` not an Axes, or ``rules`` not
        a sequence of functions.

    Examples:
      >>> import matplotlib
      >>> matplotlib.use("agg")
      >>> rates = jnp.geomspace(1e-3, 10.0, 100)
      >>> losses = (jnp.log10(rates) - jnp.log10(0.5)) ** 2
      >>> ax = plot_range_test(optax_clr.RangeTestResult(rates, losses, losses, jnp.int32(100)))
      >>> ax.get_xlabel(), ax.get_xscale()
      ('learning rate', 'log')
    """
    if not isinstance(result, RangeTestResult):
        raise TypeError(
            f"result must be a RangeTestResult, what lr_range_test returns, got {shown(result)}."
        )
    return result.plot(ax, rules)


def plot_schedule(schedule: optax.Schedule, num_steps: int, ax: Axes | None = None) -> Axes:
    """Draw the value of a schedule at steps 0 to ``num_steps - 1``; return the Axes.

    Args:
      schedule: any Optax schedule that can be traced.
      num_steps: positive integer, how many steps to draw.
      ax: Matplotlib Axes to draw on; ``None`` makes a new figure. Nothing is shown or saved.

    Returns:
      The Axes.

    Raises:
      ImportError: if Matplotlib is not installed.
      TypeError: if ``schedule`` is not a function, ``num_steps`` not an integer, or ``ax`` not an
        Axes.
      ValueError: if ``num_steps`` is below 1, or ``schedule`` does not map each step to a number.

    Examples:
      >>> import matplotlib
      >>> matplotlib.use("agg")
      >>> ax = plot_schedule(optax_clr.triangular_schedule(0.1, 1.0, rise_steps=5), 20)
      >>> len(ax.lines[0].get_ydata())
      20
    """
    schedule = function("schedule", schedule, form="step -> value")
    steps = jnp.arange(whole_number("num_steps", num_steps))
    check_powers("schedule", schedule)
    values = values_at("schedule", schedule, steps)
    ax = pyplot_axes(ax)  # last, since a new figure stays in pyplot
    ax.plot(np.asarray(steps), np.asarray(values), color="tab:blue")
    return labelled(ax, "step", "value")
