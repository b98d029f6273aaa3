"""Ground truth for the benchmark of suggestions: what training with each rate comes to.

    python docs/study/suggestion_truth.py               # tasks that are missing, 40 minutes
    python docs/study/suggestion_truth.py "digits MLP sgd"

Every task is trained with each rate of a grid, four to a decade: as a constant, as the peak of
one cycle, and as the peak of four triangular cycles whose base is each of BASE_RATIOS of it;
from three starts. All these runs of a task are lanes of one program.

The **regret** of a rate is how much higher the validation loss is after training with it than
with the best rate of the grid: the difference of the logarithms, that of the best averaged over the
starts, and at most ln 10, which stands for diverged. Between rates of the grid it is interpolated.
Losses below a hundredth of what the best constant guess has are counted as that: where a small
validation set is learned to the last row, the logarithm would go on without end.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from suggestion_tasks import TASKS, Task

import optax_clr

FILE = pathlib.Path(__file__).with_name("suggestion_truth.npz")
SEEDS = (0, 1, 2)
BASE_RATIOS = (0.25, 0.1, 0.02)
NUM_CYCLES = 4
NUM_EVALUATIONS = 20
WORST = float(np.log(10.0))
USES = ("constant", "one cycle", "triangular")


# --------------------------------------------------------------------------------------- training


@functools.partial(jax.jit, static_argnums=0)
def train(task: Task, params, data, validation, rows, rates):
    """Return validation losses ``[NUM_EVALUATIONS, K]`` of runs at ``rates`` of ``[steps, K]``."""
    inputs, targets = data
    many = lambda leaf: jnp.broadcast_to(leaf, (rates.shape[1], *leaf.shape))
    params = jax.tree.map(many, params)
    state = jax.vmap(lambda params: task.make_optimizer(0.0).init(params))(params)

    def step(carry, row):
        rows, rates = row
        batch = inputs[rows], targets[rows]

        def one(params, state, rate):
            gradients = jax.grad(task.loss_fn)(params, batch)
            updates, state = task.make_optimizer(rate).update(gradients, state, params)
            return jax.tree.map(jnp.add, params, updates), state

        return jax.vmap(one)(*carry, rates), None

    def part(carry, rows):
        carry, _ = jax.lax.scan(step, carry, rows)
        return carry, jax.vmap(lambda *run: task.validation_loss(*run, validation))(*carry)

    shaped = lambda column: column.reshape(NUM_EVALUATIONS, -1, *column.shape[1:])
    return jax.lax.scan(part, (params, state), (shaped(rows), shaped(rates)))[1]


def schedules(task):
    """Return the rates ``[steps, K]`` of all runs of a task: constant, one cycle, triangular."""
    steps = jnp.arange(task.num_steps)
    peaks = jnp.asarray(task.rates, jnp.float32)
    constant = jnp.broadcast_to(peaks, (task.num_steps, len(peaks)))

    def one_cycle(peak):
        return optax_clr.one_cycle_schedule(peak, task.num_steps)(steps)

    def triangular(ratio):
        rise_steps = task.num_steps // (2 * NUM_CYCLES)
        policy = lambda peak: optax_clr.triangular_schedule(ratio * peak, peak, rise_steps)(steps)
        return jax.vmap(policy, out_axes=1)(peaks)

    columns = [constant, jax.vmap(one_cycle, out_axes=1)(peaks), *map(triangular, BASE_RATIOS)]
    return jnp.concatenate(columns, 1)


def measure(task):
    """Return the final validation losses of each use, ``[seed, (ratio,) rate]``, and at start."""
    rates, num_rates = schedules(task), len(task.rates)
    # On the device as they are, so that they are arguments of the program and not constants in it.
    data = jax.device_put((task.data.inputs, task.data.targets))
    validation = jax.device_put(task.validation)
    finals, starts = [], []
    for seed in SEEDS:
        params = task.start(seed)
        starts.append(task.loss_fn(params, validation))
        losses = train(task, params, data, validation, task.batch_rows(seed, task.num_steps), rates)
        # A run at a constant rate ends on noise: the mean of the last three evaluations.
        constant = losses[-3:, :num_rates].mean(0)
        finals.append(np.concatenate([constant, losses[-1, num_rates:]]))
    constant, one_cycle, *triangular = np.split(np.array(finals), 2 + len(BASE_RATIOS), axis=1)
    return {
        "start": np.array(starts),
        "constant": constant,
        "one cycle": one_cycle,
        "triangular": np.stack(triangular, 1),
    }


# ------------------------------------------------------------------------------------------ regret


@functools.cache
def log_losses(task):
    """Return the log of the losses of each use, ``[seed, (ratio,) rate]``; inf if not finite."""
    known = np.load(FILE)
    floor = 0.01 * guessing_loss(task)

    def log(losses):
        return np.log(np.where(np.isfinite(losses), np.maximum(losses, floor), np.inf))

    return {use: log(known[f"{task.name}/{use}"].astype(float)) for use in USES}


def guessing_loss(task):
    """Return the training loss of the best constant guess: an entropy, or a variance."""
    targets = task.data.targets
    if targets.dtype == np.int32:
        shares = np.bincount(targets.ravel()) / targets.size
        return -float(np.sum(shares * np.log(np.maximum(shares, 1e-12))))
    return float(targets.var(0).mean())


@functools.cache
def regrets(task):
    """Return the regret of each use at the rates of the grid, ``[rate]`` or ``[ratio, rate]``.

    The first ratio of a triangular cycle's base to its peak is 1, which is a constant rate.
    """
    tables = dict(log_losses(task))
    tables["triangular"] = np.concatenate(
        [tables["constant"][:, None], tables["triangular"]], axis=1
    )
    return {use: _above_best(table) for use, table in tables.items()}


def _above_best(table):
    return np.minimum(table - table.mean(0).min(), WORST).mean(0)


def regret(task, use, rate, ratio=0.25):
    """Return the regret of a rate, or of a peak with a base of ``ratio`` times it."""
    if not (np.isfinite(rate) and rate > 0):
        return WORST  # no answer
    place, table = np.log(rate), regrets(task)[use]
    if use != "triangular":
        return float(np.interp(place, np.log(task.rates), table))
    by_ratio = [np.interp(place, np.log(task.rates), row) for row in table]
    ratios = np.log([1.0, *BASE_RATIOS])
    return float(np.interp(-np.log(np.clip(ratio, 1e-9, 1.0)), -ratios, by_ratio))


def noise_floor(task, use):
    """Return the regret of the rate that is best for two of the starts, for the third."""
    losses = log_losses(task)[use].reshape(len(SEEDS), -1)
    best = losses.mean(0).min()
    chosen = [np.delete(losses, seed, 0).mean(0).argmin() for seed in range(len(SEEDS))]
    regret_of = lambda seed, index: min(losses[seed, index] - best, WORST)
    return float(np.mean([regret_of(*choice) for choice in enumerate(chosen)]))


def build(names):
    known = dict(np.load(FILE)) if FILE.exists() else {}
    for name in names:
        started = time.perf_counter()
        known |= {f"{name}/{use}": table for use, table in measure(TASKS[name]).items()}
        np.savez_compressed(FILE, **known)
        print(f"{name:28} {time.perf_counter() - started:6.0f} s", flush=True)


if __name__ == "__main__":
    missing = [
        name for name in TASKS if not FILE.exists() or f"{name}/constant" not in np.load(FILE)
    ]
    build(sys.argv[1:] or missing)
