"""Long tests, long runs, many lanes: programs of one size, compiled once, that leave nothing."""

import gc
import logging
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import exact
import optax_clr

pytestmark = pytest.mark.usefixtures("optax_promotion")

TRUE_WEIGHTS = np.linspace(-1, 1, 4, dtype=np.float32)
PARAMS = {"weights": jnp.zeros(4), "bias": jnp.float32(0)}
NUM_STEPS = 30
INPUTS = np.random.default_rng(0).standard_normal((NUM_STEPS, 8, 4), np.float32)
BATCHES = INPUTS, INPUTS @ TRUE_WEIGHTS
RATE = optax_clr.triangular2_schedule(1e-3, 1e-1, rise_steps=2000)


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params["weights"] + params["bias"] - targets) ** 2)


def batch_at(step):
    inputs = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (8, 4))
    return inputs, inputs @ TRUE_WEIGHTS


def run_test(bias, batches=batch_at, num_steps=NUM_STEPS, loss_fn=loss_fn):
    params = PARAMS | {"bias": jnp.asarray(bias, jnp.float32)}
    return optax_clr.lr_range_test(
        loss_fn, params, optax.sgd, batches, num_steps=num_steps, max_lr=1e-2
    )


def train(params, num_steps):
    """Descend a quadratic, the rate on a schedule."""
    optimizer = optax_clr.inject_schedules(optax.sgd)(learning_rate=RATE)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params - 1, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)[0]


# ---------------------------------------------------------------------------------------- size


def num_equations(jaxpr):
    """Those of the program, of its loops and of its branches."""
    parts = jax.tree.leaves([equation.params for equation in jaxpr.eqns])
    inner = [getattr(part, "jaxpr", part) for part in parts]
    return len(jaxpr.eqns) + sum(num_equations(part) for part in inner if hasattr(part, "eqns"))


def result_of(start, num_rows):
    column = jnp.linspace(start, 2.0, num_rows)
    return optax_clr.RangeTestResult(column, column, column, jnp.int32(num_rows))


def repeated(num_steps):
    return tuple(jnp.resize(part, (num_steps, *part.shape[1:])) for part in BATCHES)


SIZED = {
    "traced": (lambda bias, n: run_test(bias, num_steps=n), (100, 100_000)),
    "stacked": (lambda bias, n: run_test(bias, repeated(n), n), (100, 10_000)),
    "lanes": (lambda bias, n: jax.vmap(run_test)(jnp.linspace(0.0, bias, n)), (2, 256)),
    "schedule": (lambda start, n: train(jnp.full(3, start), n), (100, 1_000_000)),
    "reading": (lambda start, n: result_of(start, n).bounds(), (100, 100_000)),
}


@pytest.mark.parametrize("name", SIZED)
def test_the_traced_program_does_not_grow(name):
    function, sizes = SIZED[name]
    small, large = (
        num_equations(jax.make_jaxpr(function, static_argnums=1)(1.0, size).jaxpr) for size in sizes
    )
    assert small == large > 10


def test_a_traced_test_needs_memory_for_its_rows_only():
    def needed(num_steps):
        sizes = jax.jit(lambda bias: run_test(bias, num_steps=num_steps)).lower(0.0).compile()
        sizes = sizes.memory_analysis()
        if sizes is None:
            pytest.skip("this backend tells no sizes")
        return sizes.output_size_in_bytes, sizes.temp_size_in_bytes

    (small, small_working), (large, large_working) = needed(1000), needed(5000)
    assert large - small == 4000 * 4 * 4  # rates, losses, smoothed losses, equivalent steps
    assert large_working - small_working < 4000 * 4 * 8


# -------------------------------------------------------------------------------------- length


def test_twenty_thousand_steps_have_as_many_rows():
    result = run_test(0.0, num_steps=20_000)
    assert int(result.num_valid) == 20_000
    assert np.isfinite(result.losses).all()
    assert result.losses[-100:].mean() < 1e-3 * result.losses[0]


def test_the_rate_after_a_million_steps_of_a_scan_is_exact():
    _, state = jax.jit(train, static_argnums=1)(jnp.zeros(3), 1_000_000)
    rate = exact.cyclical(
        999_999, *map(float, np.float32([1e-3, 1e-1])), 2000, 2000,
        scale=lambda cycle, step: exact.as_decimal(0.5) ** cycle,
    )  # fmt: skip
    assert int(state.count) == 1_000_000
    np.testing.assert_allclose(
        optax_clr.get_hyperparams(state)["learning_rate"], float(rate), rtol=1e-6
    )


# ------------------------------------------------------------------------------------ left over

over_lanes = jax.jit(jax.vmap(run_test))
descend = jax.jit(train, static_argnums=1)
read = jax.jit(lambda result: (result.bounds(), result.suggest(), result.one_cycle_peak()))
RESULT = result_of(1.0, 50)
CALLS = {
    "stacked": lambda: run_test(0.0, BATCHES),
    "traced": lambda: run_test(0.0),
    "streamed": lambda: run_test(0.0, list(zip(*BATCHES, strict=True))),
    "lanes": lambda: over_lanes(np.linspace(0, 1, 3, dtype=np.float32)),
    "schedule": lambda: descend(PARAMS["weights"], 10),
    "reading": lambda: read(RESULT),
}


def kept():
    gc.collect()
    arrays = jax.live_arrays()
    return len(arrays), sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_the_same_shapes_compile_nothing_and_leave_nothing(name, caplog):
    call = CALLS[name]
    jax.block_until_ready(call())
    before = kept()
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        for _ in range(5):
            jax.block_until_ready(call())
        assert "Compiling" not in caplog.text
        assert kept() == before
        held = call()
        jax.jit(lambda x: x + 17)(3.0)
    # Or the lines above could not fail.
    assert "Compiling" in caplog.text
    assert kept()[0] > before[0]
    del held


def test_reading_what_is_known_compiles_nothing(caplog):
    rates = jnp.geomspace(1e-3, 10.0, 111)  # a length that no other test has
    losses = jnp.square(jnp.log10(rates) + 1)
    result = jax.block_until_ready(optax_clr.RangeTestResult(rates, losses, losses, jnp.int32(111)))
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        for reading in (result.suggest, result.one_cycle_peak, result.bounds, result.summary):
            reading()
        assert "Compiling" not in caplog.text
        read(result)
    assert "Compiling" in caplog.text


def bare_loop(closure):
    """A loop of plain JAX that calls a function of the caller, as a range test does."""
    step = jax.jit(lambda total: total + closure(PARAMS, (INPUTS[0], BATCHES[1][0])))
    return jax.eval_shape(lambda: jax.lax.fori_loop(0, 3, lambda _, total: step(total), 0.0))


def test_what_a_function_closes_over_is_let_go_after_eight_others():
    def is_let_go(trace):
        def trace_with_closure(number):
            array = jnp.full(100, 1.0 + number)
            trace(lambda params, batch: loss_fn(params, batch) + array.mean())
            return weakref.ref(array)

        first, *_ = [trace_with_closure(number) for number in range(9)]
        gc.collect()
        return first() is None

    if not is_let_go(bare_loop):
        pytest.skip("JAX itself keeps it")  # as 0.4.35 does, until jax.clear_caches()
    assert is_let_go(lambda closure: jax.eval_shape(lambda: run_test(0.0, loss_fn=closure)))
