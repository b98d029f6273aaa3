"""When a range test has diverged: the rise of the loss, compared with its own fall and noise."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from optax_clr._arguments import INT32_MAX
from optax_clr._tracing import known_float

# Until this many rows are averaged, the smoothed loss is too noisy to show divergence. With ten, a
# first batch of low loss stopped 6 of 672 real tests; with fifteen, none. Five more are a margin.
_SETTLED_ROWS = 20
# A rise by this many standard deviations of the noise counts like a rise by the whole fall.
_NOISE_PER_FALL = 4.0
# This many losses in a row must be high, or not finite: one bad batch is not divergence.
_ROWS_IN_A_ROW = 3
_NO_END = np.int32(INT32_MAX)


class StopRule(NamedTuple):
    """The two parameters of the rule, each ``f32[]``."""

    smoothing: ArrayLike
    stop_factor: ArrayLike


class Decay(NamedTuple):
    """The weights of a moving average over a chunk of rows."""

    within: ArrayLike  # [chunk, chunk]; at [i, j] that of row j in the average at row i
    before: ArrayLike  # [chunk], of everything before the chunk


class ChunkRule(NamedTuple):
    """The rule for chunks of one length."""

    decay: Decay
    stop_factor: ArrayLike


def for_chunks(rule: StopRule, num_rows: int) -> ChunkRule:
    """Return the rule for chunks of ``num_rows`` rows, where averaging is a matrix product.

    The weights of a known smoothing are computed by NumPy: compiling that would take longer.
    """
    smoothing = known_float(rule.smoothing)
    if smoothing is None:
        return ChunkRule(_decay(jnp, rule.smoothing, num_rows), rule.stop_factor)
    return ChunkRule(_known_decay(smoothing, num_rows), rule.stop_factor)


@functools.lru_cache(maxsize=32)
def _known_decay(smoothing: float, num_rows: int) -> Decay:
    with np.errstate(under="ignore"):  # the caller's np.seterr may raise
        within, before = _decay(np, smoothing, num_rows)
        return Decay(np.asarray(within, np.float32), np.asarray(before, np.float32))


def _decay(numpy: Any, smoothing: Any, num_rows: int) -> Decay:
    age = np.arange(num_rows)[:, None] - np.arange(-1, num_rows)  # first column: everything before
    weights = numpy.where(age >= 0, smoothing ** np.maximum(age, 0).astype(np.float32), 0)
    return Decay(within=weights[:, 1:], before=weights[:, 0])


class Past(NamedTuple):
    """What the rule knows about the rows so far: scalars or columns in the dtype of the loss."""

    weight: jax.Array  # total weight of the rows in both averages
    average: jax.Array
    drop: jax.Array  # average downward move; a divergence has none
    highest: jax.Array
    best: jax.Array
    fall: jax.Array  # from the highest average to the best
    alarm: jax.Array  # of the last row: 0 none, 1 high loss, 2 loss not finite
    alarm_before: jax.Array  # of the row before that


class Watch(NamedTuple):
    """The state of the rule after some rows."""

    alive: jax.Array  # bool[], whether the test goes on
    num_rows: jax.Array  # i32[], rows that are data
    past: jax.Array  # a Past in one array: XLA's CPU backend runs a kernel for each array


def new_watch(loss: jax.Array) -> Watch:
    """Return the state before the first row, in the dtype of ``loss``."""
    # Made from the loss: inside shard_map an array's type includes the axes that it varies along.
    zero = jnp.zeros_like(loss)
    past = Past(
        weight=zero,
        average=zero,
        drop=zero,
        highest=zero - jnp.inf,
        best=zero + jnp.inf,
        fall=zero,
        alarm=zero,
        alarm_before=zero,
    )
    return Watch(alive=zero == 0, num_rows=zero.astype(jnp.int32), past=jnp.stack(past))


def watch_rows(
    watch: Watch, losses: jax.Array, num_recorded: jax.Array, rule: ChunkRule
) -> tuple[Watch, jax.Array]:
    """Return the state after a chunk of rows, and the smoothed losses of these rows.

    Args:
      watch: the state before the chunk.
      losses: ``[chunk]``.
      num_recorded: ``i32[]``, how many of them are rows of the test; the others are padding.
      rule: when the test ends, for chunks of this length.
    """
    past = Past(*watch.past)
    rows = _rows_of(losses, watch)
    weight, smoothed, drop = _averages(rows, past, rule.decay)
    highest, best, fall = _fall_so_far(smoothed, weight > 0, rows.settled, past)
    # The negative part of a centred normal variable has the mean sigma / sqrt(2 pi).
    noise = math.sqrt(2 * math.pi) * drop
    stop_factor = jnp.asarray(rule.stop_factor, losses.dtype)
    least_rise = stop_factor * jnp.maximum(fall, _NOISE_PER_FALL * noise)
    alarms = _alarms(rows, rows.known - best > least_rise, past)
    num_data = _num_data(rows, alarms, smoothed - best > least_rise)
    num_data = jnp.min(jnp.where(rows.order < num_recorded, num_data, _NO_END))
    state = Past(weight, smoothed, drop, highest, best, fall, alarms[0], alarms[1])
    after = Watch(
        alive=watch.alive & (num_data == _NO_END),
        # Under jax.vmap a run that has ended trains on with the others, but is not recorded.
        num_rows=watch.num_rows + jnp.where(watch.alive, jnp.minimum(num_data, num_recorded), 0),
        past=jnp.stack(state)[:, -1],
    )
    return after, smoothed


class _Rows(NamedTuple):
    """The rows of a chunk, ``[chunk]`` each."""

    losses: jax.Array
    order: np.ndarray  # i32, within the chunk
    num_rows: jax.Array  # i32, rows of the test up to each
    settled: jax.Array  # bool, whether so many are averaged that the rule applies
    finite: jax.Array  # bool; a loss that is not finite is a gap, without weight in the averages
    known: jax.Array  # the losses, with 0 in the gaps


def _rows_of(losses: jax.Array, watch: Watch) -> _Rows:
    order = np.arange(len(losses), dtype=np.int32)
    finite = jnp.isfinite(losses)
    num_rows = watch.num_rows + order + 1
    known = jnp.where(finite, losses, 0)
    return _Rows(losses, order, num_rows, num_rows >= _SETTLED_ROWS, finite, known)


def _averages(rows: _Rows, past: Past, decay: Decay) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the weight of the rows up to each, their smoothed loss, and their average drop."""
    within, before_it = (jnp.asarray(weights, rows.losses.dtype) for weights in decay)
    known, counts = rows.known, rows.finite.astype(rows.losses.dtype)
    # What is averaged is the difference from the previous average, which has all earlier weight.
    # So equal losses average to exactly that loss, and rounding does not make a flat curve rise.
    before = jnp.where(past.weight > 0, past.average, known[jnp.argmax(rows.finite)])
    weight, difference = _weigh(within, counts, counts * (known - before))
    weight = weight + before_it * past.weight
    is_known = weight > 0
    divisor = jnp.where(is_known, weight, 1)
    smoothed = jnp.where(before_it[0] > 0, before + difference / divisor, rows.losses)
    smoothed = jnp.where(is_known, smoothed, jnp.nan)
    drop = jnp.where((rows.num_rows > 1) & rows.finite, _shifted(before, smoothed) - known, 0)
    drop = jnp.where(drop > 0, drop, 0)  # NaN, after rows without an average, becomes 0 too
    (more_drop,) = _weigh(within, counts * (drop - past.drop))
    return weight, smoothed, past.drop + more_drop / divisor


