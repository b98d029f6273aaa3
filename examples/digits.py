"""The whole method on real images: sweep, read the bounds, cycle.

    python examples/digits.py            # prints the table below and writes digits.png

scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, come with the package: 1,200 to train on,
597 to validate. A small network with Adam is tested once, 300 steps in one compiled program, and
then trained in four ways, from the same starts, on the same batches, for the same number of steps.

validation accuracy, % (mean ± sd)      100 steps      200 steps      400 steps
constant 0.001, the default          90.95 ± 1.15   94.87 ± 0.59   96.60 ± 0.59
constant at suggest()                93.05 ± 0.71   95.71 ± 1.24   96.53 ± 0.83
triangular2 between bounds()         94.86 ± 0.70   96.30 ± 0.53   97.14 ± 0.37
one cycle to one_cycle_peak()        91.96 ± 2.30   95.36 ± 1.01   97.34 ± 0.41

10 seeds, jax 0.10.2, optax 0.2.8, cpu.
"""

import argparse
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn import datasets, model_selection

import optax_clr
from optax_clr import plotting

DEFAULT_RATE = 1e-3  # the rate that the examples of Optax give to Adam
BATCH_SIZE = 32
TEST_STEPS = 300  # of the range test
NUM_CYCLES = 4  # of triangular2 in one training run


# ----------------------------------------------------------------------------------------- data


def load_digits():
    """Return (images, labels) to train on and (images, labels) to validate with."""
    images, labels = datasets.load_digits(return_X_y=True)
    train_images, valid_images, train_labels, valid_labels = model_selection.train_test_split(
        jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels), test_size=597, random_state=0
    )
    return (train_images, train_labels), (valid_images, valid_labels)


def sample(data, key, step):
    """Return the batch of a step: random rows, picked on the device while the program runs."""
    images, labels = data
    rows = jax.random.randint(jax.random.fold_in(key, step), (BATCH_SIZE,), 0, len(labels))
    return images[rows], labels[rows]


# --------------------------------------------------------------------------------------- network


class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Dense(128)(images))
        hidden = nn.relu(nn.Dense(128)(hidden))
        return nn.Dense(10)(hidden)


network = Network()


def new_params(key):
    return network.init(key, jnp.zeros((1, 64)))


def loss_fn(params, batch):
    images, labels = batch
    logits = network.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(params, data):
    images, labels = data
    return jnp.mean(network.apply(params, images).argmax(-1) == labels)


# -------------------------------------------------------------------------------------- training


def train(learning_rate, train_data, valid_data, num_steps, num_seeds):
    """Return the accuracy after 25, 50 and 100% of the steps, ``[num_seeds, 3]``."""
    optimizer = optax_clr.inject_schedules(optax.adam)(learning_rate=learning_rate)

    def step_fn(carry, step):
        params, state, key = carry
        gradients = jax.grad(loss_fn)(params, sample(train_data, key, step))
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state, key), None

    def run(seed):
        start_key, batch_key = jax.random.split(jax.random.key(seed))
        params = new_params(start_key)
        carry = params, optimizer.init(params), batch_key
        accuracies, done = [], 0
        for part in (num_steps // 4, num_steps // 2, num_steps):
            carry, _ = jax.lax.scan(step_fn, carry, jnp.arange(done, part))
            accuracies.append(accuracy(carry[0], valid_data))
            done = part
        return jnp.stack(accuracies)

    # The range test drew its start and batches from seed 0; training has seeds of its own.
    return np.asarray(jax.jit(jax.vmap(run))(1 + jnp.arange(num_seeds)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps of each run")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each kind")
    parser.add_argument("--figure", type=pathlib.Path, default="digits.png", help="PNG to write")
    arguments = parser.parse_args()
    started = time.perf_counter()
    train_data, valid_data = load_digits()

    print("range test ...", end="", flush=True)
    start_key, batch_key = jax.random.split(jax.random.key(0))
    result = optax_clr.lr_range_test(
        loss_fn,
        new_params(start_key),
        optax.adam,
        lambda step: sample(train_data, batch_key, step),
        num_steps=TEST_STEPS,
    )
    print(f"\r{result.summary()}")
    matplotlib.use("agg")
    axes = plotting.plot_range_test(result)
    axes.set_title("Learning-rate range test: digits, two hidden layers, Adam")
    axes.figure.savefig(arguments.figure, dpi=150)
    print(f"The curve and its bounds are in {arguments.figure}.\n")

    bounds, peak = result.bounds(), result.one_cycle_peak()
    rise_steps = arguments.steps // (2 * NUM_CYCLES)
    runs = {
        f"constant {DEFAULT_RATE:g}, the default": optax.constant_schedule(DEFAULT_RATE),
        "constant at suggest()": optax.constant_schedule(result.suggest()),
        "triangular2 between bounds()": optax_clr.triangular2_schedule(
            *bounds, rise_steps=rise_steps
        ),
        "one cycle to one_cycle_peak()": optax_clr.one_cycle_schedule(peak, arguments.steps),
    }
    table = {}
    for number, (name, schedule) in enumerate(runs.items(), 1):
        print(f"\rtraining {number}/{len(runs)}: {name:30}", end="", flush=True)
        table[name] = 100 * train(
            schedule, train_data, valid_data, arguments.steps, arguments.seeds
        )

    marks = [f"{arguments.steps * part // 4} steps" for part in (1, 2, 4)]
    print(f"\r{'validation accuracy, % (mean ± sd)':34}" + "".join(f"{m:>15}" for m in marks))
    for name, accuracies in table.items():
        mean, deviation = accuracies.mean(0), accuracies.std(0)
        cells = (f"{m:.2f} ± {d:.2f}" for m, d in zip(mean, deviation, strict=True))
        print(f"{name:34}" + "".join(f"{cell:>15}" for cell in cells))
    print(
        f"{arguments.seeds} seeds, {time.perf_counter() - started:.0f} s in all, "
        f"jax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].platform}."
    )


if __name__ == "__main__":
    main()
