"""Smith's own range test: the bounds of a cycle read from the accuracy, beside two other readings.

    python examples/accuracy_bounds.py   # prints the table below and writes accuracy_bounds.png

arXiv 1506.01186, section 3.3: the rate rises linearly from 0 while the accuracy is recorded; base
is where it begins to rise, peak where the rise slows, turns ragged or ends. From the loss: there
and back, up until it diverges, then down from just under that until it stagnates; and bounds(), of
the usual log sweep. A small network on scikit-learn's digits then trains with each by SGD with
momentum, from the same starts, on the same batches, a mark at the end of cycles 1, 2 and 4:

validation accuracy, % (mean ± sd)                 200 steps      400 steps      800 steps
constant, the default, 0.01                     92.80 ± 0.91   95.33 ± 0.71   96.16 ± 0.27
constant, suggest(), 0.0261                     94.67 ± 1.24   96.10 ± 0.68   96.82 ± 0.21
constant, middle of accuracy, 0.0702            93.48 ± 2.59   96.06 ± 1.11   97.35 ± 0.42
triangular, accuracy, 0.0234 to 0.117           96.45 ± 0.55   96.85 ± 0.43   97.54 ± 0.37
triangular, there and back, 0.0334 to 0.482    50.85 ± 25.66  27.44 ± 19.33  19.11 ± 10.47
triangular, bounds(), 0.0117 to 0.047           96.15 ± 0.30   96.73 ± 0.31   97.04 ± 0.34

10 seeds, jax 0.10.2, optax 0.2.8, cpu. The bounds from the accuracy do best, early most clearly; at
the end a constant rate between them does as well. A peak near divergence breaks most of the runs.
"""

import argparse
import functools
import math
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn import datasets, model_selection

import optax_clr

DEFAULT_RATE = 1e-2  # the rate that Keras gives to SGD
BATCH_SIZE = 32
TEST_STEPS = 300  # of one sweep: 8 epochs
HIGHEST_RATE = 1.0  # of the linear sweep, beyond where the network breaks
AVERAGED_ROWS = 21  # 672 images: the accuracy on one batch of 32 is too ragged to read
NUM_CYCLES = 4  # of one training run

sgd = functools.partial(optax.sgd, momentum=0.9)
network = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(128), nn.relu, nn.Dense(10)])


def load_digits():
    """Return (images, labels) to train on, 1,200, and (images, labels) to validate with, 597."""
    images, labels = datasets.load_digits(return_X_y=True)
    parts = model_selection.train_test_split(images / 16, labels, test_size=597, random_state=0)
    train_images, valid_images, train_labels, valid_labels = map(jnp.asarray, parts)
    return (train_images, train_labels), (valid_images, valid_labels)


def sample(data, key, step):
    """Return the batch of a step: random rows, picked on the device while the program runs."""
    rows = jax.random.randint(jax.random.fold_in(key, step), (BATCH_SIZE,), 0, len(data[1]))
    return jax.tree.map(lambda array: array[rows], data)


def new_state(key):
    params = network.init(key, jnp.zeros((1, 64)))
    return params, sgd(0.0).init(params)


def loss_fn(params, batch):
    images, labels = batch
    logits = network.apply(params, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), jnp.mean(logits.argmax(-1) == labels)


def step_fn(state, batch, rate):
    """Train one step; return the state, and the loss with the accuracy, for ``has_aux``."""
    params, momentum = state
    (loss, accuracy), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
    updates, momentum = sgd(rate).update(gradients, momentum, params)
    return (optax.apply_updates(params, updates), momentum), (loss, accuracy)


def averaged(curve):
    """Return the mean of each row and its neighbours; unlike a moving average it does not lag."""
    window = np.ones(min(AVERAGED_ROWS, len(curve)))
    return np.convolve(curve, window, "same") / np.convolve(np.ones(len(curve)), window, "same")


def first_rate(rates, curve, share):
    """Return the first rate at which the averaged curve has made this share of its whole rise."""
    # The rise is from the first row to the highest. At a tenth of it the curve stands clear of the
    # noise: it has begun to rise. At 95% the rise has slowed, which comes before a ragged curve and
    # before a fall: of Smith's three signs of the peak the first, so the safest.
    rise = averaged(curve) - averaged(curve)[0]
    return float(rates[np.argmax(rise >= share * rise.max())])


def read_there_and_back(sweep, rates):
    """Return the rate at which the loss stagnates on the way down, and the highest rate."""
    up = rates[rates <= 0.9 * rates[-1]]  # just under the divergence
    values = np.concatenate([up, up[::-1]])  # one test; its way up repeats the linear sweep
    losses = np.asarray(sweep(values, stop_factor=math.inf).losses)[len(up) :]
    return first_rate(up[::-1], -losses, 0.95), float(up[-1])  # 95% of its fall: it stagnates


