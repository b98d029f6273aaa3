"""Where the loss falls twice: what is read, and what longer training wants.

    python docs/study/falling_twice.py    # some minutes

The mean of the targets, or their linear part, is learned within a range test, and what matters
after it. Tables and drawn prices with raw targets, whose mean is learned first; a smooth function
of one number; a small network as the teacher; least squares with a condition of 10,000; classes by
raw columns, of which the largest are unlearned first. For each:
what `suggest()` reads in tests of LENGTHS (the median of SEEDS), and the best rate of a grid, four
to a decade, by the validation loss after NUM_STEPS steps at a constant rate, with how many times
that loss is what the reading of 300 steps ends at.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from suggestion_tasks import MLP, diamonds, mileage, standardized
from suggestions import reading

import optax_clr

SEEDS = (0, 1, 2)
BATCH_SIZE = 64
LENGTHS = (75, 300, 1200)
NUM_STEPS = 3000
RATES = np.logspace(-5, 2.25, 30)


class Twofold(NamedTuple):
    """A task: what a network is trained on, numbers or classes, and by what."""

    inputs: Any
    targets: Any
    validation: Any
    model: nn.Module
    optimizer: Any

    def loss_fn(self, params, batch):
        inputs, targets = batch
        outputs = self.model.apply(params, inputs)
        if targets.ndim == 1:  # classes
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
            return jnp.mean(losses)
        return jnp.mean((outputs - targets) ** 2)

    def batches(self, seed, num_steps):
        rows = np.random.default_rng(seed).integers(0, len(self.inputs), (num_steps, BATCH_SIZE))
        return self.inputs[rows], self.targets[rows]


def momentum(rate):
    return optax.sgd(rate, momentum=0.9)


def of_data(data, factor=1.0):
    """An MLP on a table whose targets are multiplied by a factor, such as that of a currency."""
    column = lambda targets: factor * targets.astype(np.float32)
    validation = data.validation_inputs, column(data.validation_targets)
    return Twofold(data.inputs, column(data.targets), validation, MLP((64, 64, 1)), optax.adam)


def of_function(function, draw, model, optimizer):
    """A task whose targets are a function of inputs that are drawn."""
    rng = np.random.default_rng(0)
    parts = []
    for size in (20_000, 1000):
        inputs = draw(rng, size).astype(np.float32)
        targets = np.asarray(function(inputs))
        parts.append((inputs, targets.astype(np.float32 if targets.ndim > 1 else np.int32)))
    (inputs, targets), validation = parts
    return Twofold(inputs, targets, validation, model, optimizer)


def teacher(inputs):
    network = MLP((8, 1), nn.tanh)
    return network.apply(network.init(jax.random.key(77), inputs[:1]), inputs)


def sine(inputs):
    return np.sin(6 * inputs) + inputs / 2 + 1


def prices(inputs):
    """Smooth, of a mean of 200,000 and a deviation of about 100,000."""
    weights = np.random.default_rng(1).normal(size=(inputs.shape[1], 1))
    noise = np.random.default_rng(2).normal(size=(len(inputs), 1))
    smooth = np.tanh(inputs @ weights / 3) + inputs[:, :1] * inputs[:, 1:2] / 2
    return 1e5 * (2 + smooth + noise / 10)


def sums(inputs):
    """The same weight of each input, whose deviations are from 1 to 0.01."""
    return inputs @ (1 / np.geomspace(1, 0.01, inputs.shape[1]))[:, None] / 5


COLUMNS = np.geomspace(1, 300, 20)


def classes(inputs):
    """Ten classes, by a smooth function of twenty columns."""
    rng = np.random.default_rng(1)
    hidden = np.tanh(inputs @ rng.normal(size=(20, 32)) / 2)
    return (hidden @ rng.normal(size=(32, 10))).argmax(-1)


def classes_of_raw_columns(inputs):
    return classes(inputs / COLUMNS)


def tasks():
    normal = lambda rng, size: rng.normal(size=(size, 10))
    uniform = lambda rng, size: rng.uniform(-1, 1, size=(size, 1))
    uneven = lambda rng, size: rng.normal(size=(size, 40)) * np.geomspace(1, 0.01, 40)
    raw = lambda rng, size: rng.normal(size=(size, 20)) * COLUMNS
    standard = lambda rng, size: rng.normal(size=(size, 20))
    return {
        "diamonds, price in cents, Adam": of_data(standardized(diamonds()), 100),
        "mileage, metres a litre, Adam": of_data(standardized(mileage()), 425),
        "drawn prices, Adam": of_function(prices, normal, MLP((64, 64, 1)), optax.adam),
        "drawn prices, centred and scaled, Adam": of_function(
            lambda inputs: prices(inputs) / 1e5 - 2, normal, MLP((64, 64, 1)), optax.adam
        ),
        "sine, momentum": of_function(sine, uniform, MLP((64, 64, 1), nn.tanh), momentum),
        "teacher, momentum": of_function(teacher, normal, MLP((64, 1), nn.tanh), momentum),
        "least squares, momentum": of_function(sums, uneven, nn.Dense(1), momentum),
        "raw columns, momentum": of_function(classes_of_raw_columns, raw, MLP((64, 10)), momentum),
        "raw columns, Adam": of_function(classes_of_raw_columns, raw, MLP((64, 10)), optax.adam),
        "scaled columns, momentum": of_function(classes, standard, MLP((64, 10)), momentum),
    }


def readings(task, num_steps):
    """Return what tests read, ``[seed]``, and which are in doubt."""
    tests = [
        optax_clr.lr_range_test(
            task.loss_fn,
            start(task, seed),
            task.optimizer,
            jax.tree.map(jnp.asarray, task.batches(seed + 100, num_steps)),
        )
        for seed in SEEDS
    ]
    suggestions, doubts = zip(*map(reading, tests), strict=True)
    rates = np.array([suggestion.constant for suggestion in suggestions])
    return rates, doubts


def start(task, seed):
    return task.model.init(jax.random.key(seed), task.inputs[:1])


def final_losses(task, seed):
    """Return the validation losses of constant rates, ``[rate]``; means of the last evaluations."""

    def train(params, batches, rate):
        optimizer = task.optimizer(rate)

        def step(carry, batch):
            params, state = carry
            updates, state = optimizer.update(jax.grad(task.loss_fn)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        def part(carry, batches):
            carry, _ = jax.lax.scan(step, carry, batches)
            return carry, task.loss_fn(carry[0], task.validation)

        _, losses = jax.lax.scan(part, (params, optimizer.init(params)), batches)
        return losses[-3:].mean()

    batches = jax.tree.map(
        lambda leaf: jnp.asarray(leaf.reshape(30, -1, *leaf.shape[1:])),
        task.batches(seed, NUM_STEPS),
    )
    run = jax.jit(jax.vmap(train, (None, None, 0)))
    return np.asarray(run(start(task, seed), batches, jnp.asarray(RATES, jnp.float32)))


def main():
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "flax"))
    print(f"{', '.join(versions)}, {jax.default_backend()}; seeds {SEEDS}; training {NUM_STEPS}")
    for name, task in tasks().items():
        losses = np.mean([final_losses(task, seed) for seed in SEEDS], 0)
        losses = np.where(np.isfinite(losses), losses, np.inf)
        best = losses.argmin()
        line, at = f"{name:40}best {RATES[best]:.2g}; reads ", np.nan
        for length in LENGTHS:
            rates, doubts = readings(task, length)
            found = rates[np.isfinite(rates)]
            line += f"{np.median(found):.2g}" if found.size else "refused"
            line += " in doubt, " if any(doubts) else ", "
            if length == 300:
                logs = np.interp(np.log(rates), np.log(RATES), np.log(np.minimum(losses, 1e30)))
                at = np.exp(np.nanmean(logs)) / losses[best]
        print(f"{line}loss {at:.3g} times the best", flush=True)


if __name__ == "__main__":
    main()
