"""Injected schedules: identical to Optax's own where it is right, right where it is not."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx, serialization
from flax.training import train_state

import optax_clr

pytestmark = pytest.mark.usefixtures("optax_promotion")

RATE = optax_clr.triangular2_schedule(1e-3, 1e-1, rise_steps=7)
MOMENTUM = optax_clr.triangular_schedule(0.95, 0.85, rise_steps=7)


def quadratic(params):
    return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(params)).astype(jnp.float32)


def train(optimizer, params, num_steps, state=None):
    """Return params, state and the trail of params after each of the steps."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    state = optimizer.init(params) if state is None else state
    (params, state), trail = jax.jit(
        lambda carry: jax.lax.scan(step, carry, None, length=num_steps)
    )((params, state))
    return params, state, trail


def some_params(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0))
    return {
        "kernel": jax.random.normal(keys[0], (4, 3), dtype),
        "bias": jax.random.normal(keys[1], (3,), dtype),
    }


def assert_hyperparams(state, **expected):
    """The same names, and values to float32 rounding: jit and eager differ in the last bit."""
    hyperparams = optax_clr.get_hyperparams(state)
    assert hyperparams.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(hyperparams[name], value, rtol=3e-7, err_msg=name)


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


# --------------------------------------------------------------------------- inject_schedules


@pytest.mark.parametrize("name", ["adam", "adamw", "lion", "sgd"])
def test_a_scheduled_rate_is_bit_identical_to_optax(name):
    factory = getattr(optax, name)
    _, _, expected = train(factory(RATE), some_params(), 200)
    _, _, trail = train(optax_clr.inject_schedules(factory)(learning_rate=RATE), some_params(), 200)
    assert_equal(trail, expected)


def test_a_bfloat16_model_trains_where_plain_injection_gives_nan():
    params = some_params(jnp.bfloat16)
    plain = optax.inject_hyperparams(optax.adam)(learning_rate=RATE)
    assert np.isnan(np.asarray(train(plain, params, 5)[0]["bias"], np.float32)).any()

    optimizer = optax_clr.inject_schedules(optax.adam)(learning_rate=RATE)
    trained, state, _ = train(optimizer, params, 200)

    assert trained["kernel"].dtype == jnp.bfloat16
    assert quadratic(trained) < 0.2 * quadratic(params)
    assert optax_clr.get_hyperparams(state)["learning_rate"].dtype == jnp.float32


def test_the_rate_of_a_bfloat16_model_keeps_its_digits():
    optimizer = optax_clr.inject_schedules(optax.sgd)(learning_rate=RATE)
    _, state, _ = train(optimizer, some_params(jnp.bfloat16), 4)
    assert_hyperparams(state, learning_rate=RATE(3))


def test_only_what_varies_is_a_hyperparameter():
    build = optax_clr.inject_schedules(optax.adam)
    names = lambda **given: set(optax_clr.get_hyperparams(build(**given).init(some_params())))
    assert names(learning_rate=0.1) == set()
    assert names(learning_rate=RATE, b2=0.99) == {"learning_rate"}
    assert names(learning_rate=jnp.float32(0.1), b1=MOMENTUM) == {"learning_rate", "b1"}
    assert names(learning_rate=np.array(0.1)) == {"learning_rate"}


def test_schedules_can_be_injected_under_x64(x64):
    with x64():
        optimizer = optax_clr.inject_schedules(optax.adam)(learning_rate=RATE, b1=MOMENTUM)
        params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}  # float64
        _, state, trail = train(optimizer, params, 3)
        assert trail["bias"].dtype == jnp.float64
        assert_hyperparams(state, learning_rate=RATE(2), b1=MOMENTUM(2))


def test_positional_arguments_work_as_in_the_factory():
    optimizer = optax_clr.inject_schedules(optax.sgd)(RATE, MOMENTUM)
    assert_hyperparams(optimizer.init(some_params()), learning_rate=RATE(0), momentum=MOMENTUM(0))


def test_masks_are_named_as_with_optax():
    mask = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    build = optax_clr.inject_schedules(optax.adamw, static_args="mask")
    optimizer = build(learning_rate=RATE, weight_decay=0.1, mask=mask)
    _, _, expected = train(optax.adamw(RATE, weight_decay=0.1, mask=mask), some_params(), 20)
    assert_equal(train(optimizer, some_params(), 20)[2], expected)


