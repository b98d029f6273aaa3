"""Schedules against exact arithmetic, against torch's recorded values, and against JAX itself."""

import functools
import json
import math
import pathlib
from decimal import Decimal
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import exact
import optax_clr
from forms import mostly_slow

LAST = 2**31 - 1
WAVES = {
    optax_clr.waves.linear: exact.linear,
    optax_clr.waves.cosine: exact.cosine,
    optax_clr.waves.welch: exact.welch,
}
GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "torch.json").read_text())
MOST_RECORDED = max(len(record["values"]) for record in GOLDEN["records"])

any_step = st.one_of(
    st.integers(0, LAST),
    st.integers(0, 10_000),
    st.sampled_from([0, 1, 2**24, 2**24 + 1, LAST - 1, LAST]),
)
length = st.one_of(st.integers(1, 20), st.integers(1, 10_000), st.integers(1, 2**30 - 1))
# A rate, a momentum, their float32 value being the one that both sides use.
value = st.floats(1e-6, 10.0).map(lambda v: float(np.float32(v)))


def steps_near(draw, boundaries):
    """Steps anywhere, and within three of a boundary."""
    near = st.tuples(st.sampled_from(boundaries), st.integers(-3, 3)).map(sum)
    steps = draw(st.lists(st.one_of(any_step, near), min_size=12, max_size=12))
    return [min(max(step, 0), LAST) for step in steps]


def assert_close(schedule, steps, expected, rtol):
    # Not under jit: a compilation per example would cost minutes. Another test compares the two.
    got = np.asarray(schedule(np.array(steps, np.int64)), np.float64)
    wanted = np.array([float(each) for each in expected])
    # A power below the smallest normal float32, 1.2e-38, is 0 in XLA, and peaks go up to 10.
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=2e-37)


# ----------------------------------------------------------------- against exact arithmetic


@given(st.data(), value, value, length, length)
def test_triangular_is_the_formula_of_the_paper(data, base, peak, rise, fall):
    steps = steps_near(data.draw, exact.boundaries(rise + fall))
    assert_close(
        optax_clr.triangular_schedule(base, peak, rise, fall),
        steps,
        [exact.cyclical(t, base, peak, rise, fall) for t in steps],
        rtol=1e-6,
    )


@given(st.data(), value, value, length, length)
def test_triangular2_is_the_formula_of_the_paper(data, base, peak, rise, fall):
    steps = steps_near(data.draw, exact.boundaries(rise + fall))
    halved = lambda cycle, step: Decimal(2) ** -cycle
    assert_close(
        optax_clr.triangular2_schedule(base, peak, rise, fall),
        steps,
        [exact.cyclical(t, base, peak, rise, fall, scale=halved) for t in steps],
        rtol=1e-6,
    )


@given(st.data(), st.one_of(value, st.just(0.0)), value, length, length, st.floats(1e-8, 0.5))
def test_exp_range_is_the_formula_of_the_paper(data, base, peak, rise, fall, loss_per_step):
    gamma = 1 - loss_per_step
    steps = steps_near(data.draw, exact.boundaries(rise + fall))
    power = lambda cycle, step: exact.as_decimal(gamma) ** step
    assert_close(
        optax_clr.exp_range_schedule(base, peak, rise, fall, gamma=gamma),
        steps,
        [exact.cyclical(t, base, peak, rise, fall, scale=power) for t in steps],
        rtol=2e-6,
    )


@pytest.mark.parametrize(("base", "peak"), [(0.1, 0.1), (0.1, 0.105), (0.1, 0.1000001), (0.0, 1.0)])
def test_cycles_that_grow_keep_their_digits(base, peak):
    """Of a narrow one the base and the peak nearly cancel, when each has grown a thousandfold."""
    steps = np.arange(2500)
    power = lambda cycle, step: exact.as_decimal(1.01) ** step
    schedule = optax_clr.exp_range_schedule(base, peak, 3, 5, gamma=1.01)
    expected = [exact.cyclical(int(t), base, peak, 3, 5, scale=power) for t in steps]
    np.testing.assert_allclose(schedule(steps), np.array(expected, np.float64), rtol=2e-6)


@st.composite
def multiples(draw):
    """(mult, num_cycles), legal together."""
    mult = draw(st.one_of(st.sampled_from([1, 2, 3, 1.5, 1.01, 1.1, 10, 1e4]), st.floats(0.5, 4)))
    assume(mult == 1 or abs(mult - 1) > 1e-3)
    finite = st.integers(1, 60)
    return mult, draw(finite if mult < 1 else st.one_of(st.none(), finite))


# tests/fuzz_schedules.py draws thousands of these.
@settings(max_examples=40)
@given(st.data(), value, value, length, length, multiples(), st.sampled_from(list(WAVES)))
def test_cyclical_stretches_every_wave(data, base, peak, rise, fall, multiple, wave):
    mult, num_cycles = multiple
    steps = steps_near(data.draw, exact.boundaries(rise + fall, mult, num_cycles))
    assert_close(
        optax_clr.cyclical_schedule(
            base, peak, rise, fall, wave=wave, mult=mult, num_cycles=num_cycles
        ),
        steps,
        [
            exact.cyclical(t, base, peak, rise, fall, WAVES[wave], None, mult, num_cycles)
            for t in steps
        ],
        rtol=1e-6,
    )


