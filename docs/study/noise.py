"""How often is noise alone read as if a model had learned?

    python docs/study/noise.py    # some minutes

The share of curves of noise about a level loss that are read, and that are read without a doubt,
from 500 of each kind and length, over 1e-7 to 10. AR(1) noise, whose neighbours have the given
correlation, is what unshuffled batches make.
"""

from __future__ import annotations

import importlib.metadata
import warnings

import jax
import numpy as np

import optax_clr

LENGTHS = (100, 300, 1000, 3000, 10_000)
NUM_CURVES = 500


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


if __name__ == "__main__":
    main()
