"""Fuzzing of schedules and cycles: any sizes, values, steps and transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st

import exact
from optax_clr import Cycles, cyclical_schedule, exp_range_schedule, warm_restarts_schedule
from optax_clr.envelopes import exponential as exponential_envelope
from strategies import (
    INTEGER_DTYPES,
    LAST,
    TINY,
    any_step,
    cases,
    lengths,
    multiples,
    positive,
    schedules,
    steps_near,
    values,
    x64,
)


def assert_exact(got, spec, steps, rtol=None):
    """The formula in exact arithmetic, to a relative error: of its terms, where they cancel."""
    rtol = spec.rtol if rtol is None else rtol
    wanted = np.array([float(spec.exact(step, *spec.values)) for step in steps])
    sizes = np.array([float(spec.exact(step, *map(abs, spec.values))) for step in steps])
    if spec.own:
        sizes = max(map(abs, spec.values))
    underflow = 2 * TINY * max(1.0, *map(abs, spec.values))
    error = np.abs(np.asarray(got, np.float64) - wanted)
    assert (error <= rtol * sizes + underflow).all(), (got, wanted)


@cases(1.0)
@given(schedules, st.data())
def test_every_schedule_is_its_formula_everywhere(spec, data):
    steps = data.draw(steps_near(spec.moments))
    got = spec.build(*spec.values)(np.array(steps))
    assert got.dtype == jnp.float32
    assert not got.weak_type
    ends = (*spec.values, 0.0) if spec.from_zero else spec.values
    low, high = min(ends), max(ends)
    slack = spec.rtol * max(abs(low), abs(high))
    assert ((got >= low - slack) & (got <= high + slack)).all()
    assert_exact(got, spec, steps)


@cases(0.3)
@given(schedules, st.data())
def test_steps_come_in_any_form(spec, data):
    schedule = spec.build(*spec.values)
    steps = data.draw(steps_near(spec.moments))
    expected = np.asarray(schedule(np.array(steps)))
    dtype = np.dtype(data.draw(st.sampled_from(INTEGER_DTYPES)))
    # Those that the dtype can count; the others, whose value is at hand, stay in the int64 array.
    small = [step <= np.iinfo(dtype).max for step in steps]
    held = np.where(small, steps, 0).astype(dtype)
    # The same program for the same shape: bit for bit.
    again = np.asarray(schedule(held))
    np.testing.assert_array_equal(again[small], expected[small])
    # JAX has no 64 bits here, and would say so.
    if dtype.itemsize < 8:
        np.testing.assert_array_equal(schedule(jnp.asarray(held)), again)
    # Another shape is another program, in which XLA may round otherwise.
    where = data.draw(st.sampled_from(["python", "numpy", "scalar", "empty", "matrix"]))
    if where == "empty":
        assert schedule(np.zeros((2, 0), dtype)).shape == (2, 0)
    elif where == "matrix":
        assert_close(schedule(np.array(steps).reshape(2, 3)), expected.reshape(2, 3), spec)
    else:
        form = {"python": int, "numpy": np.int64, "scalar": np.array}[where]
        got = schedule(form(steps[0]))
        assert (got.shape, got.dtype) == ((), jnp.float32)
        assert_close(got, expected[0], spec)


def assert_close(got, expected, spec, rtol=1e-6):
    """Two ways to compute the same: to rounding, which is of the terms."""
    largest = max(map(abs, spec.values))
    mixed = spec.own or min(spec.values) < 0 < max(spec.values)
    np.testing.assert_allclose(
        got, expected, rtol=rtol, atol=4 * TINY * max(1.0, largest) + mixed * rtol * largest
    )


@cases(0.08)
@given(schedules, st.data())
def test_transformations_change_nothing_but_roundings(spec, data):
    """Eager, against one compiled program of jit, vmap and scan, with the values traced."""
    steps = np.array(data.draw(steps_near(spec.moments)), np.int32)
    expected = spec.build(*spec.values)(steps)

    def every_way(numbers, steps):
        schedule = spec.build(*numbers)
        scanned = jax.lax.scan(lambda carry, step: (carry, schedule(step)), None, steps)[1]
        batch = [jnp.stack([number, number]) for number in numbers]
        lanes = jax.vmap(lambda *lane: spec.build(*lane)(steps))(*batch)
        return schedule(steps), jax.vmap(schedule)(steps), scanned, lanes[0], lanes[1]

    numbers = [jnp.float32(value) for value in spec.values]
    compiled = jax.jit(every_way)(numbers, steps)
    np.testing.assert_array_equal(spec.build(*numbers)(steps), expected)
    for got in compiled:
        assert got.dtype == jnp.float32
        assert_close(got, expected, spec)


@cases(0.3)
@given(schedules, st.data())
def test_values_are_float64_where_it_is_promised(spec, data):
    steps = data.draw(steps_near(spec.moments))
    plain = np.asarray(spec.build(*spec.values)(np.array(steps)))
    with x64():
        single = spec.build(*spec.values)(np.array(steps))
        double = spec.build(*(jnp.float64(value) for value in spec.values))(np.array(steps))
        assert (single.dtype, double.dtype) == (jnp.float32, jnp.float64)
    assert_close(single, plain, spec, rtol=2e-6)
    # The user's own envelope counts in float32.
    assert_exact(double, spec, steps, rtol=1e-6 if "harmonic" in spec.text else 1e-12)


@cases(0.5)
@given(schedules, st.data())
def test_a_value_is_the_sum_of_its_parts(spec, data):
    """Every schedule is homogeneous in its values, of degree 1: Euler's theorem."""
    steps = np.array(data.draw(steps_near(spec.moments)))
    primals = [jnp.float32(value) for value in spec.values]
    # In values they are linear, but for a decaying peak that has come to the base.
    got, pullback = jax.vjp(lambda *numbers: spec.build(*numbers)(steps), *primals)
    one_hot = data.draw(st.integers(0, len(steps) - 1))
    parts = pullback(jnp.eye(len(steps), dtype=jnp.float32)[one_hot])
    assert all(np.isfinite(part) for part in parts)
    total = sum(float(part) * value for part, value in zip(parts, spec.values, strict=True))
    sizes = sum(abs(float(part) * value) for part, value in zip(parts, spec.values, strict=True))
    largest = max(1.0, *map(abs, spec.values))
    assert abs(total - float(got[one_hot])) <= 2e-6 * sizes + 4 * TINY * largest
    # The shares of the values are parts of one whole, but for what 0 has.
    if spec.from_zero:
        assert 0 <= sum(map(float, parts)) < 1 + 2e-6
    elif "peak_decay" not in spec.text or "'peak_decay': 1.0" in spec.text:
        assert abs(sum(map(float, parts)) - 1) < 2e-6


