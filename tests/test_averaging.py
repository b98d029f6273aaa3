"""The running average against the mean of snapshots that a plain loop has kept."""

import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import optax_clr
from optax_clr import Cycles, average_at_cycle_ends, averaged_params

pytestmark = pytest.mark.usefixtures("optax_promotion")

PARAMS = {"weight": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "bias": jnp.float32(0.3)}


def gradient_at(step):
    key = jax.random.fold_in(jax.random.key(0), step)
    return jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape, leaf.dtype), PARAMS)


def make_optimizer(cycles, rate=0.1):
    return optax.chain(optax.adam(rate), average_at_cycle_ends(cycles))


def train(optimizer, num_steps, params=PARAMS, state=None, first=0):
    """An ordinary loop: the params after each step, and the last state."""
    state = optimizer.init(params) if state is None else state
    history = []
    for step in range(first, first + num_steps):
        gradients = jax.tree.map(lambda leaf, p: leaf.astype(p.dtype), gradient_at(step), params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history, state


def mean(snapshots):
    wide = lambda leaf: np.asarray(leaf, np.float64)
    return jax.tree.map(lambda *leaves: np.mean([wide(leaf) for leaf in leaves], 0), *snapshots)


def assert_close(tree, expected, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), tree, expected)


@pytest.mark.parametrize(
    ("cycles", "ends"),
    [
        (Cycles(4), (3, 7, 11, 15, 19)),
        (Cycles(2, mult=2), (1, 5, 13)),
        (Cycles(5, num_cycles=2), (4, 9)),
        (Cycles(1), tuple(range(20))),
    ],
)
def test_it_is_the_mean_of_the_params_at_the_ends_of_cycles(cycles, ends):
    history, state = train(make_optimizer(cycles), 20)
    assert_close(averaged_params(state), mean([history[end] for end in ends]), rtol=2e-6)


def test_training_is_what_it_was():
    with_average, _ = train(make_optimizer(Cycles(3)), 10)
    without, _ = train(optax.adam(0.1), 10)
    jax.tree.map(np.testing.assert_array_equal, with_average, without)


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_before_the_first_end_it_is_the_current_params(num_steps):
    optimizer = make_optimizer(Cycles(4))
    history, state = train(optimizer, num_steps)
    current = history[-1] if history else PARAMS
    jax.tree.map(np.testing.assert_array_equal, averaged_params(state), current)


def test_a_large_change_of_the_params_is_followed_exactly():
    optimizer = optax.chain(optax.sgd(1.0), average_at_cycle_ends(Cycles(10)))
    params = jnp.float32(1e8)
    _, state = optimizer.update(jnp.float32(1e8), optimizer.init(params), params)
    _, state = optimizer.update(jnp.float32(-0.1), state, jnp.float32(0.0))
    assert averaged_params(state) == np.float32(0.1)


def test_averages_of_bfloat16_are_float32():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    history, state = train(make_optimizer(Cycles(2)), 40, params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(averaged_params(state)))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(history[-1]))
    assert_close(averaged_params(state), mean(history[1::2]), rtol=1e-5)


def test_what_is_averaged_are_the_params_as_they_are_rounded():
    """In one program with the training XLA would add up what is not rounded yet."""
    optimizer = optax.chain(optax.sgd(0.1), average_at_cycle_ends(Cycles(3)))

    @jax.jit
    def train_step(params, state, step):
        updates, state = optimizer.update(jnp.sin(3 * params + step), state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.linspace(0.1, 1.0, 6, dtype=jnp.bfloat16)
    state, ends = optimizer.init(params), []
    for step in range(30):
        params, state = train_step(params, state, jnp.bfloat16(step))
        ends += [params] if step % 3 == 2 else []
    assert_close(averaged_params(state), mean(ends), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float16, jnp.complex64])
def test_averages_have_32_bits_a_number_or_more(dtype):
    params = jnp.ones(2, dtype)
    state = average_at_cycle_ends(Cycles(1)).init(params)
    wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32
    assert averaged_params(state).dtype == wide


def test_float64_is_averaged_in_float64(x64):
    with x64():
        state = average_at_cycle_ends(Cycles(2)).init(jnp.ones(3, jnp.float64))
        assert averaged_params(state).dtype == jnp.float64


def test_integers_among_the_params_stay_as_they_are():
    optimizer = average_at_cycle_ends(Cycles(1))
    params = {"weight": jnp.ones(2), "table": jnp.arange(3)}
    updates = {"weight": jnp.ones(2), "table": jnp.zeros(3, jnp.int32)}
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(updates, state, params)
    np.testing.assert_array_equal(averaged_params(state)["table"], params["table"])


