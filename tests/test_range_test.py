"""The range test against a plain loop, against theory, and against itself."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_clr
from forms import mostly_slow
from optax_clr import _batches
from plain import train_step

pytestmark = pytest.mark.usefixtures("optax_promotion")

NUM_STEPS = 120
INPUTS = jax.random.normal(jax.random.key(0), (NUM_STEPS, 16, 4))
TARGETS = jnp.tanh(INPUTS @ jnp.array([1.0, -2.0, 0.5, 3.0])) + 0.1 * jax.random.normal(
    jax.random.key(1), (NUM_STEPS, 16)
)
BATCHES = {"inputs": INPUTS, "targets": TARGETS}
PARAMS = {
    "hidden": 0.5 * jax.random.normal(jax.random.key(2), (4, 8)),
    "out": 0.5 * jax.random.normal(jax.random.key(3), (8,)),
}


def loss_fn(params, batch):
    predictions = jnp.tanh(batch["inputs"] @ params["hidden"]) @ params["out"]
    return jnp.mean((predictions - batch["targets"]) ** 2)


def batch_at(step):
    return jax.tree.map(lambda leaf: leaf[step], BATCHES)


def scripted_step(state, batch, value):
    """A training step whose loss is whatever the batch says."""
    return state + 1, batch + 0 * value


def run_script(losses, **kwargs):
    losses = jnp.asarray(losses, jnp.float32)
    values = jnp.geomspace(1e-3, 1.0, len(losses))
    return optax_clr.range_test(scripted_step, jnp.float32(0), losses, values, **kwargs)


# -------------------------------------------------------------------------- against a plain loop


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd,
        optax.adamw,
        optax.lion,
        lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate, momentum=0.9)),
    ],
    ids=["sgd", "adamw", "lion", "chain"],
)
def test_rows_are_those_of_a_loop_that_anyone_would_write(optimizer):
    result = optax_clr.lr_range_test(loss_fn, PARAMS, optimizer, BATCHES, max_lr=0.1)

    rates = 1e-7 * (0.1 / 1e-7) ** (np.arange(NUM_STEPS) / (NUM_STEPS - 1))
    params, state, losses = PARAMS, optimizer(0.1).init(PARAMS), []
    for step, rate in enumerate(rates):
        batch = batch_at(step)
        params, state, loss = train_step(loss_fn, optimizer, params, state, batch, rate)
        losses.append(float(loss))

    assert result.num_valid == NUM_STEPS
    np.testing.assert_allclose(result.learning_rates, rates, rtol=1e-6)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-4)


def test_what_numpy_does_on_underflow_does_not_matter():
    losses = jnp.linspace(2.0, 1.0, 50)
    with np.errstate(all="raise"):
        result = run_script(losses, smoothing=3e-9)
    np.testing.assert_allclose(result.smoothed_losses, losses, rtol=1e-6)


def test_smoothing_is_the_debiased_average_of_fastai():
    losses = np.random.default_rng(0).normal(size=50)
    result = run_script(losses, smoothing=0.9, stop_factor=math.inf)

    average, expected = 0.0, []
    for i, loss in enumerate(losses):
        average = 0.9 * average + 0.1 * loss
        expected.append(average / (1 - 0.9 ** (i + 1)))
    np.testing.assert_allclose(result.smoothed_losses, expected, rtol=1e-4, atol=1e-6)


def test_lanes_may_have_smoothings_of_their_own():
    losses = np.random.default_rng(0).uniform(1, 2, size=100)
    lanes = jax.vmap(lambda each: run_script(losses, smoothing=each))(jnp.array([0.0, 0.5, 0.98]))
    for lane, smoothing in enumerate([0.0, 0.5, 0.98]):
        single = run_script(losses, smoothing=smoothing)
        assert lanes.num_valid[lane] == single.num_valid
        np.testing.assert_allclose(lanes.smoothed_losses[lane], single.smoothed_losses, rtol=1e-5)


def test_without_smoothing_the_curves_are_the_same():
    result = run_script(np.linspace(2, 1, 30), smoothing=0.0)
    np.testing.assert_array_equal(result.smoothed_losses, result.losses)


@pytest.mark.parametrize(
    ("spacing", "expected"), [("log", [1e-4, 1e-3, 1e-2, 1e-1]), ("linear", None)]
)
def test_rates_are_spaced_as_asked(spacing, expected):
    batches = jax.tree.map(lambda leaf: leaf[:4], BATCHES)
    result = optax_clr.lr_range_test(
        loss_fn, PARAMS, optax.sgd, batches, min_lr=1e-4, max_lr=1e-1, spacing=spacing
    )
    expected = np.linspace(1e-4, 1e-1, 4) if expected is None else expected
    np.testing.assert_allclose(result.learning_rates, expected, rtol=1e-6)


@pytest.mark.parametrize("test", [optax_clr.lr_range_test, optax_clr.lr_grid_test])
def test_rates_go_from_1e_7_to_10_unless_said_otherwise(test):
    always = lambda params, batch: jnp.float32(1) + 0 * params.sum()
    rates = test(always, jnp.ones(2), optax.sgd, BATCHES).learning_rates
    np.testing.assert_allclose(rates[jnp.array([0, -1])], [1e-7, 10.0], rtol=1e-6)
    assert len(rates) == (17 if test is optax_clr.lr_grid_test else NUM_STEPS)


def test_a_traced_batch_function_gives_the_stacked_curve():
    stacked = optax_clr.lr_range_test(loss_fn, PARAMS, optax.adam, BATCHES, max_lr=0.1)
    traced = optax_clr.lr_range_test(
        loss_fn, PARAMS, optax.adam, batch_at, max_lr=0.1, num_steps=NUM_STEPS
    )
    np.testing.assert_allclose(traced.losses, stacked.losses, rtol=1e-6)


def test_each_value_is_held_for_several_steps():
    held = optax_clr.lr_range_test(
        loss_fn, PARAMS, optax.sgd, BATCHES, max_lr=0.1, steps_per_value=4
    )
    rates = np.repeat(np.asarray(held.learning_rates), 4)
    every = optax_clr.range_test(
        lambda params, batch, rate: _sgd_step(params, batch, rate), PARAMS, BATCHES, rates
    )
    assert held.losses.shape == (NUM_STEPS // 4,)
    expected = np.asarray(every.losses).reshape(-1, 4).mean(1)
    np.testing.assert_allclose(held.losses, expected, rtol=1e-5)


# -------------------------------------------------------------------------- the held-out batch

HELD_OUT = {"inputs": INPUTS[:3].reshape(-1, 4) + 0.1, "targets": TARGETS[:3].ravel()}


@pytest.mark.parametrize("steps_per_value", [1, 4])
def test_the_held_out_loss_is_that_after_each_row(steps_per_value):
    result = optax_clr.lr_range_test(
        loss_fn, PARAMS, optax.adam, BATCHES,
        max_lr=0.1, held_out=HELD_OUT, steps_per_value=steps_per_value,
    )  # fmt: skip
    params, state, expected = PARAMS, optax.adam(0.1).init(PARAMS), []
    rates = np.geomspace(1e-7, 0.1, NUM_STEPS // steps_per_value)
    for step, rate in enumerate(np.repeat(rates, steps_per_value)):
        batch = batch_at(step)
        params, state, _ = train_step(loss_fn, optax.adam, params, state, batch, rate)
        expected.append(float(loss_fn(params, HELD_OUT)))
    np.testing.assert_allclose(
        result.held_out_losses, expected[steps_per_value - 1 :: steps_per_value], rtol=1e-4
    )


def test_training_is_the_same_with_a_held_out_batch():
    run = lambda **options: optax_clr.lr_range_test(
        loss_fn, PARAMS, optax.sgd, BATCHES, max_lr=1e4, **options
    )
    plain, judged = run(), run(held_out=HELD_OUT)
    assert plain.held_out_losses == ()
    assert plain.num_valid == judged.num_valid < NUM_STEPS  # and it diverged
    for field in ("learning_rates", "losses", "smoothed_losses", "equivalent_steps"):
        np.testing.assert_allclose(getattr(plain, field), getattr(judged, field), rtol=1e-4)
    assert np.isnan(judged.held_out_losses[int(judged.num_valid) :]).all()


def test_the_readings_read_the_held_out_losses():
    result = optax_clr.lr_range_test(
        loss_fn, PARAMS, optax.sgd, BATCHES, min_lr=1e-3, max_lr=1e3, held_out=HELD_OUT
    )
    plain = result._replace(losses=result.held_out_losses, held_out_losses=())
    assert result.bounds() == plain.bounds()


def test_held_out_losses_are_streamed_and_shown_alike():
    run = lambda batches, **options: optax_clr.lr_range_test(
        loss_fn, PARAMS, optax.adam, batches, num_steps=NUM_STEPS, held_out=HELD_OUT, **options
    )
    expected = run(BATCHES)
    stream = [jax.tree.map(lambda leaf, step=step: np.asarray(leaf[step]), BATCHES)
              for step in range(NUM_STEPS)]  # fmt: skip
    for result in (run(stream), run(BATCHES, progress=True), run(batch_at)):
        for field in ("held_out_losses", "equivalent_steps"):
            np.testing.assert_allclose(getattr(result, field), getattr(expected, field), rtol=1e-5)


def test_lanes_have_held_out_losses_of_their_own():
    run = lambda decay: optax_clr.lr_range_test(
        loss_fn, PARAMS, lambda rate: optax.adamw(rate, weight_decay=decay), BATCHES,
        max_lr=1.0, held_out=HELD_OUT,
    )  # fmt: skip
    decays = jnp.array([0.0, 1.0])
    lanes = jax.vmap(run)(decays)
    for lane, decay in enumerate(decays):
        np.testing.assert_allclose(
            lanes.held_out_losses[lane], run(decay).held_out_losses, rtol=1e-2
        )


# ---------------------------------------------------------------------------- equivalent steps


@pytest.mark.parametrize("values", [np.geomspace(1e-4, 1.0, 40), np.linspace(1.0, 0.1, 40)])
@pytest.mark.parametrize("steps_per_value", [1, 3])
def test_training_so_far_is_counted_in_steps_at_the_rate_of_the_row(values, steps_per_value):
    result = optax_clr.range_test(
        scripted_step, jnp.float32(0), jnp.ones(120), values,
        steps_per_value=steps_per_value, stop_factor=math.inf,
    )  # fmt: skip
    expected = [steps_per_value * sum(values[: row + 1]) / values[row] for row in range(40)]
    np.testing.assert_allclose(result.equivalent_steps, expected, rtol=1e-5)


def _sgd_step(params, batch, rate):
    loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
    return jax.tree.map(lambda p, g: p - rate * g, params, gradients), loss


def test_what_is_passed_may_be_written_to_when_a_test_has_returned():
    """Although XLA's CPU backend reads the arrays of NumPy where they are, and computes later."""
    params = {name: np.array(leaf) for name, leaf in PARAMS.items()}
    batches = {name: np.array(leaf) for name, leaf in BATCHES.items()}
    held_out = {name: np.array(leaf[0]) for name, leaf in BATCHES.items()}
    test = functools.partial(optax_clr.lr_range_test, loss_fn, optimizer=optax.adam, max_lr=0.1)
    expected = test(PARAMS, batches=BATCHES, held_out=batch_at(0))
    for _ in range(3):
        result = test(params, batches=batches, held_out=held_out)
        saved = jax.tree.map(np.copy, (params, batches, held_out))
        jax.tree.map(lambda leaf: leaf.fill(np.nan), (params, batches, held_out))
        np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-5)
        np.testing.assert_allclose(result.held_out_losses, expected.held_out_losses, rtol=1e-5)
        jax.tree.map(np.copyto, (params, batches, held_out), saved)