@settings(max_examples=40)
@given(
    st.data(), value, value, length, multiples(), st.floats(0.3, 1.0), st.floats(0, 0.99)
)  # fmt: skip
@example(None, 1.0, 0.0, 1, (3, None), 1.0, 0.0)  # torch gives 0 at some of its restarts
def test_warm_restarts_is_the_formula_of_the_paper(
    data, base, peak, length, multiple, decay, warmup_part
):
    mult, num_cycles = multiple
    decay = float(np.float32(decay))
    base, peak = min(base, peak), max(base, peak)
    lengths = [max(1, round(length * mult**i)) for i in range(num_cycles or 1)]
    warmup = int(warmup_part * min(length, *lengths))
    bounds = exact.boundaries(length, mult, num_cycles)
    steps = [b for b in bounds if b <= LAST] if data is None else steps_near(data.draw, bounds)
    assert_close(
        optax_clr.warm_restarts_schedule(
            peak, length, base_value=base, mult=mult, peak_decay=decay, warmup_steps=warmup,
            num_cycles=num_cycles,
        ),
        steps,
        [
            exact.warm_restarts(t, peak, length, base, mult, decay, warmup, num_cycles)
            for t in steps
        ],
        rtol=2e-6 if decay != 1 else 1e-6,
    )  # fmt: skip


@given(
    st.data(), value, value, value, st.integers(1, LAST), st.floats(0.01, 0.5), st.booleans(),
    st.sampled_from(list(WAVES)),
)  # fmt: skip
def test_one_cycle_has_the_phases_of_torch(
    data, init, peak, end, total, rise_fraction, three_phase, wave
):
    top = rise_fraction * total - 1
    phase_ends = [0, int(top), int(2 * top), total - 1, total]
    steps = steps_near(data.draw, phase_ends)
    assert_close(
        optax_clr.one_cycle_schedule(
            peak,
            total,
            init_value=init,
            end_value=end,
            rise_fraction=rise_fraction,
            wave=wave,
            three_phase=three_phase,
        ),
        steps,
        [
            exact.one_cycle(t, init, peak, end, total, rise_fraction, WAVES[wave], three_phase)
            for t in steps
        ],
        rtol=1e-6,
    )


@given(
    st.sampled_from([1, 2, 3, 2**24 + 1, LAST - 2, LAST - 1, LAST]),
    st.one_of(
        st.sampled_from([5e-324, 1e-300, 1e-17, 1e-12, 2.0**-32, 2.0**-31, 0.5]),
        st.floats(-12, -0.31).map(lambda exponent: 10**exponent),
        st.floats(1, 3).map(lambda steps: steps / LAST),
    ),
    st.booleans(),
    st.booleans(),
    st.sampled_from(list(WAVES)),
)
@example(LAST, 1e-12, False, True, optax_clr.waves.linear)  # it starts two steps before the run
def test_one_cycle_at_fractions_that_leave_no_step_to_a_phase(
    total, fraction, falls, three_phase, wave
):
    if falls and not three_phase:
        fraction = 1 - fraction
    top = fraction * total - 1
    moments = [0, int(top), int(2 * top), total - 1]
    steps = [min(max(moment + near, 0), LAST) for moment in moments for near in range(-3, 4)]
    init, peak, end = (float(np.float32(value)) for value in (0.04, 1.0, 1e-3))
    expected = [
        exact.one_cycle(t, init, peak, end, total, fraction, WAVES[wave], three_phase)
        for t in steps
    ]
    schedule = optax_clr.one_cycle_schedule(
        peak,
        total,
        init_value=init,
        end_value=end,
        rise_fraction=fraction,
        wave=wave,
        three_phase=three_phase,
    )
    assert_close(schedule, steps, expected, rtol=1e-6)


@given(st.data(), value, st.one_of(value, st.just(0.0)), st.integers(1, LAST))
def test_warmup_stable_decay_has_its_three_parts(data, peak, end, total):
    warmup = data.draw(st.one_of(st.just(0), st.integers(0, total)))
    decay = data.draw(
        st.one_of(st.sampled_from([0, total - warmup]), st.integers(0, total - warmup))
    )
    rising, falling = (data.draw(st.sampled_from(list(WAVES))) for _ in range(2))
    steps = steps_near(data.draw, [0, warmup, total - decay, total])
    schedule = optax_clr.warmup_stable_decay_schedule(
        peak,
        total,
        warmup_steps=warmup,
        decay_steps=decay,
        end_value=end,
        warmup_wave=rising,
        decay_wave=falling,
    )
    parts = (total, warmup, decay, WAVES[rising], WAVES[falling])
    expected = [exact.warmup_stable_decay(t, peak, end, *parts) for t in steps]
    assert_close(schedule, steps, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0])
