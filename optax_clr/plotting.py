"""Figures of range tests and schedules. Needs Matplotlib: ``pip install "optax-clr[plot]"``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_clr._arguments import function, whole_number
from optax_clr._reading import LRBounds, RangeTestError
from optax_clr._result import RangeTestResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_range_test", "plot_schedule"]

_CURVE, _HELD_OUT, _BOUNDS, _SUGGESTION = "tab:blue", "tab:orange", "tab:green", "tab:red"


def plot_range_test(result: RangeTestResult, ax: Axes | None = None) -> Axes:
    """Draw the losses over the rates, the bounds of a cycle shaded; return the Axes.

    Raw losses are drawn faintly and smoothed ones strongly; with leading axes, such as seeds, the
    median of the smoothed curves and the band from the lowest to the highest. Held-out losses,
    where there are any, are a line of their own. Where the curve cannot be read there are no
    bounds, and the title says why.

    Args:
      result: what :func:`optax_clr.lr_range_test` or :func:`optax_clr.range_test` returned.
      ax: Matplotlib Axes to draw on; ``None`` makes a new figure. Nothing is shown or saved.

    Returns:
      The Axes.

    Raises:
      ImportError: if Matplotlib is not installed.
      TypeError: if ``result`` is no range test's or ``ax`` no Axes.

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
        raise TypeError(f"result must be a RangeTestResult, got {result!r}.")
    ax = _axes(ax)
    num_rows = result.losses.shape[-1]
    all_rates, losses, smoothed = (
        np.asarray(column, np.float64).reshape(-1, num_rows)
        for column in (result.learning_rates, result.losses, result.smoothed_losses)
    )
    recorded = np.isfinite(smoothed).any(0)
    rates = np.nanmax(all_rates[:, recorded], axis=0)
    losses, smoothed = losses[:, recorded], smoothed[:, recorded]
    if len(losses) == 1:
        ax.plot(rates, losses[0], color=_CURVE, alpha=0.4, lw=0.8, label="loss of each batch")
        ax.plot(rates, smoothed[0], color=_CURVE, lw=2, label="moving average")
    elif rates.size:
        low, high = np.nanmin(smoothed, axis=0), np.nanmax(smoothed, axis=0)
        label = f"{len(losses)} runs, lowest to highest"
        ax.fill_between(rates, low, high, color=_CURVE, alpha=0.25, lw=0, label=label)
        ax.plot(
            rates,
            np.nanmedian(smoothed, axis=0),
            color=_CURVE,
            lw=2,
            label="median of moving averages",
        )
    if np.size(result.held_out_losses):
        held_out = np.asarray(result.held_out_losses).reshape(-1, num_rows)[:, recorded]
        finite = np.isfinite(held_out).any(0)  # the median of NaN alone is a warning
        median = np.nanmedian(held_out[:, finite], axis=0)
        label = "held-out loss" + (", median" if len(held_out) > 1 else "")
        ax.plot(rates[finite], median, color=_HELD_OUT, lw=1.5, label=label)
    try:
        _draw_reading(ax, result.bounds(), float(result.suggest()))
    except RangeTestError as error:
        ax.set_title(f"cannot be read: {str(error).partition(':')[0]}")
    if np.isfinite(losses).any():
        _limit_losses(ax, losses, smoothed)
        ax.set_xscale("log" if (rates > 0).all() and _is_geometric(rates) else "linear")
        ax.legend(loc="upper left", frameon=False)
    return _labelled(ax, "learning rate", "loss")


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
      TypeError: if ``schedule`` is no function, ``num_steps`` no integer or ``ax`` no Axes.
      ValueError: if ``num_steps`` is below 1.

    Examples:
      >>> import matplotlib
      >>> matplotlib.use("agg")
      >>> ax = plot_schedule(optax_clr.triangular_schedule(0.1, 1.0, rise_steps=5), 20)
      >>> len(ax.lines[0].get_ydata())
      20
    """
    schedule = function("schedule", schedule, form="step -> value")
    steps = jnp.arange(whole_number("num_steps", num_steps))
    ax = _axes(ax)
    # By vmap, since some of Optax's schedules refuse arrays of steps.
    ax.plot(np.asarray(steps), np.asarray(jax.vmap(schedule)(steps)), color=_CURVE)
    return _labelled(ax, "step", "value")


def _axes(ax: Axes | None) -> Axes:
    """Return ``ax``, or those of a new figure."""
    try:
        from matplotlib import axes, pyplot
    except ImportError as error:
        raise ImportError(
            'optax_clr.plotting needs Matplotlib: pip install "optax-clr[plot]".'
        ) from error
    if ax is None:
        return pyplot.subplots(figsize=(8, 4.5), layout="constrained")[1]
    if not isinstance(ax, axes.Axes):
        raise TypeError(
            f"ax must be Matplotlib Axes, got {ax!r}. Those of a figure are figure.add_subplot()."
        )
    return ax


def _labelled(ax: Axes, x: str, y: str) -> Axes:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _draw_reading(ax: Axes, bounds: LRBounds, suggestion: float) -> None:
    base_value, peak_value = map(float, bounds)
    label = f"bounds() {base_value:.2g} to {peak_value:.2g}"
    ax.axvspan(base_value, peak_value, color=_BOUNDS, alpha=0.18, lw=0, label=label)
    label = f"suggest() {suggestion:.2g}"
    ax.axvline(suggestion, color=_SUGGESTION, ls="--", lw=1.2, label=label)


def _limit_losses(ax: Axes, losses: np.ndarray, smoothed: np.ndarray) -> None:
    """Show the valley and its rim, not how high a diverging loss went."""
    # The moving average lags behind the batch losses, and is lowest well above them.
    lowest = min(np.nanmin(smoothed), np.nanquantile(losses, 0.01))
    first = np.nanmax(smoothed[:, 0])
    fall = first - lowest
    if fall > 0:
        ax.set_ylim(lowest - 0.1 * fall, first + 0.6 * fall)


def _is_geometric(rates: np.ndarray) -> bool:
    """Whether the rates are spaced more evenly in their logarithm."""
    if rates.size < 2:
        return False
    return bool(np.ptp(np.diff(np.log(rates))) * np.mean(rates) <= np.ptp(np.diff(rates)))
