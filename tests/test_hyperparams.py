"""Injected schedules: identical to Optax's own where it is right, right where it is not."""

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx, serialization
from flax.training import train_state

import optax_clr
from plain import update_nnx

pytestmark = pytest.mark.usefixtures("optax_promotion")

RATE = optax_clr.triangular2_schedule(1e-3, 1e-1, rise_steps=7)
inject = optax_clr.inject_schedules
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
    if "optimization_level=0" in os.environ["XLA_FLAGS"]:
        # Where XLA fuses nothing, the two programs round in other places.
        jax.tree.map(
            lambda *leaves: np.testing.assert_allclose(*leaves, rtol=1e-5), trail, expected
        )
    else:
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


def by_hand(rate):
    return optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(learning_rate=rate))


@pytest.mark.parametrize(
    "factory",
    [
        inject(optax.sgd),
        optax.inject_hyperparams(optax.adam),
        by_hand,
        lambda rate: optax.MultiSteps(by_hand(rate), 2).gradient_transformation(),
        lambda rate: optax.partition({"all": by_hand(rate)}, "all"),
    ],
)
@pytest.mark.parametrize("rate", [RATE, jnp.float32(0.1)])
def test_what_injects_inside_would_keep_the_first_value(factory, rate):
    optimizer = inject(factory)(rate)
    with pytest.raises(ValueError, match=r"factory must not inject .*rate once more"):
        jax.jit(optimizer.init)(some_params())


def test_what_a_factory_asks_of_a_number_is_no_error():
    """As with optax.inject_hyperparams, which makes a state of what is known."""

    def factory(learning_rate, decay):
        sgd = optax.sgd(learning_rate)
        return optax.chain(optax.add_decayed_weights(decay), sgd) if decay else sgd

    state = inject(factory)(RATE, decay=jnp.float32(0.1)).init(some_params())
    assert_hyperparams(state, learning_rate=RATE(0), decay=0.1)


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (optax.rprop, "learning_rate"),
        (optax.adagrad, "initial_accumulator_value"),
        (lambda size: optax.chain(optax.sgd(0.1), optax.rprop(size)), "size"),
    ],
)
def test_what_is_read_once_cannot_be_a_schedule(factory, name):
    others = {"learning_rate": 0.1} if factory is optax.adagrad else {}
    with pytest.raises(ValueError, match=f"{name} must be a number: .* stay at its first value"):
        inject(factory)(**others, **{name: RATE}).init(some_params())
    # Nor an array, which somebody may set later.
    with pytest.raises(ValueError, match=f"{name} must be a number: .* be ignored"):
        inject(factory)(**others, **{name: jnp.float32(0.1)}).init(some_params())
    # But the lane of a sweep.
    init = lambda value: inject(factory)(**others, **{name: value}).init(some_params())
    assert jax.vmap(init)(jnp.array([0.1, 0.2])).hyperparams[name].shape == (2,)


def test_what_is_read_once_is_seen_beside_what_needs_the_loss():
    factory = lambda rate: optax.chain(optax.rprop(rate), optax.contrib.reduce_on_plateau())
    with pytest.raises(ValueError, match=r"rate must be a number: .* stay at its first"):
        inject(factory)(RATE).init(some_params())


@dataclasses.dataclass(frozen=True, slots=True)
class Halved:
    """A schedule of which there are no weak references."""

    value: float

    def __call__(self, step):
        return self.value * 0.5**step


def test_a_schedule_without_weak_references_is_one():
    state = inject(optax.sgd)(Halved(0.1)).init(some_params())
    assert_hyperparams(state, learning_rate=0.1)


@pytest.mark.parametrize("value", ["1e-3", {"kernel": 0.1}])
def test_text_and_dictionaries_are_no_rates(value):
    """YAML reads 1e-3 as text."""
    with pytest.raises(TypeError, match=r"learning_rate must be .* got ('1e-3'|{'kernel')"):
        inject(optax.adamw)(learning_rate=value)


NUMPY_FUNCTIONS = """
import numpy as np, optax, optax_clr

for _ in range(3):
    for call in (
        lambda: optax_clr.cyclical_schedule(0.1, 1.0, 3, wave=np.sqrt),
        lambda: optax_clr.cyclical_schedule(0.1, 1.0, 3, envelope=np.add),
        lambda: optax_clr.inject_schedules(optax.sgd)(np.sqrt),
    ):
        try:
            call()
        except (TypeError, ValueError) as error:
            print(error)
"""


