"""Schedules that count epochs instead of steps."""

from __future__ import annotations

import numpy as np
import optax
from jax import lax

from optax_clr._arguments import as_step, function, whole_number
from optax_clr._integer_powers import check_powers
from optax_clr._words import shown


def per_epoch_schedule(schedule: optax.Schedule, steps_per_epoch: int) -> optax.Schedule:
    r"""Return a schedule that sees the epoch number instead of the step.

    $$t \mapsto \text{schedule}(\lfloor t / \text{steps\_per\_epoch} \rfloor)$$

    Args:
      schedule: pure function of an integer, from this library, from Optax or your own.
      steps_per_epoch: optimizer steps per epoch, a positive Python integer.

    Returns:
      A pure function that maps the step, integers of any dtype and shape, to the value.

    Raises:
      TypeError: if ``schedule`` is no function of the step, or ``steps_per_epoch`` no integer.
      ValueError: if ``steps_per_epoch`` is below 1, or the schedule raises an integer to a
        negative power, which JAX makes 0.

    Examples:
      >>> by_epoch = triangular_schedule(0.0, 1.0, rise_steps=2)
      >>> schedule = per_epoch_schedule(by_epoch, steps_per_epoch=3)
      >>> print(schedule(jnp.arange(9)))
      [0.  0.  0.  0.5 0.5 0.5 1.  1.  1. ]
    """
    schedule = function("schedule", schedule, form="step -> value")
    if isinstance(schedule, optax.schedules.StatefulSchedule):  # called with its state
        raise TypeError(
            f"schedule must be a function step -> value, got {shown(schedule)}, an "
            "optax.schedules.StatefulSchedule. Pass a function of the step."
        )
    check_powers("schedule", schedule)
    steps_per_epoch = whole_number("steps_per_epoch", steps_per_epoch)
    return lambda step: schedule(lax.div(as_step(step), np.int32(steps_per_epoch)))
