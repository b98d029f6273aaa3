"""Cycles against walking them one by one in Python integers."""

import itertools
import math
import pickle
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import exact
from forms import mostly_slow
from optax_clr import Cycles

LAST = 2**31 - 1

lengths = st.one_of(st.integers(1, 20), st.integers(1, 10_000), st.integers(1, LAST))
mults = st.one_of(st.sampled_from([1, 1.0, 2, 3, 1.5, 1.01, 10, 1e4]), st.floats(0.3, 4))


@st.composite
def some_cycles(draw):
    mult = draw(mults)
    assume(mult == 1 or abs(mult - 1) > 1e-3)
    finite = st.integers(1, 60)
    num_cycles = draw(finite if mult < 1 else st.one_of(st.none(), finite))
    return Cycles(draw(lengths), mult, num_cycles)


def walk(cycles):
    """First steps of the cycles, the end of the last one included."""
    return exact.boundaries(cycles.steps, cycles.mult, cycles.num_cycles)


# tests/fuzz_schedules.py draws thousands of these.
@settings(max_examples=50)
@given(some_cycles(), st.data())
def test_cycles_are_where_walking_finds_them(cycles, data):
    near = st.tuples(st.sampled_from(walk(cycles)), st.integers(-2, 2)).map(sum)
    steps = data.draw(st.lists(st.one_of(near, st.integers(0, LAST)), min_size=8, max_size=8))
    steps = [min(max(step, 0), LAST) for step in steps]
    for step, index, fraction, is_end in zip(
        steps,
        np.asarray(cycles.index(np.array(steps))),
        np.asarray(cycles.fraction(np.array(steps))),
        np.asarray(cycles.is_end(np.array(steps))),
        strict=True,
    ):
        cycle, position, length = exact.locate(step, cycles.steps, cycles.mult, cycles.num_cycles)
        if position == length:  # after the last cycle
            assert (index, fraction, is_end) == (cycles.num_cycles, 0, False)
        else:
            assert (index, is_end) == (cycle, position == length - 1)
            assert 0 <= fraction < 1
            np.testing.assert_allclose(fraction, position / length, rtol=3e-7)


def test_a_cycle_may_start_at_the_last_step_that_can_be_counted():
    endless, ended = Cycles(1, 2), Cycles(1, 2, num_cycles=31)  # of 2**31 - 1 steps
    assert (ended.total_steps, int(ended.start(31))) == (LAST, LAST)
    assert [int(cycles.index(LAST)) for cycles in (endless, ended)] == [31, 31]
    assert [bool(cycles.is_end(LAST - 1)) for cycles in (endless, ended)] == [True, True]
    assert not endless.is_end(LAST)
    assert int(endless.length(31)) == LAST
    assert int(ended.length(31)) == 0


@pytest.mark.parametrize("mult", [1, 1.5, 10])
def test_after_the_last_cycle_there_is_none_where_no_step_comes_either(mult):
    cycles = Cycles(2**30, mult, num_cycles=5)
    np.testing.assert_array_equal(cycles.length(np.arange(3, 8)) > 0, [1, 1, 0, 0, 0])


@given(some_cycles(), st.integers(0, 100))
def test_starts_follow_lengths(cycles, cycle):
    start = exact_length = 0
    for i in range(cycle):
        if i == cycles.num_cycles or start > LAST:
            break
        start += max(1, round(cycles.steps * cycles.mult**i))
    exists = cycles.num_cycles is None or cycle < cycles.num_cycles
    assert cycles.start(cycle) == min(start, LAST)
    if exists and start <= LAST:
        exact_length = max(1, round(cycles.steps * cycles.mult**cycle))
    if start <= LAST:
        assert cycles.length(cycle) == min(exact_length, LAST)


