"""How often is noise alone read as if a model had learned?

    python docs/study/noise.py    # some minutes

The share of curves of noise about a level loss that are read, with or without a doubt, from 500 of
each kind and length, over 1e-7 to 10. AR(1) noise, whose neighbours have the given correlation, is
what unshuffled batches make.
"""

from __future__ import annotations

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np

import optax_clr

LENGTHS = (100, 300, 1000, 3000, 10_000)
NUM_CURVES = 500
PART = 50  # read in one call


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


@jax.jit
def suggestions(losses):
    """Return ``suggest()`` of curves, ``[curve]``; NaN where they are refused."""
    rates = jnp.geomspace(1e-7, 10.0, losses.shape[1])

    def one(curve):
        return optax_clr.RangeTestResult(rates, curve, curve, jnp.int32(curve.size)).suggest()

    return jax.vmap(one)(losses)


def main():
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax"))
    print(f"{', '.join(versions)}, {jax.default_backend()}; {NUM_CURVES} curves of each")
    print(f"{'rows':>6}{''.join(f'{kind:>12}' for kind in KINDS)}")
    for length in LENGTHS:
        rng, shares = np.random.default_rng(length), []
        for noise in KINDS.values():
            curves = 2.3 + 0.1 * noise(rng, (NUM_CURVES, length))
            parts = np.split(curves.astype(np.float32), NUM_CURVES // PART)
            shares.append(np.isfinite(np.concatenate([*map(suggestions, parts)])).mean())
        print(f"{length:6}{''.join(f'{share:12.1%}' for share in shares)}", flush=True)


if __name__ == "__main__":
    main()
