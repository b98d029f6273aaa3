"""Figures: what is on them, and that nothing is shown."""

import builtins

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


def test_a_range_test_shows_both_curves_and_the_bounds():
    result = result_of(LOSSES)
    ax = plotting.plot_range_test(result)
    raw, smoothed, suggestion = ax.lines
    np.testing.assert_allclose(raw.get_ydata(), LOSSES, rtol=1e-6)
    np.testing.assert_allclose(smoothed.get_xdata(), RATES, rtol=1e-6)
    assert suggestion.get_xdata()[0] == pytest.approx(float(result.suggest()))
    (shade,) = ax.patches
    shaded = shade.get_extents().transformed(ax.transData.inverted())
    np.testing.assert_allclose([shaded.x0, shaded.x1], result.bounds(), rtol=1e-3)
    assert ax.get_xscale() == "log"


def test_a_linear_sweep_has_a_linear_axis():
    rates = jnp.linspace(1e-3, 2.0, 100)
    ax = plotting.plot_range_test(result_of((rates - 0.7) ** 2, rates))
    assert ax.get_xscale() == "linear"


def test_held_out_losses_are_a_line_of_their_own():
    held_out = LOSSES + 0.3
    ax = plotting.plot_range_test(result_of(LOSSES)._replace(held_out_losses=held_out))
    (line,) = [line for line in ax.lines if line.get_label() == "held-out loss"]
    np.testing.assert_allclose(line.get_ydata(), held_out, rtol=1e-5)


def test_seeds_are_a_band():
    losses = jnp.stack([LOSSES, LOSSES + 0.1, LOSSES - 0.2])
    losses = losses.at[0, 80:].set(jnp.nan)
    ax = plotting.plot_range_test(result_of(losses))
    assert "3 runs" in ax.get_legend().get_texts()[0].get_text()
    np.testing.assert_allclose(ax.lines[0].get_ydata()[:80], LOSSES[:80], rtol=1e-5)


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


def test_without_matplotlib_the_remedy_is_named(monkeypatch):
    original = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r'pip install "optax-clr\[plot\]"'):
        plotting.plot_range_test(result_of(LOSSES))
