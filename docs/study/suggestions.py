"""How good are the rates that a range test suggests? Ours, and every other system's, on real tasks.

    python docs/study/suggestions.py --quick       # four small tasks, a minute
    python docs/study/suggestions.py read FOLDER   # from curves that record_curves.py recorded
    python docs/study/suggestions.py scores        # from the stored suggestions, a minute
    python docs/study/suggestions.py stability bounds cost

What training with each rate comes to was measured once, on the earlier tasks (suggestion_truth.py,
which also says what a regret is) and on those of today (modern_truth.py). The rules of others
(suggestion_peers.py) read the same sweeps as ours without this library's early stop: they have
their own.

    read       what each rule suggests for the recorded tests of 300, 600 and 1,000 steps, ours also
               for those of a quarter, and which of our readings are in doubt, into suggestions.npz
    scores     the regret of each rule on each task, as published and with a factor for each use
               that is fitted to the "dev" tasks, into regrets.npz; suggestion_tables.py makes the
               tables of the documentation from it
    stability  how far our suggestion moves with the seed, the range and the length of the test
    bounds     what other lower bounds of a cycle come to; this trains
    cost       of a reading
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import pathlib
import time
import warnings

import jax
import jax.numpy as jnp
import modern_truth
import numpy as np
import optax
import peaks
import suggestion_truth
from modern_tasks import LONG_STEPS, MODERN_OPTIMIZERS, MODERN_TASKS, SHORT_STEPS
from record_curves import SEEDS
from suggestion_peers import PEERS, Suggestion
from suggestion_tables import (
    DEFAULT,
    LENGTHS,
    OURS,
    OURS_HELD_OUT,
    QUARTERS,
    TUNED,
    stability,
)
from suggestion_tasks import OPTIMIZERS, TASKS
from suggestion_truth import USES, noise_floor

import optax_clr
from optax_clr._optimizer_factor import optimizer_factor

RANGE = (1e-7, 10.0)
WIDE_RANGE = (1e-8, 100.0)
QUICK = ("digits MLP sgd", "digits MLP adam", "diabetes MLP adam", "mileage MLP momentum")
# Their 44 validation rows are memorised, so losses are next to nothing and regrets without meaning.
SATURATED = ("wine MLP lion", "wine raw features adamw")
NOTHING = Suggestion(np.nan, np.nan, np.nan, np.nan)
FACTORS = np.logspace(-2, 2, 161)
FOLDER = pathlib.Path(__file__).parent
ALL_TASKS = TASKS | MODERN_TASKS


# ------------------------------------------------------------------------------------- suggestions


def reading(result):
    """Return what this library reads from a test, and whether it leaves a doubt."""
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", optax_clr.RangeTestWarning)
        try:
            base_value, peak_value = result.bounds()
        except optax_clr.RangeTestError:
            return NOTHING, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optax_clr.RangeTestWarning)
        rates = result.suggest(), result.one_cycle_peak(), base_value, peak_value
    return Suggestion(*map(float, rates)), bool(doubts)


def recorded(folder, task, num_steps, value_range, seed):
    """Return a recorded test as ``lr_range_test`` has it, and the losses without an early stop."""
    low, high = value_range
    with np.load(folder / f"{task.name.replace(' ', '-')}.npz") as file:
        key = f"{num_steps}/{low:g}..{high:g}/{seed}"
        losses, held_out = file[f"{key}/losses"], file[f"{key}/held_out_losses"]
        num_valid = int(file[f"{key}/num_valid_default_stop"])
    rates = np.geomspace(low, high, num_steps)
    is_valid = np.arange(num_steps) < num_valid
    stopped = [
        np.where(is_valid, column, np.nan).astype(np.float32)
        for column in (rates, losses, held_out)
    ]
    ended_by = 1 if num_valid < num_steps else 0
    result = optax_clr.RangeTestResult(
        stopped[0], stopped[1], stopped[1], np.int32(num_valid),
        held_out_losses=stopped[2], equivalent_steps=(np.cumsum(rates) / rates).astype(np.float32),
        ended_by=np.int32(ended_by), optimizer_factor=factor_of(task),
    )  # fmt: skip
    return result, rates, losses


@functools.cache
def factor_of(task):
    """Return what a range test of the task's optimizer would find in its state."""
    return np.float32(optimizer_factor(task.make_optimizer(0.0).init(jnp.zeros((2, 2)))))


