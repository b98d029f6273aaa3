"""Schedules: pure functions from the optimizer step to the value of a hyperparameter."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from optax_clr import envelopes, waves
from optax_clr._arguments import (
    INT32_MAX,
    as_step,
    float_dtype,
    function,
    known_float,
    real_scalar,
    shown,
    whole_number,
)
from optax_clr._cycles import Cycles, Place, exact_length, locate, pick, table
from optax_clr._heights import check_envelope, check_wave, scaled, shaped
from optax_clr.envelopes import Envelope, Exponential, exponential
from optax_clr.waves import Wave

# ------------------------------------------------------------------------------- times and values


class _Moment(NamedTuple):
    """A moment that may fall between two steps: ``whole + rest``, where ``abs(rest) <= 1/2``.

    The two are kept apart so that the distance from a step to the moment is right to a float32
    rounding. The whole part is limited to the int32 values from 0, so that the difference of two
    never overflows; what is beyond goes into the rest. Python numbers, or arrays of equal shape.
    """

    whole: Any
    rest: Any


def _moment(numerator: int, denominator: int = 1) -> _Moment:
    """Return the moment ``numerator / denominator``."""
    nearest = (2 * numerator + denominator) // (2 * denominator)
    whole = min(max(nearest, 0), INT32_MAX)
    return _Moment(whole, (numerator - whole * denominator) / denominator)


def _moment_at(time: float) -> _Moment:
    return _moment(*time.as_integer_ratio())


def _time_between(earlier: _Moment, later: _Moment, dtype: DTypeLike) -> jax.Array:
    whole, rest = later.whole - earlier.whole, later.rest - earlier.rest
    return jnp.asarray(whole, dtype) + jnp.asarray(rest, dtype)


def _climb(
    position: jax.Array, peak: _Moment, end: _Moment, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the height at ``position`` in a cycle, ``1 - height``, and whether it is rising."""
    now = _Moment(position, 0.0)
    until_peak = _time_between(now, peak, dtype)
    rising = until_peak > 0
    rise, fall = _time_between(_Moment(0, 0.0), peak, dtype), _time_between(peak, end, dtype)
    above_base = jnp.where(rising, position.astype(dtype), _time_between(now, end, dtype))
    slope = jnp.where(rising, rise, fall)
    return above_base / slope, jnp.abs(until_peak) / slope, rising


def _between(low: ArrayLike, high: ArrayLike, up: jax.Array, down: jax.Array) -> jax.Array:
    """Return the value ``up`` of the way from ``low`` to ``high``, where ``down`` is ``1 - up``.

    This form meets both ends exactly and keeps its digits near the smaller one.
    """
    return jnp.asarray(low, up.dtype) * down + jnp.asarray(high, up.dtype) * up


def _locator(
    cycles: Cycles, peak_of: Callable[[int], _Moment]
) -> Callable[[ArrayLike], tuple[Place, _Moment, _Moment]]:
    """Return a function from steps to their places, and the peaks and ends of their cycles.

    After the last cycle every step is at the end of that cycle. ``peak_of`` maps the length of a
    cycle to the moment of its peak, counted from the start of the cycle.
    """
    if cycles.mult == 1:
        peaks, ends = peak_of(cycles.steps), _moment(cycles.steps)
    else:
        lengths = table(cycles).exact_lengths
        peaks, ends = _column(map(peak_of, lengths)), _column(map(_moment, lengths))

    def place_of(step: ArrayLike) -> tuple[Place, _Moment, _Moment]:
        place = locate(cycles, as_step(step))
        if (row := place.row) is None:
            return place, peaks, ends
        return place, *jax.tree.map(lambda column: pick(column, row), (peaks, ends))

    return place_of


def _column(moments: Iterable[_Moment]) -> _Moment:
    wholes, rests = zip(*moments, strict=True)
    return _Moment(np.array(wholes, np.int32), np.array(rests, np.float64))