def test_a_function_of_numpy_is_refused_as_often_as_it_is_passed():
    """JAX crashes Python where one without weak references is traced a second time."""
    run = subprocess.run(
        [sys.executable, "-c", NUMPY_FUNCTIONS], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Take it from jax.numpy") == 6
    assert run.stdout.count("learning_rate must be a number") == 3


@pytest.mark.parametrize(
    "factory",
    [
        # Another hyperparameter is injected inside, or a schedule made of this one.
        lambda rate: optax.chain(inject(optax.trace)(decay=RATE), optax.sgd(rate)),
        lambda rate: optax.chain(inject(optax.trace)(decay=jnp.float32(0)), optax.sgd(rate)),
        lambda rate: inject(optax.sgd)(lambda step: rate * jnp.float32(1) + 0 * step),
    ],
)
def test_what_injects_inside_may_be_given_a_new_value(factory):
    optimizer = inject(factory)(rate=RATE)
    params, scale = jnp.ones(2), []
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(jnp.ones(2), state, params)
        scale.append(float(optax_clr.get_hyperparams(state)["rate"]))
    np.testing.assert_allclose(scale, [RATE(step) for step in range(3)], rtol=1e-6)
    assert updates[0] < -0.9 * RATE(2)


def test_a_factory_may_gather_what_it_is_not_given():
    factory = lambda learning_rate, *rest, **others: optax.sgd(learning_rate, *rest, **others)
    _, _, expected = train(optax.sgd(RATE), some_params(), 20)
    _, _, trail = train(optax_clr.inject_schedules(factory)(RATE), some_params(), 20)
    jax.tree.map(lambda *leaves: np.testing.assert_allclose(*leaves, rtol=1e-5), trail, expected)


def by_rank(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def test_a_mask_is_not_taken_for_a_schedule():
    build = optax_clr.inject_schedules(optax.adamw)
    optimizer = build(learning_rate=RATE, weight_decay=0.1, mask=by_rank)
    _, _, expected = train(optax.adamw(RATE, weight_decay=0.1, mask=by_rank), some_params(), 20)
    assert_equal(train(optimizer, some_params(), 20)[2], expected)


def of_a_function(learning_rate, function):
    """A factory of someone's own, without annotations."""
    return optax.chain(optax.masked(optax.clip(0.1), function), optax.sgd(learning_rate))


def of_a_raw_key(learning_rate, key):
    return optax.sgd(learning_rate * (1 + jax.random.uniform(key)))


def of_labels(learning_rate, function):
    return optax.partition({"a": optax.sgd(learning_rate), "b": optax.sgd(0.1)}, function)


@pytest.mark.parametrize(
    ("factory", "given"),
    [
        (optax.adam, {"mu_dtype": jnp.float32}),
        (optax.adam, {"mu_dtype": "bfloat16"}),
        (optax.adam, {"mu_dtype": np.dtype("float32")}),
        (optax.adam, {"mu_dtype": jnp.dtype("bfloat16")}),
        (optax.adam, {"mu_dtype": np.float32, "nesterov": True}),
        (optax.sgd, {"accumulator_dtype": jnp.bfloat16, "momentum": 0.9, "nesterov": True}),
        (optax.sgd, {"accumulator_dtype": None, "momentum": MOMENTUM}),
        (optax.contrib.prodigy, {"betas": (0.9, 0.99), "safeguard_warmup": True}),
        (optax.contrib.acprop, {"weight_decay": 0.1, "mask": by_rank}),
        (optax.contrib.sophia, {"weight_decay_mask": by_rank, "verbose": False}),
        (optax.lars, {"weight_decay_mask": by_rank, "trust_ratio_mask": by_rank}),
        (
            optax.contrib.schedule_free,
            {"base_optimizer": optax.sgd(0.1), "state_dtype": np.float32},
        ),
        (optax.noisy_sgd, {"key": jax.random.key(0)}),
        (of_a_raw_key, {"key": jax.random.PRNGKey(0)}),
        (optax.masked, {"inner": optax.sgd(0.1), "mask": {"kernel": np.True_, "bias": False}}),
        (of_a_function, {"function": by_rank}),
        (of_labels, {"function": lambda params: {"kernel": "a", "bias": "b"}}),
    ],
)
def test_what_is_no_number_is_passed_on_as_it_is(factory, given):
    """The same updates as from the factory itself, with a constant in the place of the schedule."""
    rates = {} if factory is optax.masked else {"learning_rate": 0.25}
    schedules = {name: lambda step: jnp.float32(0.25) for name in rates}
    expected = factory(
        **rates, **{k: MOMENTUM(0) if v is MOMENTUM else v for k, v in given.items()}
    )
    optimizer = optax_clr.inject_schedules(factory)(**schedules, **given)
    params = some_params()
    extra = {"obj_fn": quadratic} if factory is optax.contrib.sophia else {}
    update = lambda o: o.update(params, o.init(params), params, **extra)
    got = update(optimizer)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, update(expected)[0])


def test_arrays_of_flags_are_no_hyperparameters():
    factory = lambda learning_rate, flags: optax.sgd(learning_rate, nesterov=bool(flags.any()))
    optimizer = inject(factory)(RATE, flags=np.array([True, False]))
    assert_hyperparams(optimizer.init(some_params()), learning_rate=RATE(0))


def of_a_step(rate: Callable[[int], float]):
    return optax.sgd(rate)


def of_some_function(rate: Callable):
    return optax.sgd(rate)


def of_an_array(learning_rate: float | Callable[[jax.Array], jax.Array]):
    return optax.sgd(learning_rate)


def of_text(rate: "float | Callable[[jax.Array], jax.Array]"):
    return optax.sgd(rate)


def of_a_function_by_text(learning_rate, function: "Callable[[jax.Array], jax.Array]"):
    return optax.chain(
        optax.stateless(lambda updates, params: jax.tree.map(function, updates)),
        optax.sgd(learning_rate),
    )


@pytest.mark.parametrize("factory", [of_a_step, of_some_function, of_an_array, of_text])
def test_a_schedule_may_be_annotated_in_many_ways(factory):
    state = inject(factory)(RATE).init(some_params())
    assert list(optax_clr.get_hyperparams(state).values()) == [RATE(0)]


def of_layers(learning_rate, layer_learning_rate: Sequence[float]):
    return optax.sgd(learning_rate * layer_learning_rate[0])


@pytest.mark.parametrize(
    ("factory", "others"),
    [
        (of_a_function_by_text, {"function": jnp.tanh}),
        (of_layers, {"layer_learning_rate": (0.1, 0.2)}),
    ],
)
def test_what_is_annotated_as_something_else_is_no_schedule(factory, others):
    optimizer = inject(factory)(RATE, **others)
    state = optimizer.init(some_params())
    assert_hyperparams(state, learning_rate=RATE(0))
    optimizer.update(some_params(), state, some_params())


@pytest.mark.parametrize("value", [np.array(0.1, ">f4"), np.array(0.1), jnp.asarray(0.1)])
def test_an_array_of_any_kind_becomes_a_float32_of_its_own(value):
    state = inject(optax.sgd)(learning_rate=value).init(some_params(jnp.bfloat16))
    (rate,) = optax_clr.get_hyperparams(state).values()
    assert (rate.dtype, rate.weak_type, rate) == (jnp.float32, False, np.float32(0.1))


@pytest.mark.parametrize(
    "value", [0.2, np.float64(0.2), np.array(0.2, ">f8"), np.float16(0.2), jnp.bfloat16(0.2)]
)
def test_a_number_of_any_kind_can_be_set(value):
    state = inject(optax.sgd)(learning_rate=jnp.float32(0.1)).init(some_params())
    changed = optax_clr.set_hyperparams(state, learning_rate=value)
    (rate,) = optax_clr.get_hyperparams(changed).values()
    assert (rate.dtype, rate.weak_type, rate) == (jnp.float32, False, np.float32(float(value)))


def test_a_double_is_not_rounded_on_its_way_into_the_state(x64):
    with x64():
        state = inject(optax.sgd)(jnp.float64(0.1)).init({"kernel": jnp.ones(2, jnp.float32)})
        (before,) = optax_clr.get_hyperparams(state).values()  # float32 before Optax 0.2.6
        (rate,) = optax_clr.get_hyperparams(
            optax_clr.set_hyperparams(state, learning_rate=0.2)
        ).values()
        assert (rate.dtype, rate) == (before.dtype, np.asarray(0.2, before.dtype))


def test_numbers_of_numpy_are_constants_like_those_of_python():
    state = inject(optax.sgd)(learning_rate=RATE, momentum=np.float32(0.9)).init(some_params())
    assert_hyperparams(state, learning_rate=RATE(0))


def test_a_caller_may_donate_the_array_that_became_a_hyperparameter():
    rate = jnp.array(0.1)
    optimizer = inject(optax.sgd)(learning_rate=rate)
    rate.delete()
    assert_hyperparams(optimizer.init(some_params()), learning_rate=0.1)


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


@pytest.mark.parametrize("slow", [RATE, lambda step: RATE(step) / 10])
def test_names_that_occur_twice_come_back_under_their_paths_at_every_step(slow):
    """The same keys whether or not the values are equal: at step 0 or later, in jit or not."""
    optimizer = optax.partition(
        {"slow": inject(optax.sgd)(slow, MOMENTUM), "fast": inject(optax.sgd)(RATE)},
        {"kernel": "slow", "bias": "fast"},
    )
    state = optimizer.init(some_params())
    _, last, _ = train(optimizer, some_params(), 10)

    expected = lambda step: {
        "inner_states/slow/inner_state/learning_rate": slow(step),
        "inner_states/fast/inner_state/learning_rate": RATE(step),
        "momentum": MOMENTUM(step),
    }
    assert_hyperparams(state, **expected(0))
    assert_hyperparams(last, **expected(9))
    assert jax.jit(optax_clr.get_hyperparams)(state).keys() == expected(0).keys()


def test_set_hyperparams_reaches_one_group_or_all():
    rate = jnp.float32(0.1)
    optimizer = optax.partition(
        {"slow": inject(optax.sgd)(rate), "fast": inject(optax.sgd)(rate)},
        {"kernel": "slow", "bias": "fast"},
    )
    state = optimizer.init(some_params())
    slow, fast = (f"inner_states/{group}/inner_state/learning_rate" for group in ("slow", "fast"))

    everywhere = optax_clr.set_hyperparams(state, learning_rate=0.2)
    one = optax_clr.set_hyperparams(state, **{slow: 0.2})

    assert_hyperparams(everywhere, **{slow: 0.2, fast: 0.2})
    assert_hyperparams(one, **{slow: 0.2, fast: 0.1})
    # The state that was passed in is as it was.
    assert_hyperparams(state, **{slow: 0.1, fast: 0.1})


def test_a_plain_number_is_not_a_hyperparameter_that_can_be_set():
    state = inject(optax.adam)(learning_rate=1e-3).init(some_params())
    with pytest.raises(ValueError, match=r"is not a hyperparameter of this state.* as an array"):
        optax_clr.set_hyperparams(state, learning_rate=0.1)


def test_a_factory_is_given_its_own_arguments():
    by_rate = lambda rate: optax.adam(rate)
    with pytest.raises(TypeError, match="factory must be given its own arguments, rate, got l"):
        inject(by_rate)(learning_rate=RATE)


@pytest.mark.parametrize(
    "bare", [optax.adam(RATE), optax.MultiSteps(optax.sgd(RATE), 2), optax.scale_by_schedule(RATE)]
)
def test_schedules_passed_to_optax_itself_are_not_passed_over(bare):
    with pytest.raises(ValueError, match=r"schedule passed to Optax itself.* inject_schedules\("):
        optax_clr.get_hyperparams(bare.init(some_params()))
    with pytest.raises(ValueError, match="learning_rate is not a hyperparameter"):
        optax_clr.set_hyperparams(bare.init(some_params()), learning_rate=0.1)


def test_where_all_is_constant_there_are_no_hyperparameters():
    assert optax_clr.get_hyperparams(optax.adam(0.1).init(some_params())) == {}


def test_values_outlive_the_state_they_were_read_from():
    optimizer = inject(optax.sgd)(RATE)
    state = optimizer.init(some_params())
    rate = optax_clr.get_hyperparams(state)["learning_rate"]
    jax.tree.map(lambda leaf: leaf.delete(), state)
    assert rate == RATE(0)


def test_states_under_vmap_have_a_value_for_each_lane():
    optimizer = inject(optax.sgd)(jnp.float32(0.1), MOMENTUM)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), some_params())
    states = jax.vmap(optimizer.init)(params)
    assert optax_clr.get_hyperparams(states)["learning_rate"].shape == (3,)
    for rates in (jnp.array([0.1, 0.2, 0.3]), 0.5):
        changed = jax.jit(optax_clr.set_hyperparams)(states, learning_rate=rates)
        assert_hyperparams(
            changed, learning_rate=rates * jnp.ones(3), momentum=MOMENTUM(0) * jnp.ones(3)
        )