def test_of_a_file_only_what_is_used_is_read(tmp_path):
    shape = (100_000, 16, 4)
    whole = np.memmap(tmp_path / "inputs", np.float64, "w+", shape=shape)  # 50 MB, of holes
    whole[:NUM_STEPS] = INPUTS
    targets = np.zeros((100_000, 16))
    targets[:NUM_STEPS] = TARGETS
    source = _batches.open_batches((whole, targets), NUM_STEPS, 1)
    assert [leaf.shape[0] for leaf in jax.tree.leaves(source.arrays)] == [NUM_STEPS, NUM_STEPS]
    result = optax_clr.lr_range_test(
        loss_fn, PARAMS, optax.adam, {"inputs": whole, "targets": targets},
        num_steps=NUM_STEPS, max_lr=0.1,
    )  # fmt: skip
    expected = optax_clr.lr_range_test(loss_fn, PARAMS, optax.adam, BATCHES, max_lr=0.1)
    np.testing.assert_array_equal(result.losses, expected.losses)


def test_a_function_may_give_batches_with_names():
    named = lambda params, batch: loss_fn(params, batch["data"]) * (batch["name"] == "train")
    given = lambda step: {"data": batch_at(step), "name": "train"}
    test = functools.partial(optax_clr.lr_range_test, optimizer=optax.adam, max_lr=0.1)
    result = test(named, PARAMS, batches=given, num_steps=NUM_STEPS)
    np.testing.assert_allclose(result.losses, test(loss_fn, PARAMS, batches=BATCHES).losses)


