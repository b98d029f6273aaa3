"""The compiled loop: what its program looks like, and what it leaves alone."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import optax_clr
from forms import mostly_slow

pytestmark = pytest.mark.usefixtures("optax_promotion")

NUM_ROWS = 997  # a prime number: the last chunk is not full
INPUTS = jax.random.normal(jax.random.key(0), (NUM_ROWS, 16, 4))
TARGETS = INPUTS.sum(-1)
PARAMS = {"hidden": 0.5 * jnp.ones((4, 8)), "out": jnp.linspace(-1.0, 1.0, 8)}


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["hidden"]) @ params["out"] - targets) ** 2)


def whole(params, batches, steps_per_value=1):
    return optax_clr.lr_range_test(
        loss_fn, params, optax.adam, batches, max_lr=0.1, steps_per_value=steps_per_value
    )


def compiled_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def trip_counts(text):
    """The number of turns of each loop, None where it is not known."""
    loops = [line for line in text.splitlines() if re.search(r"= .* while\(", line)]
    counts = [re.search(r'"known_trip_count":\{"n":"(\d+)"', line) for line in loops]
    return [None if count is None else int(count[1]) for count in counts]


@pytest.mark.parametrize("steps_per_value", [1, 2])
def test_every_loop_but_the_outer_one_has_a_known_length(steps_per_value):
    counts = trip_counts(
        compiled_text(
            functools.partial(whole, steps_per_value=steps_per_value), PARAMS, (INPUTS, TARGETS)
        )
    )
    # Rows of a chunk, and steps of a row where there are several.
    assert counts.count(None) == 1
    assert 16 <= max(count for count in counts if count is not None) <= 128


def test_what_fits_into_one_chunk_has_no_outer_loop():
    counts = trip_counts(compiled_text(whole, PARAMS, (INPUTS[:40], TARGETS[:40])))
    assert counts == [40]


@functools.cache
def program_for_a_gpu():
    """Lowered for one, without having it."""
    function = jax.jit(lambda *a: whole(*a)[:4])
    return export.export(function, platforms=["cuda"])(PARAMS, (INPUTS, TARGETS)).mlir_module()


def test_the_program_for_a_gpu_reads_no_condition_inside_a_chunk():
    """The inner loop counts to a constant."""
    conditions = re.findall(r"cond \{\n(.*?)\} do", program_for_a_gpu(), flags=re.DOTALL)
    inner = [condition for condition in conditions if "stablehlo.and" not in condition]
    assert len(conditions) - len(inner) == 1
    assert inner
    for condition in inner:
        # Nothing but the counter and a constant.
        assert set(re.findall(r"stablehlo\.(\w+)", condition)) <= {"constant", "compare", "return"}


def test_the_program_for_a_gpu_asks_nothing_of_the_host():
    text = program_for_a_gpu()
    assert "stablehlo.while" in text
    assert not re.findall(r"callback|infeed|outfeed|stablehlo\.(?:send|recv)", text)


@pytest.mark.parametrize(
    "num_rows",
    mostly_slow([2, 63, 64, 65, 127, 128, 129, 300, 997], usual=[2, 64, 65, 127, 128, 129, 997]),
)
def test_rows_of_any_number_are_those_of_a_plain_loop(num_rows):
    """The last chunk may have rows that only fill it, which nothing shows."""
    executed = []

    def step_fn(state, batch, value):
        jax.debug.callback(lambda row: executed.append(int(row)), batch)
        return state + value, state * value + batch

    values = np.linspace(1.0, 2.0, num_rows, dtype=np.float32)
    result = optax_clr.range_test(
        step_fn, jnp.float32(0), jnp.arange(num_rows, dtype=jnp.float32), values,
        stop_factor=math.inf,
    )  # fmt: skip
    jax.block_until_ready(result)
    jax.effects_barrier()
    before = np.concatenate([[0], np.cumsum(values[:-1], dtype=np.float64)])
    np.testing.assert_allclose(result.losses, before * values + np.arange(num_rows), rtol=1e-5)
    assert int(result.num_valid) == num_rows
    assert set(executed) == set(range(num_rows))
    assert len(executed) - num_rows < 8


def test_a_grid_ends_with_the_state_after_its_last_step():
    """Also where the last chunk is not full: 131 is a prime number."""

    def loss_fn(params, batch):
        return params * batch

    held_out = jnp.ones(())
    result = optax_clr.lr_grid_test(
        loss_fn, jnp.float32(0.0), optax.sgd, jnp.ones(131), min_lr=0.1, max_lr=1.0,
        num_values=6, num_steps=131, held_out=held_out,
    )  # fmt: skip
    # Each step moves the params down by the rate.
    np.testing.assert_allclose(
        result.held_out_losses, -131 * np.geomspace(0.1, 1.0, 6), rtol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize("num_values", [30, 300])
def test_what_ended_a_test_is_in_its_result(num_values):
    values = np.geomspace(1e-3, 10.0, num_values)
    run = lambda scale: optax_clr.range_test(
        lambda state, batch, value: (state, jnp.exp(scale * value)),
        0.0,
        np.ones(num_values),
        values,
    )
    assert int(run(0.0).ended_by) == 0
    assert int(run(1000.0).ended_by) == 1
    assert jax.vmap(run)(jnp.array([0.0, 1000.0])).ended_by.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("losses", "num_valid"),
    [
        (np.r_[np.linspace(2, 1, 64), 1 + 1e10 * 3.0 ** np.arange(55)], 67),
        (np.r_[np.linspace(2, 1, 30), [3e38] * 98], 33),
        (np.r_[np.linspace(2, 1, 30), [3e38, -3e38] * 30], 90),
    ],
)
def test_what_overflows_leaves_the_rows_before_it_alone(losses, num_valid):
    step_fn = lambda state, batch, value: (state, batch + 0 * value)
    values = np.geomspace(1e-3, 1.0, len(losses))
    result = optax_clr.range_test(step_fn, 0.0, np.float32(losses), values)
    assert int(result.num_valid) == num_valid
    never = optax_clr.range_test(step_fn, 0.0, np.float32(losses), values, stop_factor=math.inf)
    assert int(never.num_valid) == np.isfinite(np.float32(losses)).sum()
    assert np.isfinite(never.smoothed_losses[: int(never.num_valid)]).all()
