"""Fuzzing of range tests: any losses, against the stop rule in float64, and against themselves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

import optax_clr
from strategies import ROWS, cases, float32s, scripts

smoothings = st.sampled_from([0.0, 0.5, 0.9, 0.98, 0.99])
stop_factors = st.sampled_from([0.25, 1.0, 4.0, math.inf])
rates = st.tuples(float32s(1e-8, 1e-3), float32s(1e-2, 1e3)).map(
    lambda ends: np.geomspace(*ends, ROWS).astype(np.float32)
)
steps_per_value = st.sampled_from([1, 1, 3])


def scripted_step(count, loss, value):
    """A training step whose loss is what the batch says."""
    return count + 1, (loss + 0 * value, {"count": count, "value": value})


def run(losses, values, smoothing, stop_factor, steps_per_value=1):
    return optax_clr.range_test(
        scripted_step, jnp.int32(0), losses, values, has_aux=True, smoothing=smoothing,
        stop_factor=stop_factor, steps_per_value=steps_per_value,
    )  # fmt: skip


def simulate(losses, smoothing, stop_factor, sizes=None):
    """The documented rule in float64: smoothed losses, and every number of rows that is right.

    There are several where a float32 cannot tell: the rule compares differences of averages, which
    are known to some roundings of the largest of ``sizes`` so far. ``fall`` is then an interval.
    """
    smoothing = float(np.float32(smoothing))
    known = np.isfinite(losses)
    exact = np.where(known, losses, 0).astype(np.float64)
    sizes = np.where(known, np.abs(losses) if sizes is None else sizes, 0)
    smoothed, noises, allowed, alarms = [], [], [], []
    best, falls = math.inf, (0.0, 0.0)
    for row in range(len(losses)):
        weights = known[: row + 1] * smoothing ** np.arange(row, -1.0, -1.0)
        weights = weights / max(weights.sum(), 1e-300)
        drop = max(smoothed[-1] - exact[row], 0.0) if row and known[row] else 0.0
        noises.append(0.0 if math.isnan(drop) else drop)
        smoothed.append(float(weights @ exact[: row + 1]) if weights.any() else math.nan)
        noise = math.sqrt(2 * math.pi) * float(weights @ noises)
        unsure = 1e-5 * sizes[: row + 1].max()
        least, most = math.inf, math.inf
        if row >= 19 and not math.isnan(smoothed[-1]):
            fall = np.nanmax(smoothed) - smoothed[-1]
            if smoothed[-1] < best - unsure:
                falls = (fall, fall)
            elif smoothed[-1] < best + unsure:
                falls = (min(falls[0], fall), max(falls[1], fall))
            best = min(best, smoothed[-1])
            if not math.isinf(stop_factor):
                least, most = (
                    stop_factor * max(fall + error, 4 * noise + error, 0.0)
                    for fall, error in zip(falls, (-unsure, unsure), strict=True)
                )
        may_be, must_be = (
            (smoothed[-1] - best + unsure > least, exact[row] - best + unsure > least),
            (smoothed[-1] - best - unsure > most, exact[row] - best - unsure > most),
        )
        # Whether the row is one of three in a row that tell of divergence: it may be, it must be.
        alarms.append([not known[row] or high for _, high in (may_be, must_be)])
        last = slice(max(row - 2, 0), row + 1)
        all_gaps = row >= 2 and not known[last].any()
        ends = [
            all_gaps or (row >= 2 and rises and all(alarm[which] for alarm in alarms[last]))
            for which, (rises, _) in enumerate((may_be, must_be))
        ]
        num_gaps = next((age for age in range(3) if known[row - age]), 3) if row >= 2 else 0
        if ends[0]:
            allowed.append(row + 1 - num_gaps)
        if ends[1]:
            return smoothed, allowed
    return smoothed, [*allowed, len(losses)]


def assert_recorded(result, sizes, smoothed, allowed, values):
    """What every result promises; ``sizes`` are those of the losses of the rows."""
    num_valid = int(result.num_valid)
    assert num_valid in allowed, (num_valid, allowed)
    columns = [result.learning_rates, *result.metrics.values(), result.equivalent_steps]
    columns = [np.asarray(column) for column in columns]
    assert all(np.isnan(column[num_valid:]).all() for column in [*columns, *result[1:3]])
    assert all(np.isfinite(column[:num_valid]).all() for column in columns)
    np.testing.assert_array_equal(columns[0][:num_valid], values[:num_valid])
    found, expected = np.asarray(result.smoothed_losses[:num_valid]), np.array(smoothed[:num_valid])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    sizes = np.where(np.isfinite(sizes), sizes, 0)
    error = np.nan_to_num(np.abs(found - expected))
    assert (error <= 1e-5 * np.maximum.accumulate(sizes[:num_valid])).all()
    return num_valid


@cases(1.0)
@given(scripts(), rates, smoothings, stop_factors)
def test_the_stop_is_that_of_the_rule_in_float64(losses, values, smoothing, stop_factor):
    result = run(losses, values, smoothing, stop_factor)
    smoothed, allowed = simulate(losses, smoothing, stop_factor)
    event(f"{len(allowed)} right answers" if len(allowed) < 3 else "more right answers")
    num_valid = assert_recorded(result, np.abs(losses), smoothed, allowed, values)
    np.testing.assert_array_equal(result.losses[:num_valid], losses[:num_valid])
    np.testing.assert_array_equal(result.metrics["count"][:num_valid], np.arange(num_valid))
    np.testing.assert_array_equal(result.metrics["value"][:num_valid], values[:num_valid])


@cases(0.4)
@given(scripts(3 * ROWS), rates, smoothings, stop_factors)
def test_several_steps_a_value_are_one_row(losses, values, smoothing, stop_factor):
    result = run(losses, values, smoothing, stop_factor, steps_per_value=3)
    groups = losses.reshape(-1, 3)
    with np.errstate(invalid="ignore"):
        means = groups.astype(np.float64).mean(1).astype(np.float32)
    sizes = np.abs(groups).max(1)  # a float32 mean is rounded in units of what is added
    smoothed, allowed = simulate(means, smoothing, stop_factor, sizes)
    num_valid = assert_recorded(result, sizes, smoothed, allowed, values)
    finite = np.isfinite(means)
    error = np.where(finite, np.abs(result.losses - np.where(finite, means, 0)), 0)[:num_valid]
    assert (error <= 1e-6 * np.nan_to_num(sizes[:num_valid])).all()
    np.testing.assert_array_equal(result.metrics["count"][:num_valid], 3 * np.arange(num_valid) + 1)


_compiled = jax.jit(run)
_lanes = jax.jit(jax.vmap(run, in_axes=(0, 0, None, None)))


@cases(1.0)
@given(scripts(), scripts(), rates, smoothings, stop_factors)
def test_compiled_and_in_lanes_it_is_the_same(first, second, values, smoothing, stop_factor):
    numbers = np.float32(smoothing), np.float32(stop_factor)
    curves = np.stack([first, second, first])
    lanes = _lanes(curves, np.stack([values] * 3), *numbers)
    for lane, losses in enumerate([first, second]):
        smoothed, allowed = simulate(losses, smoothing, stop_factor)
        eager = run(losses, values, smoothing, stop_factor)
        of_lane = jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes)
        for result in (eager, _compiled(losses, values, *numbers), of_lane):
            num_valid = assert_recorded(result, np.abs(losses), smoothed, allowed, values)
            np.testing.assert_array_equal(result.losses[:num_valid], losses[:num_valid])
            if len(allowed) == 1:
                assert num_valid == eager.num_valid
    # Lanes know nothing of each other.
    for column in jax.tree.leaves(lanes):
        np.testing.assert_array_equal(column[0], column[2])


@cases(0.7)
@given(scripts(), rates, smoothings, stop_factors, st.integers(-40, 40))
def test_a_factor_of_a_power_of_two_changes_no_bit(losses, values, smoothing, stop_factor, power):
    largest = np.max(np.abs(losses), initial=1.0, where=np.isfinite(losses))
    power = min(power, 110 - math.frexp(largest)[1])  # the range of a float32 ends at 128
    plain = run(losses, values, smoothing, stop_factor)
    scaled = run(np.ldexp(losses, power), values, smoothing, stop_factor)
    assert plain.num_valid == scaled.num_valid
    for before, after in zip(plain[1:3], scaled[1:3], strict=True):
        np.testing.assert_array_equal(np.ldexp(before, power), after)


@cases(0.7)
@given(scripts(), rates, smoothings, stop_factors, st.integers(-64, 64))
def test_a_constant_does_not_move_the_stop(losses, values, smoothing, stop_factor, constant):
    # In steps of 2**-12, so that the sum is exact; what is left are roundings of the averages.
    with np.errstate(invalid="ignore"):
        losses = np.clip(np.round(losses * 2**12) / 2**12, -64, 64).astype(np.float32)
        shifted = losses + np.float32(constant)
    sizes = np.full(ROWS, 64.0 + abs(constant))
    _, allowed = simulate(losses, smoothing, stop_factor, sizes)
    plain = run(losses, values, smoothing, stop_factor).num_valid
    moved = run(shifted, values, smoothing, stop_factor).num_valid
    assert {int(plain), int(moved)} <= set(allowed)


executed = []


def counting_step(state, loss, value):
    jax.debug.callback(lambda *_: executed.append(None), loss)
    return state, loss + 0 * value


@cases(0.1)
@given(scripts(), rates, smoothings, stop_factors)
def test_every_row_is_trained_once(losses, values, smoothing, stop_factor):
    executed.clear()
    result = optax_clr.range_test(
        counting_step, jnp.zeros(()), losses, values, smoothing=smoothing, stop_factor=stop_factor
    )
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert int(result.num_valid) <= len(executed) <= ROWS