def test_a_schedule_is_scaled_by_hand_through_an_array_in_the_chain():
    optimizer = optax.chain(inject(optax.sgd)(RATE), inject(optax.scale)(step_size=jnp.float32(1)))
    params = some_params()
    state = optimizer.init(params)
    whole, _ = optimizer.update(params, state, params)
    state = optax_clr.set_hyperparams(state, step_size=0.5)
    half, _ = optimizer.update(params, state, params)
    assert_equal(half, jax.tree.map(lambda leaf: leaf / 2, whole))


def test_the_outermost_of_several_has_a_path_of_its_own():
    inner = inject(optax.scale)(step_size=jnp.float32(0.1))
    outer = inject(lambda step_size: optax.chain(inner, optax.scale(step_size)))
    state = outer(step_size=jnp.float32(0.1)).init(some_params())
    assert_hyperparams(state, **{"./step_size": 0.1, "inner_state/0/step_size": 0.1})
    state = optax_clr.set_hyperparams(state, **{"./step_size": 0.2})
    assert_hyperparams(state, **{"./step_size": 0.2, "inner_state/0/step_size": 0.1})


def test_a_trainer_with_one_optimizer_has_the_names_of_its_state():
    tx = optax.chain(inject(optax.scale)(jnp.float32(0.5)), inject(optax.scale)(jnp.float32(0.1)))
    state = train_state.TrainState.create(apply_fn=None, params=some_params(), tx=tx)
    expected = {"0/step_size": 0.5, "1/step_size": 0.1}
    assert_hyperparams(state, **expected)
    assert_hyperparams(state.opt_state, **expected)


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
    update_nnx(optimizer, model, grads)


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