@cases(0.3)
@given(positive, positive, lengths, st.floats(1e-9, 1.0).map(lambda loss: 1 - loss / 2), st.data())
def test_a_traced_rate_of_decay_has_a_finite_gradient(base, peak, length, rate, data):
    base, peak = sorted([base, peak])
    step = data.draw(any_step)
    for build in (
        lambda gamma: exp_range_schedule(base, peak, length, gamma=gamma),
        lambda decay: warm_restarts_schedule(peak, length, base_value=base, peak_decay=decay),
    ):
        value, slope = jax.value_and_grad(lambda rate, build=build: build(rate)(step))(
            jnp.float32(rate)
        )
        assert np.isfinite(slope)
        slack = 2e-6 * peak
        assert base - slack <= value <= peak + slack


@cases(0.5)
@given(st.floats(1e-6, 1.0), st.data())
def test_a_traced_gamma_is_right_to_what_its_docstring_says(gamma, data):
    gamma = np.float32(gamma)
    steps = np.array(data.draw(steps_near([0])))
    with jax.numpy_dtype_promotion("standard"):
        got = jax.vmap(lambda gamma: exponential_envelope(gamma)(0, steps))(gamma[None])[0]
    exponent = steps * np.log(np.float64(gamma))
    wanted = np.exp(exponent)
    assert (np.abs(got - wanted) <= (1e-6 + 2e-7 * np.abs(exponent)) * wanted + 2 * TINY).all()


