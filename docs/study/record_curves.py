"""Recorded range tests of all tasks, so that ways to read them can be tried without any training.

    python docs/study/record_curves.py FOLDER                 # all tasks, by groups
    python docs/study/record_curves.py FOLDER "poisson adam"

One file a task. Each test goes on to its last row, whatever the losses (``stop_factor=inf``), and
says where the default stop would have ended it. Keys are "num_steps/low..high/seed/" and

    losses           of the batches, ``f32[num_steps]``, NaN from one that is not finite on
    held_out_losses  of HELD_OUT_SIZE rows that are not trained on, after each step
    num_valid        rows before the end, i32
    num_valid_default_stop  the same, with the default stop

Tests of all lengths are trained by one program, in parts, the seeds side by side: `lr_range_test`
would compile one for each length. Then `range_test` goes over the losses, as if they came from its
own training, and ends the test as it does. The groups of development are recorded first; nothing
here reads a curve.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from modern_tasks import MODERN_TASKS
from suggestion_tasks import TASKS

import optax_clr

SEEDS = (100, 101, 102)  # other starts and batches than those of the ground truth
TESTS = (
    (300, 1e-7, 10.0),
    (75, 1e-7, 10.0),
    (150, 1e-7, 10.0),
    (250, 1e-7, 10.0),
    (600, 1e-7, 10.0),
    (1000, 1e-7, 10.0),
    (300, 1e-8, 100.0),
)
HELD_OUT_SIZE = 200
PART_STEPS = 25  # in one call of the program


@functools.partial(jax.jit, static_argnums=0)
def train_part(task, state, batches, rates, held_out):
    """Return the state after PART_STEPS steps, and the losses of each, ``[PART_STEPS, seed]``."""

    def step(state, row):
        batch, rate = row

        def one(params, optimizer_state, batch):
            loss, gradients = jax.value_and_grad(task.loss_fn)(params, batch)
            optimizer = task.make_optimizer(rate)
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
            params = optax.apply_updates(params, updates)
            return (params, optimizer_state), (loss, task.loss_fn(params, held_out))

        return jax.vmap(one)(*state, batch)

    return jax.lax.scan(step, state, (batches, rates))


def stacked(trees, axis):
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)


def losses_of(task, num_steps, rates, held_out):
    """Return losses of the batches and of the held-out rows, ``[num_steps, seed]``."""
    batches = stacked([task.batches(seed, num_steps) for seed in SEEDS], 1)
    params = stacked([task.start(seed) for seed in SEEDS], 0)
    state, rows = (params, jax.vmap(task.make_optimizer(0.0).init)(params)), []
    for first in range(0, num_steps, PART_STEPS):
        part = slice(first, first + PART_STEPS)
        cut = jax.tree.map(lambda leaf, part=part: leaf[part], batches)
        state, losses = train_part(task, state, cut, rates[part], held_out)
        rows.append(losses)
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def no_training(state, losses, rate):
    loss, held_out_loss = losses
    return state, (loss + 0 * rate, held_out_loss)  # of the rate, or range_test objects


def record(task):
    """Return the arrays of the tests of a task."""
    held_out = jax.device_put(jax.tree.map(lambda leaf: leaf[:HELD_OUT_SIZE], task.validation))
    arrays = {}
    for num_steps, low, high in TESTS:
        rates = jnp.geomspace(low, high, num_steps)
        found = losses_of(task, num_steps, rates, held_out)
        for column, seed in enumerate(SEEDS):
            losses = tuple(table[:, column] for table in found)
            ends = functools.partial(
                optax_clr.range_test, no_training, 0.0, losses, rates, has_aux=True
            )
            whole, stopped = ends(stop_factor=np.inf), ends(stop_factor=1.0)
            key = f"{num_steps}/{low:g}..{high:g}/{seed}"
            arrays[f"{key}/losses"] = np.asarray(whole.losses)
            arrays[f"{key}/held_out_losses"] = np.asarray(whole.metrics)
            arrays[f"{key}/num_valid"] = np.int32(whole.num_valid)
            arrays[f"{key}/num_valid_default_stop"] = np.int32(stopped.num_valid)
    return arrays


def groups():
    for group in ("dev", "held-out"):
        for kind, tasks in (("earlier", TASKS), ("modern", MODERN_TASKS)):
            members = [task for task in tasks.values() if task.group == group]
            yield f"{kind} {group}", members


def main(folder, names):
    warnings.simplefilter("ignore")  # of tests that are doubtful, or that ended early
    folder.mkdir(exist_ok=True)
    for title, tasks in groups():
        began = time.perf_counter()
        missing = [task for task in tasks if task.name in names] if names else tasks
        for task in missing:
            file = folder / f"{task.name.replace(' ', '-')}.npz"
            if names or not file.exists():
                started = time.perf_counter()
                np.savez_compressed(file, **record(task))
                print(f"{task.name:42} {time.perf_counter() - started:5.0f} s", flush=True)
        if not names:
            with (folder / "READY.txt").open("a") as ready:
                ready.write(f"{title}: {len(tasks)} tasks, {time.perf_counter() - began:.0f} s\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
