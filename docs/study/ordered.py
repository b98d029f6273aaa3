"""Is a test on data that come in an order read as one on shuffled data?

    python docs/study/ordered.py    # a minute

Regressions by a small network, 300 batches of 32: data in the order of their targets, of how far
these are from their mean, of one feature, of a season or a trend in time, and targets in order that
do not depend on the features. For each order and optimizer, of NUM_SEEDS tests, how many are read
without a doubt, right and wrong, read with one, and refused. Right is within a factor of three of
the median of the shuffled ones; of targets without features nothing is.

And how many a control shows to be in an order: a test of the same batches at rates at which nothing
learns, which should say that the loss never fell. Of all tests, and of those that are wrong without
a doubt.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from suggestion_tasks import MLP
from suggestions import reading

import optax_clr

NUM_SEEDS, NUM_STEPS, BATCH_SIZE, NUM_FEATURES = 10, 300, 32, 8
OPTIMIZERS = {
    "Adam": optax.adam,
    "SGD": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
}
NOTHING_LEARNS = {"min_lr": 1e-15, "max_lr": 1e-9, "stop_factor": np.inf}
SHUFFLED, NOTHING_TO_LEARN = "shuffled", "targets without features"
MODEL = MLP((32, 1), nn.relu)


def scaled(values):
    return (values - values.mean()) / values.std()


def linear(rng, inputs, weight=1.0):
    weights = weight * np.linspace(-1, 1, NUM_FEATURES)
    return inputs @ weights + 0.3 * rng.normal(size=len(inputs))


def in_order(key):
    """Data in the order of a number, computed from inputs and targets."""

    def draw(rng, inputs):
        targets = scaled(linear(rng, inputs))
        order = np.argsort(key(inputs, targets))
        return inputs[order], targets[order]

    return draw


def in_time(drift):
    """Targets that a function of the time is added to."""

    def draw(rng, inputs):
        time = np.arange(len(inputs)) / len(inputs)
        return inputs, scaled(drift(time) + linear(rng, inputs, weight=0.3))

    return draw


ORDERS = {
    SHUFFLED: lambda rng, inputs: (inputs, scaled(linear(rng, inputs))),
    "by target": in_order(lambda inputs, targets: targets),
    "by target, downward": in_order(lambda inputs, targets: -targets),
    NOTHING_TO_LEARN: lambda rng, inputs: (inputs, np.sort(scaled(linear(rng, inputs)))),
    "hardest first": in_order(lambda inputs, targets: -np.abs(targets)),
    "by a feature": in_order(lambda inputs, targets: inputs[:, 0]),
    "season": in_time(lambda time: np.cos(2 * np.pi * time)),
    "trend": in_time(lambda time: 2 * time),
}


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((MODEL.apply(params, inputs)[:, 0] - targets) ** 2)


def test_of(draw, optimizer, seed, **settings):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(NUM_STEPS * BATCH_SIZE, NUM_FEATURES))
    batches = [
        part.reshape(NUM_STEPS, BATCH_SIZE, *part.shape[1:]).astype(np.float32)
        for part in draw(rng, inputs)
    ]
    params = MODEL.init(jax.random.key(seed), batches[0][0])
    return optax_clr.lr_range_test(loss_fn, params, optimizer, tuple(batches), **settings)


def shows_order(draw, seed):
    """Return whether the loss moves at rates at which nothing learns."""
    try:
        test_of(draw, optax.sgd, seed, **NOTHING_LEARNS).suggest()
    except optax_clr.RangeTestError as error:
        return not str(error).startswith("the loss never fell")
    return True


def judged(rates, is_doubted, median):
    """Return which tests are read right, read wrong, in doubt, and refused: bool ``[4, test]``."""
    is_silent = np.isfinite(rates) & ~is_doubted
    is_right = is_silent & (np.abs(np.log(rates / median)) < np.log(3))
    return np.array([is_right, is_silent & ~is_right, is_doubted, np.isnan(rates)])


def main():
    warnings.simplefilter("ignore", optax_clr.RangeTestWarning)
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "flax"))
    print(f"{', '.join(versions)}, {jax.default_backend()}; {NUM_SEEDS} tests of each")
    print("right, wrong, in doubt, refused; of all and of the wrong ones, seen by a control")
    print(f"{'':26}{''.join(f'{name:>16}' for name in OPTIMIZERS)}{'control':>14}")
    right_rates, totals = {}, np.zeros(6, int)
    for order, draw in ORDERS.items():
        is_seen = np.array([shows_order(draw, seed) for seed in range(NUM_SEEDS)])
        line, seen = f"{order:26}", np.zeros(2, int)
        for name, optimizer in OPTIMIZERS.items():
            found = [reading(test_of(draw, optimizer, seed)) for seed in range(NUM_SEEDS)]
            rates = np.array([rate.constant for rate, _ in found])
            if order == SHUFFLED:
                right_rates[name] = np.nanmedian(rates)
            median = np.nan if order == NOTHING_TO_LEARN else right_rates[name]
            verdicts = judged(rates, np.array([doubted for _, doubted in found]), median)
            counts, of_wrong = verdicts.sum(1), (verdicts[1] & is_seen).sum()
            seen += is_seen.sum(), of_wrong
            if order != SHUFFLED:
                totals += (*counts, is_seen.sum(), of_wrong)
            line += f"{', '.join(map(str, counts)):>16}"
        print(f"{line}{', '.join(map(str, seen)):>14}", flush=True)
    print(f"all but the shuffled ones: {', '.join(map(str, totals))}")


if __name__ == "__main__":
    main()
