"""Does cycling help? Schedules at equal steps, with peaks tuned, tested for, and customary.

    python docs/study/training.py --quick          # two small tasks, a minute; stores nothing
    python docs/study/training.py measure          # tasks that are not stored yet, an hour
    python docs/study/training.py measure "mnist CNN"
    python docs/study/training.py tested           # the tested peaks of stored tasks anew
    python docs/study/training.py                  # the tables, from what is stored
    python docs/study/training.py page             # the same, into the pages

Every schedule has one number to choose, its peak. It is chosen in three ways:

- **tuned**: that of 17, four to a decade, with the lowest loss on rows apart, over three starts;
- **tested**: what `peak_for` gives for the schedule after one range test of 300 steps, for each
  start anew. A test that cannot be read is followed by the customary rate;
- **customary**: the rate at which users of the optimizer begin (1e-2 for SGD with momentum, 1e-3
  for AdamW).

What is reported is the loss (and accuracy) on a third set of rows, over ten other starts, each with
batches of its own, the same for all schedules. Runs with tuned peaks are repeated in shorter
budgets, to find how many steps a schedule needs to come to what the tuned constant rate has at the
end. `comparisons` says how intervals and verdicts are made.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import pathlib
import textwrap
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from comparisons import POINTS_MARGIN, compare, half_interval, holm, log_ratios
from pages import fill
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


POLICIES = (
    Policy("constant", constant),
    Policy("step decay", step_decay),
    Policy("cosine", cosine),
    Policy("warm-up, stable, decay", warmup_stable_decay),
    Policy("triangular", triangular),
    Policy("triangular2", triangular2),
    Policy("SGDR", warm_restarts),
    Policy("one cycle", one_cycle),
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


def read(result, policies, num_steps, default_rate):
    """Return the peak of each policy, and whether the curve was refused, or in doubt."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", optax_clr.RangeTestWarning)
        try:
            peaks = [result.peak_for(policy.schedule(1.0, num_steps), num_steps)
                     for policy in policies]  # fmt: skip
        except optax_clr.RangeTestError:
            return [default_rate] * len(policies), True, False
    return peaks, False, bool(caught)


def tested_peaks(task, seed, num_steps):
    """Return the peak of each policy as one range test suggests it, refused, in doubt."""
    rows = jnp.asarray(task.batch_rows(seed + 1000, TEST_STEPS))
    batches = jax.tree.map(lambda column: column[rows], task.train_data)
    values = jnp.geomspace(1e-7, 10.0, TEST_STEPS)
    result = optax_clr.range_test(step_of(task), start(task, seed), batches, values)
    return read(result, POLICIES, num_steps, task.customary_rate)


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
    peaks[2] = task.customary_rate
    table = {
        "tuning": tuning.astype(np.float32),  # [policy, rate, start]
        "rates": rates,
        "peaks": peaks.astype(np.float32),  # [source, policy, start]
        # [source, budget, policy, start, (loss, accuracy)]
        "results": np.full((*peaks.shape[:1], len(budgets), *peaks.shape[1:], 2), np.nan, "f4"),
    }
    for source in ("tuned", "customary"):
        measure_source(task, num_steps, table, source, seeds, budgets)
    return measure_tested(task, num_steps, table, seeds, budgets)


def measure_source(task, num_steps, table, source, seeds, budgets):
    """Train with the peaks of a source, and put what comes of it into the table."""
    number = SOURCES.index(source)
    places, runs = [], []
    for budget in budgets if source == "tuned" else (1.0,):
        for policy in range(len(POLICIES)):
            for column, seed in enumerate(seeds):
                places.append((budgets.index(budget), policy, column))
                peak = table["peaks"][number, policy, column]
                runs.append(Run(seed, policy, peak, round(budget * num_steps)))
    table["results"][number] = np.nan
    table["results"][number][tuple(np.transpose(places))] = outcomes(task, runs, num_steps)[:, 1]


