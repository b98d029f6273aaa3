"""Training at constant rates side by side, against a sweep: how good are the rates it gives?

    python docs/study/constant_rates.py CURVES FOLDER    # a quarter of an hour

Needs the sweeps of record_curves.py in CURVES, and keeps its own losses in FOLDER. For each task
and each of SEEDS it trains, for NUM_STEPS steps from one start on the same batches, at

- WIDE: what `lr_grid_test` has by default, read as it is read;
- AROUND: rates around what the sweep of NUM_STEPS steps suggests, of which the lowest loss is
  taken, between its neighbours by a parabola in the logarithm of the rate.

The loss of a rate is, as in `lr_grid_test`, the mean of the last quarter of the training losses, or
that of held-out rows after the training. Printed are the mean, the median and the worst regret of
the constant rate, one cycle and triangular cycles (suggestion_truth.py says what that is).
"""

from __future__ import annotations

import functools
import importlib.metadata
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from record_curves import HELD_OUT_SIZE, PART_STEPS
from suggestions import (
    ALL_TASKS,
    LONG_STEPS,
    RANGE,
    SATURATED,
    SHORT_STEPS,
    TASKS,
    USES,
    default_rate,
    factor_of,
    reading,
    recorded,
    refused,
    regret,
    training_step,
)

import optax_clr

