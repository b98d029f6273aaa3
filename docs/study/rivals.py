"""A range test and one cycle, against optimizers that set their own learning rate.

    python docs/study/rivals.py --quick            # two small tasks, a minute; stores nothing
    python docs/study/rivals.py measure            # tasks that are not stored yet, an hour
    python docs/study/rivals.py measure "mnist CNN"
    python docs/study/rivals.py cost               # memory and time of a step, a minute
    python docs/study/rivals.py                    # the tables, from what is stored
    python docs/study/rivals.py page               # the same, into docs/pages/alternatives.md

The tasks and their batches are those of training.py; four tasks with raw features or raw targets
come on top, with fewer rows. Every row trains from the same twelve starts, on the two largest tasks
from six. The optimizers are those of optax.contrib, as their documentation has them, and with a
cosine decay from their documented rate.
Those of Adam's kind have AdamW's weight decay of 0.01. DoG's params are averaged with weights that
grow as the eighth power of the step, as its authors advise. Where the params that are evaluated
are not those that were trained, BatchNorm statistics are measured anew.

Rows of a range test are read by `peak_for`, `one_cycle_peak` or `suggest`. "Paid" means that the
training is shorter by what its test cost: one step for each row, and a third of a step for each
batch's worth of held-out examples, since evaluating has no backward pass. A test that cannot be
read is followed by the default rate of the optimizer.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import textwrap
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from comparisons import RATIO_MARGIN, compare, half_interval, holm, log_ratios, verdict
from optax import contrib
from pages import fill
from training import NAMES, TUNING_SEEDS, cosine, one_cycle, versions, warmup_stable_decay
from training import stored as stored_training
from training_tasks import BADLY_SCALED, TASKS

import optax_clr

FOLDER = pathlib.Path(__file__).with_name("rivals")
WEIGHT_DECAY = 1e-2  # as AdamW has it in every task
SEEDS = tuple(range(100, 112))
LARGEST = ("mnist ResNet", "source transformer")  # half as many seeds
HELD_OUT_BATCHES = 2
STATISTICS_BATCHES = 50
ALL_TASKS = TASKS | BADLY_SCALED


# ---------------------------------------------------------------------------------- optimizers


class PolynomialAverage(NamedTuple):
    step: jax.Array
    params: Any


def averaged_polynomially(power=8):
    """Average the params over the steps, with weights that grow as a power of the step.

    Source: Ivgi et al., DoG is SGD's best friend, https://arxiv.org/abs/2302.12022, section 4.
    """

    def update(updates, state, params):
        step = state.step + 1
        weight = (1 + power) / (step + power)
        new_params = optax.apply_updates(params, updates)
        move = lambda average, new: average + weight * (new - average)
        return updates, PolynomialAverage(step, jax.tree.map(move, state.params, new_params))

    init = lambda params: PolynomialAverage(jnp.int32(0), params)
    return optax.GradientTransformation(init, update)


class Rival(NamedTuple):
    """``make(own, schedule)``, where ``own`` is the task's optimizer as a function of its rate."""

    make: Callable
    evaluated_params: Callable = lambda state, params: params


def _of_schedule_free(state, params):
    return contrib.schedule_free_eval_params(state, params)


def _at_first_rate(factory, **options):
    # These take a number, and add no decay of their own.
    return lambda own, schedule: factory(schedule(0), **options)


RIVALS = {
    "own": Rival(lambda own, schedule: own(schedule)),
    "momentum": Rival(lambda own, schedule: optax.sgd(schedule, momentum=0.9)),
    "AdamW": Rival(lambda own, schedule: optax.adamw(schedule, weight_decay=WEIGHT_DECAY)),
    "Prodigy": Rival(lambda own, schedule: contrib.prodigy(schedule, weight_decay=WEIGHT_DECAY)),
    "MoMo": Rival(lambda own, schedule: contrib.momo(schedule)),
    "MoMo-Adam": Rival(
        lambda own, schedule: contrib.momo_adam(schedule, weight_decay=WEIGHT_DECAY)
    ),
    "DoG": Rival(
        lambda own, schedule: optax.chain(contrib.dog(schedule), averaged_polynomially()),
        lambda state, params: state[-1].params,
    ),
    "D-Adaptation": Rival(
        lambda own, schedule: contrib.dadapt_adamw(schedule, weight_decay=WEIGHT_DECAY)
    ),
    "Mechanic": Rival(lambda own, schedule: contrib.mechanize(own(schedule))),
    "COCOB": Rival(lambda own, schedule: contrib.cocob(schedule)),
    "schedule-free AdamW": Rival(
        _at_first_rate(contrib.schedule_free_adamw, weight_decay=WEIGHT_DECAY), _of_schedule_free
    ),
    "schedule-free SGD": Rival(_at_first_rate(contrib.schedule_free_sgd), _of_schedule_free),
}