def measure_tested(task, num_steps, table, seeds, budgets):
    """Return a table with the tested peaks measured anew."""
    found = [tested_peaks(task, seed, num_steps) for seed in seeds]
    table["peaks"][SOURCES.index("tested")] = np.transpose([peaks for peaks, *_ in found])
    measure_source(task, num_steps, table, "tested", seeds, budgets)
    problems = np.array([found for _, *found in found], bool)  # [start, (refused, in doubt)]
    return {**table, "problems": problems, "versions": np.array(versions())}


def versions():
    packages = ("jax", "optax", "flax", "numpy")
    named = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([*named, jax.devices()[0].platform])


def stored(name):
    return FOLDER / f"{name.replace(' ', '-')}.npz"


def build(names):
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        began, task = time.perf_counter(), TASKS[name]
        table = measure(task, task.num_steps, task.rates, TUNING_SEEDS, SEEDS, BUDGETS)
        np.savez_compressed(stored(name), **table)
        print(f"{name:24} {time.perf_counter() - began:6.0f} s", flush=True)


def test_again(names):
    for name in names:
        began, task = time.perf_counter(), TASKS[name]
        table = dict(np.load(stored(name)))
        table = measure_tested(task, task.num_steps, table, SEEDS, BUDGETS)
        np.savez_compressed(stored(name), **table)
        print(f"{name:24} {time.perf_counter() - began:6.0f} s", flush=True)


# -------------------------------------------------------------------------------------- tables
# In Markdown, as docs/pages/training.md has them.

CONSTANT, COSINE, STABLE, ONE_CYCLE = map(
    NAMES.index, ("constant", "cosine", "warm-up, stable, decay", "one cycle")
)
OVERFITS = "mnist1d MLP few rows"


def final(table, source, policy):
    """Return loss and accuracy after all steps, ``[start, 2]``."""
    return table["results"][SOURCES.index(source), -1, policy].astype(float)


def log_ratios_of(tables, row, reference):
    """Return the log-ratios of the losses of two ``(source, policy)``, ``[seed]`` of each task."""
    pairs = [(final(table, *row), final(table, *reference)) for table in tables.values()]
    return [log_ratios(ours[:, 0], theirs[:, 0]) for ours, theirs in pairs]


def ratios(tables, row, reference):
    """Return the comparison of two ``(source, policy)``: ratios of losses."""
    return compare(log_ratios_of(tables, row, reference))


def points(tables, row, reference):
    """Return the comparison of two in points of the error rate, on classification tasks."""
    chosen = [table for name, table in tables.items() if TASKS[name].is_classification]
    pairs = [(final(table, *row)[:, 1], final(table, *reference)[:, 1]) for table in chosen]
    return compare([100 * (theirs - ours) for ours, theirs in pairs], POINTS_MARGIN)


def cells_of(comparison, mark=""):
    return f"{comparison.as_ratio(mark)}, {comparison.verdicts}"


def against(tables, reference):
    """Return a table of every policy against one whose peak was chosen in the same way."""
    policies = [policy for policy in range(len(NAMES)) if policy != reference]
    found = {
        (policy, source): ratios(tables, (source, policy), (source, reference))
        for policy in policies
        for source in SOURCES
    }
    kept = dict(zip(found, holm([one.p_value for one in found.values()]), strict=True))
    lines = [
        f"| against {NAMES[reference]} | tuned | tested | customary | points of accuracy, tuned |",
        "|---" * 5 + "|",
    ]
    for policy in policies:
        cells = [
            cells_of(found[policy, source], "*" * int(kept[policy, source])) for source in SOURCES
        ]
        accuracy = points(tables, ("tuned", policy), ("tuned", reference))
        cells.append(f"{-accuracy.mean:+.1f}, {accuracy.verdicts}")
        lines.append(f"| {NAMES[policy]} | {' | '.join(cells)} |")
    return lines