@pytest.mark.parametrize(
    ("steps", "mult", "num_cycles"),
    [
        (10_000, 1.0000001, None),
        (10_000, 1.0000001, 50_000),
        (7, 1.0001, None),
        (30_000, 0.9999, 2**18),
    ],
)
def test_a_mult_close_to_one_is_as_exact_and_as_quick(steps, mult, num_cycles):
    lengths = [max(1, round(steps * mult**cycle)) for cycle in range(num_cycles or 220_000)]
    starts = np.array([0, *itertools.accumulate(lengths)])
    cycles = Cycles(steps, mult, num_cycles)
    if num_cycles is not None:
        assert cycles.total_steps == starts[-1]
    # Where the length changes, and where it does not.
    changes = 1 + np.flatnonzero(np.diff(lengths))
    some = np.random.default_rng(0).integers(1, len(lengths), 200)
    some = np.unique([*changes[:: 1 + len(changes) // 200], *some, 1, len(lengths) - 1])
    some = some[starts[some + 1] <= LAST]
    assert len(some) > 100
    np.testing.assert_array_equal(cycles.start(some), starts[some])
    np.testing.assert_array_equal(cycles.length(some), np.array(lengths)[some])
    np.testing.assert_array_equal(cycles.index(starts[some]), some)
    np.testing.assert_array_equal(cycles.index(starts[some] - 1), some - 1)
    assert cycles.is_end(starts[some] - 1).all()
    np.testing.assert_array_equal(cycles.fraction(starts[some]), 0)


def test_cycles_that_never_grow_within_the_steps_there_are():
    cycles = Cycles(1, math.nextafter(1, 2))
    steps = np.array([0, 1, 10**9, LAST - 1])
    np.testing.assert_array_equal(cycles.index(steps), steps)
    np.testing.assert_array_equal(cycles.start(steps), steps)
    assert cycles.is_end(steps).all()


@pytest.mark.parametrize("num_cycles", [2**20, 2**20 + 1])
def test_so_many_cycles_may_end_where_no_step_comes(num_cycles):
    def total():
        return Cycles(3, 1 + 1e-5, num_cycles).total_steps

    if num_cycles > 2**20:
        with pytest.raises(ValueError, match=f"num_cycles={num_cycles} .* last longer than any"):
            total()
    else:
        # The sum of the geometric series, which rounding to whole steps moves a little.
        assert total() == pytest.approx(3 * math.expm1(num_cycles * math.log1p(1e-5)) / 1e-5, 1e-6)


@pytest.mark.parametrize(("mult", "most"), [(2, 961), (2.0, 961), (4, 481)])
def test_the_last_cycle_may_be_2_to_the_960_times_the_first(mult, most):
    assert Cycles(1, mult, most).total_steps == (int(mult) ** most - 1) // (int(mult) - 1)
    with pytest.raises(ValueError, match=f"num_cycles={most + 1} cycles"):
        Cycles(1, mult, most + 1)


@pytest.mark.parametrize(
    ("cycles", "total"),
    [
        (Cycles(5), None),
        (Cycles(5, 2), None),
        (Cycles(5, num_cycles=3), 15),
        (Cycles(5, 2, 3), 5 + 10 + 20),
        (Cycles(5, 7, 3), 5 + 35 + 245),
        (Cycles(10, 1.5, 3), 10 + 15 + 22),
        (Cycles(10, 0.5, 6), 10 + 5 + 2 + 1 + 1 + 1),
        (Cycles(2000, num_cycles=10**7), 2 * 10**10),
        (Cycles(1, 2, 100), 2**100 - 1),
    ],
)
def test_total_steps(cycles, total):
    assert cycles.total_steps == total


def test_cycles_by_eye():
    cycles = Cycles(4, mult=0.5, num_cycles=3)
    #                                 4 steps     2     1  after
    np.testing.assert_array_equal(
        cycles.index(jnp.arange(9)), [0, 0, 0, 0, 1, 1, 2, 3, 3]
    )  # fmt: skip
    np.testing.assert_array_equal(
        cycles.is_end(jnp.arange(9)), [0, 0, 0, 1, 0, 1, 1, 0, 0]
    )  # fmt: skip
    np.testing.assert_array_equal(
        cycles.fraction(jnp.arange(9)), [0, 0.25, 0.5, 0.75, 0, 0.5, 0, 0, 0]
    )
    np.testing.assert_array_equal(cycles.start(jnp.arange(5)), [0, 4, 6, 7, 7])
    np.testing.assert_array_equal(cycles.length(jnp.arange(5)), [4, 2, 1, 0, 0])


@pytest.mark.parametrize("cycles", [Cycles(7), Cycles(7, 1.5), Cycles(7, 0.5, 3)])
def test_cycles_work_inside_transformations(cycles):
    steps = jnp.arange(40)
    ask = lambda steps: (cycles.index(steps), cycles.fraction(steps), cycles.is_end(steps))
    expected = ask(steps)
    scanned = jax.lax.scan(lambda _, step: (None, ask(step)), None, steps)[1]
    for values in (jax.jit(ask)(steps), jax.vmap(ask)(steps), scanned):
        for found, wanted in zip(values, expected, strict=True):
            # XLA may divide by multiplying with the reciprocal.
            np.testing.assert_allclose(found, wanted, rtol=2e-7)


def test_dtypes_and_shapes():
    cycles, steps = Cycles(7, 1.5, 3), np.zeros((2, 3), np.uint8)
    assert cycles.index(steps).dtype == cycles.start(steps).dtype == jnp.int32
    assert cycles.length(steps).dtype == jnp.int32
    assert cycles.fraction(steps).dtype == jnp.float32
    assert cycles.is_end(steps).dtype == bool
    assert all(
        query(steps).shape == (2, 3)
        for query in (cycles.index, cycles.fraction, cycles.is_end, cycles.start, cycles.length)
    )


@pytest.mark.parametrize("cycles", [Cycles(7), Cycles(7, num_cycles=3), Cycles(7, 1.5, 3)])
def test_cycles_are_the_same_under_x64(cycles, x64):
    steps = np.arange(40)
    expected = [query(steps) for query in (cycles.index, cycles.is_end, cycles.fraction)]
    with x64():
        for query, values in zip((cycles.index, cycles.is_end), expected[:2], strict=True):
            np.testing.assert_array_equal(query(steps.astype(np.int64)), values)
        assert cycles.start(2).dtype == cycles.length(2).dtype == jnp.int32
        np.testing.assert_allclose(cycles.fraction(steps), expected[2], rtol=2e-7)


@pytest.mark.parametrize(
    "cycles",
    mostly_slow(
        [Cycles(7, 1, 3), Cycles(7, 1.5), Cycles(7, 0.5, 3)],
        usual=[Cycles(7, 1, 3), Cycles(7, 0.5, 3)],
    ),
)
def test_cycles_of_steps_that_are_sharded(cycles, sharded):
    steps = np.arange(64).reshape(8, 8)
    queries = (cycles.index, cycles.fraction, cycles.is_end, cycles.start, cycles.length)
    ask = lambda steps: [query(steps) for query in queries]
    expected = ask(steps)
    lanes = jax.vmap(ask, -1, -1)  # as of an ensemble, spread over the devices
    for each in (ask, jax.jit(ask), lanes, jax.jit(lanes)):
        for found, wanted in zip(sharded(each, steps), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-7)


def test_cycles_are_values():
    cycles = Cycles(np.int64(5), 1.5, 3)
    assert cycles == Cycles(5, 1.5, 3) == pickle.loads(pickle.dumps(cycles))
    assert len({cycles, Cycles(5, 1.5, 3), Cycles(5)}) == 2
    with pytest.raises(AttributeError):
        cycles.steps = 6
    static = jax.jit(lambda step, cycles: cycles.index(step), static_argnames="cycles")
    assert static(6, cycles=cycles) == 1


@pytest.mark.parametrize("form", [int, float, np.float64, Fraction])
def test_cycles_that_are_equal_have_the_same_lengths(form):
    cycles, same = Cycles(7, 3, 60), Cycles(7, form(3), 60)
    assert cycles == same
    assert hash(cycles) == hash(same)
    assert cycles.total_steps == same.total_steps == sum(7 * 3**cycle for cycle in range(60))