# ---------------------------------------------------------------------------------------- rows


def constant(peak, num_steps):
    return optax.constant_schedule(peak)


def cosine_decay(peak, num_steps):
    return optax.cosine_decay_schedule(peak, num_steps)


def warmup_linear(peak, num_steps):
    """Climb for a twentieth of the steps, and fall to zero.

    It does not begin at 0: Prodigy divides by its first rate, and all params would be NaN.
    """
    rise_steps = num_steps // 20
    rise = optax.linear_schedule(peak / rise_steps, peak, rise_steps)
    fall = optax.linear_schedule(peak, 0.0, num_steps - rise_steps)
    return optax.join_schedules([rise, fall], [rise_steps])


class RangeTest(NamedTuple):
    optimizer: str
    num_rows: int = 300
    held_out: bool = False

    @property
    def name(self):
        return f"{self.optimizer}, {self.num_rows} rows{', held-out batch' * self.held_out}"

    @property
    def cost(self):
        return round(self.num_rows * (1 + self.held_out * HELD_OUT_BATCHES / 3))


class Row(NamedTuple):
    name: str
    optimizer: str
    shape: Callable = constant
    peak: float | RangeTest | None = 1.0  # None: tuned
    paid: bool = False

    def steps_of(self, num_steps):
        return num_steps - self.peak.cost if self.paid else num_steps


OWN = RangeTest("own")
OWN_SHORT = RangeTest("own", 150)
OWN_HELD_OUT = RangeTest("own", 150, held_out=True)
ADAMW = RangeTest("AdamW")
ADAMW_HELD_OUT = RangeTest("AdamW", 150, held_out=True)
FREE = RangeTest("schedule-free AdamW")

ROWS = (
    Row("one cycle, tuned", "own", one_cycle, None),
    Row("range test, one cycle, test not paid", "own", one_cycle, OWN),
    Row("range test, one cycle", "own", one_cycle, OWN, True),
    Row("range test, cosine", "own", cosine, OWN, True),
    Row("range test, WSD", "own", warmup_stable_decay, OWN, True),
    Row("test of 150 steps, one cycle", "own", one_cycle, OWN_SHORT, True),
    Row("held-out batch, 150 steps, one cycle", "own", one_cycle, OWN_HELD_OUT, True),
    Row("AdamW, range test, one cycle, test not paid", "AdamW", one_cycle, ADAMW),
    Row("AdamW, range test, one cycle", "AdamW", one_cycle, ADAMW, True),
    Row("AdamW, range test, WSD", "AdamW", warmup_stable_decay, ADAMW, True),
    Row("AdamW, held-out batch, 150 steps, one cycle", "AdamW", one_cycle, ADAMW_HELD_OUT, True),
    Row("schedule-free AdamW at suggest()", "schedule-free AdamW", constant, FREE, True),
    Row("Prodigy + cosine", "Prodigy", cosine_decay),
    Row("Prodigy + warm-up and linear", "Prodigy", warmup_linear),
    Row("MoMo-Adam 1e-2 + cosine", "MoMo-Adam", cosine_decay, 1e-2),
    Row("MoMo 1 + cosine", "MoMo", cosine_decay),
    Row("D-Adaptation + cosine", "D-Adaptation", cosine_decay),
    Row("Mechanic + cosine", "Mechanic", cosine_decay),
    Row("DoG, averaged, + cosine", "DoG", cosine_decay),
    Row("AdamW 1e-3 + cosine", "AdamW", cosine_decay, 1e-3),
    Row("SGD 0.1, momentum, + cosine", "momentum", cosine_decay, 0.1),
    Row("Prodigy", "Prodigy"),
    Row("MoMo-Adam 1e-2", "MoMo-Adam", constant, 1e-2),
    Row("MoMo 1", "MoMo"),
    Row("D-Adaptation", "D-Adaptation"),
    Row("Mechanic", "Mechanic"),
    Row("DoG, averaged", "DoG"),
    Row("COCOB", "COCOB"),
    Row("schedule-free AdamW 2.5e-3", "schedule-free AdamW", constant, 2.5e-3),
    Row("schedule-free SGD 1", "schedule-free SGD"),
    Row("AdamW 1e-3", "AdamW", constant, 1e-3),
    Row("SGD 0.1, momentum", "momentum", constant, 0.1),
)
ROW_NAMES = tuple(row.name for row in ROWS)
# On badly scaled tasks only the strongest are tried.
RAW_NAMES = (
    "one cycle, tuned",
    "range test, one cycle, test not paid",
    "range test, one cycle",
    "AdamW, range test, one cycle",
    "schedule-free AdamW at suggest()",
    "Prodigy + cosine",
    "Prodigy + warm-up and linear",
    "MoMo-Adam 1e-2 + cosine",
    "DoG, averaged",
    "AdamW 1e-3 + cosine",
    "SGD 0.1, momentum, + cosine",
    "schedule-free AdamW 2.5e-3",
)
TESTS = tuple(dict.fromkeys(row.peak for row in ROWS if isinstance(row.peak, RangeTest)))