def tested_against_tuned(tables):
    """Return a table of what a tested peak is worth, against tuned ones."""
    lines = [
        "| tested | against its own tuned peak | worst task | without the task that overfits "
        "| against a tuned cosine | against a tuned constant rate | points, own tuned |",
        "|---" * 7 + "|",
    ]
    others = {name: table for name, table in tables.items() if name != OVERFITS}
    for policy, name in enumerate(NAMES):
        row, own = ("tested", policy), ("tuned", policy)
        found = ratios(tables, row, own)
        cells = [
            cells_of(found),
            f"{found.worst_ratio:.2f}",
            cells_of(ratios(others, row, own)),
            cells_of(ratios(tables, row, ("tuned", COSINE))),
            cells_of(ratios(tables, row, ("tuned", CONSTANT))),
            f"{-points(tables, row, own).mean:+.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def customary_against_tuned(tables):
    lines = [
        "| customary | against its own tuned peak | worst task | width of the valley, decades |",
        "|---" * 4 + "|",
    ]
    for policy, name in enumerate(NAMES):
        found = ratios(tables, ("customary", policy), ("tuned", policy))
        width = np.mean([width_within(table, policy) for table in tables.values()])
        lines.append(f"| {name} | {cells_of(found)} | {found.worst_ratio:.2f} | {width:.1f} |")
    return lines


def width_within(table, policy):
    """Return the decades of peaks whose loss is within 10% of the best when tuning."""
    losses = np.where(np.isfinite(table["tuning"][policy]), table["tuning"][policy], np.inf).mean(1)
    step = np.log10(table["rates"][1] / table["rates"][0])
    return step * np.sum(losses <= 1.1 * losses.min())


def budgets_table(tables):
    lines = [f"| | {' | '.join(NAMES)} |", "|---" * (1 + len(NAMES)) + "|"]
    counts = [
        sum(least_budget(table, policy) <= 0.5 for table in tables.values())
        for policy in range(len(NAMES))
    ]
    return [*lines, f"| tasks of {len(tables)} | {' | '.join(map(str, counts))} |"]


def least_budget(table, policy):
    """Return the least budget with the tuned constant's final loss (geometric mean), or inf."""
    losses = table["results"][SOURCES.index("tuned"), :, policy, :, 0].astype(float)
    target = np.log(final(table, "tuned", CONSTANT)[:, 0]).mean()
    with np.errstate(invalid="ignore"):
        reached = np.log(losses).mean(1) <= target  # NaN is not
    return BUDGETS[int(reached.argmax())] if reached.any() else np.inf


def losses_table(name, table):
    """Return the losses, and accuracies in %, of a task: mean and 95% interval."""
    task = TASKS[name]
    lines = [
        f"{name} ({task.optimizer}, {task.num_steps} steps)",
        f"{'':22} {'tuned':>32} {'tested':>32} {'customary':>32}",
    ]
    for policy, policy_name in enumerate(NAMES):
        cells = []
        for source in SOURCES:
            found = final(table, source, policy)
            cell = f"{found[:, 0].mean():.4f} ± {half_interval(found[:, 0]):.4f}"
            if task.is_classification:
                rates = 100 * found[:, 1]
                cell += f", {rates.mean():.2f} ± {half_interval(rates):.2f}"
            cells.append(f"{cell:>32}")
        lines.append(f"{policy_name:22} {' '.join(cells)}")
    for number, source in enumerate(SOURCES[:2]):
        peaks = [f"{name} {np.median(peak):.2g}"
                 for name, peak in zip(NAMES, table["peaks"][number], strict=True)]  # fmt: skip
        lines.append(f"peaks, {source}: {', '.join(peaks)}")
    return [*lines, ""]


def percent(ratio):
    return f"{100 * abs(ratio - 1):.0f}%"


def headlines(tables):
    """Return the page's first sentences, each from a row of the tables below."""
    decaying = [policy for policy in range(len(NAMES)) if NAMES[policy] not in CYCLING]
    gains = [ratios(tables, ("tuned", policy), ("tuned", CONSTANT)).ratio for policy in decaying]
    cycles = ratios(tables, ("tuned", NAMES.index("triangular")), ("tuned", COSINE))
    tuned = ratios(tables, ("tuned", ONE_CYCLE), ("tuned", COSINE))
    tested = ratios(tables, ("tested", ONE_CYCLE), ("tuned", ONE_CYCLE))
    others = {name: table for name, table in tables.items() if name != OVERFITS}
    without = ratios(others, ("tested", ONE_CYCLE), ("tuned", ONE_CYCLE))
    to_cosine = ratios(tables, ("tested", ONE_CYCLE), ("tuned", COSINE))
    customary = ratios(tables, ("customary", ONE_CYCLE), ("tuned", ONE_CYCLE))
    stable = ratios(tables, ("tuned", STABLE), ("tuned", COSINE))
    cost = [TEST_STEPS / TASKS[name].num_steps for name in tables]
    refused, doubted = np.concatenate([table["problems"] for table in tables.values()]).sum(0)
    num_tests = sum(len(table["problems"]) for table in tables.values())
    num_tuned = len(TUNING_SEEDS) * len(next(iter(TASKS.values())).rates)
    bullets = [
        "**Falling helps, cycling does not by itself.** With tuned peaks, schedules that end near "
        f"zero have {percent(max(gains))} to {percent(min(gains))} less loss than the best "
        f"constant rate. Triangular cycles have {percent(cycles.ratio)} more than a cosine decay "
        f"({cycles.verdicts}).",
        f"**Both tuned, one cycle over cosine** is {tuned.as_ratio()} ({tuned.verdicts}); warm-up, "
        f"stable, decay over cosine is {stable.as_ratio()} ({stable.verdicts}).",
        f"**Tested against tuned:** one cycle with the peak of one range test has "
        f"{tested.as_ratio()} times the loss of one cycle with its tuned peak "
        f"({tested.verdicts}; worst task {tested.worst_ratio:.2f}), {without.as_ratio()} without "
        f"the task that overfits, and {to_cosine.as_ratio()} times that of a tuned cosine "
        f"({to_cosine.verdicts}). The test costs {min(cost):.1f} to {max(cost):.1f} trainings, "
        f"tuning {num_tuned}.",
        f"**A customary peak** has {customary.as_ratio()} times the loss of the tuned one for one "
        f"cycle ({customary.verdicts}).",
        f"Of {num_tests} range tests {refused} were refused and {doubted} in doubt.",
    ]
    wrap = functools.partial(textwrap.wrap, width=116, initial_indent="- ", subsequent_indent="  ")
    return [line for bullet in bullets for line in wrap(bullet, break_on_hyphens=False)]


CYCLING = ("constant", "triangular", "triangular2")


def advice(tables):
    """Return the table of docs/pages/schedules.md: which schedule when, and what it is worth."""

    def over(source, name, other_source, other, what):
        found = ratios(tables, (source, NAMES.index(name)), (other_source, other))
        return f"{found.in_words} {what}: {cells_of(found)}"

    stable, triangular = "warm-up, stable, decay", "triangular"
    both = "a cosine decay, both tuned"
    rows = [
        (
            "you know the length of the run",
            "`one_cycle_schedule`, with the peak `one_cycle_peak()`",
            f"{over('tuned', 'one cycle', 'tuned', COSINE, both)}; with its peak tested "
            f"{over('tested', 'one cycle', 'tuned', COSINE, 'a tuned cosine')}",
        ),
        (
            "you know it, and want Optax alone",
            "`optax.warmup_cosine_decay_schedule`, with its `peak_for`",
            "with its peak tested "
            f"{over('tested', 'cosine', 'tuned', COSINE, 'one with its peak tuned')}",
        ),
        (
            "you will decide later when to stop, or want finished models at several times",
            "`warmup_stable_decay_schedule`, with its `peak_for`",
            "[the decay can begin at any checkpoint](recipes.md#decay-from-any-checkpoint); "
            f"{over('tuned', stable, 'tuned', COSINE, both)}; with its peak tested "
            f"{over('tested', stable, 'tuned', COSINE, 'a tuned cosine')}",
        ),
        (
            "you want good models at several times from one uninterrupted run",
            "`warm_restarts_schedule`",
            "every cycle is a cosine decay, "
            f"{over('tuned', 'SGDR', 'tuned', COSINE, 'a single long one, both tuned')}",
        ),
        (
            "you do not know when the run ends, and want no checkpoints",
            "`triangular_schedule`, between `bounds()`",
            f"{over('tuned', triangular, 'tuned', CONSTANT, 'a constant rate, both tuned')}; with "
            "its bounds tested "
            f"{over('tested', triangular, 'tuned', CONSTANT, 'a tuned constant rate')}",
        ),
        (
            "you want snapshots, averages, samples",
            "`warm_restarts_schedule`, `cyclical_schedule`",
            "[What cycles are for](cycles.md)",
        ),
        (
            "you want another shape, or cycles that lengthen",
            "`cyclical_schedule`",
            "[a shape of your own](#shapes-of-your-own)",
        ),
        (
            "you reproduce the paper",
            "`triangular2_schedule`, `exp_range_schedule`",
            "the first is "
            f"{over('tuned', 'triangular2', 'tuned', COSINE, both)}; the second was not tried",
        ),
    ]
    table = [("when", "use", "because"), ("---",) * 3, *rows]
    return [f"| {' | '.join(row)} |" for row in table]


def sections_of(tables):
    return {
        "headlines": headlines(tables),
        "against constant": against(tables, CONSTANT),
        "against cosine": against(tables, COSINE),
        "tested": tested_against_tuned(tables),
        "customary": customary_against_tuned(tables),
        "budgets": budgets_table(tables),
        "versions": [versions_of(tables)],
        "advice": advice(tables),
    }


PARTS = {
    "training.md": (
        "headlines",
        "against constant",
        "against cosine",
        "tested",
        "customary",
        "budgets",
        "versions",
    ),
    "schedules.md": ("advice",),
}


def versions_of(tables):
    found = sorted({str(table["versions"]) for table in tables.values()})
    return (
        f"Tested peaks: {'; '.join(found)}; seeds {SEEDS[0]} to {SEEDS[-1]}, tuned with "
        f"{TUNING_SEEDS[0]} to {TUNING_SEEDS[-1]}."
    )


def report(tables):
    for name, table in tables.items():
        print(*losses_table(name, table), sep="\n")
    for name, lines in sections_of(tables).items():
        print(name, "", *lines, "", sep="\n")


def load():
    return {name: dict(np.load(stored(name))) for name in TASKS if stored(name).exists()}


def quick():
    """Two small tasks, a few starts, an eighth of the steps: does the benchmark run?"""
    tables = {}
    for name in ("digits MLP", "diamonds price MLP"):
        task = TASKS[name]
        rates = task.rates[::4]
        tables[name] = measure(task, task.num_steps // 8, rates, (0,), SEEDS[:3], BUDGETS)
        print(*losses_table(name, tables[name]), sep="\n")
    # A tenth of the customary rate trains worse than the best of the grid in so few steps.
    for name, table in tables.items():
        slowest, best = table["tuning"][:, 0].mean(), np.nanmin(table["tuning"])
        assert best < 0.7 * slowest, f"{name}: tuning found nothing"
        assert np.isfinite(table["results"][:2, -1]).all() or not TASKS[name].is_classification


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ("report", "page", "measure", "tested")
    parser.add_argument("what", nargs="?", default="report", choices=choices)
    parser.add_argument("tasks", nargs="*", help="those to measure; all that are not stored yet")
    parser.add_argument("--quick", action="store_true", help="a minute, and nothing is stored")
    arguments = parser.parse_args()
    if arguments.quick:
        quick()
    elif arguments.what == "measure":
        build(arguments.tasks or [name for name in TASKS if not stored(name).exists()])
    elif arguments.what == "tested":
        test_again(arguments.tasks or TASKS)
    elif arguments.what == "page":
        sections = sections_of(load())
        for page in PARTS:
            fill(page, "training", sections)
    else:
        report(load())
