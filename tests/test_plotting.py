"""Figures: what is on them, and that nothing is shown."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from matplotlib import pyplot as plt

import optax_clr
from optax_clr import plotting

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _nothing_is_shown(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("a figure was shown"))
    yield
    plt.close("all")


RATES = jnp.geomspace(1e-4, 10.0, 100)
LOSSES = 2 - jnp.exp(-(jnp.log10(RATES / 0.1) ** 2))


def result_of(losses, rates=RATES):
    rates = jnp.broadcast_to(rates, losses.shape)
    rates = jnp.where(jnp.isfinite(losses), rates, jnp.nan)
    return optax_clr.RangeTestResult(rates, losses, losses, jnp.isfinite(losses).sum(-1))


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def average_by_hand(losses, rates, at):
    """Averages over 0.3 decades of how high a loss is over the lowest, by asinh."""
    distance = np.log10(rates)[None] - np.log10(at)[:, None]
    weights = np.exp(-0.5 * (distance / 0.3) ** 2)
    weights /= weights.sum(1, keepdims=True)
    lowest = (weights @ losses).min()
    unit = 0.01 * (losses[:5].mean() - lowest)  # where there is no noise
    return lowest + unit * np.sinh(weights @ np.arcsinh((losses - lowest) / unit))


def test_a_range_test_shows_its_losses_and_the_average_that_is_read():
    ax = result_of(LOSSES).plot()
    raw, average, *_ = ax.lines
    np.testing.assert_allclose(raw.get_ydata(), LOSSES, rtol=1e-6)
    rates = average.get_xdata()
    np.testing.assert_allclose(rates[[0, -1]], RATES[jnp.array([0, -1])], rtol=1e-4)
    expected = average_by_hand(np.float64(LOSSES), np.float64(RATES), rates)
    np.testing.assert_allclose(average.get_ydata(), expected, rtol=1e-3)
    assert ax.get_xscale() == "log"


def test_it_shows_what_is_read_and_what_other_rules_read():
    result = result_of(LOSSES)
    rules = [optax_clr.peer_rules.minimum, optax_clr.peer_rules.valley]
    ax = result.plot(rules=rules)
    lines = {line.get_label().split()[0]: line for line in ax.lines[2:]}  # after the losses
    expected = {
        "suggest()": result.suggest(),
        "one_cycle_peak()": result.one_cycle_peak(),
        "minimum": rules[0](RATES, LOSSES),
        "valley": rules[1](RATES, LOSSES),
    }
    drawn = {name: line.get_xdata()[0] for name, line in lines.items()}
    assert drawn == pytest.approx({name: float(rate) for name, rate in expected.items()})
    assert len({line.get_color() for line in ax.lines}) == len(ax.lines) - 1  # two of the losses
    (shade,) = ax.patches
    shaded = shade.get_extents().transformed(ax.transData.inverted())
    np.testing.assert_allclose([shaded.x0, shaded.x1], result.bounds(), rtol=1e-3)
    assert {*lines, "bounds()"} <= {label.split()[0] for label in labels(ax)}


def test_a_rule_without_an_answer_says_so():
    no_answer = lambda learning_rates, losses: jnp.nan
    no_answer.__name__ = "mine"
    assert labels(result_of(LOSSES).plot(rules=(no_answer,)))[-1] == "mine: no answer"


@pytest.mark.parametrize("seed", range(20))
def test_a_level_curve_is_on_the_axes(seed):
    losses = 2.3 + 0.1 * jax.random.normal(jax.random.key(seed), (300,))
    ax = result_of(losses, jnp.geomspace(1e-7, 10.0, 300)).plot()
    low, high = ax.get_ylim()
    average = ax.lines[1].get_ydata()
    assert ((low < average) & (average < high)).all()
    assert np.mean((losses > low) & (losses < high)) > 0.95


def test_a_curve_that_only_rises_is_on_the_axes():
    losses = jnp.exp(jnp.linspace(0, 12, 100))
    ax = result_of(losses).plot()
    assert np.mean(ax.lines[1].get_ydata() < ax.get_ylim()[1]) >= 0.5


def test_what_is_in_doubt_says_so():
    rates = jnp.geomspace(1e-5, 1e-2, 100)
    title = result_of(jnp.exp(-1e3 * rates), rates).plot().get_title()
    assert title == "in doubt: the end of the sweep cuts the valley"


def test_a_linear_sweep_has_a_linear_axis():
    rates = jnp.linspace(1e-3, 2.0, 100)
    ax = plotting.plot_range_test(result_of((rates - 0.7) ** 2, rates))
    assert ax.get_xscale() == "linear"


def test_held_out_losses_are_drawn_and_their_average_is_what_is_read():
    held_out = LOSSES + 0.3
    ax = result_of(LOSSES)._replace(held_out_losses=held_out).plot()
    training, line, average, *_ = ax.lines
    np.testing.assert_allclose(training.get_ydata(), LOSSES, rtol=1e-5)
    np.testing.assert_allclose(line.get_ydata(), held_out, rtol=1e-5)
    assert average.get_color() == line.get_color() != training.get_color()
    (alone,) = [line for line in result_of(held_out).plot().lines if "read" in line.get_label()]
    np.testing.assert_allclose(average.get_ydata(), alone.get_ydata(), rtol=1e-5)


def test_seeds_are_a_band():
    losses = jnp.stack([LOSSES, LOSSES + 0.1, LOSSES - 0.2])
    losses = losses.at[0, 80:].set(jnp.nan)
    ax = result_of(losses).plot()
    assert "3 runs" in labels(ax)[0]
    (band,) = ax.collections
    alone = [result_of(curve).plot().lines[1].get_ydata() for curve in losses[1:]]
    edges = band.get_paths()[0].get_extents()
    np.testing.assert_allclose(
        [edges.ymin, edges.ymax], [alone[1].min(), alone[0].max()], rtol=0.01
    )


@pytest.mark.parametrize("losses", [jnp.full(100, jnp.nan), jnp.linspace(1, 2, 100)])
def test_a_curve_that_cannot_be_read_says_so(losses):
    assert plotting.plot_range_test(result_of(losses)).get_title().startswith("cannot be read")


def test_an_axes_can_be_given():
    _, (left, right) = plt.subplots(1, 2)
    assert plotting.plot_range_test(result_of(LOSSES), ax=left) is left
    assert plotting.plot_schedule(optax_clr.triangular_schedule(0.1, 1, 5), 20, ax=right) is right


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
    "schedule",
    [
        optax_clr.triangular_schedule(0.1, 1.0, 5),
        optax.cosine_onecycle_schedule(20, 1.0),
        optax.constant_schedule(0.5),
    ],
)
def test_a_schedule_is_drawn_step_by_step(schedule):
    (line,) = plotting.plot_schedule(schedule, 20).lines
    np.testing.assert_allclose(
        line.get_ydata(), [schedule(jnp.int32(step)) for step in range(20)], rtol=1e-5
    )


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_the_remedy_is_named():
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plotting.plot_range_test(result_of(LOSSES))