@pytest.mark.parametrize("gamma", [0.5, 0.99994, 1.0, 1.0001, 1 - 1e-8])
def test_exponential_keeps_its_digits_until_it_underflows(gamma, scale):
    last = LAST if gamma == 1 else min(LAST, int(80 / abs(math.log(gamma)) * scale))
    steps = np.linspace(0, last, 500).astype(np.int64)
    expected = [float(exact.as_decimal(gamma) ** int(t)) for t in steps]

    power, complement = optax_clr.envelopes.exponential(gamma).power_and_complement(
        steps, jnp.float32
    )

    np.testing.assert_allclose(power, expected, rtol=5e-7)
    lost = [float(1 - exact.as_decimal(gamma) ** int(t)) for t in steps]
    np.testing.assert_allclose(complement, lost, rtol=5e-7)


@pytest.mark.parametrize("wave", WAVES)
def test_waves_keep_their_digits_near_the_base(wave):
    heights = np.float32([0, 1e-30, 1e-7, 1e-3, 0.5, 1 - 1e-7, 1])
    expected = [float(WAVES[wave](float(height))) for height in heights]
    np.testing.assert_allclose(wave(jnp.asarray(heights)), expected, rtol=5e-7, atol=2e-38)


@pytest.mark.parametrize(
    ("base", "peak", "rise", "fall", "wave", "mult"),
    [
        (1e-4, 1.0, 2000, 2000, optax_clr.waves.linear, 1),
        (1.0, 1e-4, 3, 4, optax_clr.waves.linear, 1.01),
        (0.95, 0.85, 1000, 3, optax_clr.waves.welch, 1.5),
        (0.0, 0.3, 7, 50_000, optax_clr.waves.cosine, 2),
    ],
)
def test_compiled_schedules_are_as_exact(base, peak, rise, fall, wave, mult):
    rng = np.random.default_rng(0)
    near = [b + d for b in exact.boundaries(rise + fall, mult) for d in range(-2, 3)]
    steps = np.array([t for t in [*near, *rng.integers(0, 2**31, 300)] if 0 <= t <= LAST])
    base, peak = float(np.float32(base)), float(np.float32(peak))
    expected = [
        float(exact.cyclical(int(t), base, peak, rise, fall, WAVES[wave], mult=mult)) for t in steps
    ]
    schedule = optax_clr.cyclical_schedule(base, peak, rise, fall, wave=wave, mult=mult)

    scanned = jax.lax.scan(lambda _, step: (None, schedule(step)), None, steps.astype(np.int32))[1]

    np.testing.assert_allclose(jax.jit(schedule)(steps), expected, rtol=1e-6)
    np.testing.assert_allclose(scanned, expected, rtol=1e-6)


# ------------------------------------------------------------------------------ against torch


@pytest.mark.parametrize(
    "record",
    GOLDEN["records"],
    ids=[f"{i}-{r['factory']}" for i, r in enumerate(GOLDEN["records"])],
)
def test_values_are_those_recorded_from_torch(record):
    kwargs = dict(record["kwargs"])
    if "wave" in kwargs:
        kwargs["wave"] = getattr(optax_clr.waves, kwargs["wave"])
    schedule = getattr(optax_clr, record["factory"])(*record["args"], **kwargs)

    # As many steps for each, since each number of them is compiled.
    values = schedule(np.arange(MOST_RECORDED))[: len(record["values"])]

    np.testing.assert_allclose(values, record["values"], rtol=2e-6)


def test_triangular2_by_eye():
    # torch.optim.lr_scheduler.CyclicLR(0.1, 1.0, 2, 3, "triangular2")
    expected = [0.1, 0.55, 1.0, 0.7, 0.4,
                0.1, 0.325, 0.55, 0.4, 0.25,
                0.1, 0.2125]  # fmt: skip
    schedule = optax_clr.triangular2_schedule(0.1, 1.0, 2, 3)
    np.testing.assert_allclose(schedule(np.arange(12)), expected, rtol=1e-6)


def test_restarts_where_the_closed_form_of_torch_is_wrong():
    # CosineAnnealingWarmRestarts(T_0=1, T_mult=3).step(121) and .step(29524) give 0.
    schedule = optax_clr.warm_restarts_schedule(1.0, 1, mult=3)
    assert schedule(121) == schedule(29524) == 1.0


@pytest.mark.parametrize("first", [1, 7, 1000])
def test_restarts_where_the_float_logarithm_of_keras_is_wrong(first):
    # With t_mul=2 its float32 formula gives 0 at the 13th and the 15th restart.
    schedule = optax_clr.warm_restarts_schedule(1.0, first, mult=2)
    restarts = np.array([first * (2**n - 1) for n in range(20)])
    np.testing.assert_array_equal(schedule(restarts), 1.0)