def test_a_schedule_takes_the_step_of_an_nnx_optimizer():
    _, optimizer = nnx_model_and_optimizer()
    value = nnx.jit(lambda optimizer: RATE(optimizer.step))(optimizer)
    np.testing.assert_array_equal([value, RATE(optimizer.step)], RATE(0))
    cycles = optax_clr.Cycles(4)
    assert not nnx.jit(lambda optimizer: cycles.is_end(optimizer.step))(optimizer)


class Foreign:
    """A number of another library, as much of it as NumPy asks for."""

    dtype, shape = "theirs.float32", ()

    def __init__(self, number):
        self.number = number

    def __array__(self, dtype=None, copy=None):
        return np.array(self.number, np.float32)


@pytest.mark.parametrize(("dtype", "value"), [("int8", -128), ("int8", 127), ("uint32", 2**32 - 1)])
def test_the_ends_of_integers_are_set(dtype, value):
    state = inject(lambda k: optax.scale(k))(jnp.asarray(3, dtype)).init(jnp.ones(2))
    assert_hyperparams(optax_clr.set_hyperparams(state, k=value), k=value)


@pytest.mark.parametrize("number", [Foreign, lambda value: np.array(value, ">f4")])
def test_numbers_of_other_libraries_and_byte_orders_make_schedules(number):
    schedules = {
        optax_clr.triangular_schedule(number(0.125), number(0.5), 4): {0: 0.125, 4: 0.5},
        optax_clr.exp_range_schedule(0.0, 1.0, 2, gamma=number(0.5)): {2: 0.25},
        optax_clr.cyclical_schedule(
            0.0, 1.0, 2, envelope=optax_clr.envelopes.exponential(number(0.5))
        ): {2: 0.25},
        optax_clr.warm_restarts_schedule(
            number(1.0), 2, base_value=number(0.0), peak_decay=number(0.5)
        ): {0: 1.0, 2: 0.5},
        optax_clr.warm_restarts_schedule(1.0, 2, peak_decay=number(1.0)): {2: 1.0},
        optax_clr.one_cycle_schedule(
            number(1.0), 11, init_value=number(0.5), end_value=number(0.25)
        ): {0: 0.5, 10: 0.25},
        optax_clr.warmup_stable_decay_schedule(
            number(1.0), 10, warmup_steps=2, decay_steps=2, end_value=number(0.25)
        ): {4: 1.0, 10: 0.25},
    }
    for schedule, values in schedules.items():
        for step, value in values.items():
            assert schedule(step) == value


