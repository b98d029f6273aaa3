"""Ground truth for the tasks of today: what training with each schedule and rate comes to.

    python docs/study/modern_truth.py                  # what is missing; an hour or two on one core
    python docs/study/modern_truth.py "poisson adam"   # of one task
    python docs/study/modern_truth.py table            # the best rates of the development tasks

Every task is trained at two lengths, 600 and 3,000 steps, from three starts. First with each rate
of a grid, four to a decade, as a constant and as the peak of one cycle. Then as the peak of eight
more schedules, with nine rates around the best constant one of that length (by the first two
starts), from -.75 to +1.25 decades.

In modern_truth.npz, ``f32[start, rate]`` under "task/schedule/steps" are the final validation
losses: where the rate is constant in the end, the mean of the last three of twenty evaluations. The
rates stand under "task/rates" for the grid, and "task/rates/steps" for those around the best.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from modern_tasks import MODERN_TASKS
from training import (
    constant,
    cosine,
    one_cycle,
    step_decay,
    triangular,
    triangular2,
    warm_restarts,
    warmup_stable_decay,
)

FILE = pathlib.Path(__file__).with_name("modern_truth.npz")
SEEDS = (0, 1, 2)
NUM_EVALUATIONS = 20
PART_STEPS = 30  # in one call of the program
NEAR = np.logspace(-0.75, 1.25, 9)


def linear_decay(peak, num_steps):
    return optax.linear_schedule(peak, 0.0, num_steps)


def warmup_constant(peak, num_steps):
    return optax.linear_schedule(0.0, peak, num_steps // 20)


GRID = {"constant": constant, "one cycle": one_cycle}
AROUND_BEST = {
    "cosine": cosine,
    "warm-up, stable, decay": warmup_stable_decay,
    "linear": linear_decay,
    "triangular": triangular,
    "triangular2": triangular2,
    "step decay": step_decay,
    "SGDR": warm_restarts,
    "warm-up, constant": warmup_constant,
}
ENDS_CONSTANT = ("constant", "warm-up, constant")


# --------------------------------------------------------------------------------------- training


@functools.partial(jax.jit, static_argnums=0)
def begin(task, params, rates):
    """Return the state of runs, params and optimizer's, one for each of the ``rates``."""
    params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*rates.shape, *leaf.shape)), params)
    return params, jax.vmap(task.make_optimizer(0.0).init)(params)


@functools.partial(jax.jit, static_argnums=0)
def train_part(task, state, data, rows, rates):
    """Return the state of runs after PART_STEPS steps, at ``rates`` of ``[PART_STEPS, run]``."""

    def step(state, row):
        rows, rates = row
        batch = jax.tree.map(lambda column: column[rows], data)

        def one(params, state, rate):
            gradients = jax.grad(task.loss_fn)(params, batch)
            updates, state = task.make_optimizer(rate).update(gradients, state, params)
            return jax.tree.map(jnp.add, params, updates), state

        return jax.vmap(one)(*state, rates), None

    return jax.lax.scan(step, state, (rows, rates))[0]


@functools.partial(jax.jit, static_argnums=0)
def evaluate(task, state, validation):
    return jax.vmap(lambda *run: task.validation_loss(*run, validation))(*state)


