"""Readings of curves whose answer is known, and curves that cannot be read."""

import base64
import html
import io
import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_clr
from forms import mostly_slow
from optax_clr import (
    RangeTestError,
    RangeTestResult,
    RangeTestWarning,
    _fall,
    _noise,
    _order,
    _reading,
)
from optax_clr._curve import Curve, at_hand, checked_curve, curve_of

READINGS = ["suggest", "one_cycle_peak", "bounds"]


def result_of(losses, rates=None, num_valid=None):
    """A result with these losses, NaN from ``num_valid`` on."""
    losses = np.asarray(losses, np.float32)
    num_rows = losses.shape[-1]
    rates = np.geomspace(1e-5, 10.0, num_rows) if rates is None else rates
    rates = np.broadcast_to(np.asarray(rates, np.float32), losses.shape)
    valid = np.arange(num_rows) < (num_rows if num_valid is None else num_valid)
    valid = np.broadcast_to(valid, losses.shape)
    losses, rates = (jnp.asarray(np.where(valid, part, np.nan)) for part in (losses, rates))
    return RangeTestResult(rates, losses, losses, jnp.asarray(valid.sum(-1), jnp.int32))


def valley(lowest=0.1, num_rows=300, noise=0.0, seed=0):
    """A loss of 2 that falls to 1 within a decade of ``lowest`` and explodes beyond."""
    rates = np.geomspace(1e-5, 10.0, num_rows)
    distance = np.log10(rates / lowest)
    losses = 2 - np.exp(-(distance**2)) + np.exp(np.clip(8 * (distance - 1), None, 60))
    return losses + noise * np.random.default_rng(seed).normal(size=num_rows)


def read(result):
    return np.array([result.suggest(), result.one_cycle_peak(), *result.bounds()])


def staircase(rates, levels, edges):
    """A loss that changes from level to level, half of the way at each edge, as models do it."""
    shares = 1 / (1 + np.exp(-8 * np.log10(rates[:, None] / edges)))
    return levels[0] + shares @ np.diff(levels)


def box(lower, upper, num_rows, noise=0.0, seed=0):
    """A loss of 1 between two rates and of 2 elsewhere: half of the fall is made just there."""
    losses = staircase(np.geomspace(1e-5, 10.0, num_rows), [2.0, 1.0, 2.0], [lower, upper])
    return losses + noise * np.random.default_rng(seed).normal(size=num_rows)


def expected(lower, upper, steps):
    """The formula of the documentation."""
    centre = np.sqrt(lower * upper * steps)
    constant = centre / 18
    return constant * np.array([1, 2.637, 1.758 / 4, 1.758])


def test_a_median_size_needs_no_jit():
    values = np.array([3.0, -1.0, np.nan, 2.0], np.float32)
    with jax.disable_jit():
        assert _noise.median_size(jnp.asarray(values)) == 2.0


@pytest.mark.parametrize(("lower", "upper"), [(1e-4, 1e-2), (3e-3, 0.1), (0.01, 2.0)])
@pytest.mark.parametrize("num_rows", [150, 300, 1000])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_readings_are_those_of_the_valley(lower, upper, num_rows, noise):
    # In a sweep that is even in the logarithm the sum of the rates so far is an integral.
    steps = num_rows / 6 / np.log(10)
    result = result_of(box(lower, upper, num_rows, noise))
    np.testing.assert_allclose(read(result), expected(lower, upper, steps), rtol=0.15)


@pytest.mark.parametrize("longer", [2, 4])
def test_a_longer_test_of_the_same_task_reads_the_same(longer):
    """With twice the steps the loss falls at half the rate, and explodes at the same one."""
    short = read(result_of(box(0.01, 1.0, 300)))
    long = read(result_of(box(0.01 / longer, 1.0, 300 * longer)))
    np.testing.assert_allclose(long, short, rtol=0.06)


def test_no_rate_is_above_where_the_test_itself_broke_down():
    """However long the test, and however much of its rate a schedule lets decay."""
    many = jnp.full(300, 1e6)
    long = result_of(box(0.01, 1.0, 300))._replace(equivalent_steps=many)
    steep = long.peak_for(optax.exponential_decay(1.0, 1000, 1e-4), 1000)
    assert 0.7 / 2 < steep < 0.7  # half of the fall is lost at 1, or just below
    assert [long.suggest(), long.one_cycle_peak(), long.bounds()[1]] == [steep] * 3
    # An end that the sweep never reached is none.
    ends = result_of(box(0.01, 20.0, 300))._replace(equivalent_steps=many)
    with pytest.warns(RangeTestWarning, match="the end of the sweep"):
        assert ends.suggest() > 10.0
    exploded = result_of(box(0.01, 20.0, 300), num_valid=270)._replace(
        ended_by=jnp.int32(1), equivalent_steps=many
    )
    with pytest.warns(RangeTestWarning, match="ended suddenly"):
        np.testing.assert_allclose(
            exploded.suggest(), 0.7 * exploded.learning_rates[269], rtol=0.01
        )


def test_what_flax_restores_of_a_result_is_read_like_it():
    result = result_of(valley())
    restored = serialization.msgpack_restore(serialization.to_bytes(result))
    assert RangeTestResult(**restored).suggest() == result.suggest()


def test_steps_at_each_rate_count_like_rows():
    plain = result_of(box(0.01, 1.0, 300))
    steps = 8 * np.cumsum(plain.learning_rates) / plain.learning_rates
    np.testing.assert_allclose(
        read(plain._replace(equivalent_steps=steps)), read(plain) * np.sqrt(8), rtol=1e-4
    )


def test_held_out_losses_are_read_where_there_are_any():
    train, held_out = box(0.01, 1.0, 300), box(0.001, 0.1, 300)
    result = result_of(train)._replace(held_out_losses=jnp.asarray(held_out, jnp.float32))
    np.testing.assert_allclose(read(result), read(result_of(held_out)), rtol=1e-5)
    assert "suggest()" in result.summary()


