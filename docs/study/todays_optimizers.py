"""A range test of today's optimizers: one cycle at its suggestion, against a grid of peaks.

    python docs/study/todays_optimizers.py --quick    # one optimizer, half a minute
    python docs/study/todays_optimizers.py measure    # those that are not stored yet, 20 minutes
    python docs/study/todays_optimizers.py            # the table, from what is stored

On four of the tasks of training.py. Each optimizer trains by one cycle, schedule-free AdamW at a
constant rate, with nine peaks, two to a decade, from two starts; the best on examples apart is the
grid's. Then it trains from six other starts at the grid's peak, and at the one that a range test of
300 steps suggests for each of them, read from the training loss and from a held-out batch. What is
reported is the loss on a third set of examples.
"""

from __future__ import annotations

import functools
import pathlib
from typing import NamedTuple

import numpy as np
import optax
from comparisons import compare, log_ratios
from optax import contrib
from pages import run_study
from rivals import (
    RIVALS,
    WEIGHT_DECAY,
    RangeTest,
    Rival,
    constant,
    one_cycle,
    outcomes,
    peak_ratio_of,
    range_test_of,
    read,
    versions,
)
from training_tasks import TASKS

FILE = pathlib.Path(__file__).with_name("todays_optimizers.npz")
TASK_NAMES = ("digits MLP", "mnist1d MLP", "source n-gram", "diamonds price MLP")
TUNING_SEEDS = (0, 1)
SEEDS = tuple(range(100, 106))
WAYS = ("grid", "training loss", "held-out batch")


class Entry(NamedTuple):
    rival: Rival
    middle: float  # of the grid: where its users begin
    shape: object = one_cycle


def by_rate(factory, **options):
    return Rival(lambda own, schedule: factory(schedule, **options))


OPTIMIZERS = {
    "Lion": Entry(by_rate(optax.lion, weight_decay=WEIGHT_DECAY), 1e-3),
    "Muon": Entry(by_rate(contrib.muon), 2e-2),
    "schedule-free AdamW": Entry(RIVALS["schedule-free AdamW"], 1e-2, constant),
    "Adafactor": Entry(by_rate(optax.adafactor), 3e-2),
    "ADOPT": Entry(by_rate(contrib.adopt), 1e-2),
    "AdamW": Entry(RIVALS["AdamW"], 1e-2),
}


def grid_of(entry):
    return entry.middle * np.logspace(-2, 2, 9)


def measure(task, entry, num_steps, test_steps=300, seeds=SEEDS):
    """Return peaks and losses, ``[way, seed]``, and refusals and doubts, ``[test, 2, seed]``."""
    train = functools.partial(outcomes, task, entry.rival, entry.shape, num_steps)
    tuning = [
        train([peak] * len(TUNING_SEEDS), TUNING_SEEDS, num_steps)[:, 0, 0].mean()
        for peak in grid_of(entry)
    ]
    best = np.argmin(np.where(np.isfinite(tuning), tuning, np.inf))
    peaks, problems = [np.full(len(seeds), grid_of(entry)[best])], []
    ratio = peak_ratio_of(entry.shape, num_steps)
    for held_out in (False, True):
        test = RangeTest("", test_steps, held_out)
        found = [read(range_test_of(task, entry.rival, test, seed), entry.middle) for seed in seeds]
        suggested, refused, doubted = np.transpose(found)
        peaks.append(suggested * ratio)
        problems.append([refused, doubted])
    losses = [train(row, seeds, num_steps)[:, 1, 0] for row in peaks]
    return np.array(peaks), np.array(losses), np.array(problems)


def build():
    known = dict(np.load(FILE)) if FILE.exists() else {}
    for name, entry in OPTIMIZERS.items():
        for task_name in TASK_NAMES:
            key = f"{name}/{task_name}"
            if f"{key}/losses" in known:
                continue
            task = TASKS[task_name]
            found = measure(task, entry, task.num_steps)
            for part, values in zip(("peaks", "losses", "problems"), found, strict=True):
                known[f"{key}/{part}"] = values.astype(np.float32)
            np.savez_compressed(FILE, **known | {"versions": np.array(versions())})
            print(key, flush=True)


def table_of(known):
    """Return the table in Markdown."""
    lines = [
        "| | loss at the suggestion over the grid's best | worst task | suggested over best peak "
        "| with a held-out batch | worst task | refused, in doubt |",
        "|---" * 7 + "|",
    ]
    for name in OPTIMIZERS:
        keys = [f"{name}/{task}" for task in TASK_NAMES if f"{name}/{task}/losses" in known]
        if len(keys) < len(TASK_NAMES):
            continue
        losses = [known[f"{key}/losses"] for key in keys]
        peaks = [np.log10(known[f"{key}/peaks"]).mean(1) for key in keys]
        cells = []
        for way in (1, 2):
            found = compare([log_ratios(rows[way], rows[0]) for rows in losses])
            cells += [f"{found.as_ratio()}, {found.verdicts}", f"{found.worst_ratio:.2f}"]
        ratios = [10 ** (row[1] - row[0]) for row in peaks]
        problems = sum(known[f"{key}/problems"].sum((0, 2)) for key in keys).astype(int)
        cells.insert(2, f"{min(ratios):.2f} to {max(ratios):.2f}")
        cells.append(f"{problems[0]}, {problems[1]} of {2 * len(SEEDS) * len(keys)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def sections_of(known):
    return {"table": table_of(known), "versions": [f"{known['versions']}."]}


def quick():
    """Lion on the digits, few steps: does it run?"""
    _, losses, _ = measure(TASKS["digits MLP"], OPTIMIZERS["Lion"], 100, 60, SEEDS[:2])
    print("Lion on the digits, loss by way of choosing:", losses.mean(1))
    assert np.isfinite(losses[0]).all(), "the best of the grid diverged"


if __name__ == "__main__":
    run_study(
        __doc__,
        "optimizer-kinds.md",
        "todays_optimizers",
        quick=quick,
        measure=build,
        sections=lambda: sections_of(np.load(FILE)),
    )
