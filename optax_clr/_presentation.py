"""A range test as people see it: in a few lines of text, and as a figure.

Both are methods of ``RangeTestResult``, which passes itself and the curve that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from optax_clr import _drawing, _reading
from optax_clr._batch_facts import ONE_EXAMPLE
from optax_clr._curve import Curve, EndedBy
from optax_clr._documentation import see

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rule = Callable[[jax.Array, jax.Array], Any]  # rates and losses to a rate
# Three digits look more exact than they are. From the table of the page, after tests of 300 steps.
_ACCURACY = (
    "On six or seven of ten held-out tasks such rates were within 3x of the best. "
    f"{see('suggestions/#how-far-from-the-best-rate')}"
)


def summary(result: Any, curve: Curve) -> str:
    """Return what a test showed, in a few lines of text."""
    rates, losses = np.asarray(result.learning_rates), np.asarray(curve.losses)
    num_rows = rates.shape[-1]
    by_curve = losses.reshape(-1, num_rows)
    num_curves = len(by_curve)
    curves = f"{num_curves} curves of {num_rows} rows" if num_curves > 1 else f"{num_rows} rows"
    if not np.isfinite(losses).any():
        return f"Range test: {curves}, none with a finite loss."
    is_known = np.isfinite(by_curve)
    first = by_curve[np.arange(num_curves), is_known.argmax(1)][is_known.any(1)]
    reading = _reading.read_curve(curve)
    _, averages = _reading.averages(reading)
    name = "Held-out loss" if np.size(result.held_out_losses) else "Loss"
    batch_sizes = set(np.ravel(result.batch_size).tolist())
    lines = [
        f"Range test: {curves}, learning rate {np.nanmin(rates):.3g} to {np.nanmax(rates):.3g}, "
        f"{_end(result, num_rows, num_curves)}{_batches(batch_sizes)}.",
        f"{name}: starts at {np.nanmean(first):.3g}; {_lowest(averages, losses)}.",
    ]
    try:
        valley, doubts = _reading.find_valley(reading)
    except _reading.RangeTestError as error:
        return "\n".join([*lines, f"Cannot be read: {error}"])
    base_value, peak_value = _reading.bounds(valley)
    lines += [
        f"suggest()         {_reading.suggest(valley):.3g}  a constant rate",
        f"bounds()          {base_value:.3g} to {peak_value:.3g}  a cycle's base and peak",
        f"one_cycle_peak()  {_reading.one_cycle_peak(valley):.3g}  the peak of one cycle",
        _ACCURACY,
    ]
    if (factor := float(np.mean(curve.factor))) != 1:
        lines.append(f"These include a factor of {factor:.3g} for the kind of optimizer.")
    if spread := _reading.spread(curve):
        lines.append(f"suggest() of the single curves: {spread[0]:.3g} to {spread[1]:.3g}.")
    if batch_sizes == {0}:
        doubts = [*doubts, ONE_EXAMPLE]
    lines += [f"In doubt: {doubt}" for doubt in doubts]
    return "\n".join(lines)


def _end(result: Any, num_rows: int, num_curves: int) -> str:
    """Return how a test ended."""
    num_valid = np.asarray(result.num_valid)
    stopped = int((num_valid < num_rows).sum())
    if num_curves > 1:
        return f"{stopped} ended early"
    if not stopped:
        return "ended at the last rate"
    return f"ended after {num_valid.max()} of them ({_reason(result)})"


def _reason(result: Any) -> str:
    """Return what ended a test before its last value."""
    if not np.size(result.ended_by):
        return "diverged, or out of batches"
    if result.ended_by == EndedBy.END_OF_DATA:
        return "out of batches"
    return "interrupted" if result.ended_by == EndedBy.INTERRUPT else "diverged"


def _batches(sizes: set[int]) -> str:
    """Return the size of the batches, if all had the same."""
    if len(sizes) != 1:
        return ""
    return f"; batches of {max(sizes) or 'a single example'}"


def _lowest(averages: np.ndarray, losses: np.ndarray) -> str:
    known = averages[np.isfinite(averages)]
    if not known.size:
        return "it has no average"
    # Rounding may put the average below all losses, and below 0.
    return f"its lowest average is {max(known.min(), np.nanmin(losses)):.3g}"


def draw(result: Any, curve: Curve, ax: Axes | None, rules: Sequence[Rule]) -> Axes:
    """Draw the losses of a test and the rates read from them; return the Axes."""
    reading = _reading.read_curve(curve)
    by_rules = [float(rule(result.learning_rates, result.smoothed_losses)) for rule in rules]
    ax = _drawing.pyplot_axes(ax)  # last, since a new figure stays in pyplot if drawing fails
    _draw_curves(result, curve, ax, *_reading.averages(reading))
    _draw_reading(ax, reading)
    for number, (rule, rate) in enumerate(zip(rules, by_rules, strict=True)):
        _drawing.draw_rule(ax, number, getattr(rule, "__name__", repr(rule)), rate)
    _drawing.add_legend(ax)
    return _drawing.labelled(ax, "learning rate", "loss")


def _draw_curves(
    result: Any, curve: Curve, ax: Axes, grid: np.ndarray, averages: np.ndarray
) -> None:
    """Draw the averages, and for a single test also the losses."""
    num_rows = curve.losses.shape[-1]
    columns = (result.learning_rates, result.losses, curve.losses)
    all_rates, training, read = (
        np.asarray(column, np.float64).reshape(-1, num_rows) for column in columns
    )
    recorded = np.isfinite(all_rates).any(0)
    rates = np.nanmax(all_rates[:, recorded], axis=0) if recorded.any() else np.empty(0)
    is_held_out = bool(np.size(result.held_out_losses))
    if len(read) == 1:
        _drawing.draw_losses(ax, rates, training[0, recorded], held_out=False)
        if is_held_out:
            _drawing.draw_losses(ax, rates, read[0, recorded], held_out=True)
    averages = np.where(np.isfinite(averages), averages, np.nan)
    drawn = np.isfinite(averages).any(0) & np.isfinite(grid)
    if drawn.any():
        _drawing.draw_averages(ax, grid[drawn], averages[:, drawn], held_out=is_held_out)
        _drawing.limit_losses(ax, read, averages[:, drawn])
        ax.set_xscale("log" if _drawing.is_geometric(rates) else "linear")


def _draw_reading(ax: Axes, reading: _reading.Reading) -> None:
    """Draw the rates that are read, or say why there are none."""
    try:
        valley, doubts = _reading.find_valley(reading)
    except _reading.RangeTestError as error:
        ax.set_title(f"cannot be read: {_beginning(str(error))}")
        return
    _drawing.draw_bounds(ax, *map(float, _reading.bounds(valley)))
    _drawing.draw_suggestion(ax, float(_reading.suggest(valley)))
    _drawing.draw_peak(ax, float(_reading.one_cycle_peak(valley)))
    if doubts:
        ax.set_title(f"in doubt: {'; '.join(map(_beginning, doubts))}")


def _beginning(message: str) -> str:
    return message.partition(":")[0]
