"""Cosine decay with warm restarts, as in SGDR."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_clr import waves
from optax_clr._arguments import float_dtype, real_scalar, whole_number
from optax_clr._cycles import Cycles, exact_length
from optax_clr._heights import shaped
from optax_clr._moments import between, climb, locator, moment
from optax_clr._tracing import known_float
from optax_clr.envelopes import Exponential


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
    r"""Return an SGDR schedule: each cycle falls from the peak along a cosine; then it restarts.

    At position $p$ of cycle $i$, of $T_i$ steps, after its $w$ steps of warm-up, the value is

    $$
    \text{base} + (\text{peak}_i - \text{base}) \cdot
    \tfrac12 \left(1 + \cos \pi \frac{p - w}{T_i - w}\right), \quad
    \text{peak}_i = \max(\text{peak} \cdot \text{peak\_decay}^i, \text{base})
    $$

    During the warm-up the value climbs linearly from the base to $\text{peak}_i$.

    Args:
      peak_value: scalar at the start of cycle 0 (after its warm-up), may be traced.
      steps: optimizer steps (not epochs) of cycle 0, warm-up included, a Python integer.
      base_value: scalar that every cycle falls to, may be traced.
      mult: ratio of the length of each cycle to that of the one before; may be a float, and below
        1, as in [`Cycles`][].
      peak_decay: positive scalar by which the peak is multiplied at each restart, may be traced.
        No peak falls below ``base_value``; unless ``peak_decay`` is 1, ``peak_value`` must be at
        least ``base_value``.
      warmup_steps: steps of linear climb at the start of each cycle, fewer than any cycle has.
      num_cycles: number of cycles, after which the value stays at ``base_value``; ``None`` means
        no end.

    Returns:
      A pure function that maps the step, integers of any dtype and shape, to the value, an array
      of the same shape in float32 (in float64 if the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer or a value is not a real number.
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
    peak_decay = real_scalar("peak_decay", peak_decay, positive=True)
    decay = Exponential(peak_decay)
    constant_peak = known_float(peak_decay) == 1
    if not constant_peak:
        _check_decaying_peak(known_float(peak_value), known_float(base_value))
    warmup_steps = whole_number("warmup_steps", warmup_steps, minimum=0)
    cycles = Cycles(steps, mult, num_cycles)
    _check_warmup(warmup_steps, cycles)
    place_of = locator(cycles, lambda length: moment(warmup_steps))
    dtype = float_dtype(base_value, peak_value, peak_decay)

    def schedule(step: ArrayLike) -> jax.Array:
        place, peak, end = place_of(step)
        height, depth, rising = climb(place.position, peak, end, dtype)
        curved = shaped(waves.cosine, height, depth)
        up, down = (
            jnp.where(rising, line, curve)
            for line, curve in zip((height, depth), curved, strict=True)
        )
        base, top = jnp.asarray(base_value, dtype), jnp.asarray(peak_value, dtype)
        if constant_peak:
            return between(base, top, up, down)
        decayed = top * decay.power_and_complement(place.cycle, dtype)[0]
        return between(base, jnp.maximum(decayed, base), up, down)

    return schedule


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