def test_numbers_of_other_libraries_are_taken():
    optimizer = inject(optax.sgd)(learning_rate=Foreign(0.25))
    state = optimizer.init(jnp.ones(2))
    assert_hyperparams(state, learning_rate=0.25)
    state = optax_clr.set_hyperparams(state, learning_rate=Foreign(0.125))
    updates, _ = optimizer.update(jnp.ones(2), state)
    np.testing.assert_array_equal(updates, -0.125)


@pytest.mark.parametrize("value", [math.inf, np.float32(np.inf), jnp.float32(jnp.inf), 3])
def test_a_number_that_the_state_can_hold_is_set(value):
    state = inject(optax.sgd)(learning_rate=jnp.float32(0.1)).init(jnp.ones(2))
    state = optax_clr.set_hyperparams(state, learning_rate=value)
    assert_hyperparams(state, learning_rate=float(value))


def test_the_state_of_an_nnx_optimizer_can_be_set():
    model = NnxNetwork(nnx.Rngs(0))
    factory = inject(optax.adam)(learning_rate=jnp.float32(0.1), b1=MOMENTUM)
    optimizer = nnx.Optimizer(model, factory, wrt=nnx.Param)

    changed = optax_clr.set_hyperparams(optimizer.opt_state, learning_rate=0.2)
    optimizer.opt_state = optax_clr.set_step(changed, 5)
    nnx_step(model, optimizer, jnp.ones((5, 3)))

    assert_hyperparams(optimizer, learning_rate=0.2, b1=MOMENTUM(5))


