"""Constant rates side by side against a plain loop of Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_clr
from optax_clr._batches import HeldBatches
from plain import train_step

pytestmark = pytest.mark.usefixtures("optax_promotion")

NUM_STEPS, NUM_VALUES = 12, 11
INPUTS = jax.random.normal(jax.random.key(0), (NUM_STEPS, 16, 4))
TARGETS = jnp.tanh(INPUTS.sum(-1)) + 0.1 * jax.random.normal(jax.random.key(1), (NUM_STEPS, 16))
BATCHES = (INPUTS, TARGETS)
HELD_OUT = (INPUTS[::-1, 0] + 0.1, TARGETS[::-1, 0])
PARAMS = {"weights": jnp.linspace(-0.5, 0.5, 4), "bias": jnp.float32(0.2)}
RATES = np.geomspace(1e-3, 10.0, NUM_VALUES)


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["weights"] + params["bias"]) - targets) ** 2)


def run(batches=BATCHES, loss_fn=loss_fn, optimizer=optax.adam, **options):
    options = {"min_lr": 1e-3, "num_values": NUM_VALUES, "num_steps": NUM_STEPS} | options
    return optax_clr.lr_grid_test(loss_fn, PARAMS, optimizer, batches, **options)


def train(rate, optimizer=optax.adam, num_steps=NUM_STEPS):
    """An ordinary training loop: the loss of each step, and the params after it."""
    params, state, losses = PARAMS, optimizer(rate).init(PARAMS), []
    for step in range(num_steps):
        batch = jax.tree.map(lambda leaf, step=step: leaf[step], BATCHES)
        params, state, loss = train_step(loss_fn, optimizer, params, state, batch, rate)
        losses.append(float(loss))
    return np.array(losses), params


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adamw])
def test_every_rate_trains_as_a_plain_loop_does(optimizer):
    result = run(optimizer=optimizer)
    expected = np.array([train(rate, optimizer)[0] for rate in RATES])
    np.testing.assert_allclose(result.learning_rates, RATES, rtol=1e-6)
    np.testing.assert_allclose(result.metrics, expected, rtol=2e-4)
    np.testing.assert_allclose(result.losses, expected[:, -3:].mean(1), rtol=2e-4)  # 12 / 4
    assert int(result.num_valid) == NUM_VALUES


def test_a_held_out_batch_may_be_written_to_when_the_test_has_returned():
    held_out = jax.tree.map(np.array, HELD_OUT)
    result = run(held_out=held_out)
    for part in held_out:
        part[...] = np.nan
    np.testing.assert_array_equal(result.held_out_losses, run(held_out=HELD_OUT).held_out_losses)


def test_one_bad_batch_is_a_gap_at_every_rate():
    inputs, targets = jax.tree.map(np.array, BATCHES)
    inputs[-1, 0] = np.nan
    optimizer = lambda rate: optax.apply_if_finite(optax.sgd(rate), 10)
    result = run(batches=(inputs, targets), optimizer=optimizer)
    expected = np.array([train(rate, optax.sgd, num_steps=11)[0] for rate in RATES])
    np.testing.assert_allclose(result.losses, expected[:, -2:].mean(1), rtol=2e-4)


def test_a_held_out_batch_judges_after_the_training():
    result = run(held_out=HELD_OUT)
    expected = [loss_fn(train(rate)[1], HELD_OUT) for rate in RATES]
    np.testing.assert_allclose(result.held_out_losses, expected, rtol=5e-3)  # rounding grows
    for field in ("losses", "metrics"):
        np.testing.assert_allclose(getattr(result, field), getattr(run(), field), rtol=1e-5)


def test_fewer_steps_than_batches():
    result = run(num_steps=5)
    expected = np.array([train(rate, num_steps=5)[0] for rate in RATES])
    np.testing.assert_allclose(result.losses, expected[:, -2:].mean(1), rtol=2e-4)  # 5 / 4, up


@pytest.mark.parametrize(
    "batches",
    [
        lambda step: jax.tree.map(lambda leaf: leaf[step], BATCHES),
        list(zip(*map(np.asarray, BATCHES), strict=True)),
        list(zip(*BATCHES, strict=True)),
    ],
    ids=["function", "list of NumPy arrays", "list of JAX arrays"],
)
def test_batches_of_any_form_give_the_same_curve(batches):
    for options in ({}, {"held_out": HELD_OUT}):
        result = run(batches, **options)
        expected = run(**options)
        np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-5)
        np.testing.assert_allclose(result.held_out_losses, expected.held_out_losses, rtol=1e-5)


def test_a_loader_is_read_again_and_an_iterator_is_not():
    short = list(zip(*map(np.asarray, BATCHES), strict=True))[:5]
    again = run(short)
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:5]] * 3), BATCHES)
    np.testing.assert_allclose(again.losses, run(twice).losses, rtol=1e-5)
    with pytest.raises(ValueError, match=r"num_steps=12 training steps, got 5; an iterator"):
        run(iter(short))


def test_an_exception_of_the_loader_is_raised():
    def batches():
        yield BATCHES[0][0], BATCHES[1][0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run(batches())


def test_rows_end_at_the_first_rate_that_diverged():
    def quadratic(params, batch):
        return jnp.mean((batch[0] @ params["weights"]) ** 2) + params["bias"] ** 2

    result = run(loss_fn=quadratic, optimizer=optax.sgd, max_lr=1e12)
    count = int(result.num_valid)
    assert 0 < count < NUM_VALUES
    assert np.isfinite(result.losses[:count]).all()
    for column in ("learning_rates", "losses", "smoothed_losses", "equivalent_steps"):
        assert np.isnan(getattr(result, column)[count:]).all()
    np.testing.assert_array_equal(result.equivalent_steps[:count], NUM_STEPS)


def test_metrics_come_with_the_losses():
    with_metrics = lambda params, batch: (loss_fn(params, batch), {"count": params["bias"]})
    result = run(loss_fn=with_metrics, has_aux=True, held_out=HELD_OUT)
    losses, metrics = result.metrics
    expected = run(held_out=HELD_OUT)
    np.testing.assert_allclose(result.held_out_losses, expected.held_out_losses, rtol=1e-5)
    np.testing.assert_allclose(losses, run().metrics, rtol=1e-5)
    np.testing.assert_allclose(metrics["count"][:, 0], 0.2, rtol=1e-6)


def test_a_convolution_on_the_cpu_gives_what_it_gives_inside_jit():
    def convolved(params, batch):
        signal = jnp.convolve(batch[0][:, 0], params["weights"], mode="same")
        return jnp.mean((signal + params["bias"] - batch[1]) ** 2)

    plain = run(loss_fn=convolved, held_out=HELD_OUT)
    jitted = jax.jit(lambda batches: run(batches, loss_fn=convolved, held_out=HELD_OUT))(BATCHES)
    for field in ("losses", "held_out_losses"):
        np.testing.assert_allclose(getattr(plain, field), getattr(jitted, field), rtol=1e-4)
    assert "conv_general_dilated" in str(jax.make_jaxpr(convolved)(PARAMS, (INPUTS[0], TARGETS[0])))


def test_it_works_under_jit_and_vmap_and_is_read_like_a_sweep():
    decays = jnp.array([0.0, 0.1])
    lane = lambda decay: run(optimizer=lambda rate: optax.adamw(rate, weight_decay=decay))
    lanes = jax.jit(jax.vmap(lane))(decays)
    assert lanes.losses.shape == (2, NUM_VALUES)
    for index, decay in enumerate(decays):
        np.testing.assert_allclose(lanes.losses[index], lane(decay).losses, rtol=5e-3)
    # Inside jit, where nothing warns: whether 10.0 is beyond the valley is the generator's luck.
    base_value, peak_value = jax.jit(lambda result: result.bounds())(lanes)
    assert 0 < base_value < peak_value < 10
    assert lanes.summary().startswith("Range test: 2 curves of 11 rows")


def test_calling_again_compiles_nothing(caplog):
    run(held_out=HELD_OUT)
    with jax.log_compiles(True):
        run(held_out=HELD_OUT)
    assert "Compiling" not in caplog.text
    with jax.log_compiles(True):
        jax.jit(lambda x: x + 17)(3.0)
    assert "Compiling" in caplog.text  # or the line above could not fail


def test_a_stream_serves_all_lanes():
    stream = list(zip(*map(np.asarray, BATCHES), strict=True))
    lanes = jax.vmap(lambda high: run(stream, max_lr=high))(jnp.array([1.0, 10.0]))
    np.testing.assert_allclose(lanes.losses[1], run().losses, rtol=1e-3)


def convolved(params, batch):
    """Rates of a convolution are run one by one on a CPU."""
    signal = jnp.convolve(batch[0][:, 0], params["weights"], mode="same")
    return jnp.mean((signal + params["bias"] - batch[1]) ** 2)


one_by_one = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="elsewhere all rates are one program, which goes on"
)


def interrupt_at(monkeypatch, number):
    """Return the reads so far, of which one is interrupted."""
    reads, read = [], HeldBatches.read

    def interrupted(self, num_rows, room):
        reads.append(num_rows)
        if len(reads) == number:
            raise KeyboardInterrupt
        return read(self, num_rows, room)

    monkeypatch.setattr(HeldBatches, "read", interrupted)
    return reads


@one_by_one
@pytest.mark.parametrize("number", [1, 5])  # before the first row, and after some
def test_ctrl_c_in_the_first_rate_leaves_nothing(monkeypatch, number):
    interrupt_at(monkeypatch, number)
    with pytest.raises(KeyboardInterrupt):
        run(loss_fn=convolved)


@one_by_one
def test_ctrl_c_ends_the_whole_test_with_the_rates_that_are_done(monkeypatch):
    whole = run(loss_fn=convolved, held_out=HELD_OUT)
    reads = interrupt_at(monkeypatch, 2 * (NUM_STEPS + 1) + 5)  # in the third rate
    with pytest.warns(RuntimeWarning, match="interrupted after 2 of 11 rates") as caught:
        result = run(loss_fn=convolved, held_out=HELD_OUT)
    assert caught[0].filename == __file__
    assert len(reads) == 2 * (NUM_STEPS + 1) + 5
    assert int(result.num_valid) == 2
    assert int(result.ended_by) == 3
    for field in ("losses", "held_out_losses", "learning_rates"):
        column = getattr(result, field)
        np.testing.assert_allclose(column[:2], getattr(whole, field)[:2], rtol=1e-6)
        assert np.isnan(column[2:]).all()
    assert "interrupted" in result.summary()


@one_by_one
def test_rates_that_diverged_before_ctrl_c_end_the_curve(monkeypatch):
    rates = {"min_lr": 1e-3, "max_lr": 1e30, "num_values": 4}
    reads = interrupt_at(monkeypatch, -1)
    num_valid = int(run(loss_fn=convolved, **rates).num_valid)
    assert num_valid < 3
    interrupt_at(monkeypatch, len(reads))  # in the fourth rate
    with pytest.warns(RuntimeWarning, match="interrupted after 3 of 4 rates"):
        result = run(loss_fn=convolved, **rates)
    assert int(result.num_valid) == num_valid
    assert int(result.ended_by) == 1


def test_an_optimizer_may_keep_the_rate_of_its_start():
    """Each rate of the grid starts a state of its own; in a sweep the first would stay."""
    batches = jax.random.normal(jax.random.key(0), (20, 8, 3))
    loss_fn = lambda params, batch: jnp.mean((batch @ params - batch.sum(-1)) ** 2)
    grid = lambda optimizer: optax_clr.lr_grid_test(
        loss_fn, jnp.zeros(3), optimizer, batches, min_lr=1e-3, max_lr=0.1, num_values=4
    )
    kept = grid(lambda rate: optax_clr.inject_schedules(optax.sgd)(learning_rate=rate))
    np.testing.assert_allclose(kept.losses, grid(optax.sgd).losses, rtol=1e-5)