@pytest.mark.parametrize(
    "wrap", [lambda inner: inner, lambda inner: optax.apply_if_finite(inner, 3)]
)
@pytest.mark.usefixtures("optax_promotion")
def test_a_rate_that_each_update_takes_anew_may_be_injected(wrap):
    """Only at first is it that of the state; an injected number stays, and is refused."""
    inject = optax_clr.inject_schedules(optax.adam)
    scheduled = lambda rate: wrap(inject(learning_rate=lambda _: rate))
    test = functools.partial(optax_clr.lr_range_test, loss_fn, PARAMS, batches=BATCHES, max_lr=0.1)
    plain = test(optimizer=optax.adam)
    np.testing.assert_allclose(test(optimizer=scheduled).losses, plain.losses, rtol=1e-4)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, np.int32, ">f8", np.longdouble])
def test_values_of_any_dtype_are_float32(dtype, as_list):
    values = np.arange(1, 301).astype(dtype)
    values = list(values) if as_list else values
    result = optax_clr.range_test(scripted_step, jnp.float32(0), jnp.ones(300), values)
    assert result.learning_rates.dtype == result.equivalent_steps.dtype == jnp.float32
    exact = np.asarray(values, np.float64)
    np.testing.assert_allclose(result.equivalent_steps, np.cumsum(exact) / exact, rtol=1e-5)