@cases(0.5)
@given(values, values, lengths, multiples(), st.data())
def test_warm_up_and_cool_down_are_joined_anywhere(base, peak, length, multiple, data):
    """optax.join_schedules hands a schedule steps below 0, whose value it does not use."""
    mult, num_cycles = multiple
    schedule = cyclical_schedule(base, peak, length, mult=mult, num_cycles=num_cycles)
    start, end = sorted(data.draw(st.tuples(any_step, any_step)))
    joined = optax.join_schedules([lambda step: -1.0, schedule, lambda step: -2.0], [start, end])
    for step in data.draw(steps_near([start, end], count=3)):
        wanted = -1.0 if step < start else schedule(step - start) if step < end else -2.0
        np.testing.assert_array_equal(joined(jnp.int32(step)), wanted)


# ---------------------------------------------------------------------------------------- cycles


@st.composite
def some_cycles(draw):
    mult, num_cycles = draw(multiples())
    return Cycles(draw(st.one_of(lengths, st.just(LAST))), mult, num_cycles)


@cases(1.0)
@given(some_cycles(), st.data())
def test_cycles_are_those_of_an_exact_walk(cycles, data):
    moments = exact.boundaries(cycles.steps, cycles.mult, cycles.num_cycles)
    steps = data.draw(steps_near(moments))
    dtype = data.draw(st.sampled_from(["int64", "uint32", "uint64"]))
    array = np.array(steps).astype(dtype)
    index, fraction, is_end = (
        np.asarray(query(array)) for query in (cycles.index, cycles.fraction, cycles.is_end)
    )
    starts, lasts = np.asarray(cycles.start(index)), np.asarray(cycles.length(index))
    for i, step in enumerate(steps):
        cycle, position, length = exact.locate(step, cycles.steps, cycles.mult, cycles.num_cycles)
        if position == length:  # after the last cycle
            total = step if cycles.num_cycles is None else cycles.total_steps
            assert (index[i], fraction[i], is_end[i]) == (cycles.num_cycles, 0, False)
            assert (starts[i], lasts[i]) == (min(total, LAST), 0)
            continue
        assert (index[i], is_end[i]) == (cycle, position == length - 1)
        assert 0 <= fraction[i] < 1
        assert abs(fraction[i] - position / length) <= 3e-7 * position / length
        # The pieces fit together, in integers.
        assert starts[i] == step - position
        assert lasts[i] == min(length, LAST)


@cases(0.1)
@given(some_cycles(), st.data())
def test_cycles_inside_transformations(cycles, data):
    steps = np.array(
        data.draw(steps_near(exact.boundaries(cycles.steps, cycles.mult, cycles.num_cycles))),
        np.int32,
    )

    @jax.jit
    def every_way(steps):
        ask = lambda step: (cycles.index(step), cycles.is_end(step), cycles.fraction(step))
        scanned = jax.lax.scan(lambda carry, step: (carry, ask(step)), None, steps)[1]
        return ask(steps), jax.vmap(ask)(steps), scanned

    expected = (cycles.index(steps), cycles.is_end(steps), cycles.fraction(steps))
    for index, is_end, fraction in every_way(steps):
        np.testing.assert_array_equal(index, expected[0])
        np.testing.assert_array_equal(is_end, expected[1])
        np.testing.assert_allclose(fraction, expected[2], rtol=2e-7)
        assert (fraction < 1).all()


@cases(1.0)
@given(lengths, multiples())
def test_the_total_is_the_sum_of_the_lengths(steps, multiple):
    mult, num_cycles = multiple
    cycles = Cycles(steps, mult, num_cycles)
    if num_cycles is None:
        assert cycles.total_steps is None
    elif mult == 1:
        assert cycles.total_steps == steps * num_cycles
    else:
        lengths = [max(1, round(steps * mult**cycle)) for cycle in range(num_cycles)]
        assert cycles.total_steps == sum(lengths)
    assert Cycles(steps, mult, num_cycles) == cycles
    assert hash(Cycles(steps, mult, num_cycles)) == hash(cycles)