def _fall_so_far(
    smoothed: jax.Array, is_known: jax.Array, settled: jax.Array, past: Past
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the highest and the best average up to each row, and the fall between them."""
    candidates = jnp.where(settled & is_known, smoothed, jnp.inf)
    largest, negative = _so_far(jnp.where(is_known, smoothed, -jnp.inf), -candidates)
    highest, best = jnp.maximum(past.highest, largest), jnp.minimum(past.best, -negative)
    # Every new best makes the fall larger: the highest never drops, and the best is lower.
    is_best = candidates < _shifted(past.best, best)
    (fallen,) = _so_far(jnp.where(is_best, highest - smoothed, -jnp.inf))
    return highest, best, jnp.maximum(past.fall, fallen)


def _alarms(rows: _Rows, is_high: jax.Array, past: Past) -> jax.Array:
    """Return the alarms of each row and of those before it, ``[_ROWS_IN_A_ROW, chunk]``."""
    alarm = jnp.where(rows.finite, (rows.settled & is_high).astype(rows.losses.dtype), 2)
    return _last(_ROWS_IN_A_ROW, alarm, past.alarm, past.alarm_before)


def _num_data(rows: _Rows, alarms: jax.Array, has_risen: jax.Array) -> jax.Array:
    """Return how many rows of the chunk are data if the test ends at each; else ``_NO_END``."""
    all_high, none_finite = alarms.min(0) > 0, alarms.min(0) > 1
    diverged = none_finite | (all_high & rows.settled & has_risen)
    # The row that revealed the divergence is data; trailing losses that are not finite are not.
    num_gaps = jnp.cumprod(alarms > 1, axis=0).sum(0, dtype=jnp.int32)
    return jnp.where(diverged, rows.order + 1 - num_gaps, _NO_END)


def _weigh(within: jax.Array, *columns: jax.Array) -> jax.Array:
    """Return the weighted sums of columns up to each row, ``[column, row]``."""
    entries = jnp.stack(columns)
    # Keep all sums finite: an infinite row, times its weight of zero, makes earlier rows NaN.
    largest = float(np.finfo(entries.dtype).max) / (4 * entries.shape[-1])
    # In full precision: by default, accelerators round the factors of a product to fewer bits.
    return jnp.matmul(jnp.clip(entries, -largest, largest), within.T, precision="highest")


def _so_far(*columns: jax.Array) -> jax.Array:
    """Return the running maximum of each column, ``[column, row]``."""
    return lax.cummax(jnp.stack(columns), axis=1)


def _last(number: int, column: jax.Array, *before: jax.Array) -> jax.Array:
    """Return each row's entry, the previous row's entry, and so on: ``[number, row]``."""
    whole = jnp.concatenate([*(entry[None] for entry in reversed(before)), column])
    size = column.shape[0]
    return jnp.stack([whole[number - 1 - age :][:size] for age in range(number)])


def _shifted(before: jax.Array, column: jax.Array) -> jax.Array:
    """Return the entry before each row: for the first row ``before``."""
    return jnp.concatenate([before[None], column[:-1]])
