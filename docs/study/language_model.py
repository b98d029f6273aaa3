"""Range tests of a language model by their length, against one cycle at a grid of peaks.

    python docs/study/language_model.py --quick                 # a tiny model, stores nothing
    python docs/study/language_model.py measure --size small    # nine minutes on a busy CPU
    python docs/study/language_model.py measure --minutes 8     # 10 M params, on one GPU
    python docs/study/language_model.py                         # the tables, from what is stored

Model, recipe and data are those of examples/language_model.py. All lengths are in updates, of two
batches each. A range test starts from params and batches of its own seed; the loss of a held-out
batch is recorded after each update, and the test is read with it and without: the early stop goes
by the training loss in any case, so the two are the same training. One cycle trains from one start.
A run that was cut off goes on where it ended: what is stored already is not measured again.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import itertools
import pathlib
import platform
import time
import warnings
from typing import NamedTuple

import jax
import numpy as np

import optax_clr

FOLDER = pathlib.Path(__file__).parent
FASTAI = (optax_clr.peer_rules.valley, optax_clr.peer_rules.minimum)
HELD_OUT_BATCHES = 4  # of those to validate on, which are then not validated on


# By its place: an import would find this file, whose name is the same.
SOURCE = FOLDER.parents[1] / "examples" / "language_model.py"
SPEC = importlib.util.spec_from_file_location("language_model_example", SOURCE)
EXAMPLE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(EXAMPLE)


class Plan(NamedTuple):
    size: EXAMPLE.Size
    file: pathlib.Path | None  # stores nothing without one
    test_lengths: tuple[int, ...]
    seeds: tuple[int, ...]
    training_lengths: tuple[int, ...]
    peaks: tuple[float, ...]


GPU_FILE, CPU_FILE = FOLDER / "language_model_gpu.npz", FOLDER / "language_model_cpu.npz"
CPU_PEAKS = tuple(2e-3 * 2**power for power in range(6))
PLANS = {
    "gpu": Plan(EXAMPLE.GPU, GPU_FILE, (100, 300, 1000), (0, 1, 2), (400, 1600), EXAMPLE.GRID),
    "small": Plan(EXAMPLE.SMALL, CPU_FILE, (100, 300, 600), (0, 1, 2), (400,), CPU_PEAKS),
}
TINY = EXAMPLE.Size(16, 1, 1, 16, 8, 2, 30, 300_000, 64)
QUICK = Plan(TINY, None, (80,), (0, 1), (30,), (8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128))


class Measurement:
    """The example's task, without the held-out batch, and a program for each length of test."""

    def __init__(self, size):
        self.task = EXAMPLE.Task(size)
        windows, self.task.valid = np.split(self.task.valid, [HELD_OUT_BATCHES])
        self.held_out = windows.reshape(-1, size.context + 1)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _test(self, length, key):
        task = self.task
        start, batches = jax.random.split(key)
        return optax_clr.lr_range_test(
            task.loss_fn,
            task.model.init(start, self.held_out[:1, :-1]),
            lambda rate: EXAMPLE.new_optimizer(rate, task.size.accumulated),
            functools.partial(task.batch_at, batches),
            num_steps=length * task.size.accumulated,
            steps_per_value=task.size.accumulated,
            held_out=self.held_out,
        )

    def test(self, length, seed):
        """Return the fields of a range test that are arrays."""
        result = jax.device_get(self._test(length, jax.random.key(100 + seed)))
        return {field: values for field, values in result._asdict().items() if np.size(values)}

    def training(self, length, peak):
        """Return the validation loss after one cycle."""
        rates = jax.vmap(EXAMPLE.one_cycle(peak, length))(np.arange(length))
        return {"loss": np.float32(self.task.train(rates))}


def versions(size):
    names = ("jax", "optax", "flax", "numpy")
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    # The data are the source of this Python's standard library, as much as is installed of it.
    source, _ = EXAMPLE.read_source(size.corpus)
    python = f"Python {platform.python_version()}, {len(source):,} bytes of its source"
    return f"{packages}, {python}, {jax.devices()[0].device_kind}"


def store(file, known):
    """Write all at once, so that a run that is cut off here loses nothing."""
    temporary = file.with_suffix(".partial.npz")
    np.savez_compressed(temporary, **known)
    temporary.replace(file)


def key_of(kind, length, variant):
    return f"{kind}/{length}/{variant:g}"


def measure(plan, minutes, known):
    """Measure what is not known yet, and stop before a cell that would take too long."""
    end = time.perf_counter() + 60 * minutes
    now = versions(plan.size)
    if known.setdefault("versions", np.array(now)) != now:
        raise SystemExit(f"{plan.file} was made with {known['versions']}: move it away first.")
    stored = {key.rpartition("/")[0] for key in known}
    tests = itertools.product(["test"], plan.test_lengths, plan.seeds)
    trainings = itertools.product(["training"], plan.training_lengths, plan.peaks)
    measurement = Measurement(plan.size)
    seconds_per_update = {}  # of the last cell of this kind
    for kind, length, variant in itertools.chain(tests, trainings):
        name = key_of(kind, length, variant)
        if name in stored:
            continue
        began = time.perf_counter()
        if began + length * seconds_per_update.get(kind, 0.0) > end:
            print(f"{name} would take too long; start again to go on.")
            return
        for field, values in getattr(measurement, kind)(length, variant).items():
            known[f"{name}/{field}"] = values
        if plan.file:
            store(plan.file, known)
        seconds = time.perf_counter() - began
        seconds_per_update[kind] = seconds / length
        print(f"{name:24} {seconds:5.0f} s", flush=True)


def result_of(known, name):
    fields = {key.removeprefix(name): known[key] for key in known if key.startswith(name)}
    return optax_clr.RangeTestResult(**fields)


