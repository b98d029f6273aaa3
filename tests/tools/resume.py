"""Kill a training run at random moments, resume it, and compare with one that was never killed.

    python tests/tools/resume.py --kills 50 --seed 0

A network on scikit-learn's digits, its rate on a schedule, its momentum cycled the other way, its
weights averaged at the ends of cycles. It logs rate, momentum and loss of every step, and saves a
checkpoint every 20: the leaves of params and optimizer state by numpy.savez, to another name, and
then os.replace. It runs in a process of its own, which gets SIGKILL after a random number of lines
of its log, half of the times on the line that says that a checkpoint is about to be written; then
another process resumes from the last checkpoint, until one comes to the end. A run that does so
before it has had its share of the kills is repeated from its start.

All must be that of the run that was never killed, bit for bit: every line of every log, those of
repeated steps included, and the whole of the last checkpoint. The last row starts by set_step
just below step 2**31 - 1, where the counters stay.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_network import loss_fn, new_params

import optax_clr

BATCH_SIZE = 40
SAVE_STEPS = 20
RISE_STEPS = 30
WIDTHS = (64, 512, 512, 10)  # a checkpoint is 4 MB, which take a few milliseconds to write
LAST_STEP = 2**31 - 1

# ------------------------------------------------------------------------------- the training run


def schedules(num_steps):
    """Return schedules of the rate, with the cycles that each of them goes through."""
    equal = optax_clr.Cycles(2 * RISE_STEPS)
    bounds = 0.02, 0.2
    return {
        "triangular": (optax_clr.triangular_schedule(*bounds, RISE_STEPS), equal),
        "triangular2": (optax_clr.triangular2_schedule(*bounds, RISE_STEPS), equal),
        "exp_range": (optax_clr.exp_range_schedule(*bounds, RISE_STEPS, gamma=0.99), equal),
        "warm_restarts": (
            optax_clr.warm_restarts_schedule(0.2, RISE_STEPS, base_value=0.02, mult=1.5),
            optax_clr.Cycles(RISE_STEPS, mult=1.5),
        ),
        "one_cycle": (
            optax_clr.one_cycle_schedule(0.2, num_steps, init_value=0.02, end_value=0.0),
            equal,
        ),
    }


def batch_at(data, step):
    """Return the batch of a step. It depends on the step alone: no loader has to be resumed."""
    rows = np.random.default_rng(step).integers(0, len(data["labels"]), BATCH_SIZE)
    return data["images"][rows], data["labels"][rows]


def save(path, step, tree):
    """Write a checkpoint that is there as a whole or not at all, wherever a kill lands."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, step, *jax.tree.leaves(tree))
    os.replace(part, path)


def restore(path, tree):
    """Return the step and the pytree of a checkpoint, or ``tree`` where there is none yet."""
    if not path.exists():
        return 0, tree
    with np.load(path) as saved:
        step, *leaves = (saved[name] for name in saved.files)
    return int(step), jax.tree.unflatten(jax.tree.structure(tree), map(jnp.asarray, leaves))


