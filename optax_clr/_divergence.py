"""When a range test has diverged: the loss is compared with what the curve itself has shown."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Before so many rows are averaged the smoothed loss is noise, and says nothing of divergence.
_SETTLED_ROWS = 10
# A rise of so many standard deviations of the noise is as much as one of the whole fall.
_NOISE_PER_FALL = 4.0


class Tracker(NamedTuple):
    """What the stop rule needs to know of the rows so far; all are ``f32[]`` but ``alive``."""

    alive: jax.Array
    num_rows: jax.Array
    average: jax.Array
    downward: jax.Array
    highest: jax.Array
    best: jax.Array
    fall: jax.Array


def new_tracker(loss: jax.Array) -> Tracker:
    zero = jnp.zeros_like(loss)
    return Tracker(
        alive=jnp.full_like(loss, True, dtype=bool),
        num_rows=zero,
        average=zero,
        downward=zero,
        highest=jnp.full_like(loss, -jnp.inf),
        best=jnp.full_like(loss, jnp.inf),
        fall=zero,
    )


def track(
    tracker: Tracker, loss: jax.Array, smoothing: jax.Array, stop_factor: jax.Array
) -> tuple[Tracker, jax.Array, jax.Array]:
    """Return the tracker after a row, the row's smoothed loss, and whether it is data."""
    smoothing, stop_factor = smoothing.astype(loss.dtype), stop_factor.astype(loss.dtype)
    finite = jnp.isfinite(loss)
    # With the past's share written like this the average needs no correction of its bias.
    num_rows = tracker.num_rows + 1
    share = (1 - smoothing) / -jnp.expm1(num_rows * jnp.log(smoothing))
    average = tracker.average + share * (loss - tracker.average)
    drop = jnp.where(tracker.num_rows > 0, jnp.maximum(tracker.average - loss, 0), 0)
    downward = tracker.downward + share * (drop - tracker.downward)
    highest = jnp.maximum(tracker.highest, average)

    settled = num_rows >= _SETTLED_ROWS
    is_best = settled & (average < tracker.best)
    best = jnp.where(is_best, average, tracker.best)
    fall = jnp.where(is_best, highest - average, tracker.fall)
    # The mean of the normal distribution's negative part is its deviation over this root.
    noise = math.sqrt(2 * math.pi) * downward
    rise = average - best
    diverged = settled & (rise > stop_factor * jnp.maximum(fall, _NOISE_PER_FALL * noise))
    alive = finite & ~diverged
    return Tracker(alive, num_rows, average, downward, highest, best, fall), average, finite