def test_stateful_schedules_of_optax_work():
    class Halved(optax.schedules.StatefulSchedule):
        def init(self):
            return jnp.float32(1.0)

        def update(self, state, **extra_args):
            return state / 2

        def __call__(self, state, **extra_args):
            return state

    optimizer = optax_clr.inject_schedules(optax.sgd)(learning_rate=Halved())
    _, state, _ = train(optimizer, some_params(), 3)
    assert optax_clr.get_hyperparams(state) == {"learning_rate": 0.25}


# ------------------------------------------------------------------- states of every shape

inject = optax_clr.inject_schedules


def chained():
    return optax.chain(optax.clip_by_global_norm(1.0), inject(optax.sgd)(RATE, MOMENTUM))


def partitioned():
    return optax.partition(
        {"all": inject(optax.adam)(RATE)}, jax.tree.map(lambda _: "all", some_params())
    )


def accumulated():
    return optax.MultiSteps(inject(optax.adam)(RATE), every_k_schedule=3)


def nested():
    return inject(lambda momentum: optax.chain(inject(optax.sgd)(RATE), optax.trace(momentum)))(
        MOMENTUM
    )


@pytest.mark.parametrize(
    ("build", "updates_per_step"), [(chained, 1), (partitioned, 1), (accumulated, 3), (nested, 1)]
)
def test_live_values_are_found_in_every_state(build, updates_per_step):
    optimizer = build()
    _, state, _ = train(optimizer, some_params(), 10 * updates_per_step)

    # After ten updates, those used in the tenth.
    momentum = {"momentum": MOMENTUM(9)} if build in (chained, nested) else {}
    assert_hyperparams(state, learning_rate=RATE(9), **momentum)


@pytest.mark.parametrize("build", [chained, partitioned, accumulated, nested])
def test_set_step_moves_every_counter(build):
    optimizer = build()
    fresh = optimizer.init(some_params())
    _, state, _ = train(optimizer, some_params(), 3, optax_clr.set_step(fresh, 10))

    last = 10 if build is accumulated else 12
    momentum = {"momentum": MOMENTUM(last)} if build in (chained, nested) else {}
    assert_hyperparams(state, learning_rate=RATE(last), **momentum)


def test_set_step_leaves_the_moments_of_an_adam_alone():
    # Its count is no schedule: the bias correction of new moments begins at 1.
    state = optax_clr.set_step(inject(optax.adam)(RATE).init(some_params()), 10)
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
    (adam,) = filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam))
    assert adam.count == 0


def test_set_step_moves_a_schedule_passed_to_optax_itself():
    optimizer = optax.adam(RATE)
    state = optax_clr.set_step(optimizer.init(some_params()), 41)
    assert optax.tree_utils.tree_get(state, "count", filtering=_of_schedule) == 41


def _of_schedule(path, _):
    return "ScaleBySchedule" in str(path)


def test_set_step_works_inside_jit():
    optimizer = inject(optax.sgd)(RATE)
    state = jax.jit(optax_clr.set_step)(optimizer.init(some_params()), 5)
    _, state, _ = train(optimizer, some_params(), 1, state)
    assert_hyperparams(state, learning_rate=RATE(5))


def test_names_with_different_values_come_back_under_their_paths():
    groups = {"kernel": "slow", "bias": "fast"}
    slow = lambda step: RATE(step) / 10
    optimizer = optax.partition(
        {"slow": inject(optax.sgd)(slow, MOMENTUM), "fast": inject(optax.sgd)(RATE, MOMENTUM)},
        groups,
    )
    _, state, _ = train(optimizer, some_params(), 10)

    expected = {
        "inner_states/slow/inner_state/learning_rate": slow(9),
        "inner_states/fast/inner_state/learning_rate": RATE(9),
        "momentum": MOMENTUM(9),
    }
    assert_hyperparams(state, **expected)


def test_set_hyperparams_reaches_one_group_or_all():
    rate = jnp.float32(0.1)
    optimizer = optax.partition(
        {"slow": inject(optax.sgd)(rate), "fast": inject(optax.sgd)(rate)},
        {"kernel": "slow", "bias": "fast"},
    )
    state = optimizer.init(some_params())
    path = "inner_states/slow/inner_state/learning_rate"

    everywhere = optax_clr.set_hyperparams(state, learning_rate=0.2)
    one = optax_clr.set_hyperparams(state, **{path: 0.2})

    assert optax_clr.get_hyperparams(everywhere) == {"learning_rate": np.float32(0.2)}
    assert optax_clr.get_hyperparams(one) == {
        path: np.float32(0.2),
        "inner_states/fast/inner_state/learning_rate": np.float32(0.1),
    }
    # The state that was passed in is as it was.
    assert optax_clr.get_hyperparams(state) == {"learning_rate": np.float32(0.1)}