def test_a_whole_nnx_optimizer_is_set_where_flax_makes_it_a_pytree():
    model = NnxNetwork(nnx.Rngs(0))
    factory = inject(optax.adam)(learning_rate=jnp.float32(0.1), b1=MOMENTUM)
    optimizer = nnx.Optimizer(model, factory, wrt=nnx.Param)
    if jax.tree.leaves(optimizer) == [optimizer]:
        for change in (lambda o: optax_clr.set_hyperparams(o, learning_rate=0.2),
                       lambda o: optax_clr.set_step(o, 5)):  # fmt: skip
            with pytest.raises(TypeError, match=r"optimizer\.opt_state = optax_clr"):
                change(optimizer)
        return

    changed = optax_clr.set_step(optax_clr.set_hyperparams(optimizer, learning_rate=0.2), 5)

    assert_hyperparams(optimizer, learning_rate=0.1, b1=MOMENTUM(0))
    nnx_step(model, changed, jnp.ones((5, 3)))
    assert_hyperparams(changed, learning_rate=0.2, b1=MOMENTUM(5))


def test_a_range_test_of_an_nnx_model_and_its_optimizer():
    model = NnxNetwork(nnx.Rngs(0))
    factory = inject(optax.sgd)(learning_rate=jnp.float32(0.1), momentum=MOMENTUM)
    optimizer = nnx.Optimizer(model, factory, wrt=nnx.Param)
    if jax.tree.leaves(optimizer) == [optimizer]:
        pytest.skip("an nnx.Optimizer is no pytree before Flax 0.11")

    def step(state, batch, rate):
        model, optimizer = state
        optimizer = optax_clr.set_hyperparams(optimizer, learning_rate=rate)
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(batch) - 1) ** 2))(model)
        optimizer.update(model, gradients)
        return (model, optimizer), loss

    batches = jax.random.normal(jax.random.key(0), (60, 8, 3))
    rates = jnp.geomspace(1e-5, 1e-1, 60)
    result = optax_clr.range_test(step, (model, optimizer), batches, rates)
    assert result.losses[-1] < result.losses[0]
    assert_hyperparams(optimizer, learning_rate=0.1, momentum=MOMENTUM(0))


# ------------------------------------------------------------------------------- checkpoints


def averaged_chain():
    inner = inject(optax.adam)(RATE, b1=jnp.float32(0.9))
    return optax.chain(optax.clip(1.0), optax.partition({"all": inner}, by_label),
                       optax_clr.average_at_cycle_ends(optax_clr.Cycles(2)))  # fmt: skip