# -------------------------------------------------------------------------------------- schedules


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
      base_value: scalar at both ends of every cycle, of any hyperparameter; may be traced.
      peak_value: scalar at the peak, the smaller of the two for a momentum; may be traced.
      rise_steps: optimizer steps (not epochs) from base to peak in cycle 0, a Python integer.
      fall_steps: steps from peak to base; ``None`` means ``rise_steps``.
      wave: pure function from heights to heights, both in [0, 1]: ``waves.linear``,
        ``waves.cosine``, ``waves.welch`` or your own.
      envelope: pure function ``(cycle, step) -> scale`` of the amplitude: ``envelopes.halving``,
        ``envelopes.exponential(gamma)`` or your own; ``None`` leaves it at 1.
      mult: how many times longer each cycle is than the one before, as in [`Cycles`][].
      num_cycles: number of cycles, after which the last value is held; ``None``: without end.

    Returns:
      A pure function from the step, an integer of any dtype and shape, to the value, of the same
      shape and float32 (float64 where the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer, a value not a real number, a function not callable.
      ValueError: if a count is below 1, a value is not finite, ``mult`` is out of range, or a
        function does not return one number for each height or step.

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
    place_of = _locator(cycles, lambda length: _moment(length * rise_steps, steps))
    dtype = float_dtype(base_value, peak_value)

    def schedule(step: ArrayLike) -> jax.Array:
        place, peak, end = place_of(step)
        height, depth, _ = _climb(place.position, peak, end, dtype)
        up, down = shaped(wave, height, depth)
        up, down = scaled(envelope, place.cycle, place.step, up, down)
        return _between(base_value, peak_value, up, down)

    return schedule


def triangular_schedule(
    base_value: ArrayLike,
    peak_value: ArrayLike,
    rise_steps: int,
    fall_steps: int | None = None,
) -> optax.Schedule:
    r"""Return a schedule that climbs linearly from base to peak and back, without end.

    In a cycle of $r$ steps up and $f$ steps down, at the position
    $p = t \bmod (r + f)$, the value is

    $$
    \text{base} + (\text{peak} - \text{base}) \cdot
    \min\left(\frac{p}{r}, \frac{r + f - p}{f}\right)
    $$

    Args:
      base_value: scalar at both ends of every cycle, of any hyperparameter; may be traced.
      peak_value: scalar at the peak, the smaller of the two for a momentum; may be traced.
      rise_steps: optimizer steps (not epochs) from base to peak; Smith advises the steps of 2 to
        10 epochs.
      fall_steps: steps from peak to base; ``None`` means ``rise_steps``.

    Returns:
      A pure function from the step, an integer of any dtype and shape, to the value, of the same
      shape and float32 (float64 where the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer or a value not a real number.
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

    With $h$ the height of the triangle at step $t$ and $i$ the cycle, from 0,

    $$\text{base} + (\text{peak} - \text{base}) \cdot h \cdot 2^{-i}$$

    Args:
      base_value: scalar at both ends of every cycle, of any hyperparameter; may be traced.
      peak_value: scalar at the peak of cycle 0, may be traced.
      rise_steps: optimizer steps (not epochs) from base to peak; Smith advises the steps of 2 to
        10 epochs.
      fall_steps: steps from peak to base; ``None`` means ``rise_steps``.

    Returns:
      A pure function from the step, an integer of any dtype and shape, to the value, of the same
      shape and float32 (float64 where the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer or a value not a real number.
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

    With $h$ the height of the triangle at step $t$, counted from 0 over all cycles,

    $$\text{base} + (\text{peak} - \text{base}) \cdot h \cdot \gamma^t$$

    Args:
      base_value: scalar at both ends of every cycle, of any hyperparameter; may be traced.
      peak_value: scalar that cycle 0 climbs towards, may be traced.
      rise_steps: optimizer steps (not epochs) from base to peak; Smith advises the steps of 2 to
        10 epochs.
      fall_steps: steps from peak to base; ``None`` means ``rise_steps``.
      gamma: positive scalar a little below 1, such as 0.99994; may be traced. For the precision
        see ``envelopes.exponential``.

    Returns:
      A pure function from the step, an integer of any dtype and shape, to the value, of the same
      shape and float32 (float64 where the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer or a value not a real number.
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


def warm_restarts_schedule(
    peak_value: ArrayLike,
    steps: int,
    *,
    base_value: ArrayLike = 0.0,
    mult: float = 1,
    peak_decay: ArrayLike = 1.0,
    warmup_steps: int = 0,
    num_cycles: int | None = None,
) -> optax.Schedule:
    r"""Return SGDR: in every cycle fall from the peak along a cosine, then restart at the peak.

    At position $p$ of cycle $i$, of length $T_i$, after $w$ steps of
    warm-up, the value is

    $$
    \text{base} + (\text{peak}_i - \text{base}) \cdot
    \tfrac12 \left(1 + \cos \pi \frac{p - w}{T_i - w}\right), \quad
    \text{peak}_i = \max(\text{peak} \cdot \text{peak\_decay}^i, \text{base})
    $$

    During the warm-up it climbs linearly from the base to $\text{peak}_i$.

    Args:
      peak_value: scalar at the start of cycle 0 (after its warm-up), may be traced.
      steps: optimizer steps (not epochs) of cycle 0, warm-up included, a Python integer.
      base_value: scalar that every cycle falls to, may be traced.
      mult: how many times longer each cycle is than the one before; may be a float, and below 1,
        as in [`Cycles`][].
      peak_decay: positive scalar by which the peak is multiplied at each restart, may be traced.
        A peak never falls below ``base_value``; unless it is 1, ``peak_value >= base_value``.
      warmup_steps: steps of linear climb at the start of each cycle, fewer than in any cycle.
      num_cycles: number of cycles, after which the value stays at ``base_value``; ``None``:
        without end.

    Returns:
      A pure function from the step, an integer of any dtype and shape, to the value, of the same
      shape and float32 (float64 where the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer or a value not a real number.
      ValueError: if a count or value is out of range, or a cycle is not longer than its warm-up.

    Examples:
      >>> schedule = warm_restarts_schedule(1.0, 2, mult=2, peak_decay=0.5)
      >>> [f"{schedule(step):.3f}" for step in range(7)]
      ['1.000', '0.500', '0.500', '0.427', '0.250', '0.073', '0.250']

    References:
      Loshchilov and Hutter, [SGDR](https://arxiv.org/abs/1608.03983), 2017; with
      ``peak_decay=1, warmup_steps=0`` the values are those that
      ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`` reaches step by step.
    """
    peak_value = real_scalar("peak_value", peak_value)
    base_value = real_scalar("base_value", base_value)
    decay = Exponential(real_scalar("peak_decay", peak_decay, positive=True))
    constant_peak = known_float(peak_decay) == 1
    if not constant_peak:
        _check_decaying_peak(known_float(peak_value), known_float(base_value))
    warmup_steps = whole_number("warmup_steps", warmup_steps, minimum=0)
    cycles = Cycles(steps, mult, num_cycles)
    _check_warmup(warmup_steps, cycles)
    place_of = _locator(cycles, lambda length: _moment(warmup_steps))
    dtype = float_dtype(base_value, peak_value, peak_decay)

    def schedule(step: ArrayLike) -> jax.Array:
        place, peak, end = place_of(step)
        height, depth, rising = _climb(place.position, peak, end, dtype)
        curved = shaped(waves.cosine, height, depth)
        up, down = (
            jnp.where(rising, line, curve)
            for line, curve in zip((height, depth), curved, strict=True)
        )
        base, top = jnp.asarray(base_value, dtype), jnp.asarray(peak_value, dtype)
        if constant_peak:
            return _between(base, top, up, down)
        decayed = top * decay.power_and_complement(place.cycle, dtype)[0]
        return _between(base, jnp.maximum(decayed, base), up, down)

    return schedule


def one_cycle_schedule(
    peak_value: ArrayLike,
    total_steps: int,
    *,
    init_value: ArrayLike | None = None,
    end_value: ArrayLike | None = None,
    rise_fraction: float = 0.3,
    wave: Wave = waves.cosine,
    three_phase: bool = False,
) -> optax.Schedule:
    r"""Return one cycle over the whole run: up to the peak, then down to a much lower end.

    With $N$ = ``total_steps`` the peak is at $m = \text{rise\_fraction} \cdot N - 1$.
    The value goes from ``init_value`` to ``peak_value`` at $m$, and on to ``end_value`` at
    step $N - 1$, the last that a run of $N$ steps uses; both along ``wave``. With
    ``three_phase`` it returns to ``init_value`` at $2m$ and goes to ``end_value`` from there.

    Args:
      peak_value: scalar at the peak, may be traced.
      total_steps: optimizer steps of the run (not epochs), a Python integer: the epochs times the
        batches of one. Past it the value stays at ``end_value`` without a warning, so a number of
        epochs given here would end the cycle within the first epoch.
      init_value: scalar at step 0, may be traced; ``None`` means ``peak_value / 25``.
      end_value: scalar at step ``total_steps - 1`` and after, may be traced; ``None`` means
        ``init_value / 1e4``.
      rise_fraction: fraction of the run that rises, a Python number from 0 (the peak is at step
        0) to 1 (the peak is at the last step, and ``end_value`` comes after the run). At most 0.5
        with ``three_phase``.
      wave: pure function from heights to heights, both in [0, 1], where 1 is the peak, or
        ``init_value`` in the third phase: ``waves.cosine``, ``waves.linear``, ``waves.welch`` or
        your own.
      three_phase: whether to fall to ``init_value`` in as many steps as the rise, and then to
        ``end_value``.

    Returns:
      A pure function from the step, an integer of any dtype and shape, to the value, of the same
      shape and float32 (float64 where the values are float64 arrays).

    Raises:
      TypeError: if ``total_steps`` is not an integer or a value not a real number.
      ValueError: if a value is not finite or ``rise_fraction`` leaves no room for its phases.

    Examples:
      >>> schedule = one_cycle_schedule(1.0, total_steps=10)
      >>> [f"{schedule(step):.3f}" for step in (0, 1, 2, 6, 9, 10)]
      ['0.040', '0.520', '1.000', '0.389', '0.000', '0.000']

      The matching momentum moves the other way:

      >>> momentum = one_cycle_schedule(0.85, 10, init_value=0.95, end_value=0.95)
      >>> [f"{momentum(step):.3f}" for step in (0, 1, 2, 6, 9, 10)]
      ['0.950', '0.900', '0.850', '0.911', '0.950', '0.950']

    References:
      Smith and Topin, [Super-Convergence](https://arxiv.org/abs/1708.07120), 2018; the values
      are those of ``torch.optim.lr_scheduler.OneCycleLR``, whose phases end at the same moments
      and whose ``div_factor`` and ``final_div_factor`` are the defaults here.
    """
    peak_value = real_scalar("peak_value", peak_value)
    if init_value is None:
        low = _at_least_float32(peak_value) / 25
        init_value = real_scalar("init_value, which is peak_value / 25 if not given,", low)
    init_value = real_scalar("init_value", init_value)
    if end_value is None:
        low = _at_least_float32(init_value) / 1e4
        end_value = real_scalar("end_value, which is init_value / 1e4 if not given,", low)
    end_value = real_scalar("end_value", end_value)
    total_steps = whole_number("total_steps", total_steps)
    wave = check_wave("wave", wave)
    phases = _one_cycle_phases(
        (init_value, peak_value, end_value), total_steps, rise_fraction, three_phase
    )
    dtype = float_dtype(init_value, peak_value, end_value)

    def schedule(step: ArrayLike) -> jax.Array:
        step = as_step(step)
        value = jnp.asarray(end_value, dtype)
        for phase in reversed(phases):
            now, length = _Moment(step, 0.0), _time_between(phase.start, phase.end, dtype)
            done = _time_between(phase.start, now, dtype) / length
            left = _time_between(now, phase.end, dtype) / length
            height, depth = (done, left) if phase.rises else (left, done)
            within = _between(phase.low, phase.high, *shaped(wave, height, depth))
            value = jnp.where(step <= phase.last_step, within, value)
        return jnp.broadcast_to(value, step.shape)  # a run of one step may have no phase

    return schedule


def warmup_stable_decay_schedule(
    peak_value: ArrayLike,
    total_steps: int,
    *,
    warmup_steps: int,
    decay_steps: int,
    end_value: ArrayLike = 0.0,
    warmup_wave: Wave = waves.linear,
    decay_wave: Wave = waves.linear,
) -> optax.Schedule:
    r"""Return WSD: rise from zero to the peak, stay there, and decay at the end of the run.

    With $N$ = ``total_steps``, $w$ = ``warmup_steps`` and $d$ = ``decay_steps``
    the value at step $t$ is

    $$
    \begin{cases}
    \text{peak} \cdot \text{warmup\_wave}(t / w) & t < w \\
    \text{peak} & w \le t < N - d \\
    \text{end} + (\text{peak} - \text{end}) \cdot \text{decay\_wave}((N - t) / d)
    & N - d \le t < N \\
    \text{end} & N \le t
    \end{cases}
    $$

    So step 0 of a warm-up has the value 0, and ``end_value`` comes one step after the last that a
    run of $N$ steps uses. With linear waves this is ``optax.join_schedules`` of
    ``linear_schedule``, ``constant_schedule`` and ``linear_schedule``.

    The decay can begin at any checkpoint of a run on the stable part: restore the state, and go on
    with the same arguments but ``total_steps = step + decay_steps``. No value before that step
    differs, so the result is that of a run planned this way from its start.

    Args:
      peak_value: scalar of the stable part, may be traced.
      total_steps: optimizer steps of the run (not epochs), a Python integer: the epochs times the
        batches of one. From there on the value stays at ``end_value`` without a warning.
      warmup_steps: steps of the rise, at least 0; with 0 the run starts at the peak.
      decay_steps: steps of the decay, at least 0; with 0 the peak lasts to the end of the run. A
        tenth to a fifth of ``total_steps`` is usual.
      end_value: scalar at step ``total_steps`` and after, may be traced.
      warmup_wave: pure function from heights to heights, both in [0, 1]: ``waves.linear``,
        ``waves.cosine``, ``waves.welch`` or your own.
      decay_wave: the same for the decay, from the height 1 at its start down to 0.

    Returns:
      A pure function from the step, an integer of any dtype and shape, to the value, of the same
      shape and float32 (float64 where the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer, a value not a real number, a wave not callable.
      ValueError: if a count is out of range, ``warmup_steps + decay_steps`` is more than
        ``total_steps``, a value is not finite, or a wave does not give one number for each height.

    Examples:
      >>> schedule = warmup_stable_decay_schedule(1.0, 10, warmup_steps=2, decay_steps=4)
      >>> print(schedule(jnp.arange(12)))
      [0.   0.5  1.   1.   1.   1.   1.   0.75 0.5  0.25 0.   0.  ]

      The 1-sqrt decay of Hägele et al. is a wave:

      >>> one_minus_sqrt = lambda height: 1 - jnp.sqrt(1 - height)
      >>> schedule = warmup_stable_decay_schedule(
      ...     1.0, 10, warmup_steps=2, decay_steps=4, decay_wave=one_minus_sqrt
      ... )
      >>> [f"{schedule(step):.3f}" for step in range(6, 11)]
      ['1.000', '0.500', '0.293', '0.134', '0.000']

    References:
      Hu et al., [MiniCPM](https://arxiv.org/abs/2404.06395), 2024, section 4; Hägele et al.,
      [Scaling Laws and Compute-Optimal Training Beyond Fixed Training
      Durations](https://arxiv.org/abs/2405.18392), 2024.
    """
    peak_value = real_scalar("peak_value", peak_value)
    end_value = real_scalar("end_value", end_value)
    total_steps = whole_number("total_steps", total_steps)
    warmup_steps = whole_number("warmup_steps", warmup_steps, minimum=0)
    decay_steps = whole_number("decay_steps", decay_steps, minimum=0)
    _check_room(warmup_steps, decay_steps, total_steps)
    warmup_wave = check_wave("warmup_wave", warmup_wave)
    decay_wave = check_wave("decay_wave", decay_wave)
    dtype = float_dtype(peak_value, end_value)

    def schedule(step: ArrayLike) -> jax.Array:
        step = as_step(step)
        base, peak, end = (jnp.asarray(value, dtype) for value in (0.0, peak_value, end_value))
        risen = _parts(jnp.minimum(step, warmup_steps), warmup_steps, dtype)
        left = _parts(jnp.clip(total_steps - step, 0, decay_steps), decay_steps, dtype)
        rise = _between(base, peak, *shaped(warmup_wave, *risen))
        decay = _between(end, peak, *shaped(decay_wave, *left))
        value = jnp.where(step < total_steps, decay, end)
        value = jnp.where(step < total_steps - decay_steps, peak, value)
        return jnp.where(step < warmup_steps, rise, value)

    return schedule


def per_epoch_schedule(schedule: optax.Schedule, steps_per_epoch: int) -> optax.Schedule:
    r"""Return a schedule that sees the epoch number instead of the step.

    $$t \mapsto \text{schedule}(\lfloor t / \text{steps\_per\_epoch} \rfloor)$$

    Args:
      schedule: pure function of an integer, from this library, Optax or your own.
      steps_per_epoch: optimizer steps of one epoch, a positive Python integer.

    Returns:
      A pure function from the step, an integer of any dtype and shape, to the value.

    Raises:
      TypeError: if ``schedule`` is not callable or ``steps_per_epoch`` not an integer.
      ValueError: if ``steps_per_epoch`` is below 1.

    Examples:
      >>> by_epoch = triangular_schedule(0.0, 1.0, rise_steps=2)
      >>> schedule = per_epoch_schedule(by_epoch, steps_per_epoch=3)
      >>> print(schedule(jnp.arange(9)))
      [0.  0.  0.  0.5 0.5 0.5 1.  1.  1. ]
    """
    schedule = function("schedule", schedule, form="step -> value")
    steps_per_epoch = whole_number("steps_per_epoch", steps_per_epoch)
    return lambda step: schedule(lax.div(as_step(step), np.int32(steps_per_epoch)))


# ------------------------------------------------------------------------- parts of the factories


def _at_least_float32(value: Any) -> Any:
    """Return a value from which others can be computed: in half precision 1e-3 / 2.5e5 is 0.

    With x64 on, a part of an integer would be float64.
    """
    is_less = hasattr(value, "dtype") and value.dtype != np.float64
    return value.astype(np.float32) if is_less else value


class _Phase(NamedTuple):
    """One stretch of the one-cycle schedule, from ``start`` to ``end``."""

    start: _Moment
    end: _Moment
    last_step: int
    low: ArrayLike
    high: ArrayLike
    rises: bool


def _one_cycle_phases(
    values: tuple[ArrayLike, ArrayLike, ArrayLike],
    total_steps: int,
    rise_fraction: Any,
    three_phase: bool,
) -> Sequence[_Phase]:
    """Return the phases in order, without those that contain no step."""
    most = 0.5 if three_phase else 1.0
    condition = " where three_phase=True" if three_phase else ""
    message = (
        f"rise_fraction must be a Python number from 0 to {most:g}{condition}, "
        f"got {shown(rise_fraction)}."
    )
    if not isinstance(rise_fraction, numbers.Real):
        raise TypeError(message)
    if not 0 <= float(rise_fraction) <= most:
        raise ValueError(message)
    init_value, peak_value, end_value = values
    # At a fraction of 0 torch's formula would put the peak one step before the run.
    peak_time = float(rise_fraction) * total_steps - 1 if rise_fraction else 0.0
    last = float(total_steps - 1)
    if three_phase:
        phases = [
            (0.0, peak_time, init_value, peak_value, True),
            (peak_time, 2 * peak_time, init_value, peak_value, False),
            (2 * peak_time, last, end_value, init_value, False),
        ]
    else:
        phases = [
            (0.0, peak_time, init_value, peak_value, True),
            (peak_time, last, end_value, peak_value, False),
        ]
    return [
        _Phase(_moment_at(start), _moment_at(end), math.floor(end), low, high, rises)
        for start, end, low, high, rises in phases
        if start < end
    ]


def _parts(count: jax.Array, whole: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Return ``count / whole`` and the rest of 1, each to a rounding; zeros where whole is 0."""
    length = max(whole, 1)
    return count.astype(dtype) / length, (whole - count).astype(dtype) / length


def _check_room(warmup_steps: int, decay_steps: int, total_steps: int) -> None:
    if warmup_steps + decay_steps > total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} and decay_steps={decay_steps} must not be more than "
            f"total_steps={total_steps} together. Shorten one of them; to begin the decay at a "
            "checkpoint, give total_steps = step + decay_steps."
        )


def _check_decaying_peak(peak_value: float | None, base_value: float | None) -> None:
    if peak_value is not None and base_value is not None and peak_value < base_value:
        raise ValueError(
            f"peak_value={peak_value} must not be below base_value={base_value} where peak_decay "
            "is not 1: a decaying peak stops at the base. Swap the two, or leave out peak_decay."
        )


def _check_warmup(warmup_steps: int, cycles: Cycles) -> None:
    """Raise unless every cycle is longer than the warm-up."""
    last = (cycles.num_cycles or 1) - 1
    shortest = exact_length(cycles, last) if cycles.mult < 1 else cycles.steps
    if warmup_steps >= shortest:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be less than the steps of every cycle, the shortest "
            f"of which has {shortest} (steps={cycles.steps}, mult={cycles.mult})."
        )
