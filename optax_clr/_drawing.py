"""The curve of a range test on Matplotlib's Axes, from plain arrays."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from optax_clr._words import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAINING, _HELD_OUT = "tab:blue", "tab:orange"
_SIZE, _DPI = (8, 4.5), 90
_RULES = ("tab:brown", "tab:pink", "tab:olive", "tab:cyan", "black", "tab:gray")


def pyplot_axes(ax: Axes | None) -> Axes:
    """Return ``ax``, or the Axes of a new figure of pyplot."""
    try:
        from matplotlib import axes, pyplot
    except ImportError as error:
        raise ImportError("Figures need Matplotlib: pip install matplotlib.") from error
    if ax is None:
        return pyplot.subplots(figsize=_SIZE, layout="constrained")[1]
    if not isinstance(ax, axes.Axes):
        raise TypeError(
            f"ax must be Matplotlib Axes, got {shown(ax)}. Those of a figure are "
            "figure.add_subplot()."
        )
    return ax


def hidden_figure() -> Figure | None:
    """Return a figure that pyplot does not know of; None without Matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=_SIZE, layout="constrained")


def as_html(figure: Figure, *, alternative: str) -> str:
    """Return the figure as an HTML image, with two pixels for each CSS pixel."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=2 * _DPI)
    code = base64.b64encode(image.getvalue()).decode()
    width = _SIZE[0] * _DPI
    return f'<img width="{width}" alt="{alternative}" src="data:image/png;base64,{code}">'


def labelled(ax: Axes, x: str, y: str) -> Axes:
    """Name both axes, and return the Axes."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def draw_losses(ax: Axes, rates: np.ndarray, losses: np.ndarray, *, held_out: bool) -> None:
    """Draw the losses ``[n]`` of one test, faintly."""
    color, label = (_HELD_OUT, "held-out loss") if held_out else (_TRAINING, "loss of each row")
    ax.plot(rates, losses, color=color, alpha=0.4, lw=0.8, label=label)


def draw_averages(ax: Axes, rates: np.ndarray, averages: np.ndarray, *, held_out: bool) -> None:
    """Draw the averages ``[c, g]`` that are read: one, or the median of several in their band."""
    color = _HELD_OUT if held_out else _TRAINING
    if len(averages) == 1:
        ax.plot(rates, averages[0], color=color, lw=2, label="average, which is read")
        return
    low, high = np.nanmin(averages, axis=0), np.nanmax(averages, axis=0)
    label = f"averages of {len(averages)} runs, lowest to highest"
    ax.fill_between(rates, low, high, color=color, alpha=0.25, lw=0, label=label)
    ax.plot(rates, np.nanmedian(averages, axis=0), color=color, lw=2, label="their median")


def draw_bounds(ax: Axes, base_value: float, peak_value: float) -> None:
    """Shade the rates between which a cycle moves."""
    label = f"bounds() {base_value:.2g} to {peak_value:.2g}"
    ax.axvspan(base_value, peak_value, color="tab:green", alpha=0.18, lw=0, label=label)


def draw_suggestion(ax: Axes, rate: float) -> None:
    """Draw the constant rate."""
    ax.axvline(rate, color="tab:red", ls="--", lw=1.4, label=f"suggest() {rate:.2g}")


def draw_peak(ax: Axes, rate: float) -> None:
    """Draw the peak of one cycle."""
    ax.axvline(rate, color="tab:purple", ls="-.", lw=1.4, label=f"one_cycle_peak() {rate:.2g}")


def draw_rule(ax: Axes, number: int, name: str, rate: float) -> None:
    """Draw the rate that another rule reads, each rule in a colour of its own."""
    color = _RULES[number % len(_RULES)]
    if np.isfinite(rate):
        ax.axvline(rate, color=color, ls=":", lw=1.4, label=f"{name} {rate:.2g}")
    else:
        ax.plot([], [], color=color, ls=":", lw=1.4, label=f"{name}: no answer")


def limit_losses(ax: Axes, losses: np.ndarray, averages: np.ndarray) -> None:
    """Show the valley and its rim, or a level curve and its noise, but not the whole explosion.

    Args:
      ax: the Axes.
      losses: ``[c, n]`` the losses that are averaged.
      averages: ``[c, g]`` the averages that are drawn, not all NaN.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        bends = np.abs(np.diff(losses, 2, axis=-1))
    bends = bends[np.isfinite(bends)]
    margin = 2 * np.median(bends) if bends.size else 0.0  # about three deviations of the noise
    drawn = averages[np.isfinite(averages)]
    first, lowest = np.nanmax(averages[:, 0]), drawn.min()
    fall = max(first - lowest, 0.0)
    # If the curve rises from the start, show at least its lower half.
    top = max(first + 0.6 * fall, np.median(drawn)) + margin
    bottom = min(lowest, np.quantile(losses[np.isfinite(losses)], 0.01)) - 0.1 * fall
    if np.isfinite(top - bottom) and top > bottom:
        ax.set_ylim(bottom, top)


def add_legend(ax: Axes) -> None:
    """Add a legend, above the level part of the curve."""
    num_entries = len(ax.get_legend_handles_labels()[0])
    if not num_entries:  # none of several curves has a row
        return
    ax.legend(loc="upper left", ncols=1 + (num_entries > 5), edgecolor="none", framealpha=0.8)


def is_geometric(rates: np.ndarray) -> bool:
    """Whether the rates are positive, and spaced more evenly in their logarithm."""
    if rates.size < 2 or not (rates > 0).all():
        return False
    return bool(np.ptp(np.diff(np.log(rates))) * np.mean(rates) <= np.ptp(np.diff(rates)))