SEEDS = (100, 101)
NUM_STEPS = 300
WIDE = np.geomspace(*RANGE, 17)
AROUND = 4.0 ** np.arange(-2, 3)
# What the methods of a result give for one cycle and for triangular cycles, over a constant rate.
PEAKS = dict(zip(USES, (1.0, 2.637, 1.758), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def train_part(task, state, batches, rates, held_out):
    """Return the state, the losses ``[PART_STEPS, rate]`` and the held-out losses ``[rate]``."""

    def step(state, batch):
        return jax.vmap(training_step(task), in_axes=(0, None, 0))(state, batch, rates)

    state, losses = jax.lax.scan(step, state, batches)
    return state, losses, jax.vmap(lambda params: task.loss_fn(params, held_out))(state[0])


def train(task, seed, rates):
    """Return training losses ``[step, rate]``, and held-out losses ``[part, rate]``."""
    rates = jnp.asarray(rates, jnp.float32)
    held_out = jax.device_put(jax.tree.map(lambda leaf: leaf[:HELD_OUT_SIZE], task.validation))
    batches = task.batches(seed + 50, NUM_STEPS)  # others than those of the sweep
    repeat = lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (len(rates), *np.shape(leaf)))
    params = jax.tree.map(repeat, task.start(seed))
    init = lambda params, rate: task.make_optimizer(rate).init(params)
    state, rows = (params, jax.vmap(init)(params, rates)), []
    for first in range(0, NUM_STEPS, PART_STEPS):
        part = jax.tree.map(lambda leaf, first=first: leaf[first : first + PART_STEPS], batches)
        state, *losses = train_part(task, state, part, rates, held_out)
        rows.append(losses)
    training, held_out_losses = zip(*rows, strict=True)
    return np.concatenate(training), np.stack(held_out_losses)


def suggestion(result, task):
    """Return the suggestion; where there is none its user takes the default rate."""
    found, _ = reading(result)
    return default_rate(task) if refused(found) else found.constant


@functools.cache
def of_sweep(curves, task, seed, num_steps, reads_held_out):
    result, _, _ = recorded(curves, task, num_steps, RANGE, seed)
    return suggestion(result if reads_held_out else result._replace(held_out_losses=()), task)


def measure(curves, folder, task):
    """Return rates and losses of both grids of a task, from a file if it is there."""
    file = folder / f"{task.name.replace(' ', '-')}.npz"
    if not file.exists():
        arrays = {}
        for seed in SEEDS:
            middle = of_sweep(curves, task, seed, NUM_STEPS, False)
            for name, rates in (("wide", WIDE), ("around", middle * AROUND)):
                columns = (rates, *train(task, seed, rates))
                arrays |= {f"{name}/{seed}/{index}": part for index, part in enumerate(columns)}
        np.savez_compressed(file, **arrays)
    with np.load(file) as stored:
        return dict(stored)


def losses_of(stored, name, seed, num_steps, reads_held_out):
    """Return the rates, and their losses after so many steps; NaN where training diverged."""
    rates, training, held_out = (stored[f"{name}/{seed}/{index}"] for index in range(3))
    last = training[num_steps - -(-num_steps // 4) : num_steps].mean(0)
    losses = held_out[num_steps // PART_STEPS - 1] if reads_held_out else last
    is_whole = np.isfinite(training[:num_steps]).all(0)
    return rates, np.where(is_whole, losses, np.nan)


def of_wide_grid(stored, task, seed, num_steps, reads_held_out):
    """Return what is read of the rates up to the first that diverged."""
    rates, losses = losses_of(stored, "wide", seed, num_steps, reads_held_out)
    is_row = np.cumprod(np.isfinite(losses)).astype(bool)
    rates, losses, steps = (
        np.where(is_row, column, np.nan).astype(np.float32) for column in (rates, losses, num_steps)
    )
    result = optax_clr.RangeTestResult(
        rates, losses, losses, np.int32(is_row.sum()), equivalent_steps=steps,
        ended_by=np.int32(not is_row.all()), optimizer_factor=factor_of(task),
    )  # fmt: skip
    return suggestion(result, task)


def of_grid_around(stored, task, seed, num_steps, reads_held_out):
    """Return the rate of the lowest loss, by the parabola through it and its neighbours."""
    del task
    rates, losses = losses_of(stored, "around", seed, num_steps, reads_held_out)
    losses = np.nan_to_num(losses, nan=np.inf)
    lowest = int(np.argmin(losses))
    around = losses[max(lowest - 1, 0) : lowest + 2]
    if len(around) < 3 or not np.isfinite(around).all():
        return rates[lowest]
    left, middle, right = around
    curvature = left - 2 * middle + right
    shift = (left - right) / (2 * curvature) if curvature > 0 else 0.0
    return rates[lowest] * (rates[1] / rates[0]) ** shift


def row(title, tasks, rate_of, num_steps):
    """Return a row of the table: the regrets of three uses after so many steps of training."""
    cells = []
    for use, ratio in PEAKS.items():
        regrets = np.array(
            [
                [regret(task, use, ratio * rate_of(task, seed), 0.25, num_steps) for seed in SEEDS]
                for task in tasks
            ]
        ).mean(1)
        cells += [f"{regrets.mean():.2f}, {np.median(regrets):.2f}, {regrets.max():.2f}"]
    return f"| {title} | {' | '.join(cells)} |"


def rules(curves, stored, reads_held_out):
    """Yield titles and functions from a task and a seed to a rate."""
    for num_steps in (300, 1000):
        yield (
            f"a sweep of {num_steps:,} steps",
            lambda task, seed, n=num_steps: of_sweep(curves, task, seed, n, reads_held_out),
        )
    grids = (
        ("17 rates of {:,} steps", of_wide_grid, (50, 100, 300)),
        ("a sweep of 300, and 5 rates of {:,} steps around it", of_grid_around, (100, 300)),
    )
    for title, read, lengths in grids:
        for num_steps in lengths:
            yield (
                title.format(num_steps),
                lambda task, seed, read=read, n=num_steps: read(
                    stored[task.name], task, seed, n, reads_held_out
                ),
            )


def main(curves, folder):
    folder.mkdir(exist_ok=True)
    tasks = [task for task in ALL_TASKS.values() if task.name not in SATURATED]
    stored = {task.name: measure(curves, folder, task) for task in tasks}
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax"))
    print(f"{versions}, {jax.devices()[0].device_kind}; mean, median and worst regret.")
    modern = [task for task in tasks if task.name not in TASKS]
    lengths = (
        ("400 to 1,000 steps", tasks, SHORT_STEPS),
        (f"{LONG_STEPS:,} steps", modern, LONG_STEPS),
    )
    for group in ("dev", "held-out"):
        for title, members, num_steps in lengths:
            members = [task for task in members if task.group == group]
            print(f"\n{len(members)} {group} tasks, trained for {title}:\n")
            print(f"| read from | {' | '.join(USES)} |\n{'|---' * (1 + len(USES))}|")
            for source, reads_held_out in (("training", False), ("held-out", True)):
                for name, rate_of in rules(curves, stored, reads_held_out):
                    print(row(f"{name}, {source} loss", members, rate_of, num_steps))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
