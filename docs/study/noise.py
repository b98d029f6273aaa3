"""How often is noise alone read as if a model had learned?

    python docs/study/noise.py    # some minutes

The share of curves of noise about a level loss that are read, and that are read without a doubt,
from 500 of each kind and length, over 1e-7 to 10. AR(1) noise, whose neighbours have the given
correlation, is what unshuffled batches make. Then the losses of networks that do not learn, on data
that are sorted by class: ten classes of digits and two of tumours, 24 networks each, in batches of
several sizes; the shares are the means over these, and the largest of one size.
"""

from __future__ import annotations

import importlib.metadata
import warnings

import jax
import numpy as np
from scipy.special import logsumexp
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import scale

import optax_clr

LENGTHS = (100, 300, 1000, 3000, 10_000)
NUM_CURVES = 500
SORTED = {"digits": load_digits, "tumours": load_breast_cancer}
SORTED_LENGTHS = (100, 300, 1000, 3000)
BATCH_SIZES = (1, 4, 6, 16, 32, 64)
NUM_NETWORKS = 24


def walk(innovations, correlation):
    """Return AR(1) noise along the last axis, from its stationary start."""
    rows = np.empty_like(innovations)
    rows[:, 0] = innovations[:, 0] / np.sqrt(1 - correlation**2)
    for row in range(1, innovations.shape[1]):
        rows[:, row] = correlation * rows[:, row - 1] + innovations[:, row]
    return rows


KINDS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(size=shape),
    "AR(1), .5": lambda rng, shape: walk(rng.normal(size=shape), 0.5),
    "AR(1), .8": lambda rng, shape: walk(rng.normal(size=shape), 0.8),
    "AR(1), .95": lambda rng, shape: walk(rng.normal(size=shape), 0.95),
}


def test_of(losses):
    rates = np.geomspace(1e-7, 10.0, losses.size, dtype=np.float32)
    return optax_clr.RangeTestResult(rates, losses, losses, np.int32(losses.size))


def is_read(result):
    """Return whether a test is read, and whether without a doubt."""
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", optax_clr.RangeTestWarning)
        try:
            result.suggest()
        except optax_clr.RangeTestError:
            return False, False
    return True, not doubts


def losses_by_class(name, seed):
    """Return the loss of every example, class by class, of a network that was not trained."""
    rng = np.random.default_rng(seed)
    inputs, labels = SORTED[name](return_X_y=True)
    by_class = np.argsort(labels, kind="stable")
    inputs, labels = scale(inputs)[by_class], labels[by_class]
    first = rng.normal(size=(inputs.shape[1], 64)) * np.sqrt(2 / inputs.shape[1])
    last = rng.normal(size=(64, labels.max() + 1)) * rng.choice([0.3, 1.0, 2.0]) / 8
    logits = np.maximum(inputs @ first, 0) @ last
    return logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]


def sorted_curve(losses, length, batch_size):
    return np.resize(losses, length * batch_size).reshape(length, batch_size).mean(1)


def print_sorted():
    print(f"\nsorted by class, {NUM_NETWORKS} networks, batches of {BATCH_SIZES}")
    print(f"{'rows':>6}{''.join(f'{name:>30}' for name in SORTED)}")
    networks = [[losses_by_class(name, seed) for seed in range(NUM_NETWORKS)] for name in SORTED]
    for length in SORTED_LENGTHS:
        cells = []
        for losses in networks:
            found = np.array(
                [
                    [is_read(test_of(sorted_curve(of_one, length, size))) for of_one in losses]
                    for size in BATCH_SIZES
                ]
            ).mean(1)
            read, silent = found.mean(0)
            cells.append(f"{read:.1%}, {silent:.1%}, {found[:, 1].max():.1%}")
        print(f"{length:6}{''.join(f'{cell:>30}' for cell in cells)}", flush=True)


def main():
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax"))
    print(f"{', '.join(versions)}, {jax.default_backend()}; {NUM_CURVES} curves of each")
    print(f"{'rows':>6}{''.join(f'{kind:>14}' for kind in KINDS)}")
    for length in LENGTHS:
        rng, shares = np.random.default_rng(length), []
        for noise in KINDS.values():
            curves = 2.3 + 0.1 * noise(rng, (NUM_CURVES, length))
            shares.append(np.mean([is_read(test_of(curve)) for curve in curves], axis=0))
        cells = (f"{read:.1%}, {silently:.1%}" for read, silently in shares)
        print(f"{length:6}{''.join(f'{cell:>14}' for cell in cells)}", flush=True)
    print_sorted()


if __name__ == "__main__":
    main()
