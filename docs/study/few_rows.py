"""Does a held-out batch mend the reading of a task that overfits?

    python docs/study/few_rows.py    # a minute or two

"mnist1d MLP few rows" of training_tasks.py has a network that learns its training rows by heart.
For range tests of three lengths and five seeds: what `suggest()` and `one_cycle_peak()` read from
the training losses and from those of HELD_OUT_SIZE held-out rows, beside the best rates of the grid
of training.py, and the regrets (how much higher the log of the loss on the tuning rows is than with
the best rate of the grid, after 1,600 steps).
"""

from __future__ import annotations

import importlib.metadata
import warnings

import jax
import numpy as np
import training
from training_tasks import TASKS

import optax_clr

TASK = TASKS["mnist1d MLP few rows"]
SEEDS = range(100, 105)
LENGTHS = (300, 600, 1200)
HELD_OUT_SIZE = 200
READINGS = {
    "constant": optax_clr.RangeTestResult.suggest,
    "one cycle": optax_clr.RangeTestResult.one_cycle_peak,
}


def loss_fn(params, batch):
    return TASK.loss_fn(params, {}, batch)[0]


def range_test(seed, num_steps):
    rows = TASK.batch_rows(seed, num_steps)
    batches, held_out = TASK.train_data, TASK.tuning_data
    return optax_clr.lr_range_test(
        loss_fn,
        TASK.start(jax.random.key(seed))[0],
        TASK.make_optimizer,
        jax.tree.map(lambda column: column[rows], batches),
        held_out=jax.tree.map(lambda column: column[:HELD_OUT_SIZE], held_out),
    )


def main():
    warnings.simplefilter("ignore", optax_clr.RangeTestWarning)
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "flax"))
    print(f"{', '.join(versions)}, {jax.default_backend()}; seeds {list(SEEDS)}; {TASK.name}")
    known = np.load(training.stored(TASK.name))
    grid = np.log(known["rates"])
    results = {length: [range_test(seed, length) for seed in SEEDS] for length in LENGTHS}
    for use, reading in READINGS.items():
        losses = np.log(known["tuning"][training.NAMES.index(use)].astype(float)).mean(-1)
        print(f"\n{use}: best rate of the grid {np.exp(grid[losses.argmin()]):.2g}")
        for length, tests in results.items():
            for title, change in {"training": {"held_out_losses": ()}, "held-out": {}}.items():
                rates = np.array([reading(test._replace(**change)) for test in tests])
                regret = np.interp(np.log(rates), grid, losses - losses.min()).mean()
                print(
                    f"{length:5} steps, {title:8} losses: {np.median(rates):.2g} "
                    f"({rates.min():.2g} to {rates.max():.2g}), regret {regret:.2f}"
                )


if __name__ == "__main__":
    main()