def losses_of(task, seed, rates, data, validation):
    """Return the validation losses after each twentieth, ``[NUM_EVALUATIONS, run]``.

    In parts that are all as long, so that both lengths are one and the same program.
    """
    num_steps = len(rates)
    rows = task.batch_rows(seed, num_steps)
    state, losses = begin(task, task.start(seed), rates[0]), []
    for first in range(0, num_steps, PART_STEPS):
        part = slice(first, first + PART_STEPS)
        state = train_part(task, state, data, rows[part], rates[part])
        if (first + PART_STEPS) % (num_steps // NUM_EVALUATIONS) == 0:
            losses.append(evaluate(task, state, validation))
    return np.array(losses)


def final_losses(task, schedules, peaks, num_steps, seeds):
    """Return the final validation losses of each schedule at each peak, ``[start, peak]``."""
    # Every schedule is proportional to its peak.
    curves = [jax.vmap(form(1.0, num_steps))(jnp.arange(num_steps)) for form in schedules.values()]
    rates = np.concatenate([np.asarray(curve)[:, None] * peaks for curve in curves], 1)
    # On the device as they are, so that they are arguments of the program and not constants in it.
    data = jax.device_put((task.data.inputs, task.data.targets))
    validation = jax.device_put(task.validation)
    found = {name: [] for name in schedules}
    for seed in seeds:
        losses = losses_of(task, seed, rates.astype(np.float32), data, validation)
        for name, part in zip(schedules, np.split(losses, len(schedules), axis=1), strict=True):
            found[name].append(part[-3:].mean(0) if name in ENDS_CONSTANT else part[-1])
    return {name: np.array(parts, np.float32) for name, parts in found.items()}


def best_index(losses):
    """Return the number of the rate with the lowest mean log loss over the starts."""
    return int(np.log(np.where(np.isfinite(losses), losses, np.inf)).mean(0).argmin())


def grid(task, known, seeds):
    """Return the losses of a task's starts, of constant rates and of peaks of one cycle."""
    validation = jax.device_put(task.validation)
    starts = [task.loss_fn(task.start(seed), validation) for seed in seeds]
    arrays = {f"{task.name}/start": np.array(starts, np.float32)}
    for num_steps in (task.num_steps, task.long_steps):
        found = final_losses(task, GRID, task.rates, num_steps, seeds)
        arrays |= {f"{task.name}/{name}/{num_steps}": table for name, table in found.items()}
    return arrays


def around_best(task, known, seeds):
    """Return the losses of a task's other schedules."""
    arrays = {}
    for num_steps in (task.num_steps, task.long_steps):
        rates = rates_around_best(task, known, num_steps)
        found = final_losses(task, AROUND_BEST, rates, num_steps, seeds)
        arrays |= {f"{task.name}/{name}/{num_steps}": table for name, table in found.items()}
    return arrays


def rates_around_best(task, known, num_steps):
    """Return the rates of the other schedules, which stay as they are when starts are added."""
    key = f"{task.name}/rates/{num_steps}"
    if key not in known:
        known[key] = task.rates[best_index(known[f"{task.name}/constant/{num_steps}"])] * NEAR
    return known[key]


def stored():
    if not FILE.exists():
        return {}
    with np.load(FILE) as file:
        return dict(file)


def build(names):
    """Measure the grids of all tasks, those of development first, then the other schedules.

    Starts that are stored are not measured again.
    """
    for measure, mark in ((grid, "one cycle"), (around_best, "SGDR")):
        for name in names:
            task, known, began = MODERN_TASKS[name], stored(), time.perf_counter()
            seeds = SEEDS[len(known.get(f"{name}/{mark}/{task.long_steps}", ())) :]
            if not seeds:
                continue
            known[f"{name}/rates"] = task.rates
            for key, losses in measure(task, known, seeds).items():
                known[key] = np.concatenate([known[key], losses]) if key in known else losses
            np.savez_compressed(FILE, **known)
            took = time.perf_counter() - began
            print(f"{name:42} {measure.__name__:12} {len(seeds)} starts {took:6.0f} s", flush=True)


def print_table():
    """Print the best rates of the development tasks, and what is not measured."""
    known = stored()
    for task in MODERN_TASKS.values():
        for num_steps in (task.num_steps, task.long_steps):
            cells = []
            for name in GRID | AROUND_BEST:
                losses = known.get(f"{task.name}/{name}/{num_steps}")
                if losses is None:
                    cells.append(f"{name} missing")
                elif task.group == "dev":
                    near = f"{task.name}/rates/{num_steps}"
                    rates = known[f"{task.name}/rates" if name in GRID else near]
                    best = best_index(losses)
                    cells.append(f"{name} {rates[best]:.2g} ({losses[:, best].mean():.4g})")
            print(f"{task.name:42} {num_steps:5}: {', '.join(cells) or 'measured'}")


if __name__ == "__main__":
    if sys.argv[1:] == ["table"]:
        print_table()
    else:
        build(sys.argv[1:] or list(MODERN_TASKS))