# ------------------------------------------------------------------------------------- training


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(task, rival, data, evaluated, seeds, rows, rates, num_steps):
    """Return ``(loss, accuracy)`` of each run on each of the data sets ``evaluated``, ``[K]``."""

    def one(run):
        seed, rows, rates, num_steps = run
        optimizer = rival.make(task.make_optimizer, lambda count: rates[count])
        optimizer = optax.with_extra_args_support(optimizer)
        batch_at = lambda index: jax.tree.map(lambda column: column[rows[index]], data)

        def step(index, state):
            params, statistics, optimizer_state = state
            gradient_fn = jax.value_and_grad(task.loss_fn, has_aux=True)
            (loss, statistics), gradients = gradient_fn(params, statistics, batch_at(index))
            updates, optimizer_state = optimizer.update(
                gradients, optimizer_state, params, value=loss
            )
            return optax.apply_updates(params, updates), statistics, optimizer_state

        def measure_statistics(index, statistics):
            return task.loss_fn(params, statistics, batch_at(index))[1]

        params, statistics = task.start(jax.random.key(seed))
        state = params, statistics, optimizer.init(params)
        params, statistics, optimizer_state = jax.lax.fori_loop(0, num_steps, step, state)
        params = rival.evaluated_params(optimizer_state, params)
        if statistics:
            statistics = jax.lax.fori_loop(0, STATISTICS_BATCHES, measure_statistics, statistics)
        return [task.evaluate(params, statistics, rows) for rows in evaluated]

    return jax.lax.map(one, (seeds, rows, rates, num_steps))


@functools.cache
def curve_of(shape, num_steps, length):
    """Return the rates of a shape with a peak of 1: all of them are proportional to it."""
    schedule = jax.jit(jax.vmap(shape(1.0, num_steps)))
    return np.asarray(schedule(jnp.arange(length)), np.float32)


def outcomes(task, rival, shape, num_steps, peaks, seeds, length):
    """Return ``f32[run, set, 2]``: loss and accuracy on the tuning and on the test examples."""
    curve = curve_of(shape, num_steps, length)
    found = train(
        task,
        rival,
        task.train_data,
        (task.tuning_data, task.test_data),
        jnp.array(seeds),
        jnp.array([task.batch_rows(seed, length) for seed in seeds]),
        jnp.array([peak * curve for peak in peaks], jnp.float32),
        jnp.array([num_steps] * len(seeds)),
    )
    return np.moveaxis(np.array(found), 2, 0)


