"""A warm-up, a long constant part, and a decay."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optax_clr import waves
from optax_clr._arguments import as_step, float_dtype, real_scalar, whole_number
from optax_clr._heights import check_wave, shaped
from optax_clr._moments import between
from optax_clr.waves import Wave


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
    r"""Return a WSD schedule: rise from zero to the peak, stay there, decay at the end of the run.

    With $N$ = ``total_steps``, $w$ = ``warmup_steps`` and $d$ = ``decay_steps``, the value at step
    $t$ is

    $$
    \begin{cases}
    \text{peak} \cdot \text{warmup\_wave}(t / w) & t < w \\
    \text{peak} & w \le t < N - d \\
    \text{end} + (\text{peak} - \text{end}) \cdot \text{decay\_wave}((N - t) / d)
    & N - d \le t < N \\
    \text{end} & N \le t
    \end{cases}
    $$

    So a warm-up starts with the value 0 at step 0, and ``end_value`` is reached at step $N$, one
    step after the last of a run of $N$ steps. With linear waves this is ``optax.join_schedules`` of
    ``linear_schedule``, ``constant_schedule`` and ``linear_schedule``.

    The decay can begin at any checkpoint from the stable part of a run: restore the state, and
    continue with the same arguments except ``total_steps = step + decay_steps``. All values before
    that step are the same, so the result is that of a run planned this way from the start.

    Args:
      peak_value: scalar of the stable part, may be traced.
      total_steps: optimizer steps of the run (not epochs), a Python integer: the number of epochs
        times the batches per epoch. After them the value stays at ``end_value`` without a warning.
      warmup_steps: steps of the rise, at least 0; with 0 the run starts at the peak.
      decay_steps: steps of the decay, at least 0; with 0 the peak lasts to the end of the run. A
        tenth to a fifth of ``total_steps`` is usual.
      end_value: scalar at step ``total_steps`` and after, may be traced.
      warmup_wave: pure function from heights to heights, both in [0, 1]: ``waves.linear``,
        ``waves.cosine``, ``waves.welch`` or your own.
      decay_wave: the same for the decay, during which the height falls from 1 to 0.

    Returns:
      A pure function that maps the step, integers of any dtype and shape, to the value, an array
      of the same shape in float32 (in float64 if the values are float64 arrays).

    Raises:
      TypeError: if a count is not an integer, a value is not a real number, or a wave is not
        callable.
      ValueError: if a count is out of range, ``warmup_steps + decay_steps`` is more than
        ``total_steps``, a value is not finite, or a wave does not return one number per height.

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
        rise = between(base, peak, *shaped(warmup_wave, *risen))
        decay = between(end, peak, *shaped(decay_wave, *left))
        value = jnp.where(step < total_steps, decay, end)
        value = jnp.where(step < total_steps - decay_steps, peak, value)
        return jnp.where(step < warmup_steps, rise, value)

    return schedule


def _parts(count: jax.Array, whole: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Return ``count / whole`` and its complement to 1, each rounded once; zeros if whole is 0."""
    length = max(whole, 1)
    return count.astype(dtype) / length, (whole - count).astype(dtype) / length


def _check_room(warmup_steps: int, decay_steps: int, total_steps: int) -> None:
    if warmup_steps + decay_steps > total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} and decay_steps={decay_steps} must not be more than "
            f"total_steps={total_steps} together. Shorten one of them; to begin the decay at a "
            "checkpoint, give total_steps = step + decay_steps."
        )