def test_a_loss_that_begins_high_has_its_valley_where_it_is_lowest():
    """As with raw features: it falls a hundredfold first, and by what matters later."""
    rates = np.geomspace(1e-5, 10.0, 300)
    losses = np.exp(staircase(rates, np.log([200.0, 20.0, 0.2, 200.0]), [1e-4, 1e-2, 0.3]))
    losses *= 1 + 0.1 * np.random.default_rng(1).normal(size=300)
    # Half of the fall in logarithms is not made at 20, half of that in the loss is.
    steps = 300 / 6 / np.log(10)
    with pytest.warns(RangeTestWarning, match="two stages"):
        found = read(result_of(losses))
    np.testing.assert_allclose(found, expected(1e-2, 0.3, steps), rtol=0.45)
    assert (found > 3 * expected(1e-4, 0.3, steps)).all()


def test_base_and_peak_are_in_order():
    base_value, peak_value = result_of(valley()).bounds()
    assert 0 < base_value < peak_value


@settings(max_examples=40)  # each is two readings
@given(st.floats(-20, 20), st.floats(-6, 6), st.floats(-30, 30), st.integers(0, 9))
def test_units_do_not_matter(constant, log_factor, log_rate_factor, seed):
    losses = valley(noise=0.02, seed=seed)
    rates = np.geomspace(1e-5, 10.0, 300)
    plain = read(result_of(losses, rates))
    changed = read(result_of(10**log_factor * (losses + constant), 10**log_rate_factor * rates))
    # Two grid points apart at most, where rounding decides between neighbours.
    np.testing.assert_allclose(changed / 10**log_rate_factor, plain, rtol=0.12)


def test_values_may_be_negative():
    """As of another hyperparameter; what is read is one of those that are positive."""
    values = jnp.linspace(-1, 4, 300)
    step_fn = lambda state, batch, value: (state, (value - 1) ** 2 + 0.01 * batch)
    noise = jax.random.normal(jax.random.key(0), (300,))
    result = optax_clr.range_test(step_fn, 0.0, noise, values, stop_factor=math.inf)
    assert (result.equivalent_steps[np.asarray(values) != 0] > 0).all()
    with pytest.warns(RangeTestWarning, match="the start of the sweep cuts the valley"):
        assert 0 < result.suggest() < 4


def test_readings_are_compiled_with_64_bit_types(x64):
    result = result_of(valley())
    expected = result.suggest()
    with x64():
        compiled = jax.jit(lambda losses: result._replace(losses=losses).suggest())
        np.testing.assert_allclose(compiled(result.losses), expected, rtol=1e-5)


@pytest.mark.parametrize("power", [-90, 60])
def test_losses_near_the_ends_of_float32_are_read_like_others(power):
    losses = valley(noise=0.02).astype(np.float32)
    scaled = read(result_of(np.ldexp(losses, power)))
    np.testing.assert_array_equal(scaled, read(result_of(losses)))


def test_negative_losses_are_read_like_others():
    np.testing.assert_allclose(
        read(result_of(valley() - 100)), read(result_of(valley())), rtol=0.06
    )


def test_the_answer_does_not_depend_on_the_number_of_rows_after_the_stop():
    stopped = result_of(valley(), num_valid=245)
    np.testing.assert_allclose(read(stopped), read(result_of(valley())), rtol=0.15)


@pytest.mark.parametrize("noise", [0.02, 0.3, 0.5])
def test_rows_after_the_end_are_no_data(noise):
    """The same test with room for more rows, for none, and for some."""
    num_valid = 100
    rates = np.geomspace(1e-5, 10.0, num_valid)
    losses = box(1e-3, 2.0, num_valid, noise=noise)
    summaries = set()
    for room in (num_valid, 300, 1000):  # of which other tests have compiled the reading
        padded = np.pad(losses, (0, room - num_valid), constant_values=np.nan)
        all_rates = np.pad(rates, (0, room - num_valid), constant_values=np.nan)
        result = result_of(padded, all_rates, num_valid=num_valid)
        result = result._replace(ended_by=jnp.int32(1))
        summaries.add("\n".join(result.summary().splitlines()[1:]))
    assert len(summaries) == 1


def test_readings_work_under_jit_and_vmap():
    curves = np.stack([valley(lowest) for lowest in (1e-3, 1e-2, 0.1)]).astype(np.float32)
    rates = jnp.geomspace(1e-5, 10.0, 300)

    def read_one(losses):
        result = RangeTestResult(rates, losses, losses, jnp.int32(300))
        return [result.suggest(), result.one_cycle_peak(), *result.bounds()]

    together = jnp.stack(jax.jit(jax.vmap(read_one))(curves), axis=1)
    for curve, lane in zip(curves, together, strict=True):
        np.testing.assert_allclose(lane, read_one(jnp.asarray(curve)), rtol=1e-5)


def curves_of_many_kinds(num_curves):
    """Valleys within noise, with gaps and early ends, and now and then noise alone, or a walk."""
    for seed in range(num_curves):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=100)
        if seed % 10 < 2:
            losses = [noise, noise.cumsum()][seed % 10]
        else:
            losses = rng.choice([1, 50]) * valley(10 ** rng.uniform(-4, 1), 100)
            losses += 10 ** rng.uniform(-3, -0.5) * noise + rng.choice([-5, 0, 1000])
        losses[rng.integers(0, 100, rng.choice([0, 0, 3, 40]))] = np.nan
        losses[rng.integers(50, 200) :] = np.nan
        yield losses


@pytest.mark.parametrize("num_lanes", mostly_slow([1, 3], usual=[3]))
def test_numpy_reads_what_a_compiled_program_reads(num_lanes):
    rates = jnp.broadcast_to(jnp.geomspace(1e-5, 10.0, 100), (num_lanes, 100))
    steps = jnp.cumsum(rates, axis=1) / rates
    problems = set()
    for losses in np.reshape([*curves_of_many_kinds(60)], (-1, num_lanes, 100)):
        diverged = np.isnan(losses[:, -1])
        curve = Curve(rates, losses, steps, diverged, False, 1.0)
        compiled = _reading.read_curve(checked_curve(curve))
        known = _reading.read_curve(checked_curve(at_hand(curve)))
        assert isinstance(known.averages, np.ndarray)
        assert known.problem == compiled.problem
        np.testing.assert_array_equal(known.doubts, compiled.doubts)
        np.testing.assert_allclose(known.valley, compiled.valley, rtol=1e-4)
        for columns in zip(_reading.averages(known), _reading.averages(compiled), strict=True):
            np.testing.assert_allclose(
                *columns, rtol=1e-4, atol=1e-5 * np.nanmax(np.ptp(columns, -1))
            )
        problems.add(int(known.problem))
    assert len(problems) > 2


