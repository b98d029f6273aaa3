"""The figure of all schedules on the page about choosing one.

    python docs/figures/schedules.py            # into docs/pages/images
    python docs/figures/schedules.py FOLDER

Values are between 0.25 and 1, or from 0, so that the shapes can be compared.
"""

import pathlib
import sys

import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

import optax_clr

IMAGES = pathlib.Path(__file__).parents[1] / "pages/images"
NUM_STEPS = 800
BASE, PEAK = 0.25, 1.0


def schedules():
    """Return the schedules by their titles."""
    cycle = (BASE, PEAK, 100)
    return {
        "triangular": optax_clr.triangular_schedule(*cycle),
        "triangular2": optax_clr.triangular2_schedule(*cycle),
        "exp_range, gamma=0.998": optax_clr.exp_range_schedule(*cycle, gamma=0.998),
        "cyclical, wave=cosine": optax_clr.cyclical_schedule(*cycle, wave=optax_clr.waves.cosine),
        "cyclical, wave=welch": optax_clr.cyclical_schedule(*cycle, wave=optax_clr.waves.welch),
        "cyclical, mult=2": optax_clr.cyclical_schedule(BASE, PEAK, 57, mult=2, num_cycles=3),
        "warm_restarts, mult=2": optax_clr.warm_restarts_schedule(PEAK, 115, mult=2, num_cycles=3),
        "warm_restarts, peak_decay=0.7,\nwarmup_steps=20": optax_clr.warm_restarts_schedule(
            PEAK, 200, peak_decay=0.7, warmup_steps=20
        ),
        "one_cycle": optax_clr.one_cycle_schedule(PEAK, NUM_STEPS),
        "one_cycle, wave=linear,\nthree_phase=True": optax_clr.one_cycle_schedule(
            PEAK, NUM_STEPS, init_value=PEAK / 10, wave=optax_clr.waves.linear, three_phase=True
        ),
        "warmup_stable_decay": optax_clr.warmup_stable_decay_schedule(
            PEAK, NUM_STEPS, warmup_steps=50, decay_steps=200
        ),
        "warmup_stable_decay,\n1 - sqrt(1 - height)": optax_clr.warmup_stable_decay_schedule(
            PEAK,
            NUM_STEPS,
            warmup_steps=50,
            decay_steps=200,
            decay_wave=lambda height: 1 - jnp.sqrt(1 - height),
        ),
        "per_epoch of triangular,\n40 steps_per_epoch": optax_clr.per_epoch_schedule(
            optax_clr.triangular_schedule(BASE, PEAK, 5), 40
        ),
        "momentum against one_cycle": optax_clr.one_cycle_schedule(
            0.85, NUM_STEPS, init_value=0.95, end_value=0.95
        ),
        "cyclical, an envelope of yours:\nlambda cycle, step: 1 / (1 + cycle)": (
            optax_clr.cyclical_schedule(*cycle, envelope=lambda cycle, step: 1 / (1 + cycle))
        ),
    }


def draw(folder):
    steps = jnp.arange(NUM_STEPS)
    figure, grid = pyplot.subplots(5, 3, figsize=(9, 9.4), sharex=True, layout="constrained")
    for axes, (title, schedule) in zip(grid.flat, schedules().items(), strict=True):
        is_momentum = title.startswith("momentum")
        axes.plot(steps, schedule(steps), color="tab:purple" if is_momentum else "tab:blue")
        axes.set_title(title, fontsize=9)
        axes.set_ylim(*((0.83, 0.97) if is_momentum else (-0.05, 1.1)))
        axes.tick_params(labelsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=8)
    figure.savefig(folder / "schedules.png", dpi=80)


if __name__ == "__main__":
    draw(pathlib.Path(sys.argv[1]) if sys.argv[1:] else IMAGES)