def sweep_up(sweep):
    """Return the rates and accuracies of the linear sweep, up to where the loss diverged."""
    # The defaults see a broken network late or never. Smoothing by 0.98 lags some 50 rows, by 0.9
    # ten; and it falls back to guessing, to the loss of the start: half the way must do.
    result = sweep(np.linspace(0, HIGHEST_RATE, TEST_STEPS), smoothing=0.9, stop_factor=0.5)
    return [np.asarray(c[: result.num_valid]) for c in (result.learning_rates, result.metrics)]


def draw(rates, accuracies, bounds, path):
    axes = Figure(figsize=(8, 4.5), layout="constrained").subplots()
    axes.plot(rates, accuracies, color="tab:blue", alpha=0.4, lw=0.8, label="of each batch")
    axes.plot(rates, averaged(accuracies), color="tab:blue", lw=2, label="averaged")
    axes.axvspan(*bounds, color="tab:green", alpha=0.18, lw=0, label="bounds")
    axes.set(xlabel="learning rate", ylabel="accuracy", title="Linear sweep: digits, SGD")
    axes.legend(loc="lower right", frameon=False)
    axes.figure.savefig(path, dpi=150)


def train(schedule, train_data, valid_data, cycle_steps, num_seeds):
    """Return the validation accuracy at the end of each cycle, ``[num_seeds, NUM_CYCLES]``."""

    def run(seed):
        start_key, batch_key = jax.random.split(jax.random.key(seed))

        def one_step(state, step):
            return step_fn(state, sample(train_data, batch_key, step), schedule(step))

        def one_cycle(state, steps):
            state, _ = jax.lax.scan(one_step, state, steps)
            return state, loss_fn(state[0], valid_data)[1]

        steps = jnp.arange(NUM_CYCLES * cycle_steps).reshape(NUM_CYCLES, cycle_steps)
        return jax.lax.scan(one_cycle, new_state(start_key), steps)[1]

    # The range tests drew their start and batches from seed 0; training has seeds of its own.
    return np.asarray(jax.jit(jax.vmap(run))(1 + jnp.arange(num_seeds)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=800, help="training steps of each run")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each kind")
    parser.add_argument("--figure", default="accuracy_bounds.png", help="PNG to write")
    arguments = parser.parse_args()
    started = time.perf_counter()
    train_data, valid_data = load_digits()

    start_key, batch_key = jax.random.split(jax.random.key(0))
    batch_fn = functools.partial(sample, train_data, batch_key)
    state = new_state(start_key)
    sweep = functools.partial(optax_clr.range_test, step_fn, state, batch_fn, has_aux=True)
    rates, accuracies = sweep_up(sweep)
    bounds = [first_rate(rates, accuracies, share) for share in (0.1, 0.95)]
    log_sweep = sweep(np.geomspace(1e-7, 10.0, TEST_STEPS))
    draw(rates, accuracies, bounds, arguments.figure)
    print(f"The linear sweep stopped at {rates[-1]:.2g}; its accuracy is in {arguments.figure}.\n")

    constant = optax.constant_schedule
    rise_steps = arguments.steps // (2 * NUM_CYCLES)
    triangular = functools.partial(optax_clr.triangular_schedule, rise_steps=rise_steps)
    runs = {
        "constant, the default": (constant, [DEFAULT_RATE]),
        "constant, suggest()": (constant, [log_sweep.suggest()]),
        "constant, middle of accuracy": (constant, [sum(bounds) / 2]),
        "triangular, accuracy": (triangular, bounds),
        "triangular, there and back": (triangular, read_there_and_back(sweep, rates)),
        "triangular, bounds()": (triangular, log_sweep.bounds()),
    }
    cycles = np.array([1, 2, NUM_CYCLES])
    marks = [f"{steps} steps" for steps in 2 * rise_steps * cycles]
    print(f"{'validation accuracy, % (mean ± sd)':45}" + "".join(f"{m:>15}" for m in marks))
    for name, (kind, values) in runs.items():
        name += ", " + " to ".join(f"{value:.3g}" for value in values)
        schedule = kind(*values)
        results = 100 * train(schedule, train_data, valid_data, 2 * rise_steps, arguments.seeds)
        cells = (f"{mark.mean():.2f} ± {mark.std():.2f}" for mark in results.T[cycles - 1])
        print(f"{name:45}" + "".join(f"{cell:>15}" for cell in cells), flush=True)
    print(
        f"{arguments.seeds} seeds, {time.perf_counter() - started:.0f} s in all, "
        f"jax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].platform}."
    )


if __name__ == "__main__":
    main()
