"""Do tests of different lengths agree where the loss falls late? Physics-informed networks.

    python docs/study/physics_informed.py    # some minutes

Four equations that no task of the study has, with second derivatives in the loss, Adam, and range
tests of four lengths: what `suggest()` reads, or why it does not. There is no ground truth here.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from modern_tasks import slope
from suggestion_tasks import MLP

import optax_clr

LENGTHS = (150, 300, 600, 1000)
SEEDS = (0, 1)
BATCH_SIZE = 32


def mean_square(values):
    return jnp.mean(values**2)


def poisson(amplitudes, weight):
    """``u'' = f`` in (-1, 1) with u = 0 at both ends; the solution is a sum of sines."""

    def loss(network, points):
        waves = [(number * np.pi, amplitude) for number, amplitude in amplitudes.items()]
        force = sum(wave**2 * height * jnp.sin(wave * points) for wave, height in waves)
        residual = slope(slope(network, 0), 0)(points) + force
        return mean_square(residual) + weight * mean_square(network(jnp.array([[-1.0], [1.0]])))

    return loss


def oscillator(network, time):
    """``u''/25 + .04 u' + u = 0`` from u = 1, u' = 0 at the time -1."""
    speed = slope(network, 0)
    residual = slope(speed, 0)(time) / 25 + 0.04 * speed(time) + network(time)
    begin = jnp.array([[-1.0]])
    return mean_square(residual) + mean_square(network(begin) - 1) + mean_square(speed(begin) / 5)


def heat(network, inputs):
    """``u_t = .1 u_xx``, u = -sin(pi x) at the time -1 and 0 at both ends; points (x, t)."""
    residual = slope(network, 1)(inputs) - 0.1 * slope(slope(network, 0), 0)(inputs)
    place, time = inputs[:, :1], inputs[:, 1:]
    begin = network(jnp.concatenate([place, -jnp.ones_like(time)], 1)) + jnp.sin(np.pi * place)
    ends = network(jnp.concatenate([jnp.sign(place), time], 1))
    return mean_square(residual) + mean_square(begin) + mean_square(ends)


class Equation(NamedTuple):
    loss: object  # of a network and points
    num_coordinates: int
    widths: tuple


EQUATIONS = {
    "Poisson, one fast sine": Equation(poisson({4: 1.0}, 10), 1, (64, 64, 1)),
    "Poisson, a slow and a fast sine": Equation(poisson({1: 1.0, 5: 0.1}, 100), 1, (32, 32, 32, 1)),
    "oscillator": Equation(oscillator, 1, (32, 32, 1)),
    "heat": Equation(heat, 2, (32, 32, 1)),
}


def answer(result):
    """Return the suggestion, or the first words of what is doubtful or wrong."""
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", optax_clr.RangeTestWarning)
        try:
            rate = f"{result.suggest():.2g}"
        except optax_clr.RangeTestError as error:
            return f"refused ({str(error).partition(':')[0]})"
    return rate + "".join(f" ({str(doubt.message).partition(':')[0]})" for doubt in doubts)


def main():
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "flax"))
    print(f"{', '.join(versions)}, {jax.default_backend()}; seeds {SEEDS}; steps {LENGTHS}")
    for name, (loss, num_coordinates, widths) in EQUATIONS.items():
        model = MLP(widths, nn.tanh)

        def loss_fn(params, points, loss=loss, model=model):
            return loss(lambda inputs: model.apply(params, inputs), points)

        for seed in SEEDS:
            params = model.init(jax.random.key(seed), jnp.ones((1, num_coordinates)))
            answers = []
            for num_steps in LENGTHS:
                shape = num_steps, BATCH_SIZE, num_coordinates
                points = np.random.default_rng([seed, num_steps]).uniform(-1, 1, shape)
                result = optax_clr.lr_range_test(
                    loss_fn, params, optax.adam, points.astype(np.float32)
                )
                answers.append(answer(result))
            print(f"{name:34}{'; '.join(answers)}", flush=True)


if __name__ == "__main__":
    main()
