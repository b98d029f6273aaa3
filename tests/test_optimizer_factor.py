"""The kind of optimizer in a range test, and what is read for it."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from optax import contrib

import optax_clr
from optax_clr._optimizer_factor import has_one_size, optimizer_factor

pytestmark = pytest.mark.usefixtures("optax_promotion")

PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
RATE = 0.1
NO_AVERAGE = {
    "sgd": optax.sgd,
    "adagrad": optax.adagrad,
    "optimistic": optax.optimistic_gradient_descent,
    "clipped": lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate)),
    "decayed": lambda rate: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rate)),
    "accumulated": lambda rate: optax.MultiSteps(optax.sgd(rate), 2),
    "if finite": lambda rate: optax.apply_if_finite(optax.sgd(rate), 3),
    "masked": lambda rate: optax.masked(optax.sgd(rate), {"w": True, "b": False}),
    "two rates": lambda rate: optax.multi_transform(
        {"a": optax.sgd(rate), "b": optax.sgd(2 * rate)}, {"w": "a", "b": "b"}
    ),
    "injected": optax.inject_hyperparams(optax.sgd),
    "scheduled": lambda rate: optax.sgd(optax.constant_schedule(rate)),
    "accumulated updates": lambda rate: optax.chain(optax.apply_every(2), optax.sgd(rate)),
    "plateau": lambda rate: optax.chain(optax.sgd(rate), contrib.reduce_on_plateau()),
    "averaged params": lambda rate: optax.chain(
        optax.sgd(rate), optax_clr.average_at_cycle_ends(optax_clr.Cycles(5))
    ),
}
DECAY = optax.add_decayed_weights(optax.constant_schedule(0.1))
if jax.tree.leaves(DECAY.init(PARAMS)):  # older Optax takes no schedule there
    NO_AVERAGE["scheduled decay"] = lambda rate: optax.chain(DECAY, optax.sgd(rate))
ONE_SIZE = {
    "lion": optax.lion,
    "muon": contrib.muon,
    "clipped lion": lambda rate: optax.chain(optax.clip(1.0), optax.lion(rate)),
    "injected lion": optax.inject_hyperparams(optax.lion),
    "lamb": optax.lamb,
    "injected lamb": optax.inject_hyperparams(optax.lamb),
    "accumulated lamb": lambda rate: optax.MultiSteps(optax.lamb(rate), 2),
    "lamb of two groups": lambda rate: optax.multi_transform(
        {"a": optax.lamb(rate), "b": optax.set_to_zero()}, {"w": "a", "b": "b"}
    ),
    "signum": lambda rate: optax.chain(optax.ema(0.9), optax.scale_by_sign(), optax.scale(-rate)),
}
NO_AVERAGE_OF_ONE_SIZE = {
    "sign": optax.sign_sgd,
    "injected sign": lambda rate: optax_clr.inject_schedules(optax.sign_sgd)(jnp.float32(rate)),
    "scheduled sign": lambda rate: optax.sign_sgd(optax.constant_schedule(rate)),
    "normalized": lambda rate: optax.chain(optax.normalize_by_update_norm(), optax.sgd(rate)),
    "fromage": optax.fromage,
}
USUAL = {
    "a mask that knows lamb": lambda rate: optax.adamw(rate, mask=of_rank(optax.lamb(rate))),
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
    "adafactor": optax.adafactor,
    "nadam": optax.nadam,
    "lars": optax.lars,
    "normalized momentum": lambda rate: optax.chain(
        optax.normalize_by_update_norm(), optax.sgd(rate, momentum=0.9)
    ),
    "lamb and adam": lambda rate: optax.multi_transform(
        {"a": optax.adam(rate), "b": optax.lamb(rate)}, {"w": "a", "b": "b"}
    ),
    "adopt": contrib.adopt,
    "schedule-free": contrib.schedule_free_adamw,
    "accumulated momentum": lambda rate: optax.MultiSteps(optax.sgd(rate, momentum=0.9), 2),
    "sgd and adam": lambda rate: optax.multi_transform(
        {"a": optax.sgd(rate), "b": optax.adam(rate)}, {"w": "a", "b": "b"}
    ),
    "an own trace": lambda rate: optax.chain(own_trace(), optax.scale(-rate)),
}


def of_rank(other):
    """Return a mask that refers to another optimizer."""
    return lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1 and other is not None, params)


def own_trace():
    """Momentum whose state is not one of Optax's."""
    decayed = lambda traces, gradients: jax.tree.map(lambda t, g: 0.9 * t + g, traces, gradients)

    def update(gradients, traces, params=None):
        del params
        traces = decayed(traces, gradients)
        return traces, traces

    return optax.GradientTransformation(lambda p: jax.tree.map(jnp.zeros_like, p), update)


def test_a_function_without_a_module_tells_nothing():
    names: dict = {}
    exec("def update(gradients, state, params=None): return gradients, state", names)
    names["update"].__module__ = None
    assert has_one_size(optax.GradientTransformation(lambda params: (), names["update"])) is None