def read(result, default_rate):
    """Return ``suggest()``, whether it was refused, and whether in doubt."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return result.suggest(), False, bool(caught)
        except optax_clr.RangeTestError:
            return default_rate, True, False


@functools.cache
def test_functions(task, rival):
    """Return loss and optimizer, the same ones each time: the program is compiled once."""
    own = task.make_optimizer
    _, statistics = task.start(jax.random.key(0))
    # The loss in training does not depend on the running statistics.
    loss_fn = lambda params, batch: task.loss_fn(params, statistics, batch)[0]
    return loss_fn, lambda rate: rival.make(own, lambda count: rate)


def range_test_of(task, rival, test, seed):
    loss_fn, optimizer = test_functions(task, rival)
    rows = jnp.asarray(task.batch_rows(seed + 1000, test.num_rows))
    batches = jax.tree.map(lambda column: column[rows], task.train_data)
    params, _ = task.start(jax.random.key(seed))
    held_out = None
    if test.held_out:
        num_held_out = HELD_OUT_BATCHES * task.batch_size
        held_out = jax.tree.map(lambda column: column[:num_held_out], task.tuning_data)
    return optax_clr.lr_range_test(loss_fn, params, optimizer, batches, held_out=held_out)


def default_rate_of(task, optimizer):
    own = task.customary_rate
    return {"own": own, "AdamW": 1e-3, "schedule-free AdamW": 2.5e-3}[optimizer]


@functools.cache
def peak_ratio_of(shape, num_steps):
    """Return what `peak_for` gives for a shape, over `suggest`."""
    rates = jnp.geomspace(1e-3, 10.0, 100)
    losses = (jnp.log10(rates) - jnp.log10(0.5)) ** 2
    result = optax_clr.RangeTestResult(rates, losses, losses, jnp.int32(100))
    return result.peak_for(shape(1.0, num_steps), num_steps) / result.suggest()


def tuned_peak(task, num_steps, rates):
    """Return the peak of one cycle with the lowest loss on the tuning examples, three starts."""
    file = stored_training(task.name)
    if task.name in TASKS and file.exists() and num_steps == task.num_steps:
        return float(np.load(file)["peaks"][0, NAMES.index("one cycle"), 0])
    losses = []
    for rate in rates:
        peaks = [rate] * len(TUNING_SEEDS)
        found = outcomes(task, RIVALS["own"], one_cycle, num_steps, peaks, TUNING_SEEDS, num_steps)
        losses.append(found[:, 0, 0])
    losses = np.where(np.isfinite(losses), losses, np.inf)
    return rates[losses.mean(1).argmin()]


def measure(task, num_steps, seeds, rates, rows=ROWS):
    """Return what the tables are made of, as arrays that can be stored."""
    same_as_own = {"adamw": "AdamW", "momentum": "momentum"}[task.optimizer]
    readings = {}
    for test in dict.fromkeys(row.peak for row in rows if isinstance(row.peak, RangeTest)):
        default_rate = default_rate_of(task, test.optimizer)
        if test.optimizer == same_as_own:
            readings[test] = readings.get(test._replace(optimizer="own"))
        if readings.get(test) is None:
            rival = RIVALS[test.optimizer]
            tests = (range_test_of(task, rival, test, seed) for seed in seeds)
            readings[test] = np.array([read(result, default_rate) for result in tests])
    peaks, results, tuning, lengths, known = [], [], [], [], {}
    for row in rows:
        if isinstance(row.peak, RangeTest):
            ratio = peak_ratio_of(row.shape, row.steps_of(num_steps))
            row_peaks = readings[row.peak][:, 0] * ratio
        else:
            peak = tuned_peak(task, num_steps, rates) if row.peak is None else row.peak
            row_peaks = np.full(len(seeds), peak)
        length = row.steps_of(num_steps)
        optimizer = "own" if row.optimizer == same_as_own else row.optimizer
        key = optimizer, row.shape, length, tuple(row_peaks)
        if key not in known:
            rival = RIVALS[optimizer]
            known[key] = outcomes(task, rival, row.shape, length, row_peaks, seeds, num_steps)
        peaks.append(row_peaks)
        results.append(known[key][:, 1])
        tuning.append(known[key][:, 0, 0])
        lengths.append(length)
    return {
        "peaks": np.array(peaks, np.float32),  # [row, seed]
        "results": np.array(results, np.float32),  # [row, seed, (loss, accuracy)]
        "tuning": np.array(tuning, np.float32),  # [row, seed], loss on the tuning examples
        "lengths": np.array(lengths),  # [row], steps that were trained
        "readings": np.array([readings[test] for test in readings], np.float32),
        # [test, seed, (suggest(), refused, in doubt)]
        "tests": np.array([test.name for test in readings]),
        "rows": np.array([row.name for row in rows]),
        "versions": np.array(versions()),
    }


def stored(name):
    return FOLDER / f"{name.replace(' ', '-')}.npz"


def build(names):
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        began, task = time.perf_counter(), ALL_TASKS[name]
        rows = [row for row in ROWS if name in TASKS or row.name in RAW_NAMES]
        seeds = SEEDS[:6] if name in LARGEST else SEEDS
        np.savez_compressed(stored(name), **measure(task, task.num_steps, seeds, task.rates, rows))
        print(f"{name:24} {time.perf_counter() - began:6.0f} s", flush=True)


# -------------------------------------------------------------------------------------- tables

REFERENCE = "range test, one cycle"
FAMILY = tuple(name for name, task in TASKS.items() if task.optimizer == "adamw")
PAIRS = (
    "Prodigy + cosine",
    "Prodigy + warm-up and linear",
    "MoMo-Adam 1e-2 + cosine",
    "Mechanic + cosine",
    "DoG, averaged",
)
CANDIDATES = (
    "range test, one cycle",
    "AdamW, range test, one cycle",
    "AdamW, range test, WSD",
    "Prodigy + cosine",
    "MoMo-Adam 1e-2 + cosine",
    "schedule-free AdamW at suggest()",
)
OURS = (
    "range test, one cycle, test not paid",
    "range test, one cycle",
    "range test, WSD",
    "held-out batch, 150 steps, one cycle",
    "AdamW, range test, one cycle",
    "AdamW, range test, WSD",
    "AdamW, held-out batch, 150 steps, one cycle",
)


def row_of(table, name):
    """Return loss and accuracy of a row, ``[seed, 2]``."""
    return table["results"][table["rows"].tolist().index(name)].astype(float)


def compared(tables, name, reference):
    return compare(
        [log_ratios(row_of(table, name)[:, 0], row_of(table, reference)[:, 0]) for table in tables]
    )


def points_of_accuracy(tables, name, reference):
    """Return the mean difference of the accuracy in points, over classification tasks."""
    pairs = [[row_of(table, row)[:, 1].mean() for row in (name, reference)] for table in tables]
    return np.mean([100 * (row - other) for row, other in pairs if np.isfinite(row)])


def table_of_rows(tables, title):
    """Return a table in Markdown: every row against the reference, and against the tuned peak."""
    names = [name for name in tables[0]["rows"].tolist() if name != REFERENCE]
    found = {name: compared(tables, name, REFERENCE) for name in names}
    kept = dict(zip(names, holm([found[name].p_value for name in names]), strict=True))
    lines = [
        f"| {title} | loss over that of the reference | worst task | better / equal / worse / open "
        "| points of accuracy |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        mark = "*" if kept[name] else ""
        lines.append(
            f"| {name} | {found[name].as_ratio(mark)} | {found[name].worst_ratio:.2f} "
            f"| {found[name].verdicts} | {points_of_accuracy(tables, name, REFERENCE):+.1f} |"
        )
    return lines


def table_of_losses(tables):
    """Return the mean loss of every row on every task, and its peak where that was tested."""
    lines = []
    for name, table in tables.items():
        lines += [name, f"{'':46} {'loss':>18} {'accuracy in %':>15} {'median peak':>12}"]
        for number, row in enumerate(table["rows"].tolist()):
            losses, accuracies = table["results"][number].astype(float).T
            cell = f"{losses.mean():.4f} ± {half_interval(losses):.4f}"
            peak = np.median(table["peaks"][number])
            lines.append(f"{row:46} {cell:>18} {100 * accuracies.mean():15.2f} {peak:12.3g}")
        lines.append("")
    return lines


def table_by_task(tables):
    """Return a table in Markdown: the loss over that of the reference, and the verdict, by task."""
    lines = [f"| over {REFERENCE} | {' | '.join(tables)} |", "|---" * (1 + len(tables)) + "|"]
    for name in next(iter(tables.values()))["rows"].tolist():
        if name == REFERENCE:
            continue
        cells = []
        for table in tables.values():
            values = log_ratios(row_of(table, name)[:, 0], row_of(table, REFERENCE)[:, 0])
            found = verdict(values, len(tables), RATIO_MARGIN)
            cells.append(f"{np.exp(values.mean()):.2f}, {found}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def table_of_pairs(tables, title, names=OURS):
    """Return a table in Markdown: ours over the strongest rivals, both with a decay."""
    lines = [f"| {title} | {' | '.join(PAIRS)} |", "|---" * (1 + len(PAIRS)) + "|"]
    for name in names:
        found = [compared(tables, name, rival) for rival in PAIRS]
        cells = [f"{one.as_ratio()}, {one.verdicts}" for one in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def table_of_tests(tables, badly_scaled):
    """Return a table in Markdown: of how many tests how many were refused, and in doubt."""
    groups = {f"{len(tables)} tasks": tables, **{name: {name: badly_scaled[name]}
                                                  for name in badly_scaled}}  # fmt: skip
    lines = [
        f"| range test, its cost in steps | {' | '.join(groups)} |",
        "|---" * (1 + len(groups)) + "|",
    ]
    for test in TESTS:
        cells = [problems_of(group.values(), test) for group in groups.values()]
        lines.append(f"| {test.name}: {test.cost} | {' | '.join(cells)} |")
    return lines


def problems_of(tables, test):
    readings = [
        table["readings"][table["tests"].tolist().index(test.name)]
        for table in tables
        if test.name in table["tests"].tolist()
    ]
    if not readings:
        return "-"
    refused, doubted = np.concatenate(readings)[:, 1:].sum(0).astype(int)
    return f"{refused}, {doubted} of {len(np.concatenate(readings))}"


def headlines(tables, badly_scaled):
    """Return the page's first sentences, each from a row of the tables below."""
    everywhere, family = list(tables.values()), [tables[name] for name in FAMILY]
    raw = list(badly_scaled.values())

    def over(name, rival, chosen=everywhere):
        found = compared(chosen, name, rival)
        return f"{found.as_ratio()} ({found.verdicts})"

    prodigy, momo = "Prodigy + cosine", "MoMo-Adam 1e-2 + cosine"
    adamw = "AdamW, range test, one cycle"
    held_out = "AdamW, held-out batch, 150 steps, one cycle"
    undecayed = [row.name for row in ROWS if row.shape is constant and isinstance(row.peak, float)]
    found = [compared(everywhere, name, REFERENCE) for name in undecayed]
    num_worse = sum(one.low > 0 for one in found)
    bullets = [
        f"**The task's own optimizer**, range test, one cycle: over Prodigy + cosine "
        f"{over(REFERENCE, prodigy)}, over MoMo-Adam + cosine {over(REFERENCE, momo)}.",
        "**AdamW on every task**, which is what these two are akin to: over Prodigy + cosine "
        f"{over(adamw, prodigy)}, over MoMo-Adam + cosine {over(adamw, momo)}. With a test of 150 "
        f"steps and a held-out batch {over(held_out, prodigy)} and {over(held_out, momo)}.",
        f"**On the {len(family)} tasks whose own optimizer is AdamW:** over Prodigy + cosine "
        f"{over(REFERENCE, prodigy, family)}, over MoMo-Adam + cosine "
        f"{over(REFERENCE, momo, family)}.",
        f"**Without a decay**, {num_worse} of {len(undecayed)} rivals have more loss than the "
        "task's own optimizer with a range test and one cycle, by an interval without 1; they "
        f"range from {min(one.ratio for one in found):.2f} to "
        f"{max(one.ratio for one in found):.2f} times its loss, DoG with averaging at "
        f"{over('DoG, averaged', REFERENCE)}.",
        f"**A cosine decay** over none: Prodigy {over(prodigy, 'Prodigy')}, MoMo-Adam "
        f"{over(momo, 'MoMo-Adam 1e-2')}, D-Adaptation "
        f"{over('D-Adaptation + cosine', 'D-Adaptation')}; but Mechanic "
        f"{over('Mechanic + cosine', 'Mechanic')} and DoG with averaging "
        f"{over('DoG, averaged, + cosine', 'DoG, averaged')}.",
        "**Schedule-free AdamW** at `suggest()` over its default rate: "
        f"{over('schedule-free AdamW at suggest()', 'schedule-free AdamW 2.5e-3')}.",
    ]
    problems = np.sum([table["readings"][0, :, 1:].sum(0) for table in everywhere], 0)
    num_others = sum(len(table["readings"][0]) for table in everywhere)
    counts = [
        verdict(log_ratios(row_of(table, REFERENCE)[:, 0], row_of(table, rival)[:, 0]),
                len(raw), RATIO_MARGIN)
        for rival in (prodigy, momo, "AdamW 1e-3 + cosine") for table in raw
    ]  # fmt: skip
    refused, doubted = np.sum([table["readings"][0, :, 1:].sum(0) for table in raw], 0).astype(int)
    num_tests = sum(len(table["readings"][0]) for table in raw)
    bullets.append(
        f"**On {len(raw)} badly scaled tasks** the task's own optimizer with a range test and one "
        "cycle is better than Prodigy + cosine, MoMo-Adam + cosine and AdamW 1e-3 + cosine in "
        f"{counts.count('better')} of {len(counts)} pairs, "
        f"equal in {counts.count('equal')}, worse in {counts.count('worse')} and open in "
        f"{counts.count('open')}; but {refused} of its {num_tests} tests were refused and "
        f"{doubted} in doubt, against {int(problems[0])} and {int(problems[1])} of {num_others} on "
        f"the {len(tables)} tasks."
    )
    wrap = functools.partial(textwrap.wrap, width=116, initial_indent="- ", subsequent_indent="  ")
    return [line for bullet in bullets for line in wrap(bullet, break_on_hyphens=False)]