def test_setting_a_value_does_not_recompile():
    optimizer = inject(optax.adam)(jnp.float32(0.1))
    state = optimizer.init(some_params())
    traces = []

    @jax.jit
    def update(state):
        traces.append(None)
        return optimizer.update(some_params(), state)[1]

    update(update(state))
    update(optax_clr.set_hyperparams(state, learning_rate=0.5))
    assert len(traces) == 1


# --------------------------------------------------------------------------------------- Flax


class Network(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.relu(linen.Dense(8)(x)))


def linen_state(dtype=jnp.float32):
    network = Network()
    params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    optimizer = inject(optax.adam)(learning_rate=RATE, b1=MOMENTUM)
    return train_state.TrainState.create(apply_fn=network.apply, params=params, tx=optimizer)


@jax.jit
def linen_step(state, x):
    loss = lambda params: jnp.mean((state.apply_fn(params, x) - 1) ** 2).astype(jnp.float32)
    return state.apply_gradients(grads=jax.grad(loss)(state.params))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_linen_run_that_stops_and_is_saved_resumes_bit_for_bit(dtype):
    xs = jax.random.normal(jax.random.key(1), (20, 5, 3), dtype)
    straight = linen_state(dtype)
    for x in xs:
        straight = linen_step(straight, x)

    first = linen_state(dtype)
    for x in xs[:9]:
        first = linen_step(first, x)
    saved = serialization.to_bytes(first)
    resumed = serialization.from_bytes(linen_state(dtype), saved)
    assert_hyperparams(resumed, learning_rate=RATE(8), b1=MOMENTUM(8))
    for x in xs[9:]:
        resumed = linen_step(resumed, x)

    assert_equal(jax.tree.leaves(resumed), jax.tree.leaves(straight))
    assert_hyperparams(resumed, learning_rate=RATE(19), b1=MOMENTUM(19))


def test_a_linen_state_whose_schedule_is_moved_goes_on_there():
    state = optax_clr.set_step(linen_state(), 9)
    state = linen_step(state, jnp.ones((5, 3)))
    assert_hyperparams(state, learning_rate=RATE(9), b1=MOMENTUM(9))


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 8, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def nnx_model_and_optimizer():
    model = NnxNetwork(nnx.Rngs(0))
    factory = inject(optax.adam)(learning_rate=RATE, b1=MOMENTUM)
    return model, nnx.Optimizer(model, factory, wrt=nnx.Param)


def nnx_step(model, optimizer, x):
    grads = nnx.grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model)
    # Before Flax 0.11 the optimizer held the model.
    takes_model = "model" in inspect.signature(nnx.Optimizer.update).parameters
    optimizer.update(*((model, grads) if takes_model else (grads,)))


def test_an_nnx_run_that_stops_and_is_saved_resumes_bit_for_bit():
    xs = jax.random.normal(jax.random.key(1), (20, 5, 3))
    model, optimizer = nnx_model_and_optimizer()
    for x in xs:
        nnx_step(model, optimizer, x)

    first = nnx_model_and_optimizer()
    for x in xs[:9]:
        nnx_step(*first, x)
    saved = jax.tree.map(np.asarray, nnx.state(first))
    resumed = nnx_model_and_optimizer()
    nnx.update(resumed, jax.tree.map(jnp.asarray, saved))
    assert_hyperparams(resumed[1], learning_rate=RATE(8), b1=MOMENTUM(8))
    for x in xs[9:]:
        nnx_step(*resumed, x)

    assert_equal(
        jax.tree.leaves(nnx.state(resumed[0])), jax.tree.leaves(nnx.state(model))
    )  # fmt: skip
    assert_hyperparams(resumed[1], learning_rate=RATE(19), b1=MOMENTUM(19))


def test_the_state_of_an_nnx_optimizer_can_be_set():
    model = NnxNetwork(nnx.Rngs(0))
    factory = inject(optax.adam)(learning_rate=jnp.float32(0.1), b1=MOMENTUM)
    optimizer = nnx.Optimizer(model, factory, wrt=nnx.Param)

    changed = optax_clr.set_hyperparams(optimizer.opt_state, learning_rate=0.2)
    optimizer.opt_state = optax_clr.set_step(changed, 5)
    nnx_step(model, optimizer, jnp.ones((5, 3)))

    assert_hyperparams(optimizer, learning_rate=0.2, b1=MOMENTUM(5))