def test_it_works_under_scan_and_vmap():
    optimizer = make_optimizer(Cycles(3))

    def run(scale):
        params = jax.tree.map(lambda leaf: scale * leaf, PARAMS)

        def step(carry, number):
            params, state = carry
            updates, state = optimizer.update(gradient_at(number), state, params)
            return (optax.apply_updates(params, updates), state), None

        (_, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(9))
        return averaged_params(state)

    scales = jnp.array([1.0, 2.0])
    lanes = jax.jit(jax.vmap(run))(scales)
    for lane, scale in enumerate(scales):
        history, _ = train(optimizer, 9, jax.tree.map(lambda leaf, s=scale: s * leaf, PARAMS))
        assert_close(jax.tree.map(lambda leaf, i=lane: leaf[i], lanes), mean(history[2::3]), 1e-5)


@pytest.mark.parametrize("stop", [2, 5, 6, 11])
def test_a_run_that_is_saved_and_resumed_has_the_same_average(stop, tmp_path):
    optimizer = make_optimizer(Cycles(3))
    _, expected = train(optimizer, 14)
    history, state = train(optimizer, stop)
    saved = jax.tree.map(np.asarray, (history[-1], state))
    (tmp_path / "state").write_bytes(pickle.dumps(saved))
    params, state = pickle.loads((tmp_path / "state").read_bytes())
    _, resumed = train(optimizer, 14 - stop, params, state, first=stop)
    jax.tree.map(np.testing.assert_array_equal, averaged_params(resumed), averaged_params(expected))


def test_set_step_moves_it_with_the_schedule():
    schedule = optax_clr.triangular_schedule(0.1, 0.5, rise_steps=2)
    factory = lambda learning_rate: optax.sgd(learning_rate)
    optimizer = optax.chain(
        optax_clr.inject_schedules(factory)(learning_rate=schedule),
        average_at_cycle_ends(Cycles(4)),
    )
    state = optax_clr.set_step(optimizer.init(PARAMS), 3)  # the last step of a cycle
    history, state = train(optimizer, 3, state=state)
    assert_close(averaged_params(state), mean(history[:1]))


def test_gradient_accumulation_counts_real_steps():
    optimizer = optax.MultiSteps(make_optimizer(Cycles(2)), every_k_schedule=3)
    history, state = train(optimizer, 12)
    assert_close(averaged_params(state), mean([history[5], history[11]]), rtol=2e-6)


def test_it_is_found_in_a_train_state():
    model = nn.Dense(2)
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=make_optimizer(Cycles(2)))
    for _ in range(4):
        state = state.apply_gradients(grads=state.params)
    outputs = model.apply(averaged_params(state), jnp.ones((1, 3)))
    assert np.isfinite(outputs).all()


def test_counting_ends_where_int32_does():
    optimizer = average_at_cycle_ends(Cycles(2**31 - 1))
    params = jnp.float32(1.0)
    state = optax_clr.set_step(optimizer.init(params), 2**31 - 1)
    _, state = optimizer.update(jnp.float32(1.0), state, params)
    assert int(state.step) == 2**31 - 1


class Normed(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        inputs = nn.BatchNorm(use_running_average=not train, momentum=0.9)(inputs)
        return nn.Dense(1)(nn.relu(nn.Dense(8)(inputs)))


def test_batch_statistics_of_the_average_are_measured_anew():
    """The recipe of the documentation: one pass in training mode, with the mean of all batches."""
    model = Normed()
    batches = 3 + 2 * jax.random.normal(jax.random.key(0), (20, 64, 4))
    variables = model.init(jax.random.key(1), batches[0], train=True)

    def measure(count, batch):
        _, new = model.apply(variables, batch, train=True, mutable=["batch_stats"])
        return count, new["batch_stats"]

    # Flax moves the statistics by 1 - momentum towards those of the batch: solved for these.
    _, moved = jax.lax.scan(measure, 0, batches)
    old = variables["batch_stats"]
    of_batches = jax.tree.map(lambda new, old: (new - 0.9 * old[None]) / 0.1, moved, old)
    renewed = jax.tree.map(lambda leaf: leaf.mean(0), of_batches)["BatchNorm_0"]
    np.testing.assert_allclose(renewed["mean"], batches.mean((0, 1)), rtol=1e-3)
    np.testing.assert_allclose(renewed["var"], batches.var(1).mean(0), rtol=1e-3)


@pytest.mark.parametrize("length", [1, 64])
def test_past_the_last_step_that_can_be_counted_nothing_is_averaged(length):
    optimizer = optax.chain(optax.sgd(1.0), average_at_cycle_ends(Cycles(length)))
    params = jnp.float32(0.0)
    state = optax_clr.set_step(optimizer.init(params), 2**31 - 3)
    counts = []
    for _ in range(6):
        updates, state = optimizer.update(jnp.float32(-1.0), state, params)
        params = optax.apply_updates(params, updates)
        counts.append(int(state[1].num_averaged))
    ends = [1, 2] if length == 1 else [0, 0]  # steps 2**31 - 3 and 2**31 - 2
    assert counts == [*ends, *[ends[-1]] * 4]
