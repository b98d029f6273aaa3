"""How exact the schedules are, and how large: the figures of docs/benchmarks/README.md.

    python docs/benchmarks/schedules.py

Errors are relative to the formula in exact rational arithmetic (tests/exact.py), the worst of 400
steps drawn at random and around the ends of cycles, in a program compiled by jax.jit. The peers'
formulas are retyped here in float32, as they would run on an accelerator.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_clr

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests"))
import exact

LAST = 2**31 - 1
RISE = 2000


def some_steps(highest, period):
    rng = np.random.default_rng(0)
    ends = period * rng.integers(0, highest // period, 200) + rng.integers(-3, 4, 200)
    return np.clip(np.concatenate([rng.integers(0, highest, 200), ends]), 0, highest)


def paper(step):
    """Section 3 of the paper, transcribed."""
    t = step.astype(jnp.float32)
    cycle = jnp.floor(1 + t / (2 * RISE))
    return 0.001 + (0.006 - 0.001) * jnp.maximum(0, 1 - jnp.abs(t / RISE - 2 * cycle + 1))


def torch_formula(step):
    """CyclicLR.get_lr with equal sizes."""
    t = step.astype(jnp.float32)
    cycle = jnp.floor(1 + t / (2 * RISE))
    x = 1 + t / (2 * RISE) - cycle
    return 0.001 + (0.006 - 0.001) * jnp.where(x <= 0.5, x / 0.5, (x - 1) / (0.5 - 1))


def worst(schedule, reference, highest):
    steps = some_steps(highest, 2 * RISE)
    got = np.asarray(jax.jit(schedule)(jnp.asarray(steps, jnp.int32)), np.float64)
    wanted = np.array([float(reference(int(step))) for step in steps])
    return np.max(np.abs(got - wanted) / np.where(wanted, wanted, 1))  # a warm-up starts at 0


def exactness():
    low, high, gamma = (float(np.float32(v)) for v in (0.001, 0.006, 0.9999999))
    triangle = lambda t: exact.cyclical(t, low, high, RISE, RISE)
    decaying = lambda t: exact.cyclical(
        t, low, high, RISE, RISE, scale=lambda cycle, step: exact.as_decimal(gamma) ** step
    )
    restarts = lambda t: exact.warm_restarts(t, high, RISE, low, 1.5, 1.0, 0, None)
    rows = {
        "triangular": (optax_clr.triangular_schedule(low, high, RISE), triangle),
        "exp_range, gamma 0.9999999": (
            optax_clr.exp_range_schedule(low, high, RISE, gamma=gamma),
            decaying,
        ),
        "warm restarts, mult 1.5": (
            optax_clr.warm_restarts_schedule(high, RISE, base_value=low, mult=1.5),
            restarts,
        ),
        "warm-up, stable, cosine decay": (
            optax_clr.warmup_stable_decay_schedule(
                high,
                LAST,
                warmup_steps=10**6,
                decay_steps=2**30,
                end_value=low,
                decay_wave=optax_clr.waves.cosine,
            ),
            lambda t: exact.warmup_stable_decay(
                t, high, low, LAST, 10**6, 2**30, falling=exact.cosine
            ),
        ),
        "triangular, the paper's formula in float32": (paper, triangle),
        "triangular, torch's formula in float32": (torch_formula, triangle),
    }
    print(f"{'worst relative error up to step':44}      1e4      1e6      1e8   2^31-1")
    for name, row in rows.items():
        errors = (worst(*row, highest) for highest in (10**4, 10**6, 10**8, LAST))
        print(f"{name:44}" + "".join(f"{error:9.0e}" for error in errors))


def sizes():
    print("\ntraced equations, 3 cycles / a million")
    for name, factory in {
        "triangular": lambda n: optax_clr.cyclical_schedule(0.1, 1.0, RISE, num_cycles=n),
        "warm restarts, mult 1.00001": lambda n: optax_clr.warm_restarts_schedule(
            1.0, 10, mult=1.00001, num_cycles=n
        ),
    }.items():
        counts = (len(jax.make_jaxpr(factory(n))(0).jaxpr.eqns) for n in (3, 10**6))
        print(f"{name:44}{next(counts)} / {next(counts)}")
    cycle = {"init_value": 0, "peak_value": 1, "warmup_steps": 1, "decay_steps": 10}
    for number in (3, 30):
        schedule = optax.sgdr_schedule([cycle] * number)
        print(f"optax.sgdr_schedule of {number:<21}{len(jax.make_jaxpr(schedule)(0).jaxpr.eqns)}")


if __name__ == "__main__":
    exactness()
    sizes()
    print(f"\njax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].platform}")
