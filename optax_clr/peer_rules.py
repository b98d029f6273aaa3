"""The rules by which other systems read a range test, as plain functions, for comparison.

Each takes the rates and losses of one sweep (smoothed, if the other system smooths), works under
``jax.jit`` and ``jax.vmap``, and never draws. Curves with leading axes, such as one per seed, are
averaged first. Rows from the first NaN on are left out: [`optax_clr.RangeTestResult`][] pads with
NaN. fastai also leaves out the first tenth of the rows and the last five before it applies its
rules; slice them off to do the same.

This library's own readings, [`optax_clr.RangeTestResult.suggest`][] and the methods beside it, do
not use these rules.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from optax_clr._arguments import real_scalar, whole_number
from optax_clr._curve import check_shapes, float_column, gathered
from optax_clr._modes import undisturbed
from optax_clr._tracing import is_traced

__all__ = ["minimum", "slide", "steepest", "valley"]


@undisturbed()
def steepest(learning_rates: jax.Array, losses: jax.Array) -> jax.Array:
    r"""Return the rate at which the loss falls fastest, per factor of the rate.

    $$\operatorname{argmin}_i \frac{L_{i+1} - L_i}{\log \eta_{i+1} - \log \eta_i}$$

    Args:
      learning_rates: ``f32[..., n]`` positive rates in the order of the sweep, ``n >= 2``.
      losses: ``f32[..., n]`` losses at them.

    Returns:
      ``f32[]`` the rate; NaN if fewer than two rows are valid.

    Raises:
      TypeError: if a column does not hold real numbers.
      ValueError: if the shapes differ, there is no curve, ``n < 2``, a rate is not positive, or
        curves are over different rates.

    Examples:
      >>> rates = jnp.array([0.001, 0.01, 0.1, 1.0])
      >>> print(steepest(rates, jnp.array([2.0, 1.9, 0.5, 0.4])))
      0.01

    References:
      fastai, ``steep`` in ``callback/schedule.py``. torch-lr-finder and Lightning differ in how
      they take the slope: per row and per unit of the rate.
    """
    rates, curve, valid = _one_curve(learning_rates, losses, minimum_rows=2)
    slopes = jnp.diff(curve) / jnp.diff(jnp.log(rates))
    slopes = jnp.where(valid[1:] & ~jnp.isnan(slopes), slopes, jnp.inf)  # NaN between infinities
    return jnp.where(valid[1], rates[jnp.argmin(slopes)], jnp.nan)


@undisturbed()
def minimum(learning_rates: jax.Array, losses: jax.Array) -> jax.Array:
    r"""Return a tenth of the rate of the lowest loss.

    $$\eta_{\operatorname{argmin}_i L_i} / 10$$

    Args:
      learning_rates: ``f32[..., n]`` positive rates in the order of the sweep.
      losses: ``f32[..., n]`` losses at them.

    Returns:
      ``f32[]`` the rate; NaN if no row is valid.

    Raises:
      TypeError: if a column does not hold real numbers.
      ValueError: if the shapes differ, there is no row, a rate is not positive, or curves are
        over different rates.

    Examples:
      >>> rates = jnp.array([0.001, 0.01, 0.1, 1.0])
      >>> print(f"{minimum(rates, jnp.array([2.0, 1.9, 0.5, 0.7])):.3f}")
      0.010

    References:
      fastai, ``minimum`` in ``callback/schedule.py``.
    """
    rates, curve, valid = _one_curve(learning_rates, losses, minimum_rows=1)
    lowest = jnp.argmin(jnp.where(valid, curve, jnp.inf))
    return jnp.where(valid[0], rates[lowest] / 10, jnp.nan)


@undisturbed()
def valley(learning_rates: jax.Array, losses: jax.Array) -> jax.Array:
    """Return the rate halfway along the longest valley: the longest falling subsequence.

    The subsequence is taken as the rows from its end back by its length, and divided into thirds;
    the rate is that in the middle of the second third, with indices rounded down.

    Args:
      learning_rates: ``f32[..., n]`` positive rates in the order of the sweep, ``n >= 2``.
      losses: ``f32[..., n]`` losses at them. Time is quadratic in ``n``.

    Returns:
      ``f32[]`` the rate; NaN if fewer than two rows are valid.

    Raises:
      TypeError: if a column does not hold real numbers.
      ValueError: if the shapes differ, there is no curve, ``n < 2``, a rate is not positive, or
        curves are over different rates.

    Examples:
      >>> rates = jnp.geomspace(1e-3, 1.0, 7)
      >>> print(f"{valley(rates, jnp.array([3.0, 3.1, 2.5, 2.0, 1.0, 0.5, 4.0])):.4f}")
      0.0032

    References:
      fastai, ``valley`` in ``callback/schedule.py``, its default.
    """
    rates, curve, valid = _one_curve(learning_rates, losses, minimum_rows=2)
    lengths = _falling_lengths(curve, valid)
    end = jnp.argmax(lengths)
    # A curve that never falls has no subsequence: fastai then starts and ends at row 0.
    length = jnp.where(lengths[end] > 1, lengths[end], 0)
    # The exact third and the exact sixth of the length, each rounded down.
    middle = end - length + length // 3 + length // 6
    # With two falling rows at the start this is -1, which indexes the last row, as in fastai.
    middle = jnp.where(middle < 0, valid.sum() - 1, middle)
    return jnp.where(valid[1], rates[middle], jnp.nan)


@undisturbed()
def slide(
    learning_rates: jax.Array,
    losses: jax.Array,
    *,
    interval: int = 15,
    threshold: ArrayLike = 0.005,
) -> jax.Array:
    """Return the rate left of the interval that slides down the final rise until it is level.

    From the end backwards, the first interval whose slopes per row, at both ends, differ by at
    most ``threshold``; the rate is that at the left end of the interval before.

    Args:
      learning_rates: ``f32[..., n]`` positive rates in the order of the sweep, ``n > interval``.
      losses: ``f32[..., n]`` losses at them.
      interval: width of the interval in rows, a positive Python integer.
      threshold: difference of slopes in units of the loss, so scaling the loss changes the answer.

    Returns:
      ``f32[]`` the rate; NaN if no more than ``interval`` rows are valid.

    Raises:
      TypeError: if ``interval`` is not an integer, ``threshold`` not a real number, or a column
        does not hold real numbers.
      ValueError: if the shapes differ, ``interval`` is below 1, ``threshold`` or a rate not
        positive, ``n <= interval``, or curves are over different rates.

    Examples:
      >>> rates = jnp.geomspace(1e-3, 1.0, 40)
      >>> rise = jnp.maximum(jnp.arange(40.0) - 30, 0)
      >>> losses = 1 + 0.1 * rise**2
      >>> print(f"{slide(rates, losses):.4f}")
      0.0143

    References:
      fastai, ``slide`` in ``callback/schedule.py``.
    """
    interval = whole_number("interval", interval)
    threshold = real_scalar("threshold", threshold, positive=True)
    rates, curve, valid = _one_curve(learning_rates, losses, minimum_rows=interval + 1)
    num_valid = valid.sum()
    row = jnp.arange(curve.shape[0])
    slopes = _slope_per_row(curve, num_valid)
    right = row + interval
    steep = jnp.abs(jnp.take(slopes, right, mode="clip") - slopes) > threshold
    inside = right < num_valid
    # The level interval nearest the end; without one, the interval slides past the first row.
    level = jnp.max(row, initial=-1, where=inside & ~steep)
    left = jnp.minimum(level + 1, num_valid - 1 - interval)
    return jnp.where(num_valid > interval, rates[left], jnp.nan)


@jax.jit
def _falling_lengths(curve: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the length of the longest falling subsequence that ends at each row, 0 in padding."""
    row = jnp.arange(curve.shape[0])

    def extend(i: jax.Array, lengths: jax.Array) -> jax.Array:
        before = (row < i) & (curve > curve[i]) & valid
        return lengths.at[i].set(1 + jnp.max(lengths, initial=0, where=before))

    lengths = lax.fori_loop(1, curve.shape[0], extend, jnp.ones_like(row))
    return jnp.where(valid, lengths, 0)


