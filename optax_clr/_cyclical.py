"""Cycles between two values: Smith's triangular policies, and any other shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optax_clr import envelopes, waves
from optax_clr._arguments import float_dtype, real_scalar, whole_number
from optax_clr._cycles import Cycles
from optax_clr._heights import check_envelope, check_wave, scaled, shaped
from optax_clr._moments import between, climb, locator, moment
from optax_clr.envelopes import Envelope, exponential
from optax_clr.waves import Wave


def cyclical_schedule(
    base_value: ArrayLike,
    peak_value: ArrayLike,
    rise_steps: int,
    fall_steps: int | None = None,
    *,
    wave: Wave = waves.linear,
    envelope: Envelope | None = None,
    mult: float = 1,
    num_cycles: int | None = None,
) -> optax.Schedule:
    r"""Return a schedule that cycles between two values, with any wave, envelope and cycle length.

    In each cycle the height $h$ climbs linearly from 0 to 1 during the first
    ``rise_steps / (rise_steps + fall_steps)`` of its steps, and falls back to 0 during the rest.
    The value in cycle $i$ at step $t$ is

    $$
    \text{base} + (\text{peak} - \text{base}) \cdot \text{wave}(h)
    \cdot \text{envelope}(i, t)
    $$

    Args:
      base_value: scalar at both ends of every cycle, for any hyperparameter; may be traced.
      peak_value: scalar at the peak, the smaller of the two values for a momentum; may be traced.
      rise_steps: optimizer steps (not epochs) from base to peak in cycle 0, a Python integer.
      fall_steps: steps from peak to base; ``None`` means ``rise_steps``.
      wave: pure function from heights to heights, both in [0, 1]: ``waves.linear``,
        ``waves.cosine``, ``waves.welch`` or your own.
      envelope: pure function ``(cycle, step) -> scale`` that scales the amplitude:
        ``envelopes.halving``, ``envelopes.exponential(gamma)`` or your own; ``None`` keeps it at 1.
      mult: ratio of the length of each cycle to that of the one before, as in [`Cycles`][].
      num_cycles: number of cycles, after which the last value is held; ``None`` means no end.

    Returns:
      A pure function that maps the step, integers of any dtype and shape, to the value, an array
      of the same shape in float32 (in float64 if the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer, a value is not a real number, or a function is not
        callable.
      ValueError: if a count is below 1, a value is not finite, ``mult`` is out of range, or a
        function does not return one number for each height or step, or raises an integer to a
        negative power, which JAX makes 0.

    Examples:
      >>> welch = optax_clr.waves.welch
      >>> schedule = cyclical_schedule(0.0, 1.0, 2, wave=welch, mult=2, num_cycles=2)
      >>> print(schedule(jnp.arange(14)))
      [0.     0.75   1.     0.75   0.     0.4375 0.75   0.9375 1.     0.9375
       0.75   0.4375 0.     0.    ]

    References:
      Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3.
    """
    base_value = real_scalar("base_value", base_value)
    peak_value = real_scalar("peak_value", peak_value)
    rise_steps = whole_number("rise_steps", rise_steps)
    fall_steps = rise_steps if fall_steps is None else whole_number("fall_steps", fall_steps)
    steps = whole_number("rise_steps + fall_steps", rise_steps + fall_steps)
    wave = check_wave("wave", wave)
    envelope = None if envelope is None else check_envelope(envelope)
    cycles = Cycles(steps, mult, num_cycles)
    place_of = locator(cycles, lambda length: moment(length * rise_steps, steps))
    dtype = float_dtype(base_value, peak_value)

    def schedule(step: ArrayLike) -> jax.Array:
        place, peak, end = place_of(step)
        height, depth, _ = climb(place.position, peak, end, dtype)
        up, down = shaped(wave, height, depth)
        up, down = scaled(envelope, place.cycle, place.step, up, down)
        within = between(base_value, peak_value, up, down)
        if envelope is None:
            return within
        # Beyond the peak, "within" is a difference of two larger numbers, and so loses digits.
        beyond = jnp.asarray(base_value, dtype) + _difference(peak_value, base_value, dtype) * up
        return jnp.where(up > 1, beyond, within)

    return schedule


def _difference(high: ArrayLike, low: ArrayLike, dtype: DTypeLike) -> jax.Array:
    """Return ``high - low``; Python floats are subtracted before they are rounded."""
    if isinstance(high, float) and isinstance(low, float):
        return jnp.asarray(high - low, dtype)
    return jnp.asarray(high, dtype) - jnp.asarray(low, dtype)


def triangular_schedule(
    base_value: ArrayLike,
    peak_value: ArrayLike,
    rise_steps: int,
    fall_steps: int | None = None,
) -> optax.Schedule:
    r"""Return a schedule that climbs linearly from base to peak and back, without end.

    In a cycle of $r$ steps up and $f$ steps down, the value at position $p = t \bmod (r + f)$ is

    $$
    \text{base} + (\text{peak} - \text{base}) \cdot
    \min\left(\frac{p}{r}, \frac{r + f - p}{f}\right)
    $$

    Args:
      base_value: scalar at both ends of every cycle, for any hyperparameter; may be traced.
      peak_value: scalar at the peak, the smaller of the two values for a momentum; may be traced.
      rise_steps: optimizer steps (not epochs) from base to peak; Smith advises the number of
        steps in 2 to 10 epochs.
      fall_steps: steps from peak to base; ``None`` means ``rise_steps``.

    Returns:
      A pure function that maps the step, integers of any dtype and shape, to the value, an array
      of the same shape in float32 (in float64 if the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer or a value is not a real number.
      ValueError: if a count is below 1 or a value is not finite.

    Examples:
      >>> schedule = triangular_schedule(0.1, 0.5, rise_steps=4)
      >>> [f"{schedule(step):.1f}" for step in (0, 2, 4, 6, 8)]
      ['0.1', '0.3', '0.5', '0.3', '0.1']

      The matching momentum is a cycle whose peak is the smaller value:

      >>> momentum = triangular_schedule(0.95, 0.85, rise_steps=4)
      >>> [f"{momentum(step):.2f}" for step in (0, 2, 4, 6, 8)]
      ['0.95', '0.90', '0.85', '0.90', '0.95']

    References:
      Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3;
      the values are those of ``torch.optim.lr_scheduler.CyclicLR(mode="triangular")``.
    """
    return cyclical_schedule(base_value, peak_value, rise_steps, fall_steps)


def triangular2_schedule(
    base_value: ArrayLike,
    peak_value: ArrayLike,
    rise_steps: int,
    fall_steps: int | None = None,
) -> optax.Schedule:
    r"""Return a triangular schedule whose height halves after every cycle.

    With $h$ the height of the triangle at step $t$ and $i$ the cycle, counted from 0, the value is

    $$\text{base} + (\text{peak} - \text{base}) \cdot h \cdot 2^{-i}$$

    Args:
      base_value: scalar at both ends of every cycle, for any hyperparameter; may be traced.
      peak_value: scalar at the peak of cycle 0, may be traced.
      rise_steps: optimizer steps (not epochs) from base to peak; Smith advises the number of
        steps in 2 to 10 epochs.
      fall_steps: steps from peak to base; ``None`` means ``rise_steps``.

    Returns:
      A pure function that maps the step, integers of any dtype and shape, to the value, an array
      of the same shape in float32 (in float64 if the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer or a value is not a real number.
      ValueError: if a count is below 1 or a value is not finite.

    Examples:
      >>> schedule = triangular2_schedule(0.1, 0.5, rise_steps=2)
      >>> [f"{schedule(step):.1f}" for step in (0, 2, 4, 6, 8, 10)]
      ['0.1', '0.5', '0.1', '0.3', '0.1', '0.2']

    References:
      Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3;
      the values are those of ``torch.optim.lr_scheduler.CyclicLR(mode="triangular2")``.
    """
    return cyclical_schedule(
        base_value, peak_value, rise_steps, fall_steps, envelope=envelopes.halving
    )


def exp_range_schedule(
    base_value: ArrayLike,
    peak_value: ArrayLike,
    rise_steps: int,
    fall_steps: int | None = None,
    *,
    gamma: ArrayLike,
) -> optax.Schedule:
    r"""Return a triangular schedule whose height decays a little with every step.

    With $h$ the height of the triangle at step $t$, counted from 0 over all cycles, the value is

    $$\text{base} + (\text{peak} - \text{base}) \cdot h \cdot \gamma^t$$

    Args:
      base_value: scalar at both ends of every cycle, for any hyperparameter; may be traced.
      peak_value: scalar that cycle 0 climbs towards, may be traced.
      rise_steps: optimizer steps (not epochs) from base to peak; Smith advises the number of
        steps in 2 to 10 epochs.
      fall_steps: steps from peak to base; ``None`` means ``rise_steps``.
      gamma: positive scalar a little below 1, such as 0.99994; may be traced. Its precision
        is described under ``envelopes.exponential``.

    Returns:
      A pure function that maps the step, integers of any dtype and shape, to the value, an array
      of the same shape in float32 (in float64 if the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer or a value is not a real number.
      ValueError: if a count is below 1, a value is not finite, or ``gamma`` is not positive.

    Examples:
      >>> schedule = exp_range_schedule(0.0, 1.0, rise_steps=1, gamma=0.9)
      >>> [f"{schedule(step):.3f}" for step in range(6)]
      ['0.000', '0.900', '0.000', '0.729', '0.000', '0.590']

    References:
      Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3;
      the values are those of ``torch.optim.lr_scheduler.CyclicLR(mode="exp_range")``.
    """
    return cyclical_schedule(
        base_value, peak_value, rise_steps, fall_steps, envelope=exponential(gamma)
    )