def sections_of(tables, badly_scaled):
    scaled_tables, raw_tables = list(tables.values()), list(badly_scaled.values())
    family = [tables[name] for name in FAMILY]
    every = scaled_tables + raw_tables
    found = sorted({str(table["versions"]) for table in every})
    costs = np.load(stored("cost"))
    return {
        "headlines": headlines(tables, badly_scaled),
        "pairs": table_of_pairs(scaled_tables, f"{len(tables)} tasks"),
        "family": table_of_pairs(  # on which those by AdamW are the others
            family,
            f"{len(family)} tasks with AdamW",
            [name for name in OURS if not name.startswith("AdamW")],
        ),
        "rows": table_of_rows(scaled_tables, f"{len(tables)} tasks"),
        "raw": table_by_task(badly_scaled),
        "tests": table_of_tests(tables, badly_scaled),
        "picks": table_of_picks(scaled_tables),
        "cost": table_of_costs(costs),
        "versions": [f"{'; '.join(found)}; seeds {SEEDS[0]} to {SEEDS[-1]}."],
    }


def loaded(tasks):
    return {name: dict(np.load(stored(name))) for name in tasks if stored(name).exists()}


# ---------------------------------------------------------------------------------------- costs


def measure_costs(width=512, num_steps=30, rounds=9):
    """Return state in bytes per byte of params, and CPU seconds a step, the least of some rounds.

    CPU time, for a machine on which others work too.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    params = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys[:3]]
    inputs = jax.random.normal(keys[3], (64, width))

    def loss_fn(params):
        hidden = jnp.tanh(jnp.tanh(inputs @ params[0]) @ params[1])
        return jnp.mean((hidden @ params[2] - inputs) ** 2)

    own = functools.partial(optax.sgd, momentum=0.9)
    memory, programs = [], []
    for rival in RIVALS.values():
        optimizer = optax.with_extra_args_support(
            rival.make(own, optax.constant_schedule(jnp.float32(1e-4)))
        )

        def step(state, _, optimizer=optimizer):
            params, optimizer_state = state
            loss, gradients = jax.value_and_grad(loss_fn)(params)
            updates, optimizer_state = optimizer.update(
                gradients, optimizer_state, params, value=loss
            )
            return (optax.apply_updates(params, updates), optimizer_state), loss

        state = params, jax.tree.map(jnp.asarray, optimizer.init(params))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state[1]))
        memory.append(size / sum(leaf.nbytes for leaf in params))
        run = jax.jit(functools.partial(jax.lax.scan, step, xs=None, length=num_steps))
        programs.append(functools.partial(run, state))
        jax.block_until_ready(programs[-1]())
    seconds = np.full((rounds, len(programs)), np.nan)
    for row in seconds:
        for column, program in enumerate(programs):
            began = time.process_time()
            jax.block_until_ready(program())
            row[column] = (time.process_time() - began) / num_steps
    return {
        "memory": np.array(memory),
        "seconds": seconds.min(0),
        "optimizers": np.array(list(RIVALS)),
        "versions": np.array(versions()),
    }


def picked(table, candidates):
    """Return the test losses of what has the lowest loss on the tuning examples, ``[seed]``."""
    numbers = [table["rows"].tolist().index(name) for name in candidates]
    tuning = np.where(np.isfinite(table["tuning"][numbers]), table["tuning"][numbers], np.inf)
    losses = table["results"][numbers, :, 0].astype(float)
    return losses[tuning.argmin(0), np.arange(losses.shape[1])]


def table_of_picks(tables):
    """Return a table in Markdown: training every candidate and picking one, over each alone."""
    ratios = {
        name: [log_ratios(picked(table, CANDIDATES), row_of(table, name)[:, 0]) for table in tables]
        for name in CANDIDATES
    }
    lines = ["| the one that is picked, over | loss | better / equal / worse / open |"]
    lines.append("|---" * 3 + "|")
    for name, values in ratios.items():
        found = compare(values)
        lines.append(f"| {name} | {found.as_ratio()} | {found.verdicts} |")
    return lines


def table_of_costs(costs):
    names = costs["optimizers"].tolist()
    baseline = costs["seconds"][names.index("AdamW")]
    lines = [
        "| optimizer | state, over the params | CPU time of a step over AdamW's |",
        "|---|---|---|",
    ]
    for name, memory, seconds in zip(names, costs["memory"], costs["seconds"], strict=True):
        if name != "own":
            label = {"momentum": "SGD, momentum", "Mechanic": "Mechanic of SGD, momentum"}
            lines.append(f"| {label.get(name, name)} | {memory:.1f} | {seconds / baseline:.2f} |")
    return lines


def quick():
    """Two small tasks, few rows and steps: does it run?"""
    names = (REFERENCE, "range test, one cycle, test not paid", "Prodigy + cosine")
    rows = tuple(row._replace(peak=RangeTest("own", 60)) if row.name in names[:2] else row
                 for row in ROWS if row.name in names)  # fmt: skip
    for name in ("digits MLP", "diamonds price raw"):
        task = ALL_TASKS[name]
        table = measure(task, 200, SEEDS[:3], task.rates, rows)
        losses = dict(zip(table["rows"].tolist(), table["results"][..., 0], strict=True))
        print(name, {row: float(found.mean()) for row, found in losses.items()})
        assert np.isfinite(losses[REFERENCE]).all(), f"{name}: the training diverged"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ("report", "page", "measure", "cost")
    parser.add_argument("what", nargs="?", default="report", choices=choices)
    parser.add_argument("tasks", nargs="*", help="those to measure; all that are not stored yet")
    parser.add_argument("--quick", action="store_true", help="a minute, and nothing is stored")
    arguments = parser.parse_args()
    if arguments.quick:
        quick()
    elif arguments.what == "measure":
        build(arguments.tasks or [name for name in ALL_TASKS if not stored(name).exists()])
    elif arguments.what == "cost":
        np.savez_compressed(stored("cost"), **measure_costs())
    elif arguments.what == "page":
        fill("alternatives.md", "rivals", sections_of(loaded(TASKS), loaded(BADLY_SCALED)))
    else:
        print(*table_of_losses(loaded(ALL_TASKS)), sep="\n")
        for name, lines in sections_of(loaded(TASKS), loaded(BADLY_SCALED)).items():
            print(name, "", *lines, "", sep="\n")