def last_update(make_optimizer, gradients, params):
    """Return the last update of a sequence of gradients ``[n, ...]``, at params that stay."""
    optimizer = optax.with_extra_args_support(make_optimizer(RATE))

    def step(state, gradient):
        update, state = optimizer.update(gradient, state, params, value=0.0)
        return state, update

    _, updates = jax.lax.scan(step, optimizer.init(params), gradients)
    return updates["w"][-1]


def turning(num_before, num_after):
    """Return gradients of one sign, and then small ones of the other."""
    signs = jnp.array([1.0] * num_before + [-0.1] * num_after)
    return jax.tree.map(lambda leaf: jnp.multiply.outer(signs, leaf), PARAMS)


FACTORS = ((NO_AVERAGE, 2.0), (ONE_SIZE, 0.25), (NO_AVERAGE_OF_ONE_SIZE, 0.5), (USUAL, 1.0))


@pytest.mark.parametrize(
    ("kind", "make_optimizer", "factor"),
    [(kind, make, factor) for kinds, factor in FACTORS for kind, make in kinds.items()],
)
def test_the_kind_is_seen(kind, make_optimizer, factor):
    optimizer = make_optimizer(RATE)
    is_one_size = has_one_size(optimizer) is True
    state = optimizer.init(PARAMS)
    assert optimizer_factor(state, is_one_size=is_one_size) == factor
    if kind != "an own trace":
        state = {"params": PARAMS, "optimizer": state}
        assert optimizer_factor(state, is_one_size=is_one_size) == factor


def of_matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@pytest.mark.parametrize(
    ("make_optimizer", "factor"),
    [
        (optax.lion, 0.25),
        (optax.inject_hyperparams(optax.lion), 0.25),
        (contrib.muon, 0.25),
        (optax.adamw, 1.0),
        (lambda rate: optax.masked(optax.adam(rate), of_matrices), 1.0),
        (optax.novograd, 1.0),
        (lambda rate: optax.sgd(rate, momentum=0.9), 1.0),
        (optax.sgd, 1.0),  # its state is empty, as that of anything may be
    ],
)
def test_the_kind_is_seen_in_the_state_of_nnx_which_has_no_types(make_optimizer, factor):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, make_optimizer(RATE), wrt=nnx.Param)
    _, state = nnx.split((model, optimizer))
    assert optimizer_factor(state) == factor


@pytest.mark.parametrize(("make_optimizer", "factor"), [(optax.adam, 1.0), (optax.sgd, 2.0)])
def test_other_things_that_have_the_names_of_those_fields_tell_nothing(make_optimizer, factor):
    params = {"mu": jnp.ones(3), "count": jnp.ones(())}
    state = make_optimizer(RATE).init(params)
    assert optimizer_factor({"params": params, "opt_state": state}) == factor
    assert optimizer_factor({"params": params}) == 1.0


@pytest.mark.parametrize("kind", [*NO_AVERAGE, "sign", "normalized"])
def test_what_averages_nothing_follows_the_last_gradient(kind):
    nothing_to_decay = jax.tree.map(jnp.zeros_like, PARAMS)
    make_optimizer = (NO_AVERAGE | NO_AVERAGE_OF_ONE_SIZE)[kind]
    last = last_update(make_optimizer, turning(8, 2), nothing_to_decay)
    assert np.all(np.asarray(last) > 0)


@pytest.mark.parametrize("kind", ["momentum", "adam", "nadam", "schedule-free"])
def test_and_what_averages_does_not(kind):
    assert np.all(np.asarray(last_update(USUAL[kind], turning(8, 1), PARAMS)) < 0)


def size_on_noise(make_optimizer):
    """Return how large an update is after noise, over one after gradients that agree."""
    noise = jax.random.normal(jax.random.key(0), (200, 12, 8))
    agreeing = jnp.broadcast_to(noise[:1], noise.shape)
    of_noise, of_agreeing = (
        jnp.linalg.norm(last_update(make_optimizer, {"w": rows}, {"w": noise[0]}))
        for rows in (noise, agreeing)
    )
    return float(of_noise / of_agreeing)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda rate: optax.lion(rate, weight_decay=0.0),
        lambda rate: contrib.muon(rate, weight_decay=0.0),
        *(ONE_SIZE[kind] for kind in ("lamb", "signum")),
        *NO_AVERAGE_OF_ONE_SIZE.values(),
    ],
)
def test_what_has_one_size_steps_as_far_on_noise(make_optimizer):
    assert size_on_noise(make_optimizer) > 0.8


@pytest.mark.parametrize("kind", ["adam", "lars", "normalized momentum"])
def test_and_what_averages_last_does_not(kind):
    assert size_on_noise(USUAL[kind]) < 0.4


# ---------------------------------------------------------------------------------- range tests


INPUTS = jax.random.normal(jax.random.key(0), (300, 32, 4))
BATCHES = INPUTS, INPUTS.sum(-1) + jax.random.normal(jax.random.key(1), (300, 32))


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params - targets) ** 2)


