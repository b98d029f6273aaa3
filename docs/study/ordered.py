"""Is a test on data that come in an order read as one on shuffled data?

    python docs/study/ordered.py    # a minute

Regressions by a small network, 300 batches of 32: data in the order of their targets, of how far
these are from their mean, of one feature, of a season or a trend in time, and targets in order that
do not depend on the features. For each order and optimizer, of NUM_SEEDS tests: how many are read
without a doubt and with one, and how many refused, and the lowest and highest rate without a doubt.
"""

from __future__ import annotations

import functools
import importlib.metadata

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
    "shuffled": lambda rng, inputs: (inputs, scaled(linear(rng, inputs))),
    "by target": in_order(lambda inputs, targets: targets),
    "by target, downward": in_order(lambda inputs, targets: -targets),
    "targets without features": lambda rng, inputs: (
        inputs,
        np.sort(scaled(linear(rng, inputs))),
    ),
    "hardest first": in_order(lambda inputs, targets: -np.abs(targets)),
    "by a feature": in_order(lambda inputs, targets: inputs[:, 0]),
    "season": in_time(lambda time: np.cos(2 * np.pi * time)),
    "trend": in_time(lambda time: 2 * time),
}


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((MODEL.apply(params, inputs)[:, 0] - targets) ** 2)


def test_of(draw, optimizer, seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(NUM_STEPS * BATCH_SIZE, NUM_FEATURES))
    batches = [
        part.reshape(NUM_STEPS, BATCH_SIZE, *part.shape[1:]).astype(np.float32)
        for part in draw(rng, inputs)
    ]
    params = MODEL.init(jax.random.key(seed), batches[0][0])
    return optax_clr.lr_range_test(loss_fn, params, optimizer, tuple(batches))


def main():
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "flax"))
    print(f"{', '.join(versions)}, {jax.default_backend()}; {NUM_SEEDS} tests of each")
    print("without a doubt (their rates), in doubt, refused")
    print(f"{'':26}{''.join(f'{name:>30}' for name in OPTIMIZERS)}")
    for order, draw in ORDERS.items():
        line = f"{order:26}"
        for optimizer in OPTIMIZERS.values():
            found = [reading(test_of(draw, optimizer, seed)) for seed in range(NUM_SEEDS)]
            rates = [rate.constant for rate, doubted in found if not doubted]
            silent = [rate for rate in rates if np.isfinite(rate)]
            span = f" ({min(silent):.2g} to {max(silent):.2g})" if silent else ""
            doubts = sum(doubted for _, doubted in found)
            cell = f"{len(silent)}{span}, {doubts}, {len(rates) - len(silent)}"
            line += f"{cell:>30}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