def tests_of(plan, known, length):
    """Return the results of the tests of a length that are known."""
    names = [f"test/{length}/{seed}/" for seed in plan.seeds]
    return [result_of(known, name) for name in names if f"{name}losses" in known]


def read(result, lengths):
    """Return ``suggest()``, the peak of one cycle, whether in doubt, and the peaks of WSD."""
    wsd = EXAMPLE.warmup_stable_decay
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            peaks = [result.peak_for(wsd(1.0, length), length) for length in lengths]
            is_doubted = any(doubt.category is optax_clr.RangeTestWarning for doubt in caught)
            return [result.suggest(), result.one_cycle_peak(), is_doubted, *peaks]
        except optax_clr.RangeTestError:
            return [np.nan, np.nan, False, *(np.nan for _ in lengths)]


def loss_at(peak, peaks, losses):
    """Interpolate the loss in the logarithm of the peak; NaN outside of what was measured."""
    known = np.isfinite(losses)
    logs, losses = np.log(peaks)[known], losses[known]
    return np.interp(np.log(peak), logs, losses, left=np.nan, right=np.nan)


def listed(values, form):
    """Return the values of the seeds in one cell."""
    return ", ".join("-" if np.isnan(value) else format(value, form) for value in values)


def row(*cells):
    return f"| {' | '.join(cells)} |"


def grid_of(plan, known):
    """Return the losses of the grid by length of training, NaN where they are not known."""
    loss_of = lambda *cell: known.get(f"{key_of('training', *cell)}/loss", np.nan)
    row_of = lambda length: np.array([loss_of(length, peak) for peak in plan.peaks])
    rows = {length: row_of(length) for length in plan.training_lengths}
    return {length: losses for length, losses in rows.items() if np.isfinite(losses).any()}


def cells_of_readings(readings, peaks, grid):
    """Return what the tests of one length read, and what one cycle loses with it."""
    suggestions, found, doubted, *wsd_peaks = np.transpose(readings)
    cells = [listed(suggestions, ".2g"), listed(found, ".2g")]
    cells += [f"{np.isnan(found).sum()}, {doubted.sum():.0f} of {len(readings)}"]
    for wsd, losses in zip(wsd_peaks, grid.values(), strict=True):
        best = np.nanargmin(losses)
        over = loss_at(found, peaks, losses) / losses[best]
        cells += [listed(wsd, ".2g"), listed(found / peaks[best], ".2f"), listed(over, ".3f")]
    return cells


def table_of_peers(plan, known, grid):
    """Return what fastai's rules read from the training losses, as the peak of one cycle."""
    names = ("rate", *(f"{length:,}: its loss over best" for length in grid))
    lines = [row("range test", "rule", *names), "|---" * (2 + len(names)) + "|"]
    for length, rule in itertools.product(plan.test_lengths, FASTAI):
        tests = tests_of(plan, known, length)
        if not tests:
            continue
        rates = np.array([float(rule(test.learning_rates, test.losses)) for test in tests])
        over = [loss_at(rates, plan.peaks, losses) / np.nanmin(losses) for losses in grid.values()]
        cells = [listed(ratios, ".3f") for ratios in over]
        lines += [row(f"{length:,} updates", rule.__name__, listed(rates, ".2g"), *cells)]
    return lines


def report(plan, known):
    """Return the tables in Markdown, of what was measured so far."""
    grid = grid_of(plan, known)
    lines = [f"{known['versions']}.", "", row("one cycle, peak", *map("{:g}".format, plan.peaks))]
    lines += ["|---" * (1 + len(plan.peaks)) + "|"]
    for length, losses in grid.items():
        lines += [row(f"{length:,} updates", *(listed([loss], ".3f") for loss in losses))]
    head = ["range test", "read from", "`suggest()`", "`one_cycle_peak()`", "refused, in doubt"]
    for length in grid:
        names = ("peak of WSD", "peak of one cycle over best", "its loss over best")
        head += [f"{length:,}: {name}" for name in names]
    lines += ["", row(*head), "|---" * len(head) + "|"]
    for length in plan.test_lengths:
        by_held_out = tests_of(plan, known, length)
        by_training = [result._replace(held_out_losses=()) for result in by_held_out]
        for source, results in (("training loss", by_training), ("held-out batch", by_held_out)):
            if results:
                readings = [read(result, grid) for result in results]
                cells = cells_of_readings(readings, plan.peaks, grid)
                lines += [row(f"{length:,} updates", source, *cells)]
    lines += ["", *table_of_peers(plan, known, grid)]
    return [*lines, "", "By seed. - : refused, diverged, not measured, or outside of the grid."]


def quick():
    """Measure and report a tiny model: does it run?"""
    known = {}
    measure(QUICK, 10, known)
    print(*report(QUICK, known), sep="\n")
    assert np.isfinite(grid_of(QUICK, known)[30]).all(), "a training of the grid diverged"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="report", choices=("report", "measure"))
    parser.add_argument("--size", choices=tuple(PLANS), default="gpu", help="of the model")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop before this is over")
    parser.add_argument("--file", type=pathlib.Path, help="where the results are, if elsewhere")
    parser.add_argument("--quick", action="store_true", help="a tiny model, and nothing is stored")
    arguments = parser.parse_args()
    if arguments.quick:
        quick()
        return
    plan = PLANS[arguments.size]
    plan = plan._replace(file=arguments.file or plan.file)
    known = dict(np.load(plan.file)) if plan.file.exists() else {}
    if arguments.what == "measure":
        measure(plan, arguments.minutes, known)
    if not known:
        raise SystemExit(f"There is no {plan.file.name}: this size has not been run yet.")
    print(*report(plan, known), sep="\n")


if __name__ == "__main__":
    main()