def by_rules(result, rates, losses):
    """Return the suggestion of each rule, and the names of our readings that are in doubt."""
    ours = {
        OURS: reading(result._replace(held_out_losses=())),
        OURS_HELD_OUT: reading(result),
    }
    found = {name: suggestion for name, (suggestion, _) in ours.items()}
    found |= {name: rule(rates, losses) for name, rule in PEERS.items()}
    return found, {name for name, (_, is_doubtful) in ours.items() if is_doubtful}


def read(folder):
    """Return the arrays to store: ``[task, seed, 4]`` a rule, and bool ``[task, seed]`` doubts."""
    tests = [(num_steps, RANGE) for num_steps in (*QUARTERS, *LENGTHS)] + [(300, WIDE_RANGE)]
    arrays = {"tasks": np.array(list(ALL_TASKS))}
    for num_steps, value_range in tests:
        key = f"{num_steps}{' wide' if value_range == WIDE_RANGE else ''}"
        for task in ALL_TASKS.values():
            for seed in SEEDS:
                found, doubtful = by_rules(*recorded(folder, task, num_steps, value_range, seed))
                for name, suggestion in found.items():
                    if num_steps in LENGTHS or name in (OURS, OURS_HELD_OUT):
                        arrays.setdefault(f"{key}/{name}", []).append(suggestion)
                for name in (OURS, OURS_HELD_OUT):
                    arrays.setdefault(f"{key}/{name}/doubts", []).append(name in doubtful)
    shape = len(ALL_TASKS), len(SEEDS)
    return arrays | {
        key: np.array(rows, bool if key.endswith("doubts") else np.float32).reshape(*shape, -1)
        for key, rows in arrays.items()
        if key != "tasks"
    }


def by_task(table):
    """Return ``{task: [a suggestion for each seed]}``."""
    return {
        task: [Suggestion(*row) for row in rows.tolist()]
        for task, rows in zip(ALL_TASKS, table, strict=True)
    }


@functools.cache
def sweep(task, seed, num_steps):
    return optax_clr.lr_range_test(
        task.loss_fn,
        task.start(seed),
        task.make_optimizer,
        task.batches(seed, num_steps),
        min_lr=RANGE[0],
        max_lr=RANGE[1],
    )


# -------------------------------------------------------------------------------------- scores


@functools.cache
def modern_log_losses(task, use, num_steps):
    return peaks.log_losses(modern_truth.stored(), task, use, num_steps)


def regret(task, use, rate, ratio, num_steps):
    """Return the regret of a rate, after training for ``num_steps`` where a task has two lengths.

    The cycles of a task of today have a base of a quarter, whatever the rule suggests.
    """
    if task.name in TASKS:
        return suggestion_truth.regret(task, use, rate, ratio)
    if not (np.isfinite(rate) and rate > 0):
        return suggestion_truth.WORST
    return float(peaks.regret(*modern_log_losses(task, use, num_steps), np.log(rate)))


def best_rate(task, use):
    """Return the rate of the grid with the least regret, the shorter training of a task's two."""
    is_earlier = task.name in TASKS
    rates = task.rates if is_earlier else np.exp(modern_log_losses(task, use, SHORT_STEPS)[0])
    return min(rates, key=lambda rate: regret(task, use, rate, 0.25, SHORT_STEPS))


def rates_of(suggestion):
    """Return the rate for each use, and the ratio of base to peak."""
    ratio = suggestion.base_value / suggestion.peak_value
    return dict(zip(USES, (suggestion[0], suggestion[1], suggestion[3]), strict=True)), ratio


def refused(suggestion):
    return not np.isfinite(suggestion.constant)


def score(task, use, suggestions, factor=1.0, num_steps=SHORT_STEPS):
    """Return the mean regret over the seeds.

    Where a rule gives no answer its user takes the default rate, and so does the score.
    """
    rate = default_rate(task)
    instead = Suggestion(*(part / factor for part in (rate, rate, rate / 4, rate)))
    entries = [rates_of(instead if refused(entry) else entry) for entry in suggestions]
    return np.mean(
        [regret(task, use, factor * rates[use], ratio, num_steps) for rates, ratio in entries]
    )


def scores(tasks, use, suggestions, factor=1.0, num_steps=SHORT_STEPS):
    return np.array([score(task, use, suggestions[task.name], factor, num_steps) for task in tasks])


def fitted_factor(tasks, use, suggestions):
    return min(FACTORS, key=lambda factor: scores(tasks, use, suggestions, factor).mean())


def default_rate(task):
    """Return what users of the task's optimizer begin with."""
    optimizers = OPTIMIZERS if task.name in TASKS else MODERN_OPTIMIZERS
    return optimizers[task.optimizer].customary_rate


def default_rates(tasks):
    every = {task.name: default_rate(task) for task in tasks}
    return {name: [Suggestion(rate, rate, rate / 4, rate)] for name, rate in every.items()}