def test_triangular2_underflows_where_torch_overflows():
    # After 1024 halvings torch raises OverflowError (pytorch issue 52989).
    schedule = optax_clr.triangular2_schedule(0.1, 1.0, 1)
    np.testing.assert_array_equal(schedule(np.array([2049, 20_001, LAST])), np.float32(0.1))


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 10, 1000])
def test_one_cycle_ends_at_its_last_step_and_stays_there(total_steps, three_phase):
    # Where torch goes back up at step N, and raises after it.
    schedule = optax_clr.one_cycle_schedule(1.0, total_steps, three_phase=three_phase)
    after = np.array([total_steps - 1, total_steps, total_steps + 1, 10 * total_steps, LAST])
    np.testing.assert_array_equal(schedule(after), np.float32(4e-6))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    "peak",
    [
        jnp.float16(1e-3),
        jnp.bfloat16(1e-3),
        np.float16(1e-3),
        np.array(1e-3, np.float16),
        jnp.int8(3),
        np.int8(3),
        jnp.float32(1e-3),
        np.float64(1e-3),
    ],
    ids=lambda peak: f"{type(peak).__module__}.{peak.dtype}",
)
def test_the_ends_of_one_cycle_have_the_digits_of_float32(peak, traced):
    steps = np.array([0, 99], np.int32)
    values = lambda peak: optax_clr.one_cycle_schedule(peak, 100)(steps)
    ends = jax.jit(values)(peak) if traced else values(peak)
    assert ends.dtype == jnp.float32
    exact_peak = Fraction(float(peak))
    np.testing.assert_allclose(
        ends, [float(exact_peak / 25), float(exact_peak / 250_000)], rtol=2e-7
    )


@pytest.mark.parametrize("number", [np.longdouble, lambda x: np.array(x, np.longdouble)])
def test_numbers_of_more_digits_than_jax_has_are_taken(number):
    schedule = optax_clr.warm_restarts_schedule(number(0.5), 4, peak_decay=number(0.7))
    expected = optax_clr.warm_restarts_schedule(0.5, 4, peak_decay=0.7)
    np.testing.assert_array_equal(schedule(np.arange(20)), expected(np.arange(20)))


def test_the_last_value_of_one_cycle_has_the_digits_of_float32_where_the_first_is_given():
    schedule = optax_clr.one_cycle_schedule(1.0, 100, init_value=jnp.float16(1e-3))
    end = float(Fraction(float(jnp.float16(1e-3))) / 10_000)
    np.testing.assert_allclose(schedule(99), end, rtol=2e-7)


