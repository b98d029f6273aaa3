"""The peers' rules against their own definitions, as loops over Python lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_clr import peer_rules

RULES = {name: getattr(peer_rules, name) for name in peer_rules.__all__}


def fastai_valley(rates, losses):
    size = len(losses)
    longest, end, start = [1] * size, 0, 0
    for i in range(1, size):
        for j in range(i):
            if losses[i] < losses[j] and longest[i] < longest[j] + 1:
                longest[i] = longest[j] + 1
            if longest[end] < longest[i]:
                end = i
                start = end - longest[end]
    third = (end - start) / 3
    return rates[start + int(third) + int(third / 2)]


def fastai_slide(rates, losses, interval=15, threshold=0.005):
    slopes = np.gradient(losses)
    right = -1
    left = right - interval
    rate = rates[left]
    while left >= -len(losses) and abs(slopes[right] - slopes[left]) > threshold:
        rate = rates[left]
        right -= 1
        left -= 1
    return rate


def fastai_steep(rates, losses):
    slopes = [
        (losses[i + 1] - losses[i]) / (np.log(rates[i + 1]) - np.log(rates[i]))
        for i in range(len(losses) - 1)
    ]
    return rates[slopes.index(min(slopes))]


def fastai_minimum(rates, losses):
    return rates[list(losses).index(min(losses))] / 10


REFERENCES = {
    "valley": fastai_valley,
    "slide": fastai_slide,
    "steepest": fastai_steep,
    "minimum": fastai_minimum,
}


def some_curve(seed, num_rows=60, space=np.geomspace):
    rng = np.random.default_rng(seed)
    rates = space(1e-6, 1.0, num_rows).astype(np.float32)
    depth = 2 - 1.5 * np.exp(-((np.log10(rates) + rng.uniform(1, 5)) ** 2))
    rise = np.maximum(np.arange(num_rows) - rng.integers(30, 70), 0) ** 2 * rng.uniform(0, 0.1)
    noise = rng.choice([0.0, 0.01, 0.3]) * rng.normal(size=num_rows)
    return rates, (depth + rise + noise - rng.choice([0, 5])).astype(np.float32)


@pytest.mark.parametrize("space", [np.geomspace, np.linspace])
@pytest.mark.parametrize("name", RULES)
@settings(max_examples=50)
@given(seed=st.integers(0, 10_000))
def test_rules_are_as_their_authors_wrote_them(name, space, seed):
    rates, losses = some_curve(seed, space=space)
    expected = REFERENCES[name](rates.astype(np.float64), losses.astype(np.float64))
    np.testing.assert_allclose(RULES[name](rates, losses), expected, rtol=1e-5)


@pytest.mark.parametrize(("interval", "threshold"), [(5, 5.0), (5, 4.5), (12, 3.0), (1, 0.25)])
def test_an_interval_is_level_to_the_threshold(interval, threshold):
    rates = np.geomspace(1e-6, 1.0, 60)
    losses = 0.5 * np.maximum(np.arange(60) - 30.0, 0) ** 2  # whose slopes per row are whole
    got = peer_rules.slide(
        np.float32(rates), np.float32(losses), interval=interval, threshold=threshold
    )
    np.testing.assert_allclose(got, fastai_slide(rates, losses, interval, threshold), rtol=1e-5)


@pytest.mark.parametrize("num_valid", [1, 14, 15, 16, 17])
def test_slide_needs_a_row_more_than_its_interval(num_valid):
    rates, losses = some_curve(3)
    padded = np.where(np.arange(60) < num_valid, losses, np.nan)
    assert np.isnan(peer_rules.slide(rates, padded)) == (num_valid <= 15)
    assert np.isfinite(peer_rules.slide(rates[:16], losses[:16]))


@pytest.mark.parametrize("name", RULES)
def test_padding_is_left_out(name):
    rates, losses = some_curve(3)
    padded = [
        np.concatenate([column, np.full(20, np.nan, np.float32)]) for column in (rates, losses)
    ]
    np.testing.assert_array_equal(RULES[name](*padded), RULES[name](rates, losses))


@pytest.mark.parametrize("name", RULES)
def test_rules_work_under_jit_and_vmap(name):
    curves = [some_curve(seed) for seed in range(5)]
    rates, losses = (jnp.stack(column) for column in zip(*curves, strict=True))
    expected = [RULES[name](*curve) for curve in curves]
    np.testing.assert_allclose(jax.jit(jax.vmap(RULES[name]))(rates, losses), expected, rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_seeds_are_averaged_first(name):
    rates = some_curve(0)[0]
    losses = np.stack([some_curve(seed)[1] for seed in range(4)])
    together = RULES[name](np.broadcast_to(rates, losses.shape), losses)
    np.testing.assert_allclose(together, RULES[name](rates, losses.mean(0)), rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_curves_with_nothing_in_them_are_nan(name):
    empty = jnp.full(60, jnp.nan)  # as many rows as in other tests, for which it is compiled
    assert np.isnan(RULES[name](empty, empty))


@pytest.mark.parametrize("name", ["steepest", "minimum"])
@pytest.mark.parametrize("padding", [[], [jnp.nan]])
def test_two_rows_are_enough(name, padding):
    rates, losses = jnp.array([0.1, 1.0, *padding]), jnp.array([2.0, 1.0, *padding])
    expected = REFERENCES[name]([0.1, 1.0], [2.0, 1.0])
    np.testing.assert_allclose(RULES[name](rates, losses), expected, rtol=1e-6)


def test_the_steepest_fall_is_not_between_infinite_losses():
    rates, losses = some_curve(3)
    exploded = np.where(np.arange(60) < 50, losses, np.inf)
    np.testing.assert_array_equal(
        peer_rules.steepest(rates, exploded), peer_rules.steepest(rates[:50], losses[:50])
    )


def test_a_curve_that_never_falls_has_its_valley_at_the_first_row():
    rates, losses = some_curve(0)[0], np.arange(60, dtype=np.float32)
    assert fastai_valley(rates, losses) == rates[0]
    np.testing.assert_array_equal(peer_rules.valley(rates, losses), rates[0])


def test_the_valley_of_two_rows_is_the_last_of_them_in_padding_too():
    rates, losses = jnp.array([0.1, 1.0]), jnp.array([2.0, 1.0])
    padded = [jnp.append(column, jnp.nan) for column in (rates, losses)]
    assert float(peer_rules.valley(rates, losses)) == fastai_valley([0.1, 1.0], [2.0, 1.0]) == 1.0
    assert float(peer_rules.valley(*padded)) == 1.0
