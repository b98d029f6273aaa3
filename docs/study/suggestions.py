"""How good are the rates that a range test suggests? Ours, and every other system's, on real tasks.

    python docs/study/suggestions.py --quick     # four small tasks, a minute
    python docs/study/suggestions.py scores      # from the stored suggestions, a minute
    python docs/study/suggestions.py measure     # makes them anew, half an hour
    python docs/study/suggestions.py stability bounds

What training with each rate comes to was measured once (suggestion_truth.py, which also says what a
regret is), on the tasks of suggestion_tasks.py. The rules of others (suggestion_peers.py) read the
same sweeps as ours without this library's early stop: they have their own.

    measure    what each method suggests after tests of 300, 600 and 1,200 training steps
    scores     the regret of each method, as published and with a factor for each use that is
               fitted to the "dev" tasks, and the difference to this library's reading of a sweep,
               with an interval of 95% by drawing tasks
    cost       of a reading
    stability  how far a suggestion moves with the seed, the range and the length of the sweep
    bounds     what other lower bounds of a cycle come to
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import pathlib
import time
import warnings
from typing import NamedTuple

import jax
import numpy as np
import optax
from suggestion_peers import PEERS, Suggestion
from suggestion_tasks import OPTIMIZERS, TASKS
from suggestion_truth import USES, noise_floor, regret

import optax_clr

SEEDS = tuple(range(100, 105))  # other starts and batches than those of the ground truth
LENGTHS = (300, 600, 1200)
RANGE = (1e-7, 10.0)
GRID_VALUES = {300: 12, 600: 15, 1200: 20}
HELD_OUT_SIZE = 200
QUICK = ("digits MLP sgd", "digits MLP adam", "diabetes MLP adam", "mileage MLP momentum")
# Their 44 validation rows are learned to the last: regrets are of losses that are next to nothing.
SATURATED = ("wine MLP lion", "wine raw features adamw")
NOTHING = Suggestion(np.nan, np.nan, np.nan, np.nan)
OURS = "optax_clr sweep"
FACTORS = np.logspace(-2, 2, 161)


# -------------------------------------------------------------------------------- methods, measured


def reading(result):
    """Return what this library reads from a test."""
    try:
        base_value, peak_value = result.bounds()
        rates = result.suggest(), result.one_cycle_peak(), base_value, peak_value
    except optax_clr.RangeTestError:
        return NOTHING
    return Suggestion(*map(float, rates))


def held_out_batch(task):
    return jax.tree.map(lambda leaf: leaf[:HELD_OUT_SIZE], task.validation)


@functools.cache
def sweep(task, seed, num_steps, low=RANGE[0], high=RANGE[1], *, stops=True, held_out=False):
    return optax_clr.lr_range_test(
        task.loss_fn,
        task.start(seed),
        task.make_optimizer,
        task.batches(seed, num_steps),
        min_lr=low,
        max_lr=high,
        stop_factor=1.0 if stops else np.inf,
        held_out=held_out_batch(task) if held_out else None,
    )


def grid(task, seed, num_steps, low=RANGE[0], high=RANGE[1], *, num_values, held_out=False):
    return optax_clr.lr_grid_test(
        task.loss_fn,
        task.start(seed),
        task.make_optimizer,
        task.batches(seed, num_steps // num_values),
        min_lr=low,
        max_lr=high,
        num_values=num_values,
        held_out=held_out_batch(task) if held_out else None,
    )


def sweep_then_grid(task, seed, num_steps):
    """Half of the steps for a sweep, half for ten rates around the peak that it suggests."""
    peak = reading(sweep(task, seed, num_steps // 2)).one_cycle_peak
    if not np.isfinite(peak):
        return NOTHING
    near = grid(task, seed, num_steps // 2, peak / 30, peak * 10, num_values=10)
    return reading(near)


def methods(task, seed, num_steps):
    """Return what each method suggests after a test of so many steps."""
    num_values = GRID_VALUES[num_steps]
    unstopped = sweep(task, seed, num_steps, stops=False)
    # A sweep without a stop ends with a loss that is not finite, and peers' go on: NaN there.
    rates = np.geomspace(*RANGE, num_steps)
    losses = np.asarray(unstopped.losses)
    return {
        OURS: reading(sweep(task, seed, num_steps)),
        "optax_clr sweep, held out": reading(sweep(task, seed, num_steps, held_out=True)),
        "optax_clr grid": reading(grid(task, seed, num_steps, num_values=num_values)),
        "optax_clr grid, held out": reading(
            grid(task, seed, num_steps, num_values=num_values, held_out=True)
        ),
        "optax_clr sweep, then grid": sweep_then_grid(task, seed, num_steps),
    } | {name: rule(rates, losses) for name, rule in PEERS.items()}


def measure(tasks, num_steps):
    """Return ``{method: {task: [a suggestion for each seed]}}``."""
    found = {}
    for task in tasks:
        for seed in SEEDS:
            for name, suggestion in methods(task, seed, num_steps).items():
                found.setdefault(name, {}).setdefault(task.name, []).append(suggestion)
        sweep.cache_clear()
    return found


def stored(num_steps):
    return pathlib.Path(__file__).with_name(f"suggestions_{num_steps}.npz")


def store(found, num_steps):
    tables = {
        f"{name}/{task}": np.array(suggestions, np.float32)
        for name, by_task in found.items()
        for task, suggestions in by_task.items()
    }
    np.savez_compressed(stored(num_steps), **tables)


def recall(num_steps):
    found = {}
    for key, table in np.load(stored(num_steps)).items():
        name, task = key.split("/")
        found.setdefault(name, {})[task] = [Suggestion(*row.tolist()) for row in table]
    return found


# -------------------------------------------------------------------------------------- scores


def rates_of(suggestion):
    """Return the rate for each use, and the ratio of base to peak."""
    ratio = suggestion.base_value / suggestion.peak_value
    return dict(zip(USES, (suggestion[0], suggestion[1], suggestion[3]), strict=True)), ratio


def refused(suggestion):
    return not np.isfinite(suggestion.constant)


def score(task, use, suggestions, factor=1.0):
    """Return the mean regret over the seeds.

    Where a method gives no answer its user takes the customary rate, and so does the score.
    """
    instead = customary()[task.optimizer]
    instead = Suggestion(*(rate / factor for rate in instead))
    entries = [rates_of(instead if refused(entry) else entry) for entry in suggestions]
    return np.mean([regret(task, use, factor * rates[use], ratio) for rates, ratio in entries])


def scores(tasks, use, suggestions, factor=1.0):
    return np.array([score(task, use, suggestions[task.name], factor) for task in tasks])


def fitted_factor(tasks, use, suggestions):
    return min(FACTORS, key=lambda factor: scores(tasks, use, suggestions, factor).mean())


def interval(differences):
    """Return the 95% interval of a mean over tasks, by drawing the tasks anew."""
    draws = np.random.default_rng(0).integers(0, len(differences), (4000, len(differences)))
    return np.quantile(differences[draws].mean(1), (0.025, 0.975))


def fixed_rates(tasks, rates):
    """Return suggestions that are one rate for each optimizer and use."""
    entry = lambda task: [rates[task.optimizer]] * len(SEEDS)
    return {task.name: entry(task) for task in tasks}


@functools.cache
def customary():
    every = {name: optimizer.customary_rate for name, optimizer in OPTIMIZERS.items()}
    return {name: Suggestion(rate, rate, rate / 4, rate) for name, rate in every.items()}


def tuned(tasks):
    """Return the best rate for each optimizer and use, on these tasks."""
    grid = np.logspace(-6, 1.5, 151)
    found = {}
    for name in OPTIMIZERS:
        mine = [task for task in tasks if task.optimizer == name]
        best = {
            use: min(grid, key=lambda rate, use=use: sum(regret(t, use, rate) for t in mine))
            for use in USES
        }
        constant, peak, triangular = (best[use] for use in USES)
        found[name] = Suggestion(constant, peak, triangular / 4, triangular)
    return found


# ----------------------------------------------------------------------- the lower bound of a cycle


def smoothed(rates, losses, width=0.3):
    """Return the finite rows in the order of the test, averaged over ``width`` decades."""
    rows = np.isfinite(losses)
    place, losses = np.log10(rates[rows]), losses[rows]
    weights = np.exp(-0.5 * ((place[:, None] - place) / width) ** 2)
    return rates[rows], weights @ losses / weights.sum(1)


def has_fallen(rates, losses, part):
    """Return the first rate, in the order of the test, at which a part of the fall is made."""
    rates, losses = smoothed(rates, losses)
    return rates[np.argmax(losses <= losses[0] - part * (losses[0] - losses.min()))]


def begins_to_fall(result, part=0.1):
    """Return the rate at which the loss has made a part of its fall, on the way up."""
    return has_fallen(np.asarray(result.learning_rates), np.asarray(result.losses), part)


@functools.cache
def training_step(task):
    """Return the step of ``range_test``, the same object each time: it compiles once a task."""

    def step(state, batch, rate):
        params, optimizer_state = state
        loss, gradients = jax.value_and_grad(task.loss_fn)(params, batch)
        transformation = task.make_optimizer(rate)
        updates, optimizer_state = transformation.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), loss

    return step


def stagnates(task, seed, num_steps, peak, part=0.9):
    """Return the rate at which the loss has made most of its fall, on the way down from the peak.

    Half of the steps lead up to the peak, half down again.
    """
    up = np.geomspace(RANGE[0], peak, num_steps // 2)
    params = task.start(seed)
    result = optax_clr.range_test(
        training_step(task),
        (params, task.make_optimizer(1.0).init(params)),
        task.batches(seed, num_steps),
        np.concatenate([up, up[::-1]]),
    )
    down = slice(num_steps // 2, None)
    rates, losses = np.asarray(result.learning_rates)[down], np.asarray(result.losses)[down]
    if np.isfinite(losses).sum() < 10:
        return peak / 4
    return min(has_fallen(rates, losses, part), peak)


def print_lower_bounds(tasks, num_steps):
    found = {}
    for task in tasks:
        for seed in SEEDS:
            peak = reading(sweep(task, seed, num_steps)).peak_value
            if not np.isfinite(peak):
                continue
            bases = {
                "peak / 2": peak / 2,
                "peak / 4": peak / 4,
                "peak / 10": peak / 10,
                "peak / 50": peak / 50,
                "where the loss begins to fall": begins_to_fall(sweep(task, seed, num_steps)),
                "where it stagnates on the way down": stagnates(task, seed, num_steps, peak),
            }
            for name, base in bases.items():
                entry = regret(task, "triangular", peak, min(base / peak, 1.0))
                found.setdefault(name, {}).setdefault(task.name, []).append(entry)
    for name, by_task in found.items():
        means = np.array([np.mean(entries) for entries in by_task.values()])
        print(f"{name:36} {means.mean():5.2f}  worst {means.max():5.2f}")


# -------------------------------------------------------------------------------------- stability


def print_stability(tasks):
    """How many tasks have the same answer, to a factor of 1.5, in another test of the same task."""
    low, high = RANGE
    changes = {
        "range a decade wider at both ends": (300, low / 10, high * 10),
        "half the steps": (150, low, high),
        "twice the steps": (600, low, high),
    }

    def answers(task, *test):
        return np.log([reading(sweep(task, seed, *test)).constant for seed in SEEDS])

    same, others = [], {name: [] for name in changes}
    for task in tasks:
        plain = answers(task, 300, low, high)
        same.append(np.quantile(np.abs(plain - np.median(plain)), 0.8))
        for name, test in changes.items():
            others[name].append(np.abs(np.nanmedian(answers(task, *test) - plain)))
    for name, moves in {"another seed": same, **others}.items():
        close = np.mean(np.array(moves) <= np.log(1.5))
        print(f"{name:36} {close:4.0%} of tasks within 1.5; largest {np.exp(np.nanmax(moves)):.2f}")


# ----------------------------------------------------------------------------------------- printing


def row(name, tasks, found, factors=(1.0, 1.0, 1.0), ours=None):
    """Return a line: mean, median and worst regret for each use, and what is added to ours."""
    cells = []
    for use, factor in zip(USES, factors, strict=True):
        values = scores(tasks, use, found, factor)
        cell = f"{values.mean():4.2f} {np.median(values):4.2f} {values.max():4.2f}"
        if ours is not None:
            differences = values - scores(tasks, use, ours)
            low, high = interval(differences)
            cell += f" {differences.mean():+.2f} ({low:+.2f} to {high:+.2f})"
        if factor != 1:
            cell += f" x{factor:.3g}"
        cells.append(f"{cell:44}")
    refusals = np.mean([refused(entry) for task in tasks for entry in found[task.name]])
    name += f" ({refusals:.0%} no answer)" if refusals else ""
    return f"{name:50}" + " | ".join(cells).rstrip()


class Group(NamedTuple):
    title: str
    tasks: list


def groups(tasks):
    split = {
        "dev, well scaled": lambda task: task.group == "dev" and task.well_scaled,
        "dev, badly scaled": lambda task: task.group == "dev" and not task.well_scaled,
        "held-out, well scaled": lambda task: task.group != "dev" and task.well_scaled,
        "held-out, badly scaled": lambda task: task.group != "dev" and not task.well_scaled,
        "held-out, all but the saturated": (
            lambda task: task.group != "dev" and task.name not in SATURATED
        ),
    }
    found = [Group(title, list(filter(rule, tasks))) for title, rule in split.items()]
    return [group for group in found if group.tasks]


def print_scores(tasks, num_steps, found):
    dev = [task for task in tasks if task.group == "dev"]
    factors = {
        name: [fitted_factor(dev, use, suggestions) for use in USES]
        for name, suggestions in found.items()
        if dev
    }
    fixed = {"customary rate": customary()} | (
        {"rate per optimizer, tuned": tuned(dev)} if dev else {}
    )
    for title, members in groups(tasks):
        print(f"\n{title}: {len(members)} tasks, {num_steps} steps. Mean, median and worst "
              f"regret, and how much more than {OURS!r}")  # fmt: skip
        print(f"{'':50}" + " | ".join(f"{use:44}" for use in USES).rstrip())
        ours = found[OURS]
        print(row(OURS, members, ours))
        for name, suggestions in found.items():
            if name != OURS:
                print(row(name, members, suggestions, ours=ours))
        for name in factors:
            print(row(f"{name}, fitted", members, found[name], factors[name], ours))
        for name, rates in fixed.items():
            print(row(name, members, fixed_rates(members, rates), ours=ours))


def print_noise(tasks):
    for title, members in groups(tasks):
        floors = [np.mean([noise_floor(task, use) for task in members]) for use in USES]
        print(f"noise floor, {title:34}" + "".join(f"{floor:6.2f}" for floor in floors))


# -------------------------------------------------------------------------------------------- cost


def print_cost(num_rows=1000):
    rates = jax.numpy.geomspace(*RANGE, num_rows)
    losses = jax.numpy.where((rates > 1e-3) & (rates < 0.1), 1.0, 2.0)
    read = jax.jit(
        lambda losses: optax_clr.RangeTestResult(rates, losses, losses, num_rows).bounds()
    )
    jax.block_until_ready(read(losses))  # compiles
    times = []
    for _ in range(200):
        started = time.perf_counter()
        jax.block_until_ready(read(losses))
        times.append(1e3 * (time.perf_counter() - started))
    print(
        f"bounds() of {num_rows} rows, jitted: {np.median(times):.2f} ms (highest {max(times):.2f})"
    )


SECTIONS = ("measure", "scores", "stability", "bounds", "cost")


def main():
    warnings.simplefilter("ignore", optax_clr.RangeTestWarning)  # what is read is scored as it is
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all unless given")
    parser.add_argument("--quick", action="store_true", help="four small tasks, one length")
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS)
    arguments = parser.parse_args()
    started = time.perf_counter()
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "flax"))
    print(f"{', '.join(versions)}, {jax.default_backend()}; seeds {SEEDS}")
    if arguments.quick:
        tasks = [TASKS[name] for name in QUICK]
        print_scores(tasks, LENGTHS[0], measure(tasks, LENGTHS[0]))
    else:
        run_sections(arguments.sections or SECTIONS, arguments.lengths)
    print(f"\n{time.perf_counter() - started:.0f} s")


def run_sections(sections, lengths):
    tasks = list(TASKS.values())
    well_scaled = [task for task in tasks if task.well_scaled]
    if "measure" in sections:
        for num_steps in lengths:
            store(measure(tasks, num_steps), num_steps)
    if "scores" in sections:
        print_noise(tasks)
        for num_steps in lengths:
            print_scores(tasks, num_steps, recall(num_steps))
    if "stability" in sections:
        print("\nThe same answer of a sweep of 300 steps, when this is changed:")
        print_stability(well_scaled)
    if "cost" in sections:
        print_cost()
    if "bounds" in sections:
        print("\nRegret of a triangular cycle to our peak, by its base (sweeps of 300 steps):")
        print_lower_bounds([task for task in well_scaled if task.name not in SATURATED], 300)


if __name__ == "__main__":
    main()
