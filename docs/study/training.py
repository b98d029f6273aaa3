"""Does cycling help? Schedules at equal steps, with peaks tuned, tested for, and customary.

    python docs/study/training.py --quick          # two small tasks, a minute; stores nothing
    python docs/study/training.py measure          # tasks that are not stored yet, an hour
    python docs/study/training.py measure "mnist CNN"
    python docs/study/training.py                  # the tables, from what is stored

Every schedule has one number to choose, its peak. It is chosen in three ways:

- **tuned**: that of 17, four to a decade, with the lowest loss on rows apart, over three starts;
- **tested**: read from one range test of 300 steps, for each start anew, by one of the library's
  three readings. A test that cannot be read is followed by the customary rate;
- **customary**: the rate at which users of the optimizer begin (1e-2 for SGD with momentum, 1e-3
  for AdamW).

What is reported is the loss (and accuracy) on a third set of rows, over ten other starts, each with
batches of its own, the same for all schedules. Runs with tuned and tested peaks are repeated in
shorter budgets, to find how many steps a schedule needs to come to what the tuned constant rate has
at the end.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats
from training_tasks import TASKS

import optax_clr

FOLDER = pathlib.Path(__file__).with_name("training")
TUNING_SEEDS = (0, 1, 2)
SEEDS = tuple(range(100, 110))
BUDGETS = (0.125, 0.25, 0.5, 0.75, 1.0)
SOURCES = ("tuned", "tested", "customary")
TEST_STEPS = 300
NUM_CYCLES = 4
BASE_OF_PEAK = 0.25  # as bounds() has it
WORST = float(np.log(10.0))  # the most that a log loss may be worse: ten times, or diverged
CHUNK = 24  # runs in one call of the program, so that it can be seen to move


# ----------------------------------------------------------------------------------- schedules


def constant(peak, num_steps):
    return optax.constant_schedule(peak)


def step_decay(peak, num_steps):
    return optax.piecewise_constant_schedule(peak, {num_steps // 2: 0.1, 3 * num_steps // 4: 0.1})


def cosine(peak, num_steps):
    return optax.warmup_cosine_decay_schedule(0.0, peak, num_steps // 20, num_steps)


def warmup_stable_decay(peak, num_steps):
    warmup_steps, decay_steps = num_steps // 20, num_steps // 5
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup_steps),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, decay_steps),
        ],
        [warmup_steps, num_steps - decay_steps],
    )


def triangular(peak, num_steps):
    rise_steps = num_steps // (2 * NUM_CYCLES)
    return optax_clr.triangular_schedule(BASE_OF_PEAK * peak, peak, rise_steps)


def triangular2(peak, num_steps):
    rise_steps = num_steps // (2 * NUM_CYCLES)
    return optax_clr.triangular2_schedule(BASE_OF_PEAK * peak, peak, rise_steps)


def warm_restarts(peak, num_steps):
    """Cycles of a seventh, two and four: SGDR with ``mult=2``."""
    return optax_clr.warm_restarts_schedule(peak, num_steps // 7, mult=2, num_cycles=3)


def one_cycle(peak, num_steps):
    return optax_clr.one_cycle_schedule(peak, num_steps)


class Policy(NamedTuple):
    name: str
    schedule: Callable  # of peak and num_steps
    reading: Callable  # of a range test: its peak


peak_of_bounds = lambda result: result.bounds().peak_value
POLICIES = (
    Policy("constant", constant, optax_clr.RangeTestResult.suggest),
    Policy("step decay", step_decay, optax_clr.RangeTestResult.suggest),
    Policy("cosine", cosine, peak_of_bounds),
    Policy("warm-up, stable, decay", warmup_stable_decay, peak_of_bounds),
    Policy("triangular", triangular, peak_of_bounds),
    Policy("triangular2", triangular2, peak_of_bounds),
    Policy("SGDR", warm_restarts, peak_of_bounds),
    Policy("one cycle", one_cycle, optax_clr.RangeTestResult.one_cycle_peak),
)
NAMES = tuple(policy.name for policy in POLICIES)


# ------------------------------------------------------------------------------------- training


class Run(NamedTuple):
    seed: int
    policy: int
    peak: float
    num_steps: int


def training_step(task, state, batch, rate):
    """Return the state after a step, and the loss before it: the step of the range test too."""
    params, statistics, optimizer_state = state
    gradient_fn = jax.value_and_grad(task.loss_fn, has_aux=True)
    (loss, statistics), gradients = gradient_fn(params, statistics, batch)
    updates, optimizer_state = task.make_optimizer(rate).update(gradients, optimizer_state, params)
    return (optax.apply_updates(params, updates), statistics, optimizer_state), loss


def start(task, seed):
    params, statistics = task.start(jax.random.key(seed))
    return params, statistics, task.make_optimizer(0.0).init(params)


@functools.partial(jax.jit, static_argnums=0)
def train(task, data, evaluated, seeds, rows, rates, num_steps):
    """Return ``(loss, accuracy)`` of each run on each of the data sets ``evaluated``, ``[K]``.

    One after the other: side by side they would have to be equally long, and are no faster here.
    """

    def one(run):
        seed, rows, rates, num_steps = run

        def step(index, state):
            batch = jax.tree.map(lambda column: column[rows[index]], data)
            return training_step(task, state, batch, rates[index])[0]

        state = jax.lax.fori_loop(0, num_steps, step, start(task, seed))
        return [task.evaluate(*state[:2], rows) for rows in evaluated]

    return jax.lax.map(one, (seeds, rows, rates, num_steps))


@functools.cache
def curve_of(policy, num_steps, length):
    """Return the rates of a policy with a peak of 1: all of them are proportional to it."""
    schedule = jax.jit(jax.vmap(POLICIES[policy].schedule(1.0, num_steps)))
    return np.asarray(schedule(jnp.arange(length)))


def outcomes(task, runs, num_steps):
    """Return ``f32[run, set, 2]``: loss and accuracy on the tuning and on the test rows."""
    batch_rows = {seed: task.batch_rows(seed, num_steps) for seed in {run.seed for run in runs}}
    parts = []
    for begin in range(0, len(runs), CHUNK):
        part = runs[begin : begin + CHUNK]
        part = [*part, *[part[-1]._replace(num_steps=40)] * (CHUNK - len(part))]
        rates = [run.peak * curve_of(run.policy, run.num_steps, num_steps) for run in part]
        found = train(
            task,
            task.train_data,
            (task.tuning_data, task.test_data),
            jnp.array([run.seed for run in part]),
            jnp.array([batch_rows[run.seed] for run in part]),
            jnp.array(rates, jnp.float32),
            jnp.array([run.num_steps for run in part]),
        )
        parts.append(np.moveaxis(np.array(found), 2, 0))
    return np.concatenate(parts)[: len(runs)]


@functools.cache
def step_of(task):
    """Return the step of a task, one and the same for all of its tests: it is compiled once."""
    return functools.partial(training_step, task)


@jax.jit  # where what cannot be read is NaN
def read(result):
    return jnp.stack([policy.reading(result) for policy in POLICIES])


def tested_peaks(task, seed):
    """Return the peak of each policy as one range test suggests it."""
    rows = jnp.asarray(task.batch_rows(seed + 1000, TEST_STEPS))
    batches = jax.tree.map(lambda column: column[rows], task.train_data)
    values = jnp.geomspace(1e-7, 10.0, TEST_STEPS)
    result = optax_clr.range_test(step_of(task), start(task, seed), batches, values)
    peaks = np.asarray(read(result))
    return np.where(np.isfinite(peaks), peaks, task.customary_rate)


def measure(task, num_steps, rates, tuning_seeds, seeds, budgets):
    """Return what the tables are made of, as arrays that can be stored."""
    policies = range(len(POLICIES))
    tuning_runs = [
        Run(seed, policy, rate, num_steps)
        for policy in policies
        for rate in rates
        for seed in tuning_seeds
    ]
    found = outcomes(task, tuning_runs, num_steps)
    shape = len(policies), len(rates), len(tuning_seeds)
    tuning = found[:, 0, 0].reshape(shape)

    best = np.where(np.isfinite(tuning), tuning, np.inf).mean(2).argmin(1)
    peaks = np.zeros((len(SOURCES), len(policies), len(seeds)))
    peaks[0] = rates[best][:, None]
    peaks[1] = np.stack([tested_peaks(task, seed) for seed in seeds], 1)
    peaks[2] = task.customary_rate

    budgets_of = {"tuned": budgets, "tested": budgets, "customary": (1.0,)}
    places, runs = [], []
    for source, name in enumerate(SOURCES):
        for budget in budgets_of[name]:
            for policy in policies:
                for number, seed in enumerate(seeds):
                    places.append((source, budgets.index(budget), policy, number))
                    peak = peaks[source, policy, number]
                    runs.append(Run(seed, policy, peak, round(budget * num_steps)))
    results = np.full((len(SOURCES), len(budgets), len(policies), len(seeds), 2), np.nan)
    results[tuple(np.transpose(places))] = outcomes(task, runs, num_steps)[:, 1]
    return {
        "tuning": tuning.astype(np.float32),  # [policy, rate, start]
        "rates": rates,
        "peaks": peaks.astype(np.float32),  # [source, policy, start]
        "results": results.astype(np.float32),  # [source, budget, policy, start, (loss, accuracy)]
    }


def stored(name):
    return FOLDER / f"{name.replace(' ', '-')}.npz"


def build(names):
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        began, task = time.perf_counter(), TASKS[name]
        table = measure(task, task.num_steps, task.rates, TUNING_SEEDS, SEEDS, BUDGETS)
        np.savez_compressed(stored(name), **table)
        print(f"{name:24} {time.perf_counter() - began:6.0f} s", flush=True)


# -------------------------------------------------------------------------------------- tables


def log_losses(table):
    """Return the log of the reported losses, ``[source, budget, policy, start]``; inf: diverged."""
    losses = table["results"][..., 0].astype(float)
    return np.log(np.where(np.isfinite(losses), losses, np.inf))


def error_rates(table):
    """Return the share of wrong answers in %, of a classification."""
    return 100 * (1 - table["results"][..., 1].astype(float))


def half_interval(values):
    """Return half the 95% interval of the mean over the starts, the first axis."""
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return quantile * values.std(0, ddof=1) / np.sqrt(len(values))


def difference(values, reference, worst=WORST):
    """Return the mean of a paired difference, at most ``worst``, and half its 95% interval."""
    with np.errstate(invalid="ignore"):
        pairs = np.nan_to_num(values - reference, nan=0.0)
    pairs = np.clip(pairs, -worst, worst)
    return pairs.mean(), half_interval(pairs)


def verdict(values, reference, worst=WORST):
    """Return -1 where ``values`` are lower than the reference, 1 where higher, else 0 (a draw)."""
    mean, half_width = difference(values, reference, worst)
    return int(np.sign(mean)) if abs(mean) > half_width else 0


def print_losses(name, table):
    task, losses = TASKS[name], table["results"][:, -1]
    what = "loss, accuracy in %" if task.is_classification else "loss"
    print(f"\n{name} ({task.optimizer}, {task.num_steps} steps): {what}, mean and 95% interval")
    print(f"{'':22}", *(f"{source:>32}" for source in SOURCES))
    for policy, policy_name in enumerate(NAMES):
        cells = []
        for source in range(len(SOURCES)):
            means = losses[source, policy].mean(0)
            halves = half_interval(losses[source, policy])
            cell = f"{means[0]:.4f} ± {halves[0]:.4f}"
            if task.is_classification:
                cell += f", {100 * means[1]:.2f} ± {100 * halves[1]:.2f}"
            cells.append(f"{cell:>32}")
        print(f"{policy_name:22}", *cells)
    for source in range(2):
        peaks = ", ".join(
            f"{name} {np.median(peaks):.2g}"
            for name, peaks in zip(NAMES, table["peaks"][source], strict=True)
        )
        print(f"peaks, {SOURCES[source]}: {peaks}")


def print_counts(tables, reference, name, values_of, worst=WORST):
    """Print how often each schedule wins, draws and loses against one with the same choice."""
    print(f"\n{name}: tasks of {len(tables)} won / drawn / lost against {NAMES[reference]}")
    print("with a peak chosen in the same way, and the mean difference")
    print(f"{'':22}", *(f"{source:>24}" for source in SOURCES))
    for policy, policy_name in enumerate(NAMES):
        if policy == reference:
            continue
        cells = []
        for source in range(len(SOURCES)):
            pairs = [values_of(table)[source, -1][[policy, reference]] for table in tables.values()]
            verdicts = [verdict(*pair, worst) for pair in pairs]
            mean = np.mean([difference(*pair, worst)[0] for pair in pairs])
            counts = " / ".join(str(verdicts.count(sign)) for sign in (-1, 0, 1))
            cells.append(f"{counts:>14} {mean:+.3f}   ")
        print(f"{policy_name:22}", *(f"{cell:>24}" for cell in cells))


def print_choices(tables):
    """Print what it costs to test for a peak, or to take the customary one, and not to tune it."""
    print("\nChange of the log loss against the same schedule with its tuned peak, mean over tasks")
    print("(without the worst task; the worst task; runs that diverged), and the width in decades")
    print("of the peaks whose loss is within 10% of the best when tuning")
    print(f"{'':22} {'tested':>32} {'customary':>32} {'width':>8}")
    for policy, policy_name in enumerate(NAMES):
        cells = []
        for source in (1, 2):
            changes, diverged = [], 0
            for table in tables.values():
                logs = log_losses(table)[:, -1, policy]
                changes.append(difference(logs[source], logs[0])[0])
                diverged += int(np.isinf(logs[source]).sum())
            *others, worst = sorted(changes)
            means = f"{np.mean(changes):+.3f} ({np.mean(others):+.3f}; "
            cells.append(f"{means}{worst:+.3f}; {diverged})")
        width = np.mean([width_within(table, policy) for table in tables.values()])
        print(f"{policy_name:22}", *(f"{cell:>32}" for cell in cells), f"{width:8.2f}")


def width_within(table, policy):
    losses = np.where(np.isfinite(table["tuning"][policy]), table["tuning"][policy], np.inf).mean(1)
    step = np.log10(table["rates"][1] / table["rates"][0])
    return step * np.sum(losses <= 1.1 * losses.min())


def print_budgets(tables):
    """Print the shortest budget with which a schedule has the tuned constant's final loss."""
    print(
        "\nThe least part of the steps with which a schedule comes to the final loss of the tuned"
    )
    print(f"constant rate, of {', '.join(map(str, BUDGETS))}; - is none of them. By task, and how")
    print("many tasks in half the steps or fewer")
    for source in range(2):
        print(f"{SOURCES[source]:22}", *(f"{name.split()[0][:9]:>9}" for name in tables))
        for policy, policy_name in enumerate(NAMES):
            least = [least_budget(table, source, policy) for table in tables.values()]
            cells = [f"{budget:9.3f}" if np.isfinite(budget) else f"{'-':>9}" for budget in least]
            print(f"{policy_name:22}", *cells, f"{np.sum(np.array(least) <= 0.5):6d}")


