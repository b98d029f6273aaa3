"""Fuzzing of what is read from a range test: any curves, rates and lanes."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import optax_clr
from optax_clr import RangeTestError, RangeTestResult, RangeTestWarning, peer_rules, plotting
from strategies import ROWS, cases, scripts

GRID = 256  # points at which the losses are averaged, which the readings are multiples of


@st.composite
def sweeps(draw):
    """Rates: rising or falling, even in the logarithm or not, over 2 to 12 decades; f32[ROWS]."""
    low = draw(st.floats(-9, -1))
    high = low + draw(st.floats(2, 12))
    rates = np.geomspace(10**low, 10**high, ROWS)
    if draw(st.integers(0, 5)) == 0:
        rates = np.linspace(10**low, 10**high, ROWS)
    if draw(st.integers(0, 5)) == 0:
        rates = rates[::-1]
    return rates.astype(np.float32)


@st.composite
def valleys(draw):
    """Curves of which most can be read: a valley, and an explosion or not, within noise."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    place = np.linspace(0, 1, ROWS)
    lowest, width = draw(st.floats(0.2, 0.9)), draw(st.floats(0.05, 0.3))
    losses = 2 - np.exp(-(((place - lowest) / width) ** 2))
    losses += np.exp(np.clip(40 * (place - draw(st.floats(0.7, 1.2))), -60, 8))
    losses = 1 + (losses - 1) * draw(st.sampled_from([1.0, 100.0]))
    losses += draw(st.sampled_from([0.0, 0.001, 0.05])) * rng.normal(size=ROWS)
    losses[draw(st.integers(ROWS // 2, 2 * ROWS)) :] = math.nan
    return (losses - draw(st.sampled_from([0, 0, 5]))).astype(np.float32)


def result_of(rates, losses):
    """A result as a range test makes it: NaN from the first loss that is not finite."""
    losses = np.asarray(losses)
    finite = np.cumprod(np.isfinite(losses), -1).astype(bool)
    columns = [np.where(finite, column, np.nan) for column in np.broadcast_arrays(rates, losses)]
    columns = [jnp.asarray(column, jnp.float32) for column in columns]
    return RangeTestResult(*columns, columns[1], jnp.asarray(finite.sum(-1), jnp.int32))


def read(result):
    return jnp.stack([result.suggest(), result.one_cycle_peak(), *result.bounds()])


_compiled = jax.jit(read)
_lanes = jax.jit(jax.vmap(read))


def read_silently(result):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RangeTestWarning)
        return np.asarray(read(result))


def grid_point(rates):
    """The factor between neighbouring points of the grid."""
    span = np.ptp(np.log10(rates[rates > 0])) if (rates > 0).any() else 0.0
    return 10 ** (span / (GRID - 1))


def is_settled(rates, losses, rounding=0.0):
    """Whether roundings decide nothing: which point is lowest, what is half, what is significant.

    Those tried are ten times as large as those of what is compared: relative ones of everything,
    and ``rounding``.
    """
    answers = [np.asarray(_compiled(result_of(rates, losses)))]
    for seed in range(3):
        loss_noise, rate_noise = np.random.default_rng(seed).uniform(-1, 1, (2, ROWS))
        errors = 1e-5 * np.where(np.isfinite(losses), np.abs(losses), 0) + rounding
        changed = result_of(rates * (1 + 1e-6 * rate_noise), losses + errors * loss_noise)
        answers.append(np.asarray(_compiled(changed)))
    is_nan = np.isnan(answers)
    settled = is_nan.all() or not (is_nan.any() or np.ptp(np.log(answers), axis=0).max() > 1e-3)
    event("settled" if settled else "roundings decide")
    return settled


def assert_alike(first, second, rates, points=2):
    """Equal but for so many points of the grid, or both NaN."""
    ratio = grid_point(rates) ** points * (1 + 1e-4)
    np.testing.assert_allclose(
        np.log(first), np.log(second), atol=math.log(ratio), rtol=0, equal_nan=True
    )


any_curve = st.one_of(valleys(), valleys(), scripts())


@st.composite
def noisy(draw):
    """Any curve, with noise everywhere: where there is none, significance is one of roundings."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return (draw(any_curve) * (1 + 1e-3 * rng.normal(size=ROWS))).astype(np.float32)


@cases(1.0)
@given(sweeps(), any_curve)
def test_a_curve_is_read_in_order_or_refused(rates, losses):
    result = result_of(rates, losses)
    suggestion, one_cycle, base, peak = answer = np.asarray(_compiled(result))
    event("refused" if np.isnan(answer).any() else "read")
    if np.isnan(answer).any():
        assert np.isnan(answer).all()
        for reading in (result.suggest, result.one_cycle_peak, result.bounds):
            with pytest.raises(RangeTestError):
                reading()
    else:
        assert np.isfinite(answer).all()
        assert 0 < base < peak
        assert suggestion < one_cycle or suggestion == one_cycle == peak  # all at the limit
        assert_alike(read_silently(result), answer, rates, points=0)
    assert isinstance(result.summary(), str)


@cases(0.7)
@given(sweeps(), noisy(), st.integers(-20, 20), st.sampled_from([1.0, 2.0, 10.0, 0.3, 1e-3]))
def test_units_do_not_matter(rates, losses, power, factor):
    plain = np.asarray(_compiled(result_of(rates, losses)))
    # A power of two in the loss changes no bit of the curve that is read.
    scaled = _compiled(result_of(rates, np.ldexp(losses, power)))
    np.testing.assert_array_equal(scaled, plain)
    if is_settled(rates, losses):
        rescaled = _compiled(result_of(np.float32(factor) * rates, losses))
        assert_alike(np.asarray(rescaled) / factor, plain, rates)


@cases(0.5)
@given(sweeps(), noisy(), st.floats(-10, 10))
def test_a_constant_in_the_loss_does_not_matter(rates, losses, constant):
    first_rows = losses[: int(result_of(rates, losses).num_valid)]
    constant = np.float32(constant * np.median(np.abs(first_rows)) if first_rows.size else constant)
    if is_settled(rates, losses, rounding=1e-6 * abs(constant)):
        plain = np.asarray(_compiled(result_of(rates, losses)))
        shifted = np.asarray(_compiled(result_of(rates, losses + constant)))
        assert_alike(shifted, plain, rates)


@cases(0.5)
@given(sweeps(), noisy(), noisy())
def test_lanes_are_read_one_by_one(rates, first, second):
    lanes = _lanes(result_of(rates, np.stack([first, second, first])))
    np.testing.assert_array_equal(lanes[0], lanes[2])
    for lane, losses in enumerate([first, second]):
        if is_settled(rates, losses):
            assert_alike(np.asarray(_compiled(result_of(rates, losses))), lanes[lane], rates)


@cases(0.5)
@given(sweeps(), noisy(), noisy())
def test_curves_that_are_read_together_give_one_answer(rates, first, second):
    result = result_of(rates, np.stack([first, second]))
    answer = np.asarray(_compiled(result))
    assert answer.shape == (4,)
    if np.isnan(answer).any():
        assert np.isnan(answer).all()
        with pytest.raises(RangeTestError):
            result.bounds()
    else:
        assert 0 < answer[2] < answer[3] < math.inf
    assert isinstance(result.summary(), str)
    # Two of a kind are read as one is.
    if is_settled(rates, first):
        twice = _compiled(result_of(rates, np.stack([first, first])))
        assert_alike(np.asarray(twice), _compiled(result_of(rates, first)), rates)


# ------------------------------------------------------------------------------- other readings


RULES = {name: getattr(peer_rules, name) for name in peer_rules.__all__}
_rules = jax.jit(lambda rates, losses: [rule(rates, losses) for rule in RULES.values()])
_rules_of_lanes = jax.jit(
    jax.vmap(lambda rates, losses: [rule(rates, losses) for rule in RULES.values()])
)
_FEWEST = {"steepest": 2, "minimum": 1, "valley": 2, "slide": 16}


@cases(0.7)
@given(sweeps(), any_curve, st.integers(-20, 20), st.integers(-8, 8))
def test_rules_give_a_rate_of_the_sweep(rates, losses, power, rate_power):
    result = result_of(rates, losses)
    num_valid = int(result.num_valid)
    columns = result.learning_rates, result.losses
    eager = [rule(*columns) for rule in RULES.values()]
    lanes = _rules_of_lanes(*(jnp.stack([column] * 2) for column in columns))
    # Of the loss it matters only which is larger, and by what factor; slide has a threshold.
    scaled = _rules(columns[0], jnp.ldexp(columns[1], power))
    moved = _rules(jnp.ldexp(columns[0], rate_power), columns[1])
    for name, answer, *others, by_loss, by_rate in zip(
        RULES, eager, _rules(*columns), lanes, scaled, moved, strict=True
    ):
        if num_valid < _FEWEST[name]:
            assert np.isnan(answer)
            assert all(np.isnan(other).all() for other in (*others, by_loss, by_rate))
            continue
        tried = rates[:num_valid] / np.float32(10 if name == "minimum" else 1)
        for other in (answer, *others, by_loss, np.ldexp(by_rate, -rate_power)):
            assert all(np.isclose(tried, each, rtol=2e-7, atol=0).any() for each in np.ravel(other))
        if name in ("minimum", "valley"):  # which compare losses, and compute nothing of them
            for other in (*others, by_loss, np.ldexp(by_rate, -rate_power)):
                np.testing.assert_allclose(other, answer, rtol=2e-7)


# ------------------------------------------------------------------------------ text and figures


@st.composite
def results(draw):
    """Any result of a range test: of one row or many, of one lane or more, of any value."""
    shape = draw(st.sampled_from([(), (2,), (2, 2)]))
    num_rows = draw(st.sampled_from([1, 2, ROWS]))
    values = draw(sweeps())[:num_rows]
    if draw(st.integers(0, 3)) == 0:  # a momentum, or nothing at all
        values = draw(st.sampled_from([1.0, 0.0, -1.0])) * np.linspace(0, 0.99, num_rows)
    curves = [draw(any_curve)[:num_rows] for _ in range(math.prod(shape))]
    result = result_of(values, np.reshape(curves, (*shape, num_rows)))
    smoothed = np.cumsum(np.float64(result.losses), -1) / np.arange(1.0, num_rows + 1)
    result = result._replace(smoothed_losses=jnp.asarray(smoothed, jnp.float32))
    if draw(st.booleans()):
        rates = np.asarray(result.learning_rates)
        with np.errstate(all="ignore"):
            steps = np.cumsum(rates, -1) / rates
        result = result._replace(equivalent_steps=jnp.asarray(steps))
    if draw(st.booleans()):
        held_out = result.losses + draw(st.sampled_from([0.0, 1.0, math.inf, math.nan]))
        result = result._replace(held_out_losses=held_out)
    return result


@cases(0.3)
@given(results())
def test_every_result_has_a_summary(result):
    lines = result.summary().splitlines()
    assert lines[0].startswith("Range test: ")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RangeTestWarning)
            result.bounds()
    except RangeTestError as error:
        problem = str(error).partition(":")[0]
        assert problem in lines[-1] or "none with a finite loss" in lines[0]
    else:
        assert any(line.startswith("bounds()") for line in lines)


@cases(0.1)
@given(results())
def test_every_result_has_a_figure(result):
    figure = Figure()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RangeTestWarning)
        axes = plotting.plot_range_test(result, figure.add_subplot())
    assert all(np.isfinite(axes.get_xlim() + axes.get_ylim()))
    figure.draw_without_rendering()


def scripted_step(state, loss, value):
    return state, loss + 0 * value


@cases(0.2)
@given(any_curve, sweeps())
def test_what_a_range_test_returns_can_be_shown(losses, values):
    """The same of results that were not made up."""
    result = optax_clr.range_test(scripted_step, jnp.zeros(()), losses, values)
    assert result.summary().startswith("Range test: ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RangeTestWarning)
        plotting.plot_range_test(result, Figure().add_subplot())