def test_metrics_are_recorded_as_floats():
    def with_metrics(params, batch):
        predictions = jnp.tanh(batch["inputs"] @ params["hidden"]) @ params["out"]
        right = jnp.sum(jnp.sign(predictions) == jnp.sign(batch["targets"]))
        half = predictions.astype(jnp.bfloat16)
        return loss_fn(params, batch), {"right": right, "predictions": predictions, "half": half}

    result = optax_clr.lr_range_test(
        with_metrics, PARAMS, optax.sgd, BATCHES, has_aux=True, max_lr=1e4
    )
    plain = optax_clr.lr_range_test(loss_fn, PARAMS, optax.sgd, BATCHES, max_lr=1e4)

    valid = int(result.num_valid)
    assert 0 < valid < NUM_STEPS
    np.testing.assert_array_equal(result.losses[: valid - 5], plain.losses[: valid - 5])
    right = result.metrics["right"]
    assert right.dtype == result.metrics["half"].dtype == jnp.float32
    assert set(np.asarray(right[:valid])) <= set(range(17))
    assert np.isnan(right[valid:]).all()
    assert result.metrics["predictions"].shape == (NUM_STEPS, 16)
    assert np.isnan(result.metrics["predictions"][valid:]).all()
    assert plain.metrics == ()


@pytest.mark.parametrize("count", [2**24, 2**40, np.int64(2**40), np.uint32(2**31), True])
def test_metrics_that_are_known_numbers_are_recorded(count):
    step_fn = lambda state, batch, value: (state, (state * value, count))
    result = optax_clr.range_test(step_fn, 1.0, jnp.ones(3), [0.1, 0.2, 0.3], has_aux=True)
    np.testing.assert_array_equal(result.metrics, np.full(3, count, np.float32))


# ------------------------------------------------------------------------------------ stopping


def quadratic_test(curvature, num_steps, *, constant=0.0, factor=1.0, **kwargs):
    """Gradient descent on a quadratic whose minimum each batch moves a little."""

    def step_fn(position, noise, rate):
        gradient = curvature * (position - noise)
        loss = 0.5 * jnp.sum(curvature * (position - noise) ** 2)
        return position - rate * gradient, factor * (loss + constant)

    noise = 0.1 * jax.random.normal(jax.random.key(7), (num_steps, *jnp.shape(curvature)))
    values = jnp.geomspace(0.02 / jnp.max(curvature), 200 / jnp.max(curvature), num_steps)
    return optax_clr.range_test(step_fn, jnp.ones_like(curvature), noise, values, **kwargs)


@pytest.mark.parametrize("constant", [0.0, 50.0, -50.0])
@pytest.mark.parametrize("curvature", [jnp.float32(1e-2), jnp.float32(30.0), jnp.array([1.0, 9.0])])
def test_the_test_stops_where_gradient_descent_must_diverge(curvature, constant):
    result = quadratic_test(curvature, 20_000, constant=constant)
    last = result.learning_rates[result.num_valid - 1]
    limit = 2 / jnp.max(curvature)
    assert 1.0 < last / limit < 1.05


@pytest.mark.parametrize(
    ("constant", "factor"), [(8.0, 1.0), (-8.0, 1.0), (0.0, 1e15), (0.0, 1e-15)]
)
def test_a_constant_or_a_factor_in_the_loss_does_not_move_the_stop(constant, factor):
    plain = quadratic_test(jnp.float32(2.0), 1000)
    changed = quadratic_test(jnp.float32(2.0), 1000, constant=constant, factor=factor)
    assert 300 < plain.num_valid < 1000
    assert abs(int(plain.num_valid) - int(changed.num_valid)) <= 1