def test_many_seeds_are_read_together():
    curves = np.stack([valley(noise=0.3, seed=seed) for seed in range(100)])
    together = result_of(curves)
    assert isinstance(together.suggest(), float)
    np.testing.assert_allclose(together.suggest(), result_of(valley()).suggest(), rtol=0.3)
    # Each lane can be read by itself, for the spread.
    each = suggestions_of_a_hundred(together)
    assert each.shape == (100,)


def test_seeds_on_different_scales_count_alike():
    curves = np.stack([valley(0.1), 1e4 * valley(0.1) + 77, 1e-4 * valley(0.1)])
    np.testing.assert_allclose(result_of(curves).suggest(), result_of(valley()).suggest(), rtol=0.1)


@pytest.mark.parametrize("ended_by", [(), [0, 1, 1], [0, 2, 2]], ids=["?", "diverged", "ran out"])
@pytest.mark.parametrize("num_rows", [0, 1, 4])
def test_curves_that_have_hardly_begun_are_left_out(num_rows, ended_by):
    """As of a start from which every loss is NaN; where it did not run out of data, it is told."""
    curves = np.stack([valley(noise=0.02, seed=seed) for seed in range(3)])
    curves[1:, num_rows:] = np.nan
    ended_by = np.array(ended_by) if ended_by else ()
    result = result_of(curves)._replace(
        num_valid=np.array([300, num_rows, num_rows]), ended_by=ended_by
    )
    if np.size(ended_by) and ended_by[1] == 2:
        together = result.suggest()  # warnings are errors here
    else:
        with pytest.warns(RangeTestWarning, match="ended suddenly.*may be far off"):
            together = result.suggest()
    assert together == pytest.approx(result_of(curves[0]).suggest(), rel=0.02)


def test_a_curve_that_ends_before_others_once_it_has_risen_leaves_no_doubt():
    curves = np.stack([valley(noise=0.02, seed=seed) for seed in range(3)])
    curves[1:, 290:] = np.nan
    result_of(curves).bounds()  # warnings are errors here


def test_rows_from_num_valid_on_are_no_data():
    losses = valley(noise=0.02)
    expected = read(result_of(np.where(np.arange(300) < 280, losses, np.nan)))
    for beyond in (0.0, 1e6, losses[280:]):
        padded = result_of(np.concatenate([losses[:280], np.broadcast_to(beyond, 20)]))
        padded = padded._replace(num_valid=jnp.int32(280))
        np.testing.assert_array_equal(read(padded), expected)
    with pytest.raises(RangeTestError, match="fewer than 6 rows are finite"):
        result_of(losses)._replace(num_valid=0).suggest()


def test_rates_of_few_digits_are_summed_in_float32():
    rates = jnp.asarray(np.geomspace(1e-3, 10.0, 3000), jnp.bfloat16)
    losses = (np.log10(np.asarray(rates, np.float64)) + 0.5) ** 2
    results = [result_of(losses, column) for column in (rates, rates.astype(jnp.float32))]
    np.testing.assert_allclose(read(results[0]), read(results[1]), rtol=1e-6)


def test_columns_may_be_lists():
    result = result_of(valley(noise=0.02))
    lists = RangeTestResult(*(np.asarray(column).tolist() for column in result[:3]), 300)
    np.testing.assert_allclose(read(lists), read(result), rtol=1e-5)


def test_first_losses_that_are_missing_count_for_nothing():
    losses = valley(noise=0.05)
    expected = read(result_of(losses))
    losses[:12] = np.nan  # of the 15 that tell the loss before training
    np.testing.assert_allclose(read(result_of(losses)), expected, rtol=0.06)


@pytest.mark.parametrize("gap", [2, 5, 20])
def test_rows_that_are_missing_here_and_there_count_for_nothing(gap):
    losses = valley(noise=0.02)
    expected = read(result_of(losses))
    losses[150::gap] = np.nan
    np.testing.assert_allclose(read(result_of(losses)), expected, rtol=0.03)


def test_the_first_rows_of_a_test_end_before_it_did():
    losses = valley(noise=0.02)
    for reason in (1, 2, 3):
        result = result_of(losses, num_valid=250)._replace(ended_by=jnp.int32(reason))
        part = jax.tree.map(lambda leaf: leaf[:200] if leaf.ndim else leaf, result)
        with pytest.warns(RangeTestWarning, match="the end of the sweep cuts the valley"):
            part.suggest()


def test_a_seed_that_ran_out_of_batches_counts_for_nothing_after_that():
    curves = np.stack([valley(noise=0.02), valley(noise=0.02, seed=1)])
    rates = np.geomspace(1e-5, 10.0, 300)
    expected = read(result_of(curves, rates)._replace(ended_by=jnp.array([0, 0])))
    curves[1, 150:] = np.nan
    result = result_of(curves, rates)._replace(ended_by=jnp.array([0, 2]))
    np.testing.assert_allclose(read(result), expected, rtol=0.05)


def test_a_seed_that_diverged_early_moves_the_answer_down():
    curves = np.stack([valley(0.1), valley(0.1)])
    rates = jnp.geomspace(1e-5, 10.0, 300)
    early = curves.copy()
    early[1, 180:] = np.nan  # at 0.041
    with pytest.warns(RangeTestWarning, match="ended suddenly"):  # before its loss had risen
        assert result_of(early, rates).suggest() < result_of(curves, rates).suggest()