def test_one_cycle_that_only_falls_or_only_rises():
    falls = optax_clr.one_cycle_schedule(
        1.0, 5, init_value=0.1, end_value=0.0, rise_fraction=0, wave=optax_clr.waves.linear
    )
    rises = optax_clr.one_cycle_schedule(
        1.0, 5, init_value=0.0, end_value=0.5, rise_fraction=1, wave=optax_clr.waves.linear
    )
    np.testing.assert_allclose(falls(np.arange(6)), [1, 0.75, 0.5, 0.25, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(rises(np.arange(6)), [0, 0.25, 0.5, 0.75, 1, 0.5], rtol=1e-6)


# ------------------------------------------------------------------------------ against optax


@pytest.mark.parametrize(
    ("total", "warmup", "decay"),
    [(1000, 50, 200), (10, 0, 10), (10, 10, 0), (7, 3, 4), (1, 0, 1), (1, 1, 0), (64, 0, 0)],
)
def test_warmup_stable_decay_is_what_is_joined_from_optax(total, warmup, decay):
    rise = optax.linear_schedule(0.0, 0.3, warmup) if warmup else optax.constant_schedule(0.3)
    # Of no steps Optax's linear schedule is its initial value.
    fall = optax.linear_schedule(0.3, 0.01, decay) if decay else optax.constant_schedule(0.01)
    joined = optax.join_schedules(
        [rise, optax.constant_schedule(0.3), fall], [warmup, total - decay]
    )
    schedule = optax_clr.warmup_stable_decay_schedule(
        0.3, total, warmup_steps=warmup, decay_steps=decay, end_value=0.01
    )
    steps = np.arange(1005)  # one number for all, since each is compiled
    # Optax counts what is left of the way as 1 minus what is done, in float32.
    np.testing.assert_allclose(schedule(steps), joined(steps), rtol=5e-6)


# ------------------------------------------------------------------------------ against itself

EVERY_SCHEDULE = {
    "triangular": optax_clr.triangular_schedule(0.1, 1.0, 3, 5),
    "triangular2": optax_clr.triangular2_schedule(0.1, 1.0, 3, 5),
    "exp_range": optax_clr.exp_range_schedule(0.1, 1.0, 3, 5, gamma=0.99),
    "momentum": optax_clr.triangular_schedule(0.95, 0.85, 3),
    "cyclical": optax_clr.cyclical_schedule(
        0.1, 1.0, 3, wave=lambda height: height**2,
        envelope=lambda cycle, step: jnp.power(0.9, cycle.astype(float)), mult=1.3, num_cycles=20,
    ),
    "warm_restarts": optax_clr.warm_restarts_schedule(
        1.0, 10, mult=0.8, num_cycles=4, peak_decay=0.9, warmup_steps=2
    ),
    "one_cycle": optax_clr.one_cycle_schedule(1.0, 50, init_value=0.1, end_value=0.01),
    "warmup_stable_decay": optax_clr.warmup_stable_decay_schedule(
        1.0, 60, warmup_steps=10, decay_steps=20, end_value=0.01,
        decay_wave=optax_clr.waves.cosine,
    ),
    "per_epoch_schedule": optax_clr.per_epoch_schedule(
        optax_clr.triangular_schedule(0.1, 1.0, 3), 7
    ),
}  # fmt: skip
SOME_STEPS = np.array([*range(100), 2**24 + 1, 10**9, LAST - 1, LAST])


@pytest.fixture(
    params=mostly_slow(  # the others are special cases of these
        EVERY_SCHEDULE,
        usual=[
            "exp_range", "cyclical", "warm_restarts", "one_cycle", "warmup_stable_decay",
            "per_epoch_schedule",
        ],
    )
)  # fmt: skip
def schedule(request):
    return EVERY_SCHEDULE[request.param]


def test_all_ways_of_calling_agree(schedule):
    one_by_one = np.array([schedule(int(step)) for step in SOME_STEPS])
    scanned = jax.lax.scan(lambda _, step: (None, schedule(step)), None, jnp.asarray(SOME_STEPS))[1]
    for values in (
        schedule(SOME_STEPS),
        schedule(jnp.asarray(SOME_STEPS)),
        schedule(SOME_STEPS.reshape(2, -1)).ravel(),
        jax.jit(schedule)(SOME_STEPS),
        jax.vmap(schedule)(jnp.asarray(SOME_STEPS)),
        scanned,
    ):
        np.testing.assert_allclose(values, one_by_one, rtol=5e-7)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_a_step_of_any_integer_dtype_gives_strong_float32(schedule, dtype):
    values = schedule(np.array([[0, 1, 100]], dtype))
    assert values.shape == (1, 3)
    assert values.dtype == jnp.float32
    assert not values.weak_type
    np.testing.assert_array_equal(values, schedule(np.array([[0, 1, 100]])))


def test_a_step_that_int32_cannot_count_is_the_last_that_it_can(schedule):
    # Optax's counters saturate there. A step that wrapped around would restart the schedule.
    beyond = [schedule(2**31), schedule(np.uint32(2**32 - 1)), schedule(np.int64(2**40))]
    assert all(value == schedule(LAST) for value in beyond)
    before = [schedule(-1), schedule(-(2**31) - 5), schedule(np.int64(-(2**40)))]
    assert all(value == schedule(0) for value in before)


@pytest.mark.parametrize("num_cycles", [3, 1500])
@pytest.mark.parametrize(
    "factory",
    [
        functools.partial(optax_clr.cyclical_schedule, 0.1, 1.0, 2000),
        functools.partial(
            optax_clr.cyclical_schedule, 0.1, 1.0, 2, wave=optax_clr.waves.cosine,
            envelope=optax_clr.envelopes.exponential(0.99), mult=1.001,
        ),
        functools.partial(
            optax_clr.warm_restarts_schedule, 1.0, 50, mult=1.5, peak_decay=0.9, warmup_steps=5
        ),
    ],
)  # fmt: skip
def test_the_traced_size_does_not_grow_with_the_cycles(factory, num_cycles):
    count = lambda cycles: len(jax.make_jaxpr(factory(num_cycles=cycles))(0).jaxpr.eqns)
    assert count(num_cycles) == count(2) < 90


def test_the_ends_of_a_cycle_are_met_exactly():
    schedule = optax_clr.triangular_schedule(0.3, 0.7, 3, 5)
    np.testing.assert_array_equal(schedule(np.array([0, 8])), np.float32(0.3))
    np.testing.assert_array_equal(schedule(np.array([3, 11])), np.float32(0.7))


@pytest.mark.parametrize("mult", [1, 2, 1.5])
def test_after_the_last_cycle_its_last_value_is_held(mult):
    raised_cosine = lambda height: 0.25 + 0.75 * height
    schedule = optax_clr.cyclical_schedule(
        0.0,
        1.0,
        4,
        wave=raised_cosine,
        envelope=optax_clr.envelopes.halving,
        mult=mult,
        num_cycles=3,
    )
    total = optax_clr.Cycles(8, mult, 3).total_steps
    assert schedule(total - 1) > 0.25 * 0.25
    np.testing.assert_array_equal(schedule(np.array([total, total + 1, LAST])), 0.25 * 0.25)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_growing_power_is_the_base_between_its_peaks(x64, dtype):
    with x64():
        schedule = optax_clr.exp_range_schedule(np.array(0.25, dtype), 0.5, 4, gamma=1.01)
        np.testing.assert_array_equal(schedule(np.array([80_000, 800_000, LAST - 7])), 0.25)
        assert schedule(80_004) > 1e30
        np.testing.assert_allclose(schedule(804), 0.25 + 0.25 * 1.01**804, rtol=1e-5)


def test_a_step_may_be_a_list_of_what_is_traced():
    schedule = optax_clr.triangular_schedule(0.0, 1.0, 4)
    found = jax.jit(lambda step: schedule([step, step + 1, 2]))(jnp.int32(1))
    np.testing.assert_array_equal(found, [0.25, 0.5, 0.5])


def test_a_schedule_keeps_its_values_when_an_array_that_it_was_given_is_written_to():
    peak = np.array(0.5)
    schedule = optax_clr.triangular_schedule(0.1, peak, 4)
    peak *= 2
    assert schedule(4) == 0.5


@pytest.mark.parametrize("mult", [1, 2, 1.5])
def test_schedules_and_cycles_need_no_jit(mult):
    schedule = optax_clr.warm_restarts_schedule(0.1, 4, mult=mult)
    cycles, steps = optax_clr.Cycles(4, mult), np.arange(30)
    expected = schedule(steps), cycles.index(steps), cycles.is_end(steps)
    with jax.disable_jit():
        found = schedule(steps), cycles.index(steps), cycles.is_end(steps)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    chex.assert_trees_all_equal(found[1:], expected[1:])


def test_the_stable_part_is_the_peak_itself():
    peak = 0.1  # which no sum of its parts need give
    schedule = optax_clr.warmup_stable_decay_schedule(
        peak, 10**6, warmup_steps=1000, decay_steps=10**5, end_value=0.03
    )
    stable = np.array([1000, 1001, 12_345, 899_999, 900_000])
    np.testing.assert_array_equal(schedule(stable), np.float32(peak))
    np.testing.assert_array_equal(schedule(np.array([10**6, LAST])), np.float32(0.03))


def test_a_decay_by_one_minus_the_square_root():
    schedule = optax_clr.warmup_stable_decay_schedule(
        1.0, 20, warmup_steps=2, decay_steps=16, decay_wave=lambda height: 1 - jnp.sqrt(1 - height)
    )
    # 1 - sqrt(done / 16), of done = 0, 1, 4, 9, 16
    np.testing.assert_array_equal(schedule(np.array([4, 5, 8, 13, 20])), [1, 0.75, 0.5, 0.25, 0])


def by_a_root(height):
    """It has no value above a height of 1, nor a slope at 1."""
    return 1 - jnp.sqrt(1 - height)


ROOT_SCHEDULES = {
    "stable, decay": lambda peak, steps: optax_clr.warmup_stable_decay_schedule(
        peak, 2 * steps, warmup_steps=5, decay_steps=steps, decay_wave=by_a_root
    ),
    "one cycle": lambda peak, steps: optax_clr.one_cycle_schedule(peak, steps, wave=by_a_root),
    "cycle": lambda peak, steps: optax_clr.cyclical_schedule(
        0.0, peak, rise_steps=steps, wave=by_a_root
    ),
}


@pytest.mark.parametrize("name", ROOT_SCHEDULES)
@pytest.mark.parametrize("steps", [10, 20, 500, 1000])
def test_a_wave_has_a_value_at_every_height_of_a_compiled_program(name, steps):
    """Which divides by multiplying, and so may round to more than 1."""
    schedule = ROOT_SCHEDULES[name](0.1, steps)
    compiled = jax.jit(schedule)
    near = [int(0.3 * steps) - 1, int(0.3 * steps)]  # of one cycle's peak
    steps_of_a_run = [0, 1, 5, *near, steps - 1, steps, steps + 1, 2 * steps - 1, 2 * steps]
    values = [compiled(np.int32(step)) for step in steps_of_a_run]
    assert np.isfinite(values).all()
    np.testing.assert_allclose(np.max(values), 0.1, rtol=1e-6 if name != "one cycle" else 0.5)
    if name == "stable, decay":
        done = np.arange(steps + 1)
        np.testing.assert_allclose(
            jax.jit(jax.vmap(schedule))(steps + done), 0.1 * (1 - np.sqrt(done / steps)), atol=1e-5
        )


@pytest.mark.parametrize("name", ROOT_SCHEDULES)
def test_a_schedule_has_a_slope_in_its_peak_whatever_its_wave(name):
    steps = jnp.array([0, 10, 29, 30, 50, 99, 100, 200, 300])
    values = jax.jit(lambda peak: jax.vmap(ROOT_SCHEDULES[name](peak, 100))(steps))
    slopes = jax.jit(jax.jacobian(values))(0.1)
    np.testing.assert_allclose(slopes * 0.1, values(0.1), rtol=1e-4)


def test_warmup_stable_decay_is_batched_and_differentiable_in_its_values():
    def value(peak, end, step):
        return optax_clr.warmup_stable_decay_schedule(
            peak, 8, warmup_steps=2, decay_steps=4, end_value=end
        )(step)

    peaks = jnp.array([0.1, 1.0, 10.0])
    many = jax.jit(jax.vmap(value, in_axes=(0, None, None)))
    slopes_at = jax.jit(jax.grad(value, argnums=(0, 1)))
    # Step 1 is half of the way up; step 7 is three quarters of the way down.
    for step, shares in ((1, (0.5, 0.0)), (4, (1.0, 0.0)), (7, (0.25, 0.75)), (8, (0.0, 1.0))):
        values = many(peaks, 0.2, step)
        np.testing.assert_allclose(values, shares[0] * peaks + shares[1] * 0.2, rtol=1e-6)
        slopes = slopes_at(1.0, 0.2, step)
        np.testing.assert_allclose(slopes, shares, rtol=1e-6)


@pytest.mark.usefixtures("optax_promotion")
def test_a_decay_begun_at_a_checkpoint_is_that_of_a_run_planned_so():
    make = functools.partial(
        optax_clr.warmup_stable_decay_schedule, 0.05, warmup_steps=5, decay_steps=10
    )

    def train(schedule, params, state, first, last):
        optimizer = optax_clr.inject_schedules(optax.adam)(learning_rate=schedule)
        state = optimizer.init(params) if state is None else state
        gradient = jax.grad(lambda params, step: jnp.sum((params - jnp.sin(step)) ** 2))

        def update(carry, step):
            params, state = carry
            updates, state = optimizer.update(gradient(params, step), state, params)
            return (optax.apply_updates(params, updates), state), None

        steps = jnp.arange(first, last, dtype=jnp.float32)
        return jax.lax.scan(update, (params, state), steps)[0]

    start = jnp.array([1.0, -2.0, 0.5])
    endless = make(total_steps=10_000)  # planned for longer than it will last
    checkpoints, params, state, done = {}, start, None, 0
    for step in (20, 45):
        params, state = train(endless, params, state, done, step)
        checkpoints[step], done = (params, state), step
    for step, checkpoint in checkpoints.items():
        decay = make(total_steps=step + 10)
        decayed = train(decay, *checkpoint, step, step + 10)
        planned = train(decay, start, None, 0, step + 10)
        last_rate = optax_clr.get_hyperparams(decayed[1])["learning_rate"]
        np.testing.assert_allclose(last_rate, 0.05 / 10, rtol=1e-6)
        chex.assert_trees_all_equal(decayed, planned)


def test_the_values_may_be_batched_by_vmap():
    peaks = jnp.array([0.1, 1.0, 10.0])
    curve = lambda peak: optax_clr.triangular_schedule(peak / 10, peak, 3)(np.arange(9))
    curves = jax.jit(jax.vmap(curve))(peaks)
    for peak, curve in zip(peaks, curves, strict=True):
        expected = optax_clr.triangular_schedule(float(peak) / 10, float(peak), 3)(np.arange(9))
        np.testing.assert_allclose(curve, expected, rtol=5e-7)


def test_a_traced_gamma_is_a_value_like_the_others():
    gammas = jnp.array([0.9, 0.99, 0.999])
    steps = SOME_STEPS[:50]
    curve = lambda gamma: optax_clr.exp_range_schedule(0.1, 1.0, 3, gamma=gamma)(steps)
    curves = jax.jit(jax.vmap(curve))(gammas)
    for gamma, curve in zip(gammas, curves, strict=True):
        expected = optax_clr.exp_range_schedule(0.1, 1.0, 3, gamma=float(gamma))(steps)
        np.testing.assert_allclose(curve, expected, rtol=2e-6)


def test_schedules_are_differentiable_in_their_values():
    def value(base, peak, gamma):
        return optax_clr.exp_range_schedule(base, peak, 4, gamma=gamma)(2)

    # base + (peak - base) * 1/2 * gamma**2
    got = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(0.1, 1.0, 0.9)
    np.testing.assert_allclose(got, [1 - 0.5 * 0.81, 0.5 * 0.81, 0.9 * 0.5 * 2 * 0.9], rtol=1e-5)


def test_float64_values_give_float64_under_x64(x64):
    with x64():
        double = optax_clr.warm_restarts_schedule(jnp.float64(0.3), 10, peak_decay=0.9, mult=1.5)
        single = optax_clr.warm_restarts_schedule(0.3, 10, peak_decay=0.9, mult=1.5)
        assert double(np.int64(3)).dtype == jnp.float64
        assert single(np.int64(3)).dtype == jnp.float32
        expected = float(exact.warm_restarts(12, 0.3, 10, 0.0, 1.5, 0.9, 0, None))
        np.testing.assert_allclose(double(12), expected, rtol=1e-14)


@pytest.mark.parametrize("peak_value", [jnp.int32(3), np.int64(3), np.int8(3)])
def test_integers_give_float32_under_x64(peak_value, x64):
    with x64():
        assert optax_clr.one_cycle_schedule(peak_value, 10)(0).dtype == np.float32


def test_float32_values_give_the_same_under_x64(schedule, x64):
    expected = schedule(SOME_STEPS)
    with x64():
        for steps in (SOME_STEPS.astype(np.int64), SOME_STEPS.astype(np.int32)):
            values = jax.jit(schedule)(steps)
            assert values.dtype == jnp.float32
            np.testing.assert_allclose(values, expected, rtol=5e-7)


def test_schedules_work_inside_shard_map(schedule, one_per_device):
    values = jax.jit(one_per_device(schedule))(jnp.asarray(SOME_STEPS))
    np.testing.assert_allclose(values, schedule(SOME_STEPS), rtol=5e-7)


def test_schedules_of_steps_that_are_sharded(schedule, sharded):
    steps = np.arange(64).reshape(8, 8)
    np.testing.assert_allclose(sharded(jax.jit(schedule), steps), schedule(steps), rtol=5e-7)


def test_one_program_serves_every_step(schedule):
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(schedule, n=1))
    for step in range(5):
        traced(jnp.int32(step))


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_schedules_drive_the_optimizers_of_optax(name):
    rate = optax_clr.triangular_schedule(0.01, 0.1, rise_steps=2)
    optimizer = getattr(optax, name)(rate)
    by_hand = lambda step: getattr(optax, name)(float(rate(step)))
    params = expected = jnp.ones(3)
    state = expected_state = optimizer.init(params)
    for step in range(6):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
        chain = by_hand(step)
        updates, _ = chain.update(expected, _with_constant_rate(chain, expected_state), expected)
        expected = optax.apply_updates(expected, updates)
        expected_state = state
        np.testing.assert_allclose(params, expected, rtol=1e-6)


def _with_constant_rate(optimizer, state):
    """The state of a scheduled optimizer in the form of the same one with a constant rate."""
    template = optimizer.init(jnp.ones(3))
    is_counter = lambda node: isinstance(node, optax.ScaleByScheduleState)
    return tuple(
        old if jax.tree.structure(old) == jax.tree.structure(new) else new
        for old, new in zip(state, template, strict=True)
        if not is_counter(new)
    )


def test_warm_up_before_and_cool_down_after_are_joined():
    cycles = optax_clr.triangular_schedule(0.1, 1.0, rise_steps=2)
    joined = optax.join_schedules(
        [optax.linear_schedule(0.0, 0.1, 2), cycles, optax.linear_schedule(0.1, 0.0, 2)], [2, 6]
    )
    expected = [0, 0.05, 0.1, 0.55, 1.0, 0.55, 0.1, 0.05, 0]
    np.testing.assert_allclose([joined(t) for t in range(9)], expected, rtol=1e-6)


def test_a_wave_and_an_envelope_of_ones_own():
    schedule = optax_clr.cyclical_schedule(
        0.3, 1.0, 4, 2, wave=lambda height: height**2, envelope=lambda cycle, step: 1 / (1 + step)
    )
    expected = [
        exact.cyclical(
            t, 0.3, 1.0, 4, 2, lambda height: exact.as_decimal(height) ** 2,
            lambda cycle, step: exact.as_decimal(1) / (1 + step),
        )
        for t in range(30)
    ]  # fmt: skip
    np.testing.assert_allclose(schedule(np.arange(30)), np.float64(expected), rtol=1e-6)


def test_a_wave_that_cannot_be_hashed_serves():
    class Squared:
        __hash__ = None

        def __call__(self, height):
            return height**2

    schedule = optax_clr.cyclical_schedule(0.0, 1.0, 4, wave=Squared())
    np.testing.assert_allclose(schedule(np.arange(5)), [0, 1 / 16, 1 / 4, 9 / 16, 1], rtol=1e-6)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
    "schedule",
    [
        lambda step: 0.1 * 10.0 ** -(step // 30),
        lambda step: 0.1 / 10 ** jnp.minimum(step // 30, 3),  # not negative
        lambda step: 0.1 / 2 ** (step // 2**29),
        lambda step: 0.1 / jnp.power(2, jnp.minimum(step // 30, 3)),
        lambda step: 0.1 * jax.random.uniform(jax.random.key(step)),  # shifts bits, too
    ],
)
def test_powers_that_are_no_negative_powers_of_integers_are_schedules(schedule):
    by_epoch = optax_clr.per_epoch_schedule(schedule, 2)
    np.testing.assert_allclose(by_epoch(61), schedule(30), rtol=1e-6)
    optimizer = optax_clr.inject_schedules(optax.sgd)(learning_rate=schedule)
    state = optax_clr.set_step(optimizer.init(jnp.ones(2)), 30)
    _, state = jax.jit(optimizer.update)(jnp.ones(2), state)
    rate = optax_clr.get_hyperparams(state)["learning_rate"]
    np.testing.assert_allclose(rate, schedule(30), rtol=1e-6)