def test_rows_after_the_stop_are_padding():
    result = quadratic_test(jnp.float32(2.0), 1000)
    valid = int(result.num_valid)
    for column in (result.learning_rates, result.losses, result.smoothed_losses):
        assert np.isfinite(column[:valid]).all()
        assert np.isnan(column[valid:]).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 1, 17, 63, 64, 90])
def test_losses_that_are_not_finite_from_a_row_on_end_the_test_and_are_no_rows(bad, row):
    losses = np.linspace(2, 1, 150)
    losses[row:] = bad
    result = run_script(losses, stop_factor=math.inf)
    assert result.num_valid == row
    assert result.ended_by == 1
    assert np.isnan(result.losses[row:]).all()
    np.testing.assert_array_equal(result.losses[:row], np.float32(losses[:row]))


@pytest.mark.parametrize("rows", [[0], [1, 2], [62, 65], [63, 64], [90, 91, 93], [148, 149]])
def test_one_or_two_losses_that_are_not_finite_are_a_gap(rows):
    losses = np.linspace(2, 1, 150)
    losses[rows] = [math.nan, math.inf, -math.inf][: len(rows)]
    result = run_script(losses, stop_factor=math.inf)
    assert result.num_valid == 150
    assert result.ended_by == 0
    np.testing.assert_array_equal(result.losses, np.float32(losses))
    # The average goes on without them.
    known = np.isfinite(losses)
    weights = np.where(known, 0.98 ** -np.arange(150.0), 0)
    sums = np.cumsum(weights * np.where(known, losses, 0)), np.cumsum(weights)
    expected = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    np.testing.assert_allclose(result.smoothed_losses[sums[1] > 0], expected, rtol=1e-5)