def by_label(params):
    return jax.tree.map(lambda _: "all", params)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A state, its path on disk, and Orbax's checkpointer."""
    orbax = pytest.importorskip("orbax.checkpoint")
    with jax.numpy_dtype_promotion("standard"):
        _, state, _ = train(averaged_chain(), some_params(), 3)
    path = tmp_path_factory.mktemp("checkpoints") / "state"
    checkpointer = orbax.PyTreeCheckpointer()
    checkpointer.save(path, state)
    return state, path, checkpointer


@pytest.mark.filterwarnings("ignore")
def test_what_a_checkpoint_gives_back_is_read_and_not_written(checkpoint):
    state, path, checkpointer = checkpoint
    restored = checkpointer.restore(path)
    assert isinstance(restored, list)  # dicts and lists in the place of named tuples
    assert optax_clr.get_hyperparams(restored) == optax_clr.get_hyperparams(state)
    assert_equal(optax_clr.averaged_params(restored), optax_clr.averaged_params(state))
    remedy = r"types: checkpointer\.restore\(path, optimizer\.init\(params\)\)"
    with pytest.raises(ValueError, match="b1 cannot be set in a state of dicts.*" + remedy):
        optax_clr.set_hyperparams(restored, b1=0.8)
    with pytest.raises(ValueError, match=remedy):
        optax_clr.set_step(restored, 5)


@pytest.mark.filterwarnings("ignore")
def test_the_remedy_for_a_state_without_types_works(checkpoint):
    state, path, checkpointer = checkpoint
    restored = checkpointer.restore(path, averaged_chain().init(some_params()))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    changed = optax_clr.set_step(optax_clr.set_hyperparams(restored, b1=0.8), 5)
    _, changed, _ = train(averaged_chain(), some_params(), 1, changed)
    assert_hyperparams(changed, learning_rate=RATE(5), b1=0.8)


def test_what_flax_makes_of_a_state_is_read_as_well():
    _, state, _ = train(averaged_chain(), some_params(), 3)
    restored = serialization.to_state_dict(state)
    assert optax_clr.get_hyperparams(restored) == optax_clr.get_hyperparams(state)
    _, optimizer = nnx_model_and_optimizer()
    assert_hyperparams(nnx.state(optimizer), learning_rate=RATE(0), b1=MOMENTUM(0))


def as_plain(node):
    """A state as a checkpoint may give it back, without its types."""
    if isinstance(node, (tuple, list)):
        return tuple(map(as_plain, node))
    return {key: as_plain(part) for key, part in node.items()} if isinstance(node, dict) else node


@pytest.mark.parametrize(
    "optimizer",
    [
        inject(optax.sgd)(jnp.float32(0.1)),
        inject(optax.adam)(RATE),
        optax.chain(optax.clip(1.0), inject(optax.adam)(RATE)),
        optax.chain(optax.adam(0.1), optax_clr.average_at_cycle_ends(optax_clr.Cycles(3))),
    ],
)
def test_a_state_of_plain_tuples_is_refused(optimizer):
    state = as_plain(optimizer.init(some_params()))
    calls = (
        optax_clr.get_hyperparams,
        lambda state: optax_clr.set_hyperparams(state, learning_rate=0.1),
        lambda state: optax_clr.set_step(state, 3),
        optax_clr.averaged_params,
    )
    for call in calls:
        with pytest.raises(ValueError, match="Restore it with its types"):
            call(state)


def test_a_state_of_ones_own_may_be_plain():
    averages = some_params()
    for state in ((jnp.int32(3), averages, averages), (jnp.int32(3), averages, averages, averages)):
        assert optax_clr.get_hyperparams(state) == {}


def test_a_threshold_in_a_model_of_low_precision_is_told_how_to_be_converted():
    def clipped(learning_rate, max_norm, dtype=jnp.float32):
        threshold = optax.clip_by_global_norm(max_norm.astype(dtype))
        return optax.chain(threshold, optax.adamw(learning_rate))

    params = some_params(jnp.bfloat16)
    optimizer = inject(clipped)(RATE, jnp.float32(1))
    with pytest.raises(TypeError, match="dtype") as caught:
        optimizer.update(params, optimizer.init(params), params)
    assert any("convert one in the factory" in note for note in caught.value.__notes__)
    optimizer = inject(clipped)(RATE, jnp.float32(1), jnp.bfloat16)
    optimizer.update(params, optimizer.init(params), params)