UNREADABLE = {
    "too few points": result_of([2.0, 1.5, 1.0]),
    # Finite losses, but none at a rate that can stand on a logarithmic axis, or all at one rate.
    "at positive rates that differ": result_of(valley(), rates=-np.geomspace(1e-5, 10, 300)),
    "rates that differ. Test": result_of(valley(), rates=np.full(300, 0.1)),
    "diverged at once": result_of(valley(), num_valid=5),
    "diverged at once:": result_of(np.full(300, np.nan)),
    "never fell": result_of(np.linspace(1, 2, 300)),
    "never fell:": result_of(np.random.default_rng(0).normal(size=300)),
    "never fell: no": result_of(np.full(300, 2.0)),
    "ended suddenly": result_of(
        2 + 0.1 * np.random.default_rng(0).normal(size=300), num_valid=200
    )._replace(ended_by=jnp.int32(1)),
    "never fell: no rate": result_of(np.linspace(1, 2, 300), num_valid=200)._replace(
        ended_by=jnp.int32(1)
    ),
    "never fell: no rate made it clearly lower": result_of(  # and rose, by less than one batch
        np.repeat([0.1, 0.7, 2.0, 0.7], [180, 15, 2, 103])
        + 0.05 * np.random.default_rng(0).normal(size=300),
        num_valid=200,
    )._replace(ended_by=jnp.int32(1)),
    # The last rows are high for three of its noise, which one of many batches is, too.
    "ended suddenly: it": result_of(
        np.repeat([2.0, 2.5, 2.0, 2.3, 2.0], [150, 1, 46, 3, 100])
        + 0.1 * np.random.default_rng(0).normal(size=300),
        num_valid=200,
    )._replace(ended_by=jnp.int32(1)),
    "the loss falls from the first rows on": result_of(  # a walk, that begins by falling
        2 + 0.05 * np.random.default_rng(4).normal(size=300).cumsum()
    ),
    "the test ended before the loss fell": result_of(valley(noise=0.1), num_valid=100),
    "too few points to tell": result_of(
        [3977, 2535, 530, 3.2, 1.16, 1.84], np.geomspace(1e-3, 0.5, 6)
    ),
    "different sweeps: only": result_of(np.stack([valley(), valley()]))._replace(
        optimizer_factor=jnp.array([1.0, 0.25])
    ),
    "different sweeps": result_of(
        np.stack([valley(), valley()]), np.outer([1, 2], np.geomspace(1e-5, 10.0, 300))
    ),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("problem", UNREADABLE)
def test_a_curve_that_cannot_be_read_says_why(problem, reading):
    with pytest.raises(RangeTestError, match=problem):
        getattr(UNREADABLE[problem], reading)()


jitted_readings = jax.jit(
    lambda result: (result.suggest(), result.one_cycle_peak(), result.bounds())
)


def padded(result):
    """The same with rows that are no data after its own, since each number of rows is compiled."""
    num_more = 300 - result.losses.shape[-1]
    pad = lambda column: jnp.pad(
        column, [(0, 0)] * (column.ndim - 1) + [(0, num_more)], constant_values=jnp.nan
    )
    return result._replace(**{name: pad(getattr(result, name)) for name in result._fields[:3]})


@pytest.mark.parametrize("problem", UNREADABLE)
def test_and_every_reading_is_nan_inside_jit(problem):
    assert np.isnan(jax.tree.leaves(jitted_readings(padded(UNREADABLE[problem])))).all()


@jax.jit
def suggestions_of_a_hundred(results):
    return jax.vmap(lambda lane: lane.suggest())(results)


def suggestions(curves, rates):
    """Of each curve, a hundred at a time: one program for all numbers of curves."""
    hundreds = (result_of(part, rates) for part in np.split(curves, len(curves) // 100))
    return np.concatenate([suggestions_of_a_hundred(results) for results in hundreds])


def walk(innovations, correlation):
    """AR(1) noise along the last axis, from its stationary start."""
    rows = np.empty_like(innovations)
    rows[:, 0] = innovations[:, 0] / np.sqrt(1 - correlation**2)
    for row in range(1, innovations.shape[1]):
        rows[:, row] = correlation * rows[:, row - 1] + innovations[:, row]
    return rows


NOISE = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(3, size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(size=shape),
    "AR(1), .5": lambda rng, shape: walk(rng.normal(size=shape), 0.5),
    "AR(1), .8": lambda rng, shape: walk(rng.normal(size=shape), 0.8),
    "AR(1), .95": lambda rng, shape: walk(rng.normal(size=shape), 0.95),
}


@pytest.mark.parametrize("num_rows", [8, 17, 100, 300, pytest.param(1000, marks=pytest.mark.slow)])
def test_noise_alone_is_rarely_read(num_rows):
    rng = np.random.default_rng(num_rows)
    num_curves = 200 if num_rows < 300 else 100
    curves = [2.3 + 0.1 * noise(rng, (num_curves, num_rows)) for noise in NOISE.values()]
    # Short ones are padded to 100 rows, since each number of rows is compiled.
    pad = lambda rows: np.pad(rows, [(0, 0), (0, max(0, 100 - num_rows))], constant_values=np.nan)
    sweep = np.geomspace(1e-7, 10, num_rows)
    rates = suggestions(pad(np.concatenate(curves)), pad(sweep[None])[0])
    read = np.isfinite(rates).reshape(len(NOISE), -1).sum(1)
    # 1 of 30 are some 7 of 200, or 3 of 100; 13, or 7, are two standard errors more.
    is_often = dict(zip(NOISE, read > (13 if num_curves == 200 else 7), strict=True))
    if num_rows < 200:  # too few to tell a walk
        is_often = {name: often for name, often in is_often.items() if "AR" not in name}
    assert is_often == dict.fromkeys(is_often, False)


def test_a_fall_is_told_from_noise_by_all_rows_before_training():
    """A fall as large as the noise of a row; by the first 20 of 300 rows a third would be read."""
    rates = np.geomspace(1e-7, 10, 300)
    noise = np.random.default_rng(0).normal(size=(200, 300))
    curves = staircase(rates, [2.0, 1.0, 2.0], [0.01, 1.0]) + 0.9 * noise
    assert np.isfinite(suggestions(curves, rates)).mean() > 0.75


@pytest.mark.parametrize("gap", [2, 3, 10])
def test_noise_with_regular_gaps_is_noise(gap):
    curves = np.full((200, 300), np.nan)
    curves[:, ::gap] = 2.3 + 0.1 * np.random.default_rng(gap).normal(size=(200, -(-300 // gap)))
    rates = suggestions(curves, np.geomspace(1e-7, 10, 300))
    assert np.isfinite(rates).sum() <= 13


@pytest.mark.parametrize("gap", [2, 3])
def test_a_good_curve_with_regular_gaps_is_read_like_one_without(gap):
    losses = np.full(300, np.nan)
    losses[::gap] = valley(noise=0.02)[::gap]
    np.testing.assert_allclose(
        read(result_of(losses)), read(result_of(valley(noise=0.02))), rtol=0.15
    )


def sorted_by_class(rng, num_rows=300, block=10):
    """A model that learns nothing, and data sorted by class: every class has a loss of its own."""
    levels = np.resize(np.repeat(2.3 + 0.3 * rng.normal(size=10), block), num_rows)
    losses = levels + 0.05 * rng.normal(size=num_rows)
    return result_of(losses, rates=np.geomspace(1e-7, 10, num_rows))


def test_a_loss_that_wanders_says_what_to_change():
    result = sorted_by_class(np.random.default_rng(0))
    with pytest.raises(RangeTestError, match=r"wanders: .* shuffle the data; .* \(held_out\)"):
        result.suggest()


def is_read_in_silence(result):
    return not re.search("In doubt|Cannot be read", result.summary())


def test_batches_that_are_not_shuffled_are_refused_or_doubted():
    rng = np.random.default_rng(0)
    assert sum(not is_read_in_silence(sorted_by_class(rng)) for _ in range(60)) >= 58


@pytest.mark.parametrize("num_blocks", [5, 10, 30])
def test_long_blocks_of_the_same_class_are_hardly_ever_read_in_silence(num_blocks):
    rng = np.random.default_rng(0)
    results = (sorted_by_class(rng, num_rows=600, block=600 // num_blocks) for _ in range(100))
    assert np.mean([is_read_in_silence(result) for result in results]) <= 0.05


@pytest.mark.parametrize("num_rows", [200, 300, 1000])
def test_a_steep_fall_over_several_rows_is_no_jump(num_rows):
    rates = np.geomspace(1e-7, 10.0, num_rows)
    losses = 2.3 - 2 / (1 + (1e-2 / rates) ** 6) + 2 / (1 + (1 / rates) ** 6)
    losses += 0.02 * (rates > 1e-3) * np.random.default_rng(0).normal(size=num_rows)
    assert is_read_in_silence(result_of(losses, rates))


def test_a_fall_within_a_gap_is_no_jump():
    losses = valley(lowest=0.3)
    losses[150:215] = np.nan
    assert "jumps" not in result_of(losses).summary()


def test_what_a_destroyed_model_does_above_its_first_loss_is_no_second_fall():
    rates = np.geomspace(1e-6, 100.0, 300)
    losses = staircase(rates, [2.0, 1.0, 4.0], [1e-3, 0.1])
    losses[rates > 5] = 2.1
    losses += 0.15 * np.random.default_rng(0).normal(size=300)
    assert result_of(losses, rates).suggest() > 0  # and no doubt, which would be an error here


def test_a_loss_that_falls_again_after_it_has_risen_is_doubted():
    rates = np.geomspace(1e-5, 10.0, 300)
    losses = staircase(rates, [2.0, 1.0, 2.0, 1.2, 2.0], [1e-4, 1e-3, 0.1, 1.0])
    with pytest.warns(RangeTestWarning, match="fell again after it had risen"):
        result_of(losses, rates).suggest()


@pytest.mark.parametrize("depths", [(1.0, 0.8), (0.9, 1.1)])
def test_either_of_two_valleys_that_is_read_is_doubted(depths):
    rates = np.geomspace(1e-6, 10.0, 150)
    dips = np.exp(-np.square((np.log10(rates) - [[-3.5], [-1.0]]) / 0.6))
    losses = 4 - depths @ dips + 3 * np.maximum(np.log10(rates), 0)
    losses += 0.03 * np.random.default_rng(0).normal(size=150)
    assert "fell again after it had risen" in result_of(losses, rates).summary()


@pytest.mark.parametrize(("last", "is_sudden"), [((3, 3, 1), False), ((1, 3, 1), True)])
def test_three_rows_tell_whether_a_test_rose_before_it_ended(last, is_sudden):
    losses = np.concatenate([box(0.01, 20.0, 300)[:247], last, np.zeros(50)])
    result = result_of(losses, num_valid=250)._replace(ended_by=jnp.int32(1))
    assert ("In doubt: the test ended suddenly" in result.summary()) == is_sudden


@pytest.mark.parametrize("row", [10, 30, 100])
@pytest.mark.parametrize("seed", range(4))
def test_one_of_several_curves_that_never_fell_has_not_risen(row, seed):
    """Whatever its noise is when a loss that is not finite ends it."""
    curves = np.stack([box(0.01, 1.0, 300, 0.02, other) for other in range(4)])
    curves[-1] = 2 + 0.02 * np.random.default_rng(seed).normal(size=300)
    curves[-1, row:] = np.nan
    result = result_of(curves)._replace(ended_by=jnp.array([0, 0, 0, 1]))
    assert "In doubt: the test ended suddenly" in result.summary()


@pytest.mark.parametrize(("height", "is_spike"), [(13.0, False), (14.0, True), (-13.0, True)])
def test_a_lone_spike_is_ten_deviations_beyond_its_neighbours(height, is_spike):
    rows = np.resize([0.0, 1.0], 101).astype(np.float32)  # of which a deviation is 1.21
    rows[50] = height
    found = np.isnan(np.asarray(_noise.without_spikes(jnp.asarray(rows))))
    assert found.sum() == found[50] == is_spike


@pytest.mark.parametrize(
    ("place", "num_before", "height"),
    [(50, 51, 1), (50, 50, 1), (50, 49, 2 / 3), (50, 47, 0), (3, 3, 1), (3, 2, 0), (97, 97, 1)],
)
def test_a_drop_is_looked_for_up_to_the_lowest_average(place, num_before, height):
    """Between averages of three rows, of which the first begin, and the last end, the curve."""
    fall = _fall.Fall(
        np.repeat([1.0, 0.0], [place, 100 - place]).astype(np.float32),
        np.linspace(-4.0, 0.0, 100, dtype=np.float32),
        height=np.float32(1),
        relative_error=np.float32(0.1),
        noise_at_end=np.float32(0),
        num_before=np.int32(num_before),
        is_level=np.arange(100) < place,
        begins_level=True,
        progress=np.zeros(100, np.float32),
    )
    np.testing.assert_allclose(_order.largest_drop(fall, 0.0).height, height, rtol=1e-6)


@pytest.mark.parametrize(("noise", "noise_at_end"), [(0.1, 0.0), (0.4, 0.0), (0.1, 0.4)])
def test_a_drop_is_told_by_as_few_rows_as_tell_it_to_an_eighth(noise, noise_at_end):
    """The noise of the fall or of its end, whichever is larger."""
    rows = np.repeat([1.0, 0.0], 500) + noise * np.random.default_rng(0).normal(size=1000)
    fall = _fall.Fall(
        jnp.asarray(rows, jnp.float32),
        jnp.linspace(-4.0, 0.0, 1000),
        height=jnp.float32(1),
        relative_error=jnp.float32(0.1),
        noise_at_end=jnp.float32(noise_at_end),
        num_before=jnp.int32(900),
        is_level=jnp.arange(1000) < 500,
        begins_level=True,
        progress=jnp.zeros(1000),
    )
    drop = _order.largest_drop(fall, 0.0)
    np.testing.assert_allclose(drop.height, 1, atol=3 * drop.error)
    assert drop.error <= 1 / 8
    is_noisy = max(noise, noise_at_end) > 0.15
    assert is_noisy == (drop.error > 0.1)  # three rows at least, which tell it better


MEDIAN_SIZE = jax.jit(_noise.median_size)
SIZES = st.just(0.0) | st.floats(2.0**-100, 2.0**100, width=32)


@given(st.lists(SIZES, min_size=12, max_size=12))
def test_the_median_size_is_that_of_numpy(sizes):
    rows = np.array(sizes, np.float32).reshape(3, 4) * np.float32([1, -1, 1, -1])
    rows[0, 0], rows[1] = np.nan, [np.inf, 1.0, np.nan, 2.0]
    wanted = [np.median(np.abs(row[np.isfinite(row)])) for row in rows.astype(float)]
    np.testing.assert_allclose(MEDIAN_SIZE(rows), wanted, rtol=1e-6)
    assert MEDIAN_SIZE(np.full(3, np.nan, np.float32)) == 0


def test_the_significance_of_a_fall_is_that_of_many_curves_of_noise():
    curves = np.random.default_rng(0).normal(size=(1000, 300)).astype(np.float32)
    weights = np.exp(-0.5 * np.square((np.arange(300.0) - 150) / 15))
    share = weights / weights.sum()
    falls = curves[:, :15].mean(1) - curves @ share
    error = np.sqrt(np.sum(share**2) + 1 / 15)
    num_before = jnp.int32(150)
    fall_of = lambda curve, height: _fall.Fall(
        curve,
        jnp.arange(300.0),
        height,
        error,
        noise_at_end=jnp.float32(1),
        num_before=num_before,
        is_level=jnp.arange(300) < num_before,
        begins_level=True,
        progress=jnp.zeros(300),
    )
    significance = jax.jit(jax.vmap(lambda *parts: _fall.significance_of(fall_of(*parts))))
    independent, wandering, _ = significance(curves, falls)
    np.testing.assert_allclose(independent.std(), 1, rtol=0.06)
    # Rows that do not wander are told from a walk by some hundred of them.
    np.testing.assert_allclose(wandering.std(), 1, rtol=0.2)


@pytest.mark.parametrize("row", [0, 1, 2, 30, 150, 200])
@pytest.mark.parametrize("height", [-1e3, 5.0, 1e3, 1e30, math.inf, math.nan])
def test_one_bad_batch_does_not_move_a_reading(row, height):
    losses = valley(noise=0.02)
    plain = read(result_of(losses))
    losses[row] = height
    np.testing.assert_allclose(read(result_of(losses)), plain, rtol=0.1)


def test_what_the_first_step_has_learned_is_no_spike():
    """Nine tenths of it, so that the first loss is far from all that follow."""
    losses = jnp.asarray(9 * 0.1 ** np.arange(20.0) + 1, jnp.float32)
    assert not np.isnan(_noise.without_spikes(losses)).any()


@pytest.mark.parametrize("num_rows", [300, 1000, 3000])
@pytest.mark.parametrize("height", [0.9, -0.9])
def test_bad_batches_that_happen_to_be_neighbours_are_no_jump(num_rows, height):
    """One batch in ten is bad, and so are two in a row now and then."""
    is_bad = np.random.default_rng(1).random(num_rows) < 0.1
    losses = valley(num_rows=num_rows, noise=0.01) + height * is_bad
    plain = read(result_of(valley(num_rows=num_rows, noise=0.01)))
    np.testing.assert_allclose(read(result_of(losses)), plain, rtol=0.35)


@pytest.mark.parametrize("first", [0.002, 0.003, 0.004])
@pytest.mark.parametrize("num_rows", [300, 1000])
def test_a_sweep_that_begins_within_the_fall_is_read(first, num_rows):
    """Its lower half is made at .005; what is level is at the bottom."""
    rates = np.geomspace(first, 10.0, num_rows)
    noise = 0.05 * np.random.default_rng(0).normal(size=num_rows)
    losses = staircase(rates, [2.0, 1.0, 2.0], [0.005, 1.0]) + noise
    whole = result_of(box(0.005, 1.0, num_rows, noise=0.05))
    found = result_of(losses, rates).suggest()
    # By the steps before the sweep, which it does not have, less.
    assert 0.3 < found / whole.suggest() < 1.5


@pytest.mark.parametrize(("num_rows", "lower"), [(12, 0.03), (15, 0.003)])
def test_a_fall_from_the_first_of_few_rows_on_is_not_faint(num_rows, lower):
    """As they all fall, they tell nothing about how far a loss strays by chance."""
    rates = np.geomspace(1e-3, 10.0, num_rows)
    result = result_of(staircase(rates, [2.0, 1.0, 2.0], [lower, 1.0]), rates)
    assert re.findall("In doubt: (.*?):", result.summary()) == [
        "the steps are few for so wide a sweep"
    ]


def test_a_start_worse_than_guessing_does_not_hide_where_the_model_is_destroyed():
    """From 4.6 the loss falls to .33, and from 1.5e-4 on is that of guessing, .7."""
    rates = np.geomspace(1e-7, 10.0, 300)
    losses = staircase(rates, [4.6, 0.33, 0.7], [1e-5, 1.5e-4])
    losses += 0.02 * np.random.default_rng(0).normal(size=300)
    with pytest.warns(RangeTestWarning, match="after its lowest point"):
        near = read(result_of(losses, rates))
    begins_at_a_guess = staircase(rates, [0.7, 0.33, 0.7], [1e-5, 1.5e-4])
    np.testing.assert_allclose(near, read(result_of(begins_at_a_guess, rates)), rtol=0.6)


@pytest.mark.parametrize(("factor", "constant"), [(1.0, 1e9), (1e-6, -76.4), (1.0, -1e6)])
def test_a_constant_does_not_cost_the_digits_of_float64(factor, constant):
    losses = constant + factor * valley(noise=0.02)
    rates = jnp.geomspace(1e-5, 10.0, 300)
    result = RangeTestResult(rates, losses, losses, jnp.int32(300))
    np.testing.assert_allclose(read(result), read(result_of(valley(noise=0.02))), rtol=0.05)


# ------------------------------------------------------------------------------------- doubts

DOUBTS = {
    "the end of the sweep cuts the valley": result_of(box(0.01, 20.0, 300)),
    "the valley has no end": result_of(box(0.001, 20.0, 300)),
    "the test ended within the valley": result_of(box(0.01, 20.0, 300), num_valid=250),
    "the start of the sweep cuts the valley": result_of(np.repeat([2.0, 1.0, 2.0], [4, 130, 166])),
    "the test ended suddenly": result_of(box(0.01, 20.0, 300), num_valid=250)._replace(
        ended_by=jnp.int32(1)
    ),
    "the test ended suddenly: it": result_of(
        np.stack([box(0.01, 1.0, 300), np.r_[box(0.01, 1.0, 300)[:230], np.full(70, np.nan)]]),
        np.geomspace(1e-5, 10.0, 300),
    )._replace(ended_by=jnp.array([0, 1])),
    "the test ended suddenly: it diverged": result_of(  # one that never began
        np.stack([box(0.01, 1.0, 300), np.full(300, np.nan)]), np.geomspace(1e-5, 10.0, 300)
    )._replace(ended_by=jnp.array([0, 1])),
    "the loss fell little": result_of(box(0.01, 1.0, 300, noise=0.8, seed=2)),
    "the loss jumps": result_of(np.repeat([2.0, 1.0, 2.0], [100, 50, 150])),
    "the loss drifts": result_of(valley() + np.clip(1 - np.arange(300) / 25, 0, 1)),
    "the rates do not rise": result_of(box(0.01, 1.0, 300)[::-1], jnp.geomspace(10.0, 1e-5, 300)),
    "after its lowest point": result_of(
        staircase(np.geomspace(1e-5, 10.0, 300), [2.0, 1.0, 1.04], [1e-3, 1e-2])
    ),
    "the steps are few": result_of(box(0.01, 1.0, 100)),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_doubtful_curve_is_read_with_a_warning(doubt, reading):
    with pytest.warns(RangeTestWarning, match=doubt) as caught:
        answer = getattr(DOUBTS[doubt], reading)()
    assert np.isfinite(answer).all()
    assert caught[0].filename == __file__
    assert len(caught) == 1


def test_steps_are_few_or_not_however_they_are_made():
    """By 20 steps to a decade, also of four for each rate, wherever the sweep begins and ends."""
    few = result_of(box(0.01, 1.0, 100))
    sums = jnp.cumsum(few.learning_rates) / few.learning_rates
    held = few._replace(equivalent_steps=4 * sums)
    assert np.isfinite(held.suggest())  # warnings are errors here
    for first in (1e-3, 4e-3):
        rates = np.geomspace(first, 10.0, round(20 * np.log10(10 / first)))
        near = result_of(staircase(rates, [2.0, 1.0, 2.0], [0.01, 1.0]), rates)
        assert np.isfinite(near.suggest())


def test_each_result_warns_of_its_doubt_anew():
    """Python would show a warning once for each line, and a loop reads many results in one."""
    script = (
        "import warnings, optax_clr\n"
        "for _ in range(3): warnings.warn('a doubt', optax_clr.RangeTestWarning)\n"
        "warnings.simplefilter('ignore')\n"
        "warnings.warn('a doubt', optax_clr.RangeTestWarning)\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert shown.stderr.count("RangeTestWarning: a doubt") == 3


@pytest.mark.parametrize("doubt", DOUBTS)
def test_the_summary_names_a_doubt_and_warns_of_none(doubt):
    assert f"In doubt: {doubt}" in DOUBTS[doubt].summary()
    assert "In doubt" not in result_of(valley()).summary()


@pytest.mark.parametrize("doubt", DOUBTS)
def test_inside_jit_nothing_warns(doubt):
    assert np.isfinite(jax.tree.leaves(jitted_readings(padded(DOUBTS[doubt])))).all()


# --------------------------------------------------------------------------------- the summary


def test_the_summary_of_a_sweep_names_the_spread():
    text = result_of(np.stack([valley(noise=0.1, seed=seed) for seed in range(3)])).summary()
    assert text.startswith("Range test: 3 curves of 300 rows, learning rate 1e-05 to 10")
    assert "suggest() of the single curves: " in text


def test_an_offset_of_float64_losses_does_not_change_the_spread():
    curves = np.stack([valley(noise=0.1, seed=seed) for seed in range(3)])
    result = result_of(curves)
    plain, offset = (result._replace(losses=curves + by).summary() for by in (0.0, 1e8))
    spread = re.compile("suggest.. of the single curves: .*")
    assert spread.search(offset)[0] == spread.search(plain)[0]


@pytest.mark.parametrize("problem", UNREADABLE)
def test_the_summary_of_a_curve_that_cannot_be_read_says_why(problem):
    text = UNREADABLE[problem].summary()
    assert problem in text or "none with a finite loss" in text


def test_the_summary_is_of_the_losses_that_are_read():
    result = result_of(np.full(300, np.nan))._replace(held_out_losses=valley())
    assert "Held-out loss: starts at 2; its lowest average is 1." in result.summary()
    assert "suggest()" in result.summary()


def test_a_curve_without_a_finite_loss_does_not_hide_where_the_others_start():
    result = result_of(np.stack([np.full(300, np.inf), valley()]))
    assert "Loss: starts at 2;" in result.summary()


def test_no_average_is_shown_below_every_loss():
    """By rounding it may come out below 0, which no squared error is."""
    losses = np.where(np.arange(300) < 100, 3.1, 1e-9)
    assert "its lowest average is 1e-09." in result_of(losses).summary()


def gaussian_averages(losses, rates, width=0.3):
    """What is said of the averages: weighted by the distance in decades, at any rate."""
    position = np.log10(rates)
    grid = np.linspace(position[0], position[-1], 256)
    weights = np.exp(-(((grid[:, None] - position) / width) ** 2) / 2)
    return weights @ losses / weights.sum(1)


@pytest.mark.parametrize(
    "losses", [2 + 0.1 * np.random.default_rng(0).normal(size=300), np.linspace(1, 2, 300)]
)
def test_the_average_of_a_curve_that_does_not_fall_is_that_of_its_losses(losses):
    rates = np.geomspace(1e-5, 10.0, 300)
    lowest = gaussian_averages(losses, rates).min()
    text = result_of(losses, rates).summary()
    found = float(re.search(r"its lowest average is ([\d.]+\d)", text)[1])
    assert found == pytest.approx(lowest, rel=0.005)


def test_a_result_without_rows_shows_its_fields():
    empty = jax.tree.map(lambda leaf: leaf[:0], result_of(valley())._replace(num_valid=()))
    assert repr(empty).startswith("RangeTestResult(learning_rates=")


def test_the_summary_says_where_it_ended():
    unknown = result_of(valley(), num_valid=230)._replace(ended_by=())
    assert "ended after 230 of them (diverged, or out of batches)" in unknown.summary()
    assert "ended after 230 of them" in result_of(valley(), num_valid=230).summary()
    assert "ended at the last rate" in result_of(valley()).summary()
    assert optax_clr.LRBounds._fields == ("base_value", "peak_value")


def test_readings_print_and_serialize_as_numbers():
    result = result_of(valley())
    found = [result.suggest(), result.one_cycle_peak(), result.bounds()]
    assert all(isinstance(rate, float) for rate in [*found[:2], *found[2]])
    assert json.loads(json.dumps(found)) == [*found[:2], list(found[2])]
    assert json.loads(json.dumps(result.bounds()._asdict())) == result.bounds()._asdict()
    # The same as in a compiled program, but for roundings.
    compiled = jax.tree.leaves(jitted_readings(result))
    np.testing.assert_allclose(jax.tree.leaves(found), compiled, rtol=1e-5)
    # Few digits, and still the same float32 as before it became a number.
    assert all(len(repr(rate)) <= 15 for rate in jax.tree.leaves(found))
    exact = _reading.suggest(_reading.read_valley(curve_of(result)))
    assert np.float32(found[0]) == np.float32(exact)


def test_a_result_shows_itself_as_its_summary():
    for result in (
        result_of(valley()),
        result_of(np.linspace(1, 2, 300)),
        result_of(np.ones((2, 300))),
    ):
        assert repr(result) == result.summary()


def test_a_result_without_values_shows_its_fields():
    result = result_of(valley())
    shapes = jax.eval_shape(lambda result: result, result)
    assert repr(shapes).startswith("RangeTestResult(learning_rates=ShapeDtypeStruct(")
    seen = []
    jax.jit(lambda result: seen.append(repr(result)))(result)
    assert seen[0].startswith("RangeTestResult(learning_rates=")
    assert repr(RangeTestResult(None, None, None, None)).startswith("RangeTestResult(learn")
    empty = RangeTestResult(*3 * [jnp.zeros(0)], jnp.int32(0))
    for result in (shapes, empty):
        assert repr(result).startswith("RangeTestResult(learn")
        assert result._repr_html_() == f"<pre>{html.escape(repr(result), quote=False)}</pre>"


@pytest.mark.parametrize("factor", [-1.0, 0.0, math.nan, math.inf])
def test_a_factor_is_positive(factor):
    result = result_of(valley())._replace(optimizer_factor=factor)
    with pytest.raises(ValueError, match="optimizer_factor must be positive and finite, got"):
        result.suggest()


@pytest.mark.parametrize("field", ["held_out_losses", "equivalent_steps", "ended_by", "metrics"])
def test_none_is_as_what_is_not_there(field):
    result = result_of(valley())
    of_none = result._replace(**{field: None})
    assert of_none.summary() == result.summary()
    assert of_none.suggest() == result.suggest()
    of_none.plot()


@pytest.mark.parametrize("field", ["num_valid", "ended_by", "optimizer_factor"])
def test_fields_have_an_entry_for_each_curve(field):
    result = result_of(np.stack([valley(), valley()]))._replace(**{field: jnp.ones(3, jnp.int32)})
    with pytest.raises(ValueError, match=rf"{field}.* must have .* \(2,\), got the shape \(3,\)"):
        result.suggest()


@pytest.mark.parametrize("shape", [(0,), (0, 300), (3, 0)])
def test_no_rows_cannot_be_read(shape):
    result = RangeTestResult(*3 * [jnp.zeros(shape)], jnp.zeros(shape[:-1], jnp.int32))
    for read in (result.suggest, result.summary, result.plot):
        with pytest.raises(ValueError, match=r"must have at least one row, got the shape"):
            read()


@pytest.mark.parametrize("method", ["summary", "plot"])
def test_what_shows_values_refuses_a_traced_result(method):
    with pytest.raises(TypeError, match=rf"{method}\(\) shows values.* Return the result from"):
        jax.jit(lambda result: getattr(result, method)())(result_of(valley()))


def test_a_notebook_shows_the_summary_and_the_curve():
    from matplotlib import image

    result = result_of(valley())
    text, picture = re.fullmatch(
        r'<pre>(.*)</pre><img .*src="data:image/png;base64,([^"]*)">',
        result._repr_html_(),
        re.DOTALL,
    ).groups()
    assert text == result.summary()
    pixels = image.imread(io.BytesIO(base64.b64decode(picture)), format="png")
    assert pixels.shape[0] > 500
    assert np.ptp(pixels[..., :3]) > 0.9  # not blank


@pytest.mark.usefixtures("without_matplotlib")
def test_a_notebook_without_matplotlib_shows_the_summary():
    result = result_of(valley())
    assert result._repr_html_() == f"<pre>{result.summary()}</pre>"


def test_an_end_by_divergence_is_the_end_of_the_valley():
    losses = box(0.01, 20.0, 300)
    exploded = np.where(np.arange(300) >= 247, [1e3], losses)
    result = result_of(exploded, num_valid=250)._replace(ended_by=jnp.int32(1))
    assert "In doubt" not in result.summary()
    for reason in (2, 3):
        result = result_of(losses, num_valid=250)._replace(ended_by=jnp.int32(reason))
        assert "ended within the valley" in result.summary()