def least_budget(table, source, policy):
    logs = log_losses(table)
    target = logs[0, -1, NAMES.index("constant")].mean()
    reached = logs[source, :, policy].mean(1) <= target
    return BUDGETS[int(reached.argmax())] if reached.any() else np.inf


def print_costs(tables):
    print(
        "\nTraining steps that the choice of a peak takes, the last training included, in trainings"
    )
    for name in tables:
        num_steps = TASKS[name].num_steps
        tuned = len(TASKS[name].rates) * len(TUNING_SEEDS) + 1
        print(f"{name:22} tuned {tuned}, tested {1 + TEST_STEPS / num_steps:.2f}, customary 1")


def report(tables):
    for name, table in tables.items():
        print_losses(name, table)
    classifications = {
        name: table for name, table in tables.items() if TASKS[name].is_classification
    }
    for reference in map(NAMES.index, ("constant", "cosine")):
        print_counts(tables, reference, "log loss", log_losses)
        print_counts(classifications, reference, "error rate in %", error_rates, 100.0)
    print_choices(tables)
    print_budgets(tables)
    print_costs(tables)
    device = jax.devices()[0].platform
    print(f"\njax {jax.__version__}, optax {optax.__version__}, {device}", end="")
    print(f"; starts {SEEDS[0]} to {SEEDS[-1]}, tuned with {TUNING_SEEDS[0]} to {TUNING_SEEDS[-1]}")


def quick():
    """Two small tasks, a few starts, an eighth of the steps: does the benchmark run?"""
    tables = {}
    for name in ("digits MLP", "diamonds price MLP"):
        task = TASKS[name]
        rates = task.rates[::4]
        tables[name] = measure(task, task.num_steps // 8, rates, (0,), SEEDS[:3], BUDGETS)
    report(tables)
    # A tenth of the customary rate trains worse than the best of the grid in so few steps.
    for name, table in tables.items():
        slowest, best = table["tuning"][:, 0].mean(), np.nanmin(table["tuning"])
        assert best < 0.7 * slowest, f"{name}: tuning found nothing"
        assert np.isfinite(table["results"][:2, -1]).all() or not TASKS[name].is_classification


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="report", choices=("report", "measure"))
    parser.add_argument("tasks", nargs="*", help="those to measure; all that are not stored yet")
    parser.add_argument("--quick", action="store_true", help="a minute, and nothing is stored")
    arguments = parser.parse_args()
    if arguments.quick:
        quick()
    elif arguments.what == "measure":
        build(arguments.tasks or [name for name in TASKS if not stored(name).exists()])
    else:
        report({name: dict(np.load(stored(name))) for name in TASKS if stored(name).exists()})
