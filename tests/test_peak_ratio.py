"""The peak of any schedule over the best constant rate, against the sum of the theorem."""

import functools
import math
from fractions import Fraction
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import optax_clr
from forms import mostly_slow
from optax_clr._peak_ratio import peak_ratio


def theorem(values):
    """S_1 and the bracket of theorem 10, in rationals, term by term as it is printed."""
    rest = list(accumulate(reversed(values)))[::-1]
    squares = list(accumulate(value * value for value in reversed(values)))[::-1]
    bracket = squares[0] / rest[0] + sum(
        values[k] / rest[k + 1] * squares[k] / rest[k] for k in range(len(values) - 1)
    )
    return rest[0], bracket


def expected(values):
    highest = Fraction(max(values))
    steps = [Fraction(value) / highest for value in values]
    while not steps[-1]:
        steps.pop()  # they leave the params as they are
    constant = math.prod(theorem([Fraction(1)] * len(values)))
    return math.sqrt(constant / math.prod(theorem(steps)))


def of_best_stop(values):
    """By the theorem for the stop that promises most, after which the params move a little."""
    bounds = []
    for stop in range(1, len(values) + 1):
        if values[stop - 1]:
            total, bracket = theorem(values[:stop])
            bracket += 2 * sum(values[stop:])
            bounds.append((bracket / total, total * bracket))
    constant = math.prod(theorem([Fraction(1)] * len(values)))
    return math.sqrt(constant / min(bounds)[1])


# One program for all tables of a length.
entry_at = jax.jit(lambda table, step: table[step])


def in_order(values):
    """The schedule that has these values."""
    return functools.partial(entry_at, jnp.asarray(values, jnp.float32))


@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=12).filter(any))
def test_it_is_that_of_the_theorem(values):
    np.testing.assert_allclose(
        peak_ratio(in_order(values), len(values)), expected(values), rtol=1e-9
    )


@settings(max_examples=30)  # each takes a fifth of a second
@given(st.lists(st.integers(0, 20), min_size=64, max_size=64))
def test_what_hardly_moves_the_params_is_what_it_moves_them(halvings):
    """Values of 0 to 20 halvings, in any order."""
    values = [2.0 ** (min(halvings) - number) for number in halvings]  # sums of these lose nothing
    plain, best = expected(values), of_best_stop(values)
    wanted = best if best > 1.1 * plain else plain
    assume(abs(best / plain - 1.1) > 1e-3)
    np.testing.assert_allclose(peak_ratio(in_order(values), 64), wanted, rtol=1e-6)


