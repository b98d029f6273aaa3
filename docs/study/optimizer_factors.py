"""By how much the rates that are read are too low or too high, for one optimizer after another.

    python docs/study/optimizer_factors.py --quick    # one optimizer, a minute
    python docs/study/optimizer_factors.py measure    # those that are not stored yet, an hour
    python docs/study/optimizer_factors.py            # the table, from what is stored

Six development tasks of suggestions.py, each with every optimizer in the place of its own: trained
at the rates of a grid, four to a decade, as a constant rate and as the peak of one cycle, from
three starts; and three range tests each of 300 and of 1,000 steps. The table has the regret of what
the curve says times each of FACTORS, the mean over tasks, both uses, both lengths and the tests:
what ``optimizer_factor`` is chosen by. A second table has the same of six held-out tasks, for those
optimizers of one size by which nothing was chosen.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import suggestion_tasks
import suggestion_truth
from optax import contrib
from pages import run_study
from record_curves import HELD_OUT_SIZE, losses_of, no_training
from rivals import versions

import optax_clr
from optax_clr._optimizer_factor import has_one_size, optimizer_factor

FILE = pathlib.Path(__file__).with_name("optimizer_factors.npz")
TASK_NAMES = (
    "digits MLP sgd",
    "mnist MLP momentum",
    "mileage MLP momentum",
    "diabetes MLP adam",
    "cancer logistic sgd",
    "manual n-gram momentum",
)
HELD_OUT_NAMES = (
    "mnist1d MLP adamw",
    "diamonds price adam",
    "diamonds cut momentum",
    "source n-gram adam",
    "flower colours adamw",
    "wine MLP lion",
)
LENGTHS = (300, 1000)
FACTORS = (1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 1, 2, 3, 4, 6, 8)
SHOWN = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
PEAK_RATIO = 2.637  # of one cycle of 1,000 steps


def signum(rate):
    return optax.chain(optax.ema(0.9), optax.scale_by_sign(), optax.scale_by_learning_rate(rate))


def normalized_sgd(rate):
    return optax.chain(optax.normalize_by_update_norm(), optax.sgd(rate))


def clipped_sgd(rate):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate))


# Each with the decades of its grid.
OPTIMIZERS = {
    "sgd": (optax.sgd, -3.5, 1.5),
    "sgd, clipped": (clipped_sgd, -3.5, 1.5),
    "optimistic gradient": (optax.optimistic_gradient_descent, -3.5, 1.5),
    "adagrad": (optax.adagrad, -4, 1),
    "adam, b1=0": (functools.partial(optax.adam, b1=0.0), -5, 0),
    "momentum .9": (functools.partial(optax.sgd, momentum=0.9), -4.5, 0.5),
    "Nesterov .9": (functools.partial(optax.sgd, momentum=0.9, nesterov=True), -4.5, 0.5),
    "lars": (optax.lars, -3, 2),
    "adam": (optax.adam, -5, 0),
    "nadam": (optax.nadam, -5, 0),
    "radam": (optax.radam, -5, 0),
    "adamax": (optax.adamax, -5, 0),
    "adopt": (contrib.adopt, -4, 1),
    "ademamix": (contrib.ademamix, -5, 0),
    "rmsprop": (optax.rmsprop, -5, 0),
    "adafactor": (optax.adafactor, -4, 1),
    "schedule-free adamw": (
        functools.partial(contrib.schedule_free_adamw, weight_decay=0.0), -4, 1,
    ),
    "novograd": (optax.novograd, -4, 1),
    "yogi": (optax.yogi, -5, 0),
    "adan": (optax.adan, -4, 1),
    "lion": (optax.lion, -6, -1),
    "muon": (contrib.muon, -4, 1),
    "signum": (signum, -6, -1),
    "lamb": (optax.lamb, -4, 1),
    "sign sgd": (optax.sign_sgd, -6, -1),
    "normalized sgd": (normalized_sgd, -4, 1),
    "fromage": (optax.fromage, -5, 0),
}  # fmt: skip
# Those by which nothing was chosen, on the held-out tasks too.
OF_ONE_SIZE = ("signum", "lamb", "sign sgd", "normalized sgd", "fromage")
MEASURED = (
    *itertools.product(TASK_NAMES, OPTIMIZERS),
    *itertools.product(HELD_OUT_NAMES, OF_ONE_SIZE),
)


def with_optimizer(task_name, name):
    """Return a development task with another optimizer, and the grid of that."""
    factory, low, high = OPTIMIZERS[name]
    task = dataclasses.replace(suggestion_tasks.TASKS[task_name], optimizer=name, shift=0.0)
    suggestion_tasks.OPTIMIZERS[name] = suggestion_tasks.Optimizer(factory, np.nan, (low, high))
    return task


def regrets(task):
    """Return the regret of a constant rate and of the peak of one cycle, ``[use, rate]``."""
    steps = jnp.arange(task.num_steps)
    peaks = jnp.asarray(task.rates, jnp.float32)
    one_cycle = lambda peak: optax_clr.one_cycle_schedule(peak, task.num_steps)(steps)
    constant = jnp.broadcast_to(peaks, (task.num_steps, len(peaks)))
    rates = jnp.concatenate([constant, jax.vmap(one_cycle, out_axes=1)(peaks)], 1)
    data = jax.device_put((task.data.inputs, task.data.targets))
    validation = jax.device_put(task.validation)
    finals = []
    for seed in suggestion_truth.SEEDS:
        rows = task.batch_rows(seed, task.num_steps)
        losses = suggestion_truth.train(task, task.start(seed), data, validation, rows, rates)
        at_end = losses[-3:, : len(peaks)].mean(0), losses[-1, len(peaks) :]
        finals.append(np.stack(at_end))
    floor = 0.01 * suggestion_truth.guessing_loss(task)
    finals = np.array(finals)
    logs = np.log(np.where(np.isfinite(finals), np.maximum(finals, floor), np.inf))
    best = logs.mean(0).min(-1, keepdims=True)
    return np.minimum(logs - best, suggestion_truth.WORST).mean(0)


def readings(task):
    """Return what the curves of range tests suggest by themselves, ``[length, seed]``."""
    held_out = jax.device_put(jax.tree.map(lambda leaf: leaf[:HELD_OUT_SIZE], task.validation))
    found = []
    for length in LENGTHS:
        rates = jnp.geomspace(1e-7, 10.0, length)
        losses, _ = losses_of(task, length, rates, held_out)
        found.append([reading(jnp.asarray(column), rates) for column in losses.T])
    return np.array(found)


def reading(losses, rates):
    result = optax_clr.range_test(no_training, 0.0, (losses, losses), rates, has_aux=True)
    try:
        return result.suggest()
    except optax_clr.RangeTestError:
        return np.nan


def measure():
    known = dict(np.load(FILE)) if FILE.exists() else {}
    for task_name, name in MEASURED:
        key = f"{name}/{task_name}"
        if f"{key}/regrets" in known:
            continue
        task = with_optimizer(task_name, name)
        known[f"{key}/regrets"] = regrets(task).astype(np.float32)
        known[f"{key}/readings"] = readings(task).astype(np.float32)
        np.savez_compressed(FILE, **known | {"versions": np.array(versions())})
        print(key, flush=True)


def scores(known, name, task_names):
    """Return the mean regret of the reading times each factor, ``[task, factor]``."""
    table = []
    for task_name in task_names:
        of_rates = np.log(with_optimizer(task_name, name).rates)
        found = known[f"{name}/{task_name}/readings"]
        found = found[np.isfinite(found)].astype(float)  # without tests that are refused
        places = np.log(np.multiply.outer(FACTORS, found))
        uses = zip((1.0, PEAK_RATIO), known[f"{name}/{task_name}/regrets"], strict=True)
        rows = [np.interp(places + np.log(ratio), of_rates, regret) for ratio, regret in uses]
        table.append(np.mean(rows, axis=(0, 2)))
    return np.array(table)


def seen_factor(name):
    optimizer = OPTIMIZERS[name][0](0.1)
    state = optimizer.init(jnp.zeros((2, 2)))
    return optimizer_factor(state, is_one_size=has_one_size(optimizer) is True)


def table_of(known, names, task_names):
    """Return the table in Markdown, with what ``optimizer_factor`` is in bold."""
    heads = [text_of(factor) for factor in SHOWN]
    lines = [f"| regret at | {' | '.join(heads)} | best for the tasks |", "|---" * 9 + "|"]
    for name in names:
        by_task = scores(known, name, task_names)
        mean, best = by_task.mean(0), sorted(np.array(FACTORS)[by_task.argmin(1)])
        cells = [
            f"**{mean[index]:.2f}**" if factor == seen_factor(name) else f"{mean[index]:.2f}"
            for index, factor in enumerate(FACTORS)
            if factor in SHOWN
        ]
        best_of_tasks = ", ".join(map(text_of, best))
        lines.append(f"| {name} | {' | '.join(cells)} | {best_of_tasks} |")
    return lines


def text_of(factor):
    return f"1/{round(1 / factor)}" if factor < 1 else f"{factor:g}"


def sections_of(known):
    return {
        "table": table_of(known, OPTIMIZERS, TASK_NAMES),
        "held-out tasks": table_of(known, OF_ONE_SIZE, HELD_OUT_NAMES),
        "versions": [f"{known['versions']}."],
    }


def quick():
    """Lion on the digits: does it run, and is what the curve says by itself too high?"""
    task = with_optimizer("digits MLP sgd", "lion")
    task = dataclasses.replace(task, num_steps=200)
    best = task.rates[regrets(task)[0].argmin()]
    found = readings(task)
    print(f"Lion on the digits: best rate {best:.2g}, the curve says {np.nanmedian(found):.2g}")
    assert np.nanmedian(found) > best


if __name__ == "__main__":
    warnings.simplefilter("ignore", optax_clr.RangeTestWarning)
    run_study(
        __doc__,
        "optimizer-kinds.md",
        "optimizer_factors",
        quick=quick,
        measure=measure,
        sections=lambda: sections_of(np.load(FILE)),
    )
