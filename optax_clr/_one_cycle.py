"""One cycle over the whole run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_clr import waves
from optax_clr._arguments import (
    as_step,
    float_dtype,
    is_plain_number,
    real_scalar,
    whole_number,
)
from optax_clr._heights import check_wave, shaped
from optax_clr._moments import Moment, between, moment_at, time_between
from optax_clr._words import shown
from optax_clr.waves import Wave


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
    r"""Return a schedule of one cycle over the run: up to the peak, then down to a much lower end.

    With $N$ = ``total_steps`` the peak is at step $m = \text{rise\_fraction} \cdot N - 1$.
    The value goes from ``init_value`` at step 0 to ``peak_value`` at step $m$, and then to
    ``end_value`` at step $N - 1$, the last step of a run of $N$ steps, both along ``wave``. With
    ``three_phase`` it returns to ``init_value`` at step $2m$ and goes to ``end_value`` from there.

    Args:
      peak_value: scalar at the peak, may be traced.
      total_steps: optimizer steps of the run (not epochs), a Python integer: the number of epochs
        times the batches per epoch. After them the value stays at ``end_value`` without a warning,
        so passing the number of epochs here would end the cycle within the first epoch.
      init_value: scalar at step 0, may be traced; ``None`` means ``peak_value / 25``.
      end_value: scalar at step ``total_steps - 1`` and after, may be traced; ``None`` means
        ``init_value / 1e4``.
      rise_fraction: fraction of the run spent rising, a Python number from 0 (the peak is at step
        0) to 1 (the peak is at the last step, and ``end_value`` comes after the run). The peak is
        at step ``rise_fraction * total_steps - 1``, as in torch. If that is below 0, as in a run of
        three steps, there is no rise, and at step 0 the fall has already begun. With
        ``three_phase``, ``rise_fraction`` is at most 0.5, and a peak that would not come after
        step 0 is left out.
      wave: pure function from heights to heights, both in [0, 1], where 1 stands for the peak, or
        for ``init_value`` in the third phase: ``waves.cosine``, ``waves.linear``, ``waves.welch``
        or your own.
      three_phase: whether to fall back to ``init_value`` in as many steps as the rise took, and
        from there to ``end_value``.

    Returns:
      A pure function that maps the step, integers of any dtype and shape, to the value, an array
      of the same shape in float32 (in float64 if the values are float64 arrays).

    Raises:
      TypeError: if ``total_steps`` is not an integer, a value is not a real number, or
        ``three_phase`` is not a bool.
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
      are those of ``torch.optim.lr_scheduler.OneCycleLR``, whose phases end at the same moments,
      and whose default ``div_factor`` and ``final_div_factor`` give the default values here.
    """
    peak_value = real_scalar("peak_value", peak_value)
    if init_value is None:
        low = _at_least_float32(peak_value) / 25
        init_value = real_scalar("init_value, which is peak_value / 25 if not given,", low)
    else:
        init_value = real_scalar("init_value", init_value)
    if end_value is None:
        low = _at_least_float32(init_value) / 1e4
        end_value = real_scalar("end_value, which is init_value / 1e4 if not given,", low)
    else:
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
            now, length = Moment(step, 0.0), time_between(phase.start, phase.end, dtype)
            done = time_between(phase.start, now, dtype) / length
            left = time_between(now, phase.end, dtype) / length
            height, depth = (done, left) if phase.rises else (left, done)
            within = between(phase.low, phase.high, *shaped(wave, height, depth))
            value = jnp.where(step <= phase.last_step, within, value)
        return jnp.broadcast_to(value, step.shape)  # a run of one step may have no phases

    return schedule


def _at_least_float32(value: Any) -> Any:
    """Return a value that can be divided without underflow: in half precision 1e-3 / 2.5e5 is 0.

    Integers become float32 too: with x64 on, their quotients would be float64.
    """
    is_less = hasattr(value, "dtype") and value.dtype != np.float64
    return value.astype(np.float32) if is_less else value


class _Phase(NamedTuple):
    """One stretch of the one-cycle schedule, from ``start`` to ``end``."""

    start: Moment
    end: Moment
    last_step: int
    low: ArrayLike
    high: ArrayLike
    rises: bool


def _one_cycle_phases(
    values: tuple[ArrayLike, ArrayLike, ArrayLike],
    total_steps: int,
    rise_fraction: Any,
    three_phase: Any,
) -> Sequence[_Phase]:
    """Return the phases in order, without those that contain no step."""
    if not isinstance(three_phase, bool):
        raise TypeError(f"three_phase must be True or False, got {shown(three_phase)}.")
    _check_rise_fraction(rise_fraction, three_phase)
    init_value, peak_value, end_value = values
    # For a fraction of 0 torch's formula would put the peak one step before the run.
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
        _Phase(moment_at(start), moment_at(end), math.floor(end), low, high, rises)
        for start, end, low, high, rises in phases
        if start < end
    ]


def _check_rise_fraction(rise_fraction: Any, three_phase: bool) -> None:
    most = 0.5 if three_phase else 1.0
    condition = " where three_phase=True" if three_phase else ""
    message = (
        f"rise_fraction must be a Python number from 0 to {most:g}{condition}, "
        f"got {shown(rise_fraction)}."
    )
    if not is_plain_number(rise_fraction):
        raise TypeError(message)
    fraction: Any = rise_fraction  # as it is, since an integer may be too large for a float
    if not 0 <= fraction <= most:
        raise ValueError(message)