@pytest.mark.parametrize("factor", [10.0, 1e3, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("row", [30, 60, 63, 64, 100, 250])
def test_one_bad_batch_does_not_end_a_test(factor, row):
    noise = np.random.default_rng(row).normal(size=300)
    losses = 2.3 + 0.1 * noise
    losses[150:] -= np.linspace(0, 2, 150)
    losses[row] *= factor
    assert run_script(losses).num_valid == 300


def test_several_high_losses_in_a_row_end_a_test():
    losses = 2.3 + 0.1 * np.random.default_rng(0).normal(size=300)
    losses[100:106] *= 10.0
    assert run_script(losses).num_valid == 103


@pytest.mark.parametrize("level", [3.0, 0.0, -1e3])
def test_noise_around_a_level_is_no_divergence(level):
    noise = np.random.default_rng(0).normal(size=(20, 400))
    for losses in level + noise:
        assert run_script(losses).num_valid == 400


def test_a_low_first_loss_is_no_divergence():
    """After it the average rises for a while, and the noise downward has not been seen yet."""
    noise = np.random.default_rng(0).normal(size=(200, 60))
    noise[:, 0] = -3.0
    curves = jnp.asarray(4 + 0.1 * noise, jnp.float32)
    assert (jax.vmap(run_script)(curves).num_valid == 60).all()


def test_a_spike_is_no_divergence_and_a_rise_is_one():
    falling = np.concatenate([np.linspace(2.0, 1.0, 200), np.full(200, 1.0)])
    falling += 0.05 * np.random.default_rng(0).normal(size=400)
    spike = falling.copy()
    spike[300] += 20.0
    risen = np.concatenate([falling, np.linspace(1.0, 5.0, 200)])
    assert run_script(spike).num_valid == 400
    assert 400 < run_script(risen).num_valid < 600


def test_the_first_row_that_can_end_a_test_comes_after_twenty():
    losses = [*np.linspace(2, 1, 20), *[100.0] * 20]
    assert int(run_script(losses, smoothing=0.0).num_valid) == 23  # three in a row


def test_a_larger_stop_factor_stops_later_and_infinity_never():
    stops = [
        int(quadratic_test(jnp.float32(2.0), 300, stop_factor=factor).num_valid)
        for factor in (0.5, 1.0, 10.0, math.inf)
    ]
    assert stops == sorted(set(stops))
    of_numpy = quadratic_test(jnp.float32(2.0), 300, stop_factor=np.float32(math.inf))
    assert int(of_numpy.num_valid) == stops[-1]


def test_after_divergence_no_more_than_the_rest_of_a_chunk_is_trained():
    executed = []

    def step_fn(state, batch, value):
        jax.debug.callback(executed.append, batch)
        return state, jnp.where(batch < 10, 1.0, jnp.nan) + value

    result = optax_clr.range_test(step_fn, jnp.zeros(()), jnp.arange(5000), jnp.ones(5000))
    jax.effects_barrier()
    assert int(result.num_valid) == 10
    assert 11 <= len(executed) <= 128
    assert np.isnan(result.losses[10:]).all()


# -------------------------------------------------------------------------- purity and compiling


def counted(function):
    """The function, and the list that grows whenever it is traced."""
    traces = []

    def wrapper(*args):
        traces.append(None)
        return function(*args)

    return wrapper, traces


@pytest.mark.parametrize("steps_per_value", [1, 3])
@pytest.mark.parametrize("batches", [BATCHES, batch_at], ids=["stacked", "traced"])
def test_the_step_is_traced_once_and_a_second_call_compiles_nothing(batches, steps_per_value):
    counted_loss, traces = counted(loss_fn)
    run = functools.partial(
        optax_clr.lr_range_test, counted_loss, PARAMS, optax.adam, batches,
        num_steps=NUM_STEPS, steps_per_value=steps_per_value,
    )  # fmt: skip
    run()
    assert len(traces) == 1
    run(min_lr=1e-5, max_lr=0.1, smoothing=0.9, stop_factor=3.0)
    assert len(traces) == 1


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="where the host and the device are one")
def test_nothing_is_transferred_to_the_host():
    stacked = jax.device_put((PARAMS, BATCHES, jnp.geomspace(1e-5, 1.0, NUM_STEPS)))
    optax_clr.range_test(_sgd_step, *stacked)  # compiles
    with jax.transfer_guard_device_to_host("disallow"):
        result = optax_clr.range_test(_sgd_step, *stacked)
        jax.block_until_ready(result)


def memory_of(function, *arguments):
    """Bytes of the arguments, and of all else, of the compiled program."""
    sizes = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return sizes.argument_size_in_bytes, sizes.temp_size_in_bytes


def test_it_holds_what_a_bare_scan_of_the_steps_holds():
    """One copy of the state, and of the batches."""

    def bare(params, batches, values):
        def step(carry, row):
            params, state = carry
            batch, rate = row
            loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = optax.adam(rate).update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, optax.adam(0.1).init(params)), (batches, values))[1]

    def test(params, batches, values):
        return optax_clr.lr_range_test(
            loss_fn, params, optax.adam, batches, max_lr=values[-1]
        ).losses

    params = {"hidden": jnp.ones((4, 50_000)), "out": jnp.ones(50_000)}  # 1 MB
    values = jnp.geomspace(1e-5, 0.1, NUM_STEPS)
    (arguments, others), (bare_arguments, bare_others) = (
        memory_of(function, params, BATCHES, values) for function in (test, bare)
    )
    assert arguments == bare_arguments
    assert others < bare_others + 20_000  # the columns of the result, and what they are made from

    traced = lambda params: (
        optax_clr.lr_range_test(
            loss_fn, params, optax.adam, lambda step: make_batch(step), num_steps=NUM_STEPS
        ).losses
    )
    arguments, others = memory_of(traced, params)
    assert arguments == params["hidden"].nbytes + params["out"].nbytes  # no batches among them
    assert others < bare_others + 20_000


def make_batch(step):
    inputs = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (16, 4))
    return {"inputs": inputs, "targets": inputs[:, 0]}


def test_what_the_caller_passed_is_as_it_was():
    before = jax.tree.map(np.array, (PARAMS, BATCHES))
    optax_clr.lr_range_test(loss_fn, PARAMS, optax.adam, BATCHES)
    jax.tree.map(np.testing.assert_array_equal, (PARAMS, BATCHES), before)


def test_it_runs_inside_jit():
    run = lambda params, batches, low: optax_clr.lr_range_test(
        loss_fn, params, optax.sgd, batches, min_lr=low, max_lr=0.1
    )
    inside = jax.jit(run)(PARAMS, BATCHES, 1e-6)
    outside = run(PARAMS, BATCHES, 1e-6)
    np.testing.assert_allclose(inside.losses, outside.losses, rtol=1e-5)
    np.testing.assert_allclose(inside.learning_rates, outside.learning_rates, rtol=1e-5)


def test_a_function_that_cannot_be_hashed_works():
    class Step:
        __hash__ = None

        def __call__(self, state, batch, value):
            return _sgd_step(state, batch, value)

    values = jnp.geomspace(1e-5, 0.1, NUM_STEPS)
    result = optax_clr.range_test(Step(), PARAMS, BATCHES, values)
    assert result.num_valid == NUM_STEPS