def development(tasks):
    return [task for task in tasks if task.group == "dev"]


def tuned_rates(tasks):
    """Return, for each task, the rates that are best for its optimizer on the development tasks.

    For an optimizer that none of them has it is the default rate.
    """
    grid, found = np.logspace(-6, 1.5, 76), {}
    for name in {task.optimizer for task in tasks}:
        mine = [task for task in development(tasks) if task.optimizer == name]

        def best(use, mine=mine):
            total = lambda rate: sum(regret(task, use, rate, 0.25, SHORT_STEPS) for task in mine)
            return min(grid, key=total)

        if mine:
            constant, peak, triangular = map(best, USES)
            found[name] = Suggestion(constant, peak, triangular / 4, triangular)
    defaults = default_rates(tasks)
    return {
        task.name: [found[task.optimizer]] if task.optimizer in found else defaults[task.name]
        for task in tasks
    }


def regrets_of(stored, tasks):
    """Return what the tables are made of: ``f32[task]`` under "test/rule/use" and so on."""
    modern = [task for task in tasks if task.name in MODERN_TASKS]
    arrays = {
        "tasks": np.array([task.name for task in tasks]),
        "is modern": np.array([task.name in MODERN_TASKS for task in tasks]),
        "is held-out": np.array([task.group != "dev" for task in tasks]),
        "is well scaled": np.array([task.well_scaled for task in tasks]),
        "is saturated": np.array([task.name in SATURATED for task in tasks]),
    }
    arrays |= {f"best rate/{use}": [best_rate(task, use) for task in tasks] for use in USES}
    arrays = {key: np.asarray(array) for key, array in arrays.items()}
    fixed = {DEFAULT: default_rates(tasks), TUNED: tuned_rates(tasks)}
    for length in LENGTHS:
        found = {
            name: by_task(stored[f"{length}/{name}"]) for name in (OURS, OURS_HELD_OUT, *PEERS)
        }
        for name, suggestions in (found | fixed).items():
            key = f"{length}/{name}"
            no_answer = [[refused(entry) for entry in suggestions[task.name]] for task in tasks]
            arrays[f"{key}/no answer"] = np.mean(no_answer, 1)
            for use in USES:
                arrays[f"{key}/{use}"] = scores(tasks, use, suggestions)
                long = scores(modern, use, suggestions, num_steps=LONG_STEPS)
                arrays[f"{key}/{use}/{LONG_STEPS}"] = long
                if name not in fixed:
                    factor = fitted_factor(development(tasks), use, suggestions)
                    arrays[f"{key}, fitted/{use}/factor"] = np.array([factor])
                    arrays[f"{key}, fitted/{use}"] = scores(tasks, use, suggestions, factor)
        for name in (OURS, OURS_HELD_OUT):
            doubts = stored[f"{length}/{name}/doubts"][..., 0]
            arrays[f"{length}/{name}/in doubt"] = doubts.mean(1)
            arrays[f"{length}/{name}/doubts"] = doubts
    for length in (*QUARTERS, *LENGTHS):
        for name in (OURS, OURS_HELD_OUT):
            found = by_task(stored[f"{length}/{name}"])
            for use in USES:  # of each single test, beside its doubt
                each = [[score(task, use, [entry]) for entry in found[task.name]] for task in tasks]
                arrays[f"{length}/{name}/{use}/each"] = np.array(each)
    return {
        key: array.astype(np.float32) if array.dtype == np.float64 else array
        for key, array in arrays.items()
    }


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
            peak = reading(sweep(task, seed, num_steps))[0].peak_value
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
                entry = suggestion_truth.regret(task, "triangular", peak, min(base / peak, 1.0))
                found.setdefault(name, {}).setdefault(task.name, []).append(entry)
    for name, by_task in found.items():
        means = np.array([np.mean(entries) for entries in by_task.values()])
        print(f"{name:36} {means.mean():5.2f}  worst {means.max():5.2f}")


# -------------------------------------------------------------------------------------- stability


def print_stability(stored):
    names = stored["tasks"].tolist()
    held_out = np.array([ALL_TASKS[name].group != "dev" for name in names])
    for title, chosen in {"development": ~held_out, "held-out": held_out}.items():
        print(f"\nsuggest() of a test of 300 steps when this is changed, {title} tasks")
        for name, moves in stability(stored).items():
            known = np.isfinite(moves) & chosen
            far = np.flatnonzero(known & (moves > np.log(1.5)))
            print(
                f"{name:36}{np.mean(moves[known] <= np.log(1.5)):4.0%} of {known.sum()} tasks "
                f"within 1.5; largest {np.exp(moves[known].max()):.2f}"
                + "".join(f"; {names[task]} {np.exp(moves[task]):.2f}" for task in far)
            )