def train(folder, schedule, num_steps, first_step):
    with np.load(folder.parent / "digits.npz") as data:
        data = dict(data)
    rate, cycles = schedules(num_steps)[schedule]
    optimizer = optax.chain(
        optax_clr.inject_schedules(optax.sgd)(
            learning_rate=rate,
            momentum=optax_clr.triangular_schedule(0.95, 0.85, RISE_STEPS),
        ),
        optax_clr.average_at_cycle_ends(cycles),
    )

    @jax.jit
    def train_step(params, state, batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = jax.device_put(new_params(WIDTHS, seed=0))
    state = optax_clr.set_step(optimizer.init(params), first_step)
    path = folder / "checkpoint.npz"
    step, (params, state) = restore(path, (params, state))
    print("begins after", step, flush=True)
    while step < num_steps:
        params, state, loss = train_step(params, state, batch_at(data, step))
        step += 1
        live = optax_clr.get_hyperparams(state)
        logged = (live["learning_rate"], live["momentum"], loss)
        print("step", step, *(float(value).hex() for value in logged), flush=True)
        if step % SAVE_STEPS == 0 or step == num_steps:
            print("saves", step, flush=True)
            save(path, step, (params, state))


# ------------------------------------------------------------------------------ killing it


class Outcome(NamedTuple):
    kills: int = 0
    while_saving: int = 0
    runs: int = 0
    repeated: int = 0

    def __add__(self, other):
        return Outcome(*map(sum, zip(self, other, strict=True)))


def live(arguments, environment, kill_line=None, on_save=False):
    """Run a process until its end or the kill; return its log, and whether it was killed."""
    command = [sys.executable, __file__, "--train", *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        log = []
        for line in process.stdout:
            log.append(line)
            due = kill_line is not None and len(log) >= kill_line
            if due and (line.startswith("saves") or not on_save):
                process.kill()
                break
        log += process.stdout.readlines()  # what it had written by then
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"the training process failed: {process.returncode}")
    return log, process.returncode != 0


def steps_of(log):
    return [line for line in log if line.startswith("step")]


def killed_run(folder, arguments, environment, max_kills, rng):
    """Kill and resume a run until it comes to its end; return all its log and what happened."""
    outcome, log, killed = Outcome(runs=1), [], True
    while killed:
        kill_line = rng.randint(1, 3 * SAVE_STEPS) if outcome.kills < max_kills else None
        lines, killed = live(arguments, environment, kill_line, on_save=rng.random() < 0.5)
        log += steps_of(lines)
        part = folder / "checkpoint.part"
        outcome += Outcome(kills=killed, while_saving=part.exists())
        part.unlink(missing_ok=True)
    return log, outcome


def same_checkpoint(path, other):
    """Whether all of it is equal in shape, dtype and bits: params, averages, momenta, counters."""
    with np.load(path) as first, np.load(other) as second:
        return first.files == second.files and all(
            (first[name].shape, first[name].dtype, first[name].tobytes())
            == (second[name].shape, second[name].dtype, second[name].tobytes())
            for name in first.files
        )


def compare(work, label, run, num_kills, rng):
    """Return what happened to the runs of one schedule; end with an error where one differs."""
    straight = work / f"{label} straight"
    straight.mkdir()
    # Compiled by itself: what the others share is not to be trusted more than the rest.
    expected = steps_of(live((straight, *run), os.environ)[0])
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    total = Outcome()
    while total.kills < num_kills:
        folder = work / f"{label} {total.runs}"
        folder.mkdir()
        log, outcome = killed_run(
            folder, (folder, *run), os.environ | cache, num_kills - total.kills, rng
        )
        if set(log) != set(expected):
            raise SystemExit(f"{label}: these lines differ: {sorted(set(log) ^ set(expected))}")
        if not same_checkpoint(straight / "checkpoint.npz", folder / "checkpoint.npz"):
            raise SystemExit(f"{label}: the last checkpoints differ")
        total += outcome._replace(repeated=len(log) - len(expected))
    return total


def print_row(label, outcome):
    print(
        f"{label:28}{outcome.kills:8}{outcome.while_saving:15}{outcome.runs:8}"
        f"{outcome.repeated:17}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="in all, about evenly over the rows")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--steps", type=int, default=400, help="of a run")
    parser.add_argument("--schedules", nargs="+", help="some of the rows; default: all")
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)  # what the processes do
    arguments = parser.parse_args()
    if arguments.train:
        folder, schedule, *counts = arguments.train
        train(pathlib.Path(folder), schedule, *map(int, counts))
        return

    from sklearn import datasets  # not for the processes, which are to start quickly

    steps = arguments.steps
    rows = {name: (name, steps, 0) for name in schedules(steps)}
    rows["triangular, past 2^31 - 1"] = "triangular", steps, LAST_STEP - steps // 2
    chosen = arguments.schedules or list(rows)
    rng = random.Random(arguments.seed)
    print(f"{'':28}   kills   while saving    runs   steps repeated")
    total = Outcome()
    with tempfile.TemporaryDirectory() as work:
        images, labels = datasets.load_digits(return_X_y=True)
        images = images.astype(np.float32) / 16
        np.savez(pathlib.Path(work) / "digits.npz", images=images, labels=labels.astype(np.int32))
        for index, label in enumerate(chosen):
            share = (arguments.kills - total.kills) // (len(chosen) - index)
            outcome = compare(pathlib.Path(work), label, rows[label], share, rng)
            print_row(label, outcome)
            total += outcome
    print_row("all equal", total)
    print(f"jax {jax.__version__}, optax {optax.__version__}, seed {arguments.seed}")


if __name__ == "__main__":
    main()