def _slope_per_row(curve: jax.Array, num_valid: jax.Array) -> jax.Array:
    """Return the central differences of the valid rows, one-sided at both ends of them."""
    row = jnp.arange(curve.shape[0])
    after = jnp.minimum(row + 1, num_valid - 1)
    before = jnp.maximum(row - 1, 0)
    rise = jnp.take(curve, after, mode="clip") - curve[before]
    return rise / jnp.maximum(after - before, 1).astype(curve.dtype)


def _one_curve(
    learning_rates: jax.Array, losses: jax.Array, minimum_rows: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return rates, mean losses over the leading axes, and which rows come before any NaN."""
    learning_rates, losses = _checked_columns(learning_rates, losses)
    num_rows = losses.shape[-1]
    if num_rows < minimum_rows:
        raise ValueError(f"losses must have at least {minimum_rows} rows, got {num_rows}.")
    # All sweeps are over the same rates: if one has ended, another may still have the rate.
    learning_rates = learning_rates.reshape(-1, num_rows)
    rates = jnp.nanmax(learning_rates, axis=0)
    if not is_traced(learning_rates) and learning_rates.is_fully_addressable:
        _check_rates(np.asarray(learning_rates), np.asarray(rates))
    curve = losses.reshape(-1, num_rows).mean(0)
    valid = jnp.cumprod(~jnp.isnan(curve)).astype(bool)
    return rates, curve, valid


def _checked_columns(learning_rates: ArrayLike, losses: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Check that both have the same shape ``[..., n]``, and return them as JAX float arrays."""
    columns = float_column("learning_rates", learning_rates), float_column("losses", losses)
    check_shapes(*columns)
    if not math.prod(columns[1].shape[:-1]):
        raise ValueError(f"losses must have at least one curve, got shape {columns[1].shape}.")
    rates, curves = (gathered(jnp.asarray(column)) for column in columns)
    return rates, curves


def _check_rates(learning_rates: np.ndarray, rates: np.ndarray) -> None:
    if (wrong := rates[rates <= 0]).size:
        raise ValueError(f"learning_rates must be positive, got {wrong[0]}.")
    if np.any((learning_rates != rates[None]) & ~np.isnan(learning_rates)):
        raise ValueError(
            "learning_rates must be the same in all curves, which are averaged. Apply the rule to "
            "each: jax.vmap(rule)(learning_rates, losses)."
        )