# ----------------------------------------------------------------------------------------- printing


def print_scores(regrets, length):
    """Print the mean, median and worst regret of each rule for each use, by groups of tasks."""
    modern, held_out = regrets["is modern"], regrets["is held-out"]
    usual = ~regrets["is saturated"]
    groups = {
        "dev, earlier": ~held_out & ~modern,
        "dev, of today": ~held_out & modern,
        "held-out, earlier, all but the saturated": held_out & ~modern & usual,
        "held-out, of today": held_out & modern,
        "badly scaled, dev": ~held_out & ~regrets["is well scaled"],
        "badly scaled, held-out, all but the saturated": (
            held_out & ~regrets["is well scaled"] & usual
        ),
        "saturated": ~usual,
    }
    rules = list(
        dict.fromkeys(key.split("/")[1] for key in regrets if key.split("/")[0] == str(length))
    )
    for title, chosen in groups.items():
        if not chosen.any():
            continue
        print(f"\n{title}: {chosen.sum()} tasks, tests of {length} steps. Mean, median and worst "
              "regret")  # fmt: skip
        print(f"{'':44}" + "   ".join(f"{use:20}" for use in USES).rstrip())
        for rule in rules:
            cells = []
            for use in USES:
                values = regrets[f"{length}/{rule}/{use}"][chosen]
                cell = f"{values.mean():4.2f} {np.median(values):4.2f} {values.max():4.2f}"
                factor = regrets.get(f"{length}/{rule}/{use}/factor")
                cells.append(f"{cell}{'' if factor is None else f' x{factor[0]:.3g}':6}")
            print(f"{rule:44}" + "   ".join(cells).rstrip())


def print_noise(tasks):
    for use in USES:
        floors = [noise_floor(task, use) for task in tasks]
        print(f"noise floor of the ground truth, {use}: {np.mean(floors):.2f}")


# -------------------------------------------------------------------------------------------- cost


def print_cost(num_rows=1000):
    rates = jnp.geomspace(*RANGE, num_rows)
    losses = jnp.minimum(jnp.square(jnp.log10(rates) + 2), 4)
    read = lambda losses: optax_clr.RangeTestResult(rates, losses, losses, num_rows).bounds()
    for form, call in {"jitted": jax.jit(read), "by NumPy": read}.items():
        times = []
        for _ in range(201):
            started = time.perf_counter()
            jax.block_until_ready(call(losses))
            times.append(1e3 * (time.perf_counter() - started))
        first, *others = times
        print(
            f"bounds() of {num_rows} rows, {form}: {np.median(others):.2f} ms (highest "
            f"{max(others):.2f}, at first {first:.0f})"
        )


SECTIONS = ("read", "scores", "stability", "bounds", "cost")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="four small tasks, one length")
    arguments = parser.parse_args()
    started = time.perf_counter()
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "flax"))
    print(f"{', '.join(versions)}, {jax.default_backend()}; seeds {SEEDS}")
    if arguments.quick:
        print_quick([TASKS[name] for name in QUICK])
    else:
        run_sections(arguments.sections)
    print(f"\n{time.perf_counter() - started:.0f} s")


def print_quick(tasks, num_steps=300):
    """Print what our reading of new tests comes to."""
    for use in USES:
        found = {
            task.name: [reading(sweep(task, seed, num_steps))[0] for seed in SEEDS]
            for task in tasks
        }
        print(use, *(f"{name} {score(TASKS[name], use, found[name]):.2f};" for name in found))


def run_sections(sections):
    file = FOLDER / "suggestions.npz"
    if "read" in sections:
        folder = pathlib.Path(sections[sections.index("read") + 1])
        np.savez_compressed(file, **read(folder))
    stored = dict(np.load(file))
    if "scores" in sections:
        regrets = regrets_of(stored, list(ALL_TASKS.values()))
        np.savez_compressed(FOLDER / "regrets.npz", **regrets)
        print_noise(list(TASKS.values()))
        for length in LENGTHS:
            print_scores(regrets, length)
    if "stability" in sections:
        print_stability(stored)
    if "cost" in sections:
        print_cost()
    if "bounds" in sections:
        print("\nRegret of a triangular cycle to our peak, by its base (sweeps of 300 steps):")
        print_lower_bounds(
            [task for task in TASKS.values() if task.well_scaled and task.name not in SATURATED],
            300,
        )


if __name__ == "__main__":
    main()