def test_the_value_need_not_be_a_rate_nor_rise():
    def step_fn(params, batch, decay):
        updated, loss = _sgd_step(params, batch, 0.01)
        return jax.tree.map(lambda p: p * (1 - decay), updated), loss

    values = np.concatenate([np.linspace(0, 0.1, 60), np.linspace(0.1, 0, 60)])
    result = optax_clr.range_test(step_fn, PARAMS, BATCHES, values)
    np.testing.assert_array_equal(result.learning_rates[:60], np.float32(values[:60]))


def test_bfloat16_params_keep_their_dtype_and_give_float32_rows():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    result = optax_clr.lr_range_test(loss_fn, params, optax.adam, BATCHES, max_lr=0.1)
    assert result.losses.dtype == result.learning_rates.dtype == jnp.float32
    assert result.losses[-10:].mean() < 0.7 * result.losses[:10].mean()


@pytest.mark.filterwarnings("ignore::optax_clr.RangeTestWarning")  # outside of a program
@pytest.mark.parametrize("dtype", mostly_slow([np.float32, np.float64], usual=[np.float64]))
def test_it_runs_under_x64(dtype, x64):
    arrays = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), (PARAMS, BATCHES))
    expected = optax_clr.lr_range_test(loss_fn, PARAMS, optax.adam, BATCHES, max_lr=0.1)
    with x64():
        result = optax_clr.lr_range_test(loss_fn, arrays[0], optax.adam, arrays[1], max_lr=0.1)
        assert result.losses.dtype == dtype
        np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-3)
        inside = jax.jit(lambda result: result.bounds())
        np.testing.assert_allclose(inside(result), expected.bounds(), rtol=0.1)


def test_it_runs_inside_shard_map(one_per_device):
    run = lambda scale: (
        optax_clr.lr_range_test(
            loss_fn, jax.tree.map(lambda p: p * scale, PARAMS), optax.sgd, BATCHES, max_lr=0.1
        ).losses
    )
    sharded = one_per_device(lambda scales: jax.lax.map(run, scales))
    scales = jnp.array([0.5, 1.0])
    np.testing.assert_allclose(jax.jit(sharded)(scales), jax.lax.map(run, scales), rtol=1e-4)


@pytest.mark.skipif(jax.__version_info__ < (0, 7), reason="JAX does not tell what differs")
def test_devices_that_train_one_model_have_one_loss(one_per_device):
    parts = jax.tree.map(lambda leaf: leaf[None], BATCHES)

    def run(loss_fn):
        test = lambda part: optax_clr.lr_range_test(
            loss_fn, PARAMS, optax.sgd, jax.tree.map(lambda leaf: leaf[0], part), max_lr=0.1
        )
        return jax.jit(one_per_device(lambda part: test(part).losses[None]))(parts)

    with pytest.raises(ValueError, match=r"differs along \['device'\], axes of .*pmean\(loss"):
        run(loss_fn)
    mean = run(lambda *arguments: jax.lax.pmean(loss_fn(*arguments), "device"))
    assert mean.shape == (1, NUM_STEPS)


@pytest.mark.skipif(jax.__version_info__ < (0, 7), reason="JAX does not tell what differs")
def test_devices_with_statistics_of_their_own_train_one_model_too(one_per_device):
    """And those that need no other, for all that one may see, may end when they like."""
    rates = jnp.geomspace(1e-3, 0.1, 8)

    def losses(of_all, statistics):
        def step_fn(state, batch, rate):
            weight, statistic = state
            gradient = of_all(weight - batch)
            loss = jnp.square(weight - batch)
            return (weight - rate * gradient, statistic + batch), loss

        state = 0 * statistics if of_all is local else 0.0, statistics
        return optax_clr.range_test(step_fn, state, statistics * jnp.ones(8), rates).losses

    local = lambda gradient: gradient
    run = lambda of_all: jax.jit(one_per_device(lambda columns: losses(of_all, columns[0])[None]))(
        jnp.ones(1)
    )
    assert run(local).shape == (1, 8)
    with pytest.raises(ValueError, match=r"differs along \['device'\]"):
        run(lambda gradient: jax.lax.pmean(gradient, "device"))


def test_no_tracer_is_kept_where_jax_keeps_none():
    with jax.checking_leaks():
        jax.vmap(
            lambda decay: optax_clr.lr_range_test(
                loss_fn, PARAMS, lambda rate: optax.adamw(rate, weight_decay=decay), BATCHES
            )
        )(jnp.array([0.0, 0.1]))


# -------------------------------------------------------------------------------------- sweeps


