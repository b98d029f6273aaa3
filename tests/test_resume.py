"""A run that is killed and resumed is the run that was never killed, to the last step there is."""

import io
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import exact
import optax_clr

pytestmark = pytest.mark.usefixtures("optax_promotion")

SCRIPT = pathlib.Path(__file__).parent / "tools" / "resume.py"
LAST = 2**31 - 1
RISE = 50
CYCLES = optax_clr.Cycles(2 * RISE)
RATE = optax_clr.triangular_schedule(0.01, 0.1, rise_steps=RISE)
MOMENTUM = optax_clr.triangular_schedule(0.95, 0.85, rise_steps=RISE)
OPTIMIZER = optax.chain(
    optax_clr.inject_schedules(optax.sgd)(learning_rate=RATE, momentum=MOMENTUM),
    optax_clr.average_at_cycle_ends(CYCLES),
)
PARAMS = {"weights": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "bias": jnp.float32(0.5)}


@jax.jit
def train_step(params, state):
    gradients = jax.tree.map(lambda leaf: jnp.sin(3 * leaf) + leaf, params)
    updates, state = OPTIMIZER.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def train(params, state, num_steps):
    """Return params, state and the hyperparameters of each step."""
    log = []
    for _ in range(num_steps):
        params, state = train_step(params, state)
        log.append(optax_clr.get_hyperparams(state))
    return params, state, log


def saved_and_restored(tree):
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(tree))
    file.seek(0)
    with np.load(file) as saved:
        leaves = [jnp.asarray(saved[name]) for name in saved.files]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def same_bits(first, second):
    def same(one, other):
        one, other = np.asarray(one), np.asarray(other)
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())

    return jax.tree.all(jax.tree.map(same, first, second))


@pytest.mark.slow
def test_a_process_that_is_killed_resumes_bit_for_bit():
    """The benchmark itself: two kills, each after some lines of the log."""
    finished = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "2", "--steps", "80", "--schedules", "triangular2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-2].split()[:3] == ["all", "equal", "2"]


@pytest.mark.parametrize("stop", [1, 49, 50, 99, 100, 130])  # about the ends of rise and cycle
def test_a_state_restored_from_a_file_goes_on_bit_for_bit(stop):
    straight = train(PARAMS, OPTIMIZER.init(PARAMS), 220)
    params, state, log = train(PARAMS, OPTIMIZER.init(PARAMS), stop)
    *after, rest = train(*saved_and_restored((params, state)), 220 - stop)
    assert same_bits(straight, (*after, log + rest))


def test_a_run_that_lost_its_optimizer_state_is_told_apart():
    """Or the comparisons above could not fail."""
    straight = train(PARAMS, OPTIMIZER.init(PARAMS), 120)
    params, _, log = train(PARAMS, OPTIMIZER.init(PARAMS), 70)
    moved = optax_clr.set_step(OPTIMIZER.init(PARAMS), 70)  # the same rates, not the same trace
    *after, rest = train(params, moved, 50)
    assert same_bits(straight[2], log + rest)
    assert not same_bits(straight[0], after[0])
    assert not same_bits(straight[2][70:], train(params, OPTIMIZER.init(PARAMS), 50)[2])


def test_counters_stay_at_the_last_step_and_the_run_goes_on():
    first = LAST - 60  # a cycle ends 12 steps later
    state = optax_clr.set_step(OPTIMIZER.init(PARAMS), first)
    params, state, log = train(PARAMS, state, 55)
    averaged = optax_clr.averaged_params(state)
    params, state, rest = train(*saved_and_restored((params, state)), 55)  # 50 steps too far

    for done, values in enumerate(log + rest):
        step = min(first + done, LAST)
        rate = exact.cyclical(step, float(np.float32(0.01)), float(np.float32(0.1)), RISE, RISE)
        np.testing.assert_allclose(values["learning_rate"], float(rate), rtol=1e-6)
        assert values["momentum"] == jax.jit(MOMENTUM)(step)
    counters = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32]
    assert sorted(map(int, counters)) == [1, LAST, LAST, LAST, LAST]  # one end was averaged
    assert same_bits(averaged, optax_clr.averaged_params(state))
    assert not same_bits(averaged, params)
