"""Stochastic weight averaging: the mean of the weights at the ends of cycles.

    python examples/swa.py               # prints the table below

arXiv 1803.05407 on scikit-learn's handwritten digits, 200 of them to train on, 1,597 to validate: a
network with BatchNorm trains for three quarters of its budget by one cycle, and then in short
cycles, whose ends are averaged. Batch statistics are not weights: those of the average are
recomputed. Beside it the last iterate of the same run, and one cycle over the whole budget.

validation accuracy, % (mean ± sd), and what is added to one cycle (mean ± its error)
one cycle over the whole budget             94.99 ± 0.50   +0.00 ± 0.00
cycles at the end, last iterate             95.06 ± 0.49   +0.06 ± 0.07
  average, statistics of the last iterate   95.12 ± 0.51   +0.12 ± 0.08
  average, statistics measured anew         95.11 ± 0.43   +0.11 ± 0.08

20 starts of 800 steps, jax 0.10.2, optax 0.2.8, cpu. So here averaging gains little, if anything:
the cycles end at a low rate, where not much is left to average away.
"""

import argparse
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets, model_selection

import optax_clr

BATCH_SIZE = 32
TEST_STEPS = 300  # of the range test
NUM_CYCLES = 8  # whose ends are averaged


# ----------------------------------------------------------------------------------------- data


def load_digits():
    """Return (images, labels) to train on and (images, labels) to validate with."""
    images, labels = datasets.load_digits(return_X_y=True)
    train_images, valid_images, train_labels, valid_labels = model_selection.train_test_split(
        jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels), train_size=200, random_state=0
    )
    return (train_images, train_labels), (valid_images, valid_labels)


TRAIN, VALID = load_digits()


def sample(key, step):
    """Return the batch of a step: random rows, picked on the device while the program runs."""
    images, labels = TRAIN
    rows = jax.random.randint(jax.random.fold_in(key, step), (BATCH_SIZE,), 0, len(labels))
    return images[rows], labels[rows]


# --------------------------------------------------------------------------------------- network


class Network(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        hidden = images
        for _ in range(2):
            hidden = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(64)(hidden))
            hidden = nn.relu(hidden)
        return nn.Dense(10)(hidden)


network = Network()


def loss_and_statistics(params, statistics, batch):
    images, labels = batch
    variables = {"params": params, "batch_stats": statistics}
    logits, new = network.apply(variables, images, train=True, mutable=["batch_stats"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, new["batch_stats"]


def accuracy(params, statistics):
    images, labels = VALID
    variables = {"params": params, "batch_stats": statistics}
    return jnp.mean(network.apply(variables, images, train=False).argmax(-1) == labels)


def renewed(params, statistics):
    """Return the batch statistics of these params: those of all the training data at once."""
    _, moved = loss_and_statistics(params, statistics, TRAIN)
    # BatchNorm has moved them a tenth of the way.
    return jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, moved, statistics)


# -------------------------------------------------------------------------------------- training


def train(optimizer, params, statistics, key, num_steps):
    """Return the params, statistics and optimizer state after some steps."""

    def step_fn(carry, step):
        params, statistics, state = carry
        gradients, statistics = jax.grad(loss_and_statistics, has_aux=True)(
            params, statistics, sample(key, step)
        )
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), statistics, state), None

    carry = params, statistics, optimizer.init(params)
    return jax.lax.scan(step_fn, carry, jnp.arange(num_steps))[0]


def make_optimizer(learning_rate):
    return optax_clr.inject_schedules(optax.sgd)(learning_rate=learning_rate, momentum=0.9)


def one_cycle(peak, num_steps):
    return optax_clr.one_cycle_schedule(peak, num_steps)


def run(seed, bounds, peak, num_steps):
    """Return the accuracies of one start, in the order of NAMES."""
    start_key, first_key, second_key = jax.random.split(jax.random.key(seed), 3)
    variables = network.init(start_key, jnp.zeros((1, 64)), train=True)
    start = variables["params"], variables["batch_stats"]
    params, statistics, _ = train(
        make_optimizer(one_cycle(peak, num_steps)), *start, first_key, num_steps
    )
    alone = accuracy(params, statistics)

    num_averaging = num_steps // 4
    num_first = num_steps - num_averaging
    params, statistics, _ = train(
        make_optimizer(one_cycle(peak, num_first)), *start, first_key, num_first
    )
    cycles = optax_clr.Cycles(num_averaging // NUM_CYCLES)
    falling = optax_clr.warm_restarts_schedule(
        bounds.peak_value, cycles.steps, base_value=bounds.base_value
    )
    optimizer = optax.chain(make_optimizer(falling), optax_clr.average_at_cycle_ends(cycles))
    params, statistics, state = train(optimizer, params, statistics, second_key, num_averaging)
    average = optax_clr.averaged_params(state)
    return jnp.stack(
        [
            alone,
            accuracy(params, statistics),
            accuracy(average, statistics),
            accuracy(average, renewed(average, statistics)),
        ]
    )


NAMES = (
    "one cycle over the whole budget",
    "cycles at the end, last iterate",
    "  average, statistics of the last iterate",
    "  average, statistics measured anew",
)


def find_rates():
    """Return the bounds and the peak read from a range test."""
    start_key, batch_key = jax.random.split(jax.random.key(0))
    variables = network.init(start_key, jnp.zeros((1, 64)), train=True)

    def loss_fn(params, batch):
        return loss_and_statistics(params, variables["batch_stats"], batch)[0]

    result = optax_clr.lr_range_test(
        loss_fn,
        variables["params"],
        lambda rate: optax.sgd(rate, momentum=0.9),
        lambda step: sample(batch_key, step),
        num_steps=TEST_STEPS,
    )
    print(result.summary())
    return result.bounds(), result.one_cycle_peak()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=800, help="training steps of each run")
    parser.add_argument("--seeds", type=int, default=20, help="starts")
    arguments = parser.parse_args()
    started = time.perf_counter()
    bounds, peak = find_rates()
    lanes = jax.jit(jax.vmap(lambda seed: run(seed, bounds, peak, arguments.steps)))
    # The range test drew its start and batches from seed 0; training has seeds of its own.
    accuracies = 100 * np.asarray(lanes(1 + jnp.arange(arguments.seeds)))
    print("\nvalidation accuracy, % (mean ± sd), and what is added to one cycle (mean ± its error)")
    for name, column in zip(NAMES, accuracies.T, strict=True):
        gain = column - accuracies[:, 0]
        error = gain.std() / np.sqrt(len(gain))
        print(
            f"{name:44}{column.mean():.2f} ± {column.std():.2f}   {gain.mean():+.2f} ± {error:.2f}"
        )
    print(
        f"{arguments.seeds} starts of {arguments.steps} steps, "
        f"{time.perf_counter() - started:.0f} s in all, "
        f"jax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].platform}."
    )


if __name__ == "__main__":
    main()
