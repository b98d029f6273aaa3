"""When a range test has diverged: the loss is compared with what the curve itself has shown."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

# Before so many rows are averaged the smoothed loss is noise, and says nothing of divergence. With
# ten, a first batch of low loss stopped 6 of 672 real tests; with fifteen, none.
_SETTLED_ROWS = 20
# A rise of so many standard deviations of the noise is as much as one of the whole fall.
_NOISE_PER_FALL = 4.0


class StopRule(NamedTuple):
    """The two numbers of the rule, ``f32[]`` each."""

    smoothing: ArrayLike
    stop_factor: ArrayLike


class Watch(NamedTuple):
    """What the rule knows after some rows, scalars in the dtype of the loss."""

    alive: jax.Array  # bool[], whether the test goes on
    num_rows: jax.Array  # i32[], rows that are data
    weight: jax.Array  # of all rows so far, in the two averages
    average: jax.Array
    drop: jax.Array  # average of the moves downward, of which a divergence has none
    highest: jax.Array
    best: jax.Array
    fall: jax.Array  # from the highest average to the best


def new_watch(loss: jax.Array) -> Watch:
    """Return what is known before the first row, in the dtype of ``loss``."""
    # Made from the loss: inside shard_map arrays also carry over which devices they vary.
    zero = jnp.zeros_like(loss)
    return Watch(
        alive=zero == 0,
        num_rows=zero.astype(jnp.int32),
        weight=zero,
        average=zero,
        drop=zero,
        highest=zero - jnp.inf,
        best=zero + jnp.inf,
        fall=zero,
    )


class Decay(NamedTuple):
    """The weights of a moving average over a chunk of rows."""

    within: jax.Array  # [chunk, chunk], of each row (column) in the average at each row
    before: jax.Array  # [chunk], of all that was before the chunk


def decay_over(num_rows: int, smoothing: ArrayLike, dtype: np.dtype) -> Decay:
    """Return the weights over ``num_rows`` rows; with them an average is a matrix product."""
    smoothing = jnp.asarray(smoothing, dtype)
    age = np.arange(num_rows)[:, None] - np.arange(num_rows)
    powers = smoothing ** np.maximum(age, 0).astype(dtype)
    return Decay(
        within=jnp.where(age >= 0, powers, jnp.zeros_like(powers)),
        before=smoothing ** np.arange(1, num_rows + 1, dtype=dtype),
    )


def watch_rows(
    watch: Watch, losses: jax.Array, num_recorded: jax.Array, decay: Decay, rule: StopRule
) -> tuple[Watch, jax.Array]:
    """Return what is known after a chunk of rows, and the smoothed losses of the rows.

    Args:
      watch: what was known before the chunk.
      losses: ``[chunk]``.
      num_recorded: ``i32[]``, how many of them are rows of the test; the others are padding.
      decay: the weights of the average, for chunks of this length.
      rule: when the test ends.
    """
    dtype = losses.dtype
    order = np.arange(len(losses), dtype=np.int32)
    finite = jnp.isfinite(losses)
    # The first that is not finite ends the test; as a zero it leaves the rows before it alone.
    known = jnp.where(finite, losses, 0)
    count = watch.num_rows + order + 1
    settled = count >= _SETTLED_ROWS

    def weigh(entries: jax.Array) -> jax.Array:
        # In full precision: accelerators would round the factors of a product to fewer bits.
        return jnp.matmul(decay.within, entries, precision="highest")

    weight = weigh(jnp.ones_like(losses)) + decay.before * watch.weight
    # Differences from the average before, which has all the weight before: so equal losses have
    # that loss as their average to the last bit, and a level curve does not rise by rounding.
    before = jnp.where(watch.weight > 0, watch.average, known[0])
    smoothed = before + weigh(known - before) / weight
    smoothed = jnp.where(decay.before[0] > 0, smoothed, known)
    drop = jnp.where(count > 1, jnp.maximum(_shifted(before, smoothed) - known, 0), 0)
    drops = watch.drop + weigh(drop - watch.drop) / weight
    # The mean of the normal distribution's negative part is its deviation over this root.
    noise = math.sqrt(2 * math.pi) * drops

    highest = jnp.maximum(watch.highest, lax.cummax(smoothed))
    candidates = jnp.where(settled, smoothed, jnp.inf)
    best = jnp.minimum(watch.best, lax.cummin(candidates))
    last_best = lax.cummax(jnp.where(candidates < _shifted(watch.best, best), order, -1))
    fall_at_best = (highest - smoothed)[jnp.maximum(last_best, 0)]
    fall = jnp.where(last_best >= 0, fall_at_best, watch.fall)

    stop_factor = jnp.asarray(rule.stop_factor, dtype)
    least_rise = stop_factor * jnp.maximum(fall, _NOISE_PER_FALL * noise)
    diverged = settled & (smoothed - best > least_rise)
    ends = (diverged | ~finite) & (order < num_recorded)
    first = jnp.argmax(ends).astype(jnp.int32)
    goes_on = ~ends.any()
    # The row whose average told of the divergence is data, a loss that is not finite is not.
    recorded = jnp.where(goes_on, num_recorded, first + finite[first].astype(jnp.int32))
    after = Watch(
        alive=watch.alive & goes_on,
        # A lane of jax.vmap that has ended is trained on with the others, and not recorded.
        num_rows=jnp.where(watch.alive, watch.num_rows + recorded, watch.num_rows),
        weight=weight[-1],
        average=smoothed[-1],
        drop=drops[-1],
        highest=highest[-1],
        best=best[-1],
        fall=fall[-1],
    )
    return after, smoothed


def _shifted(before: jax.Array, column: jax.Array) -> jax.Array:
    """Return what each row finds: the entry of the row before it."""
    return jnp.concatenate([before[None], column[:-1]])