ENDS_JUST_ABOVE_0 = {
    "one cycle": lambda n, end: optax_clr.one_cycle_schedule(
        1.0, n, wave=optax_clr.waves.linear, end_value=end
    ),
    "Welch's one cycle": lambda n, end: optax_clr.one_cycle_schedule(
        1.0, n, wave=optax_clr.waves.welch, end_value=end
    ),
    "linear": lambda n, end: optax.linear_schedule(1.0, end, n - 1),
    # Optax's own, when compiled, takes the root of what may be rounded to below 0.
    "root": lambda n, end: (
        lambda step: end + (1 - end) * jnp.sqrt(jnp.maximum(1 - step / (n - 1), 0))
    ),
    "low after a third": lambda n, end: lambda step: jnp.where(step < n // 3, 1.0, end),
}


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("num_steps", [64, 100, 1000, 100_000])
@pytest.mark.parametrize("form", ENDS_JUST_ABOVE_0)
def test_a_schedule_that_ends_just_above_0_is_as_one_that_ends_at_0(form, num_steps):
    # One program for all ends.
    schedule = jax.jit(lambda end, step: ENDS_JUST_ABOVE_0[form](num_steps, end)(step))
    at_0, *above_0 = (
        peak_ratio(functools.partial(schedule, end), num_steps)
        for end in (0.0, 1e-12, 1e-8, 1e-6, 1e-5)
    )
    np.testing.assert_allclose(above_0, [at_0] * 4, rtol=0.1)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("form", ENDS_JUST_ABOVE_0)
def test_and_so_when_traced(form):
    schedule_of = ENDS_JUST_ABOVE_0[form]
    higher = lambda height, end: peak_ratio(lambda t: height * schedule_of(100, end)(t), 100)
    at_0 = peak_ratio(schedule_of(100, 0.0), 100)
    ends = jnp.array([1e-12, 1e-8, 1e-6, 1e-5])
    many = jax.jit(jax.vmap(higher, in_axes=(None, 0)))(0.3, ends)
    np.testing.assert_allclose(many, [at_0] * 4, rtol=0.1)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("num_steps", [2, 5, 60, 150])
@pytest.mark.parametrize(
    "schedule_of",
    [
        lambda n: optax.constant_schedule(0.3),
        lambda n: optax.cosine_decay_schedule(0.1, n),
        lambda n: optax.linear_schedule(2.0, 0.0, n),
        lambda n: optax.piecewise_constant_schedule(1.0, {n // 2: 0.1}),
        lambda n: optax_clr.one_cycle_schedule(5.0, n),
        lambda n: optax_clr.triangular2_schedule(0.1, 0.4, max(1, n // 8)),
        lambda n: optax_clr.warm_restarts_schedule(0.1, max(1, n // 3)),
        lambda n: optax_clr.warmup_stable_decay_schedule(
            1.0, n, warmup_steps=n // 5, decay_steps=n // 4
        ),
    ],
)
def test_schedules_of_all_kinds(schedule_of, num_steps):
    schedule = jax.jit(schedule_of(num_steps))  # rather than each of its operations by itself
    values = values_of(schedule, num_steps).astype(float)
    np.testing.assert_allclose(peak_ratio(schedule, num_steps), expected(values), rtol=1e-6)


def test_a_constant_rate_is_its_own_peak():
    for num_steps in (1, 2, 99, 101, 10_000, 2**20, 2**31 - 1):
        assert peak_ratio(optax.constant_schedule(7.0), num_steps) == pytest.approx(1, rel=1e-6)


@given(st.floats(1e-30, 1e30), st.sampled_from([1, 2, 60, 300]))  # each of which is compiled
def test_the_height_of_the_form_does_not_matter(factor, num_steps):
    form = jnp.sin(jnp.arange(1.0, 301.0)) ** 2
    plain = peak_ratio(in_order(form), num_steps)
    np.testing.assert_allclose(peak_ratio(in_order(factor * form), num_steps), plain, rtol=1e-5)


def by_sums(values):
    """The same in float64, for many steps."""
    heights = np.asarray(values, np.float64) / np.max(values)
    heights = heights[: np.flatnonzero(heights)[-1] + 1]
    rest = np.cumsum(heights[::-1])[::-1]
    squares = np.cumsum(heights[::-1] ** 2)[::-1]
    terms = heights[:-1] / rest[1:] * squares[:-1] / rest[:-1]
    constant = len(values) * (1 + np.sum(1 / np.arange(1.0, len(values))))
    return math.sqrt(constant / (squares[0] + rest[0] * terms.sum()))


def values_of(schedule, num_steps):
    return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(num_steps, dtype=np.int32)))


def distance(step, other):
    """At least 1, as a float."""
    return jnp.abs(step - other).astype(jnp.float32) + 1


# Schedules that are steep, or narrow, at their start, in the middle or at many places.
STEEP = {
    "inverse": lambda n: lambda step: 1 / distance(step, 0),
    "inverse root": lambda n: lambda step: 1 / jnp.sqrt(distance(step, 0)),
    "inverse root after a warm-up": lambda n: (
        lambda step: jnp.minimum(distance(step, 0) / 500, jnp.sqrt(500 / distance(step, 0)))
    ),
    "a few steps of warm-up": lambda n: optax.warmup_cosine_decay_schedule(0.0, 1.0, 5, n),
    "zero after the start": lambda n: lambda step: jnp.where(step < 1000, 1.0, 0.0),
    "zero after a third": lambda n: lambda step: jnp.where(step < n // 3, 1.0, 0.0),
    "low after the start": lambda n: lambda step: jnp.where(step < 1000, 1.0, 0.1),
    "fast exponential": lambda n: optax.exponential_decay(1.0, 1, 0.5),
    "exponential": lambda n: optax.exponential_decay(1.0, 1, 0.99),
    "slow exponential": lambda n: optax.exponential_decay(1.0, 1, 0.9999),
    "narrow in the middle": lambda n: lambda step: 1 / distance(step, int(0.4321 * n)),
    "a hundred steps": lambda n: (
        lambda step: jnp.where(distance(step, int(0.4321 * n)) < 50, 1.0, 0.01)
    ),
    "inverse root with restarts": lambda n: (
        lambda step: 1 / jnp.sqrt(distance(step % (n // 10), 0))
    ),
    "step decay with restarts": lambda n: (
        lambda step: jnp.float32(0.1) ** (step % (n // 7) // (n // 28))
    ),
    "decaying cycles": lambda n: optax_clr.exp_range_schedule(0.0, 1.0, 50, gamma=0.9999),
    "longer and longer cycles": lambda n: optax_clr.warm_restarts_schedule(1.0, 100, mult=1.5),
}


every_form = pytest.mark.parametrize(
    "form",
    mostly_slow(
        STEEP,
        usual=[
            "inverse", "zero after a third", "low after the start", "fast exponential",
            "narrow in the middle", "inverse root with restarts", "longer and longer cycles",
        ],
    ),
)  # fmt: skip


@functools.cache
def values_and_ratio_of(form, num_steps):
    schedule = jax.jit(STEEP[form](num_steps))
    return values_of(schedule, num_steps), peak_ratio(schedule, num_steps)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("num_steps", [100_000, 1_000_000])
@every_form
def test_long_runs_are_looked_at_where_they_change(form, num_steps):
    values, ratio = values_and_ratio_of(form, num_steps)
    np.testing.assert_allclose(ratio, by_sums(values), rtol=1e-3)


@pytest.mark.parametrize("num_steps", [32_768, 100_000, 3_000_000])
@pytest.mark.parametrize("at_end", [False, True])
def test_the_first_step_and_the_last_are_looked_at(at_end, num_steps):
    """Of one step alone S_1 times the bracket is 1."""
    only = num_steps - 1 if at_end else 0
    schedule = lambda step: jnp.where(step == only, 3.0, 0.0)
    constant = num_steps * (1 + math.fsum(1 / k for k in range(1, num_steps)))
    assert peak_ratio(schedule, num_steps) == pytest.approx(math.sqrt(constant), rel=1e-9)


@pytest.mark.parametrize("num_steps", [32_768, 32_769, 300_000])
@pytest.mark.parametrize(
    "schedule_of",
    [
        lambda n: optax_clr.one_cycle_schedule(1.0, n),
        lambda n: optax_clr.triangular_schedule(0.25, 1.0, 8),  # cycles shorter than a block
        lambda n: optax_clr.warm_restarts_schedule(1.0, n // 100),
        lambda n: lambda step: jnp.where(step < n // 2, 1.0, 0.0),
    ],
)
def test_long_runs_are_sampled(schedule_of, num_steps):
    schedule = jax.jit(schedule_of(num_steps))
    values = values_of(schedule, num_steps)
    np.testing.assert_allclose(peak_ratio(schedule, num_steps), by_sums(values), rtol=3e-3)


@pytest.mark.slow
def test_traced_and_not_are_the_same():
    rates = jnp.geomspace(1e-3, 10.0, 100)
    losses = (jnp.log10(rates) - jnp.log10(0.5)) ** 2
    result = optax_clr.RangeTestResult(rates, losses, losses, jnp.int32(100))

    def peak(result, height):
        return result.peak_for(optax_clr.one_cycle_schedule(height, 500), 500)

    plain = peak(result, 1.0)
    assert isinstance(plain, float)
    np.testing.assert_allclose(jax.jit(peak)(result, 3.0), plain, rtol=1e-5)
    heights = jnp.array([0.5, 2.0])
    many = jax.vmap(peak, in_axes=(None, 0))(result, heights)
    np.testing.assert_allclose(many, [plain, plain], rtol=1e-5)


@jax.jit
def traced_ratio(heights, values):
    return jax.vmap(lambda height: peak_ratio(in_order(height * values), len(values)))(heights)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("num_steps", [1000, 100_000])
@every_form
def test_traced_and_not_are_the_same_for_all_forms(form, num_steps):
    """Where values are far below the highest, their squares are below what float32 holds."""
    values, ratio = values_and_ratio_of(form, num_steps)
    # A rounding may change which steps of a long run are looked at.
    tolerance = 1e-5 if num_steps < 32_768 else 1e-3
    # One program for all forms, which are given by their values.
    many = traced_ratio(jnp.array([1e-3, 20.0]), values)
    np.testing.assert_allclose(many, [ratio, ratio], rtol=tolerance)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("num_steps", [20, 100, 500, 777, 5000])
def test_a_last_value_that_is_zero_but_for_a_rounding_is_zero(num_steps):
    """Compiled, 1 - t / T is not 0 at T, but 6e-8 or below 0."""
    schedule = optax.linear_schedule(1.0, 0.0, num_steps - 1)
    expected = by_sums(np.linspace(1, 0, num_steps))
    traced = jax.jit(lambda height: peak_ratio(lambda step: height * schedule(step), num_steps))
    for ratio in (peak_ratio(schedule, num_steps), peak_ratio(jax.jit(schedule), num_steps)):
        np.testing.assert_allclose(ratio, expected, rtol=1e-4)
    np.testing.assert_allclose(traced(0.1), expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int8])
def test_values_of_few_digits_are_summed_in_float32(dtype):
    table = jnp.asarray(100 / jnp.sqrt(jnp.arange(1.0, 2001.0)), dtype)
    schedule = lambda step: table[step]
    ratio = by_sums(np.asarray(table, np.float64))
    np.testing.assert_allclose(peak_ratio(schedule, 2000), ratio, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda: peak_ratio(schedule, 2000))(), ratio, rtol=1e-5)


def test_one_cycle_and_bounds_are_cases_of_it():
    rates = jnp.geomspace(1e-3, 10.0, 100)
    losses = (jnp.log10(rates) - jnp.log10(0.5)) ** 2
    result = optax_clr.RangeTestResult(rates, losses, losses, jnp.int32(100))
    one_cycle = result.peak_for(optax_clr.one_cycle_schedule(1.0, 1000), 1000)
    np.testing.assert_allclose(result.one_cycle_peak(), one_cycle, rtol=0.01)
    cycles = result.peak_for(optax_clr.triangular_schedule(0.25, 1.0, 125), 1000)
    np.testing.assert_allclose(result.bounds().peak_value, cycles, rtol=0.01)


@pytest.mark.parametrize(
    "shape",
    [
        optax.linear_schedule(1.0, -1.0, 100),
        lambda step: jnp.float32(-1) - step.astype(jnp.float32),
        lambda step: jnp.zeros(()),
        lambda step: jnp.where(step == 7, jnp.inf, 1.0),
        lambda step: jnp.where(step == 7, jnp.nan, 1.0),
    ],
)
@pytest.mark.parametrize("steps_of_one", [10, 1000])
def test_what_is_refused_outside_of_a_program_is_nan_inside(shape, steps_of_one):
    num_steps = 100 * steps_of_one
    schedule = jax.jit(lambda step: shape(step // steps_of_one))
    with pytest.raises(ValueError, match="shape must be a schedule of finite values"):
        peak_ratio(schedule, num_steps)
    assert np.isnan(traced_ratio(jnp.array([1e-3, 20.0]), values_of(schedule, num_steps))).all()