def readings(result):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optax_clr.RangeTestWarning)
        peak = result.peak_for(optax.cosine_decay_schedule(1.0, 100), 100)
        return np.array([result.suggest(), result.one_cycle_peak(), peak, *result.bounds()])


@pytest.mark.parametrize(
    ("make_optimizer", "factor"),
    [(optax.sgd, 2.0), (optax.adam, 1.0), (optax.lion, 0.25), (optax.sign_sgd, 0.5)],
)
def test_every_reading_has_the_factor(make_optimizer, factor):
    result = optax_clr.lr_range_test(loss_fn, jnp.zeros(4), make_optimizer, BATCHES)
    assert result.optimizer_factor == factor
    plain = readings(result._replace(optimizer_factor=()))
    np.testing.assert_allclose(readings(result), factor * plain, rtol=1e-6)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        optax.scale_by_learning_rate,
        lambda rate: optax.scale(-rate),
        lambda rate: optax.stateless(lambda updates, params: jax.tree.map(
            lambda update: -rate * update, updates)),
    ],
    ids=["scale_by_learning_rate", "scale", "stateless"],
)  # fmt: skip
def test_an_optimizer_whose_whole_state_is_empty_has_the_factor_of_sgd(make_optimizer):
    result = optax_clr.lr_range_test(loss_fn, jnp.zeros(4), make_optimizer, BATCHES)
    assert result.optimizer_factor == 2.0


@pytest.mark.parametrize("make_optimizer", [optax.sgd, optax.adam, optax.lion, optax.scale])
def test_it_is_found_beside_the_empty_state_of_a_clipper(make_optimizer):
    clip, key, params = optax.clip(1.0), jax.random.key(0), jnp.zeros(4)

    def step_fn(state, batch, rate):
        params, key, clip_state, optimizer_state = state
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        updates, clip_state = clip.update(gradients, clip_state)
        optimizer = make_optimizer(rate)
        updates, optimizer_state = optimizer.update(updates, optimizer_state, params)
        return (optax.apply_updates(params, updates), key, clip_state, optimizer_state), loss

    state = params, key, clip.init(params), make_optimizer(RATE).init(params)
    result = optax_clr.range_test(step_fn, state, BATCHES, jnp.geomspace(1e-4, 0.1, 100))
    alone = optax_clr.lr_range_test(loss_fn, params, make_optimizer, BATCHES)
    assert result.optimizer_factor == alone.optimizer_factor


def test_lanes_have_it_too():
    lane = lambda scale: optax_clr.lr_range_test(loss_fn, scale * jnp.ones(4), optax.sgd, BATCHES)
    result = jax.jit(jax.vmap(lane))(jnp.array([0.0, 0.1]))
    np.testing.assert_array_equal(result.optimizer_factor, [2.0, 2.0])
    plain = readings(result._replace(optimizer_factor=()))
    np.testing.assert_allclose(readings(result), 2 * plain, rtol=1e-6)


@pytest.mark.parametrize("make_optimizer", [optax.sgd, optax.adam])
def test_a_grid_of_rates_has_it_too(make_optimizer):
    batches = jax.tree.map(lambda leaf: leaf[:20], BATCHES)
    grid = optax_clr.lr_grid_test(loss_fn, jnp.zeros(4), make_optimizer, batches)
    assert grid.optimizer_factor == optimizer_factor(make_optimizer(RATE).init(jnp.zeros(4)))


@pytest.mark.parametrize("make_optimizer", [optax.lion, optax.lamb])
def test_it_is_found_in_the_state_of_a_training_step_of_ones_own(make_optimizer):
    params = {"w": jnp.zeros(4)}
    state = TrainState.create(apply_fn=None, params=params, tx=make_optimizer(1.0))

    def step_fn(state, batch, rate):
        loss, gradients = jax.value_and_grad(lambda p: loss_fn(p["w"], batch))(state.params)
        return state.apply_gradients(grads=jax.tree.map(lambda leaf: rate * leaf, gradients)), loss

    rates = jnp.geomspace(1e-4, 1.0, 100)
    assert optax_clr.range_test(step_fn, state, BATCHES, rates).optimizer_factor == 0.25


def test_it_is_found_in_an_optimizer_of_nnx():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.lamb(RATE), wrt=nnx.Param)
    assert optimizer_factor({"optimizer": optimizer}) == 0.25


def test_a_state_that_is_not_of_optax_changes_nothing():
    def step_fn(params, batch, rate):
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        return params - rate * gradients, loss

    result = optax_clr.range_test(step_fn, jnp.zeros(4), BATCHES, jnp.geomspace(1e-4, 1.0, 100))
    assert result.optimizer_factor == 1.0


def test_the_summary_says_so():
    result = optax_clr.lr_range_test(loss_fn, jnp.zeros(4), optax.sgd, BATCHES)
    line = "These include a factor of 2 for the kind of optimizer."
    assert line in result.summary()
    assert "a factor of" not in result._replace(optimizer_factor=()).summary()
