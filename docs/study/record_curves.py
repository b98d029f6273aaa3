"""Recorded range tests of all tasks, so that ways to read them can be tried without any training.

    python docs/study/record_curves.py FOLDER                 # all tasks, by groups
    python docs/study/record_curves.py FOLDER "poisson adam"

One file a task. Each test goes on to its last row, whatever the losses (``stop_factor=inf``), and
says where the default stop would have ended it. Keys are "num_steps/low..high/seed/" and

    losses           of the batches, ``f32[num_steps]``, NaN after one that is not finite
    held_out_losses  of HELD_OUT_SIZE rows that are not trained on
    num_valid        rows before the end, i32
    num_valid_default_stop  the same, with the default stop

The groups of development are recorded first; nothing here reads a curve.
"""

from __future__ import annotations

import pathlib
import sys
import time
import warnings

import jax
import numpy as np
from modern_tasks import MODERN_TASKS
from suggestion_tasks import TASKS

import optax_clr

SEEDS = (100, 101, 102)  # other starts and batches than those of the ground truth
TESTS = (
    (300, 1e-7, 10.0),
    (150, 1e-7, 10.0),
    (600, 1e-7, 10.0),
    (1000, 1e-7, 10.0),
    (300, 1e-8, 100.0),
)
HELD_OUT_SIZE = 200


def test(task, held_out, seed, num_steps, low, high, stop_factor):
    return optax_clr.lr_range_test(
        task.loss_fn,
        task.start(seed),
        task.make_optimizer,
        task.batches(seed, num_steps),
        min_lr=low,
        max_lr=high,
        stop_factor=stop_factor,
        held_out=held_out,
    )


def record(task):
    """Return the arrays of the tests of a task."""
    held_out = jax.device_put(jax.tree.map(lambda leaf: leaf[:HELD_OUT_SIZE], task.validation))
    arrays = {}
    for num_steps, low, high in TESTS:
        for seed in SEEDS:
            arguments = task, held_out, seed, num_steps, low, high
            whole, stopped = test(*arguments, np.inf), test(*arguments, 1.0)
            key = f"{num_steps}/{low:g}..{high:g}/{seed}"
            arrays[f"{key}/losses"] = np.asarray(whole.losses, np.float32)
            arrays[f"{key}/held_out_losses"] = np.asarray(whole.held_out_losses, np.float32)
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