def test_vmap_over_initialisations_is_the_single_runs():
    scales = jnp.array([0.5, 1.0, 1.5])
    run = lambda scale: optax_clr.lr_range_test(
        loss_fn, jax.tree.map(lambda p: p * scale, PARAMS), optax.adam, BATCHES, max_lr=1.0
    )
    swept = jax.vmap(run)(scales)
    mapped = jax.lax.map(run, scales)
    assert swept.losses.shape == (3, NUM_STEPS)
    for lane, scale in enumerate(scales):
        single = run(scale)
        for sweep in (swept, mapped):
            np.testing.assert_allclose(sweep.losses[lane], single.losses, rtol=1e-3)
            assert sweep.num_valid[lane] == single.num_valid


def test_vmap_over_a_hyperparameter_that_the_optimizer_closes_over():
    decays = jnp.array([0.0, 0.1, 10.0])
    swept = jax.vmap(
        lambda decay: optax_clr.lr_range_test(
            loss_fn, PARAMS, lambda rate: optax.adamw(rate, weight_decay=decay), BATCHES,
            max_lr=0.1,
        )
    )(decays)  # fmt: skip
    for lane, decay in enumerate(decays):
        single = optax_clr.lr_range_test(
            loss_fn, PARAMS, functools.partial(optax.adamw, weight_decay=float(decay)), BATCHES,
            max_lr=0.1,
        )  # fmt: skip
        np.testing.assert_allclose(swept.losses[lane], single.losses, rtol=1e-3)


def test_a_lane_that_has_diverged_is_frozen_and_the_others_go_on():
    curvatures = jnp.array([1.0, 10.0, 100.0])
    values = jnp.geomspace(1e-3, 10.0, 600)
    noise = 0.1 * jax.random.normal(jax.random.key(0), (600,))

    def run(curvature):
        def step_fn(position, batch, rate):
            gradient = curvature * (position - batch)
            return position - rate * gradient, 0.5 * gradient * (position - batch)

        return optax_clr.range_test(step_fn, jnp.float32(1.0), noise, values)

    num_valid = np.asarray(jax.vmap(run)(curvatures).num_valid)
    expected = [int(run(float(curvature)).num_valid) for curvature in curvatures]
    np.testing.assert_array_equal(num_valid, expected)
    assert sorted(set(expected), reverse=True) == expected


def test_results_are_saved_and_read_without_pickle(tmp_path):
    result = optax_clr.lr_range_test(loss_fn, PARAMS, optax.adam, BATCHES)
    np.savez(tmp_path / "result.npz", **result._asdict())
    with np.load(tmp_path / "result.npz", allow_pickle=False) as file:
        loaded = optax_clr.RangeTestResult(**file)
    np.testing.assert_array_equal(loaded.losses, result.losses)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optax_clr.RangeTestWarning)  # of few rows
        assert loaded.bounds() == result.bounds()


def test_a_sweep_that_is_saved_is_read_curve_by_curve(tmp_path):
    """As the page has it: fields without an entry, of what the test does not have, are left out."""
    run = lambda factor: optax_clr.lr_range_test(
        lambda params, batch: factor * loss_fn(params, batch), PARAMS, optax.adam, BATCHES
    )
    sweep = jax.vmap(run)(jnp.arange(1.0, 4.0))
    np.savez(tmp_path / "sweep.npz", **sweep._asdict())
    with np.load(tmp_path / "sweep.npz") as file:
        kept = optax_clr.RangeTestResult(**{name: file[name] for name in file if file[name].size})
    read_each = jax.vmap(lambda lane: lane.suggest())
    np.testing.assert_allclose(read_each(kept), read_each(sweep), rtol=1e-6)
    first = jax.tree.map(lambda column: column[0], kept)
    np.testing.assert_array_equal(first.losses, sweep.losses[0])


@pytest.mark.parametrize("make_optimizer", [optax.sgd, optax.adam])
def test_one_example_that_is_not_finite_is_named(make_optimizer):
    inputs = jax.random.normal(jax.random.key(0), (300, 32, 4))
    targets = inputs.sum(-1) + 0.3 * jax.random.normal(jax.random.key(1), (300, 32))
    poisoned = inputs.at[230, 0, 0].set(jnp.nan), targets

    def squares(params, batch):
        inputs, targets = batch
        return jnp.mean((inputs @ params - targets) ** 2)

    result = optax_clr.lr_range_test(squares, jnp.zeros(4), make_optimizer, poisoned)
    assert result.num_valid == 230
    with pytest.warns(optax_clr.RangeTestWarning, match="suddenly.* example in the data"):
        result.suggest()
