"""Any training step: Flax's TrainState, nnx, MultiSteps, bfloat16 and Equinox in a range test."""

import functools
import itertools
import types
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from sklearn import datasets

import optax_clr
from forms import mostly_slow
from optax_clr._jaxprs import num_operations
from plain import update_nnx

pytestmark = pytest.mark.usefixtures("optax_promotion")

# Digits, 8 x 8 pixels: 40 batches of 32, in the same order in three epochs.
ROWS = np.random.default_rng(0).permutation(1797)[: 40 * 32].reshape(40, 32)
IMAGES, LABELS = datasets.load_digits(return_X_y=True)
EPOCH = (IMAGES.astype(np.float32)[ROWS] / 16, LABELS.astype(np.int32)[ROWS])
BATCHES = jax.tree.map(lambda leaf: np.concatenate(3 * [leaf]), EPOCH)
NUM_STEPS = 120

MOMENTUM = 0.9  # of the batch statistics
MICRO_BATCHES = 4  # of one real update of optax.MultiSteps


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# --------------------------------------------------- a TrainState: batch statistics and dropout


class Network(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        hidden = nn.Dense(32)(images)
        hidden = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)(hidden)
        hidden = nn.Dropout(0.2, deterministic=not train)(nn.relu(hidden))
        return nn.Dense(10)(hidden)


class TrainState(train_state.TrainState):
    batch_stats: Any
    key: jax.Array


@functools.cache
def linen_state():
    variables = Network().init(jax.random.key(0), jnp.zeros((1, 64)), train=False)
    return TrainState.create(
        apply_fn=Network().apply,
        params=variables["params"],
        tx=optax_clr.inject_schedules(optax.adam)(learning_rate=jnp.float32(0.0)),
        batch_stats=variables["batch_stats"],
        key=jax.random.key(1),
    )


def linen_step(state, batch, rate):
    images, labels = batch
    state = optax_clr.set_hyperparams(state, learning_rate=rate)

    def loss_fn(params):
        logits, updated = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(state.key, state.step)},
        )
        return cross_entropy(logits, labels), updated["batch_stats"]

    (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=gradients, batch_stats=batch_stats)
    rate_used = optax_clr.get_hyperparams(state)["learning_rate"]
    return state, (loss, {"mean": batch_stats["BatchNorm_0"]["mean"], "rate": rate_used})


# ------------------------------------------------------------- nnx: a model split into its arrays


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, momentum=MOMENTUM, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, images):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(images)))))


MODEL = Model(nnx.Rngs(0))
GRAPHDEF, *_ = nnx.split(MODEL, nnx.Param, ...)


@functools.cache
def nnx_state():
    _, params, rest = nnx.split(MODEL, nnx.Param, ...)
    return params, rest, optax.adam(0.0).init(params)


def nnx_step(state, batch, rate):
    params, rest, optimizer_state = state
    images, labels = batch
    model = nnx.merge(GRAPHDEF, params, rest)
    loss_fn = lambda model: cross_entropy(model(images), labels)
    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    updates, optimizer_state = optax.adam(rate).update(gradients, optimizer_state, params)
    _, _, rest = nnx.split(model, nnx.Param, ...)  # as the forward pass left it
    state = optax.apply_updates(params, updates), rest, optimizer_state
    return state, (loss, {"mean": model.norm.mean[...]})


# -------------------------------------------------------- MultiSteps: accumulation of gradients


def new_params():
    keys = jax.random.split(jax.random.key(0))
    return {
        "hidden": jax.random.normal(keys[0], (64, 32)) / 8,
        "out": jax.random.normal(keys[1], (32, 10)) / 6,
    }


def mlp_loss(params, batch):
    images, labels = batch
    return cross_entropy(nn.relu(images @ params["hidden"]) @ params["out"], labels)


ACCUMULATED = optax.MultiSteps(
    optax_clr.inject_schedules(optax.adam)(learning_rate=jnp.float32(0.0)),
    every_k_schedule=MICRO_BATCHES,
)


@functools.cache
def accumulated_state():
    return new_params(), ACCUMULATED.init(new_params())


def accumulated_step(state, batch, rate):
    params, optimizer_state = state
    optimizer_state = optax_clr.set_hyperparams(optimizer_state, learning_rate=rate)
    loss, gradients = jax.value_and_grad(mlp_loss)(params, batch)
    updates, optimizer_state = ACCUMULATED.update(gradients, optimizer_state, params)
    metrics = {"params": params, "count": optimizer_state.inner_opt_state.count}
    return (optax.apply_updates(params, updates), optimizer_state), (loss, metrics)


# --------------------------------------------------------- bfloat16 with float32 master weights


@functools.cache
def bfloat16_state():
    return new_params(), optax.adam(0.0).init(new_params())


def bfloat16_step(state, batch, rate):
    masters, optimizer_state = state
    images, labels = batch

    def loss_fn(params):
        logits = nn.relu(images.astype(jnp.bfloat16) @ params["hidden"]) @ params["out"]
        return cross_entropy(logits.astype(jnp.float32), labels)

    params = jax.tree.map(lambda master: master.astype(jnp.bfloat16), masters)
    loss, gradients = jax.value_and_grad(loss_fn)(params)
    gradients = jax.tree.map(lambda gradient: gradient.astype(jnp.float32), gradients)
    updates, optimizer_state = optax.adam(rate).update(gradients, optimizer_state, masters)
    masters = optax.apply_updates(masters, updates)
    return (masters, optimizer_state), (loss, {"out": masters["out"]})


# ---------------------------------------------------------------------------------- all of them


class Case(NamedTuple):
    step_fn: Any
    make_state: Any
    steps_per_value: int = 1


CASES = {
    "TrainState": Case(linen_step, linen_state),
    "nnx": Case(nnx_step, nnx_state),
    "MultiSteps": Case(accumulated_step, accumulated_state, steps_per_value=MICRO_BATCHES),
    "bfloat16": Case(bfloat16_step, bfloat16_state),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# The same batch in every step.
REPEATED = jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], leaf.shape), BATCHES)


def rates_of(case):
    """Rates at which nothing diverges yet."""
    return np.geomspace(1e-4, 1e-2, NUM_STEPS // case.steps_per_value).astype(np.float32)


def run(case, batches=BATCHES, rates=None):
    return optax_clr.range_test(
        case.step_fn,
        case.make_state(),
        batches,
        rates_of(case) if rates is None else rates,
        has_aux=True,
        steps_per_value=case.steps_per_value,
    )


class Loader:
    """One epoch in each pass."""

    def __iter__(self):
        return zip(*EPOCH, strict=True)


BATCH_LIST = list(zip(*BATCHES, strict=True))


def assert_close(trees, others, rtol):
    close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6)
    jax.tree.map(close, trees, others)


def bits(tree):
    """Dtype and bytes of every array."""
    arrays = map(jnp.asarray, jax.tree.leaves(tree))
    is_key = lambda array: jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    plain = [jax.random.key_data(array) if is_key(array) else array for array in arrays]
    return [(array.dtype, np.asarray(array).tobytes()) for array in plain]


@every_case
def test_rows_are_those_of_a_plain_loop_over_the_same_step(case):
    result = run(case)

    step_fn, state, rows = jax.jit(case.step_fn), case.make_state(), []
    for step in range(NUM_STEPS):
        batch = jax.tree.map(lambda leaf, step=step: leaf[step], BATCHES)
        rate = rates_of(case)[step // case.steps_per_value]
        state, row = step_fn(state, batch, rate)
        rows.append(row)
    by_value = lambda *leaves: np.stack(leaves).reshape(-1, case.steps_per_value, *leaves[0].shape)
    losses, metrics = jax.tree.map(lambda *leaves: by_value(*leaves).mean(1), *rows)

    assert result.num_valid == len(losses)
    np.testing.assert_array_equal(result.learning_rates, rates_of(case))
    np.testing.assert_allclose(result.losses, losses, rtol=1e-4)
    assert_close(result.metrics, metrics, rtol=1e-4)


@every_case
def test_a_stream_gives_the_curve_of_stacked_batches(case):
    stacked = run(case)
    for stream in (BATCH_LIST, Loader()):
        streamed = run(case, stream)
        assert_close(streamed, stacked, rtol=1e-5)


@every_case
def test_the_step_trains(case):
    result = run(case, rates=np.full(NUM_STEPS // case.steps_per_value, 1e-2))
    assert result.losses[-5:].mean() < 0.4 * result.losses[0]


@every_case
@pytest.mark.parametrize("streamed", [False, True], ids=["stacked", "streamed"])
def test_the_state_is_as_it_was_batch_statistics_and_keys_included(case, streamed):
    state = case.make_state()
    before = bits((state, nnx.state(MODEL)))
    run(case, BATCH_LIST if streamed else BATCHES)
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    assert not any(array.is_deleted() for array in arrays)
    assert bits((state, nnx.state(MODEL))) == before


# ----------------------------------------------------------------------------- each in particular


def test_the_optimizer_in_a_train_state_has_the_rate_of_the_row():
    result = run(CASES["TrainState"])
    np.testing.assert_array_equal(result.metrics["rate"], result.learning_rates)


with_statistics = pytest.mark.parametrize(
    "case", [CASES["TrainState"], CASES["nnx"]], ids=["TrainState", "nnx"]
)


@with_statistics
def test_batch_statistics_move_towards_those_of_the_batch(case):
    result = run(case, REPEATED, rates=np.zeros(NUM_STEPS))  # the params stay as they are
    means = np.asarray(result.metrics["mean"])
    limit = means[0] / (1 - MOMENTUM)
    expected = limit * (1 - MOMENTUM ** np.arange(1, NUM_STEPS + 1)[:, None])
    assert np.ptp(limit) > 0.1
    np.testing.assert_allclose(means, expected, rtol=1e-3, atol=1e-5)


@with_statistics
def test_dropout_draws_a_new_mask_in_each_step(case):
    # Params and batch are the same in all rows: only the masks are not.
    result = run(case, REPEATED, rates=np.zeros(NUM_STEPS))
    assert len(np.unique(result.losses)) > 0.95 * NUM_STEPS
    assert np.ptp(result.losses) > 0.1


def test_each_row_of_accumulated_gradients_is_one_real_update():
    result = run(CASES["MultiSteps"])
    # Of the four counts of a row, the last is one higher.
    num_rows = NUM_STEPS // MICRO_BATCHES
    np.testing.assert_array_equal(result.metrics["count"], np.arange(num_rows) + 1 / MICRO_BATCHES)

    # A real update is that of one large batch.
    large = jax.tree.map(lambda leaf: leaf.reshape(num_rows, -1, *leaf.shape[2:]), BATCHES)
    params, losses, sequence = new_params(), [], []
    state = optax.adam(0.0).init(params)
    loss_and_gradients = jax.jit(jax.value_and_grad(mlp_loss))
    for row, rate in enumerate(rates_of(CASES["MultiSteps"])):
        sequence.append(params)
        batch = jax.tree.map(lambda leaf, row=row: leaf[row], large)
        loss, gradients = loss_and_gradients(params, batch)
        updates, state = optax.adam(rate).update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-4)
    for name in params:
        expected = np.stack([params[name] for params in sequence])
        np.testing.assert_allclose(result.metrics["params"][name], expected, rtol=1e-3, atol=1e-5)


def test_accumulated_gradients_in_the_short_form():
    optimizer = lambda rate: optax.MultiSteps(optax.adam(rate), MICRO_BATCHES)
    short = optax_clr.lr_range_test(
        mlp_loss, new_params(), optimizer, BATCHES,
        min_lr=1e-4, max_lr=1e-2, steps_per_value=MICRO_BATCHES,
    )  # fmt: skip
    np.testing.assert_allclose(short.losses, run(CASES["MultiSteps"]).losses, rtol=1e-5)


def test_more_steps_per_update_than_can_be_counted_are_refused():
    optimizer = lambda rate: optax.MultiSteps(optax.adam(rate), 2000)
    with pytest.raises(ValueError, match="an update within a thousand steps"):
        optax_clr.lr_range_test(mlp_loss, new_params(), optimizer, BATCHES)


def test_master_weights_that_are_not_float32_any_more_are_named():
    def step_fn(state, batch, rate):
        (masters, optimizer_state), output = bfloat16_step(state, batch, rate)
        masters = jax.tree.map(lambda master: master.astype(jnp.bfloat16), masters)
        return (masters, optimizer_state), output

    with pytest.raises(ValueError, match=r"state\[0\]\['hidden'\], float32.*; got bfloat16"):
        run(CASES["bfloat16"]._replace(step_fn=step_fn))


def test_updates_too_small_for_bfloat16_add_up_in_the_master_weights():
    small = functools.partial(
        optax_clr.lr_range_test, mlp_loss, optimizer=optax.adam, batches=REPEATED,
        min_lr=1e-5, max_lr=1e-4,
    )  # fmt: skip
    float32 = small(new_params())
    alone = small(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), new_params()))
    masters = run(CASES["bfloat16"], REPEATED, rates=float32.learning_rates)

    fall = lambda result: result.losses[0] - result.losses[-1]
    assert masters.losses[0] != float32.losses[0]  # the forward pass is another
    np.testing.assert_allclose(fall(masters), fall(float32), rtol=0.05)
    assert fall(alone) < 0.3 * fall(float32)


def test_an_equinox_model_is_its_arrays():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(64, 10, width_size=32, depth=1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)

    def loss_fn(params, batch):
        images, labels = batch
        return cross_entropy(jax.vmap(eqx.combine(params, static))(images), labels)

    result = optax_clr.lr_range_test(loss_fn, params, optax.adam, BATCHES, min_lr=1e-4, max_lr=1e-2)

    @eqx.filter_jit
    def train(model, state, batch, rate):
        images, labels = batch
        whole = lambda model: cross_entropy(jax.vmap(model)(images), labels)
        loss, gradients = eqx.filter_value_and_grad(whole)(model)
        updates, state = optax.adam(rate).update(gradients, state)
        return eqx.apply_updates(model, updates), state, loss

    losses, state = [], optax.adam(0.0).init(eqx.filter(model, eqx.is_array))
    for step, rate in enumerate(result.learning_rates):
        batch = jax.tree.map(lambda leaf, step=step: leaf[step], BATCHES)
        model, state, loss = train(model, state, batch, rate)
        losses.append(loss)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-4)
    assert result.losses[-5:].mean() < 0.5 * result.losses[0]


# ------------------------------------------------------------------ updates that need the loss

LOSS_READERS = {
    "momo": optax.contrib.momo,
    "polyak_sgd": lambda rate: optax.polyak_sgd(max_learning_rate=rate),
    "reduce_on_plateau": lambda rate: optax.chain(
        optax.adam(rate), optax.contrib.reduce_on_plateau(patience=2)
    ),
    "backtracking": lambda rate: optax.chain(
        optax.sgd(rate), optax.scale_by_backtracking_linesearch(5)
    ),
    "accumulated": lambda rate: optax.MultiSteps(optax.contrib.momo(rate), 2),
}


@pytest.mark.filterwarnings("ignore:the optimizer has a schedule of its own, or a scale")
@pytest.mark.parametrize(
    "name", mostly_slow(LOSS_READERS, usual=["momo", "backtracking", "accumulated"])
)
def test_an_update_is_given_the_loss_and_what_computes_it(name):
    optimizer, steps_per_value = LOSS_READERS[name], 1 + (name == "accumulated")
    batches = jax.tree.map(lambda leaf: leaf[:20], BATCHES)
    result = optax_clr.lr_range_test(
        mlp_loss, new_params(), optimizer, batches, min_lr=1e-3, max_lr=0.1,
        steps_per_value=steps_per_value,
    )  # fmt: skip

    @jax.jit
    def train(params, state, batch, rate):
        value_fn = functools.partial(mlp_loss, batch=batch)
        loss, gradients = jax.value_and_grad(value_fn)(params)
        updates, state = optimizer(rate).update(
            gradients, state, params, value=loss, grad=gradients, value_fn=value_fn
        )
        return optax.apply_updates(params, updates), state, loss

    params, losses, state = new_params(), [], optimizer(1e-3).init(new_params())
    for step, rate in enumerate(np.repeat(result.learning_rates, steps_per_value)):
        batch = jax.tree.map(lambda leaf, step=step: leaf[step], batches)
        params, state, loss = train(params, state, batch, rate)
        losses.append(loss)
    expected = np.reshape(losses, (-1, steps_per_value)).mean(1)
    np.testing.assert_allclose(result.losses, expected, rtol=1e-3)


# --------------------------------------------------------------- rows that are no whole updates


def step_with(optimizer):
    """A step of training with an optimizer whose rate is injected."""

    def step_fn(state, batch, rate):
        params, optimizer_state = state
        optimizer_state = optax_clr.set_hyperparams(optimizer_state, learning_rate=rate)
        loss, gradients = jax.value_and_grad(mlp_loss)(params, batch)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), loss

    return step_fn


def accumulating_test(form, every, **options):
    """A test whose optimizer accumulates gradients, as a user may write it."""
    optimizer = lambda rate: optax.MultiSteps(optax.adam(rate), every)
    if form == "short":
        return optax_clr.lr_range_test(mlp_loss, new_params(), optimizer, BATCHES, **options)
    if form == "chained":
        chained = lambda rate: optax.chain(
            optax.clip(1.0), optimizer(rate).gradient_transformation()
        )
        return optax_clr.lr_range_test(mlp_loss, new_params(), chained, BATCHES, **options)
    accumulated = optax.MultiSteps(
        optax_clr.inject_schedules(optax.adam)(learning_rate=jnp.float32(0.0)), every
    )

    rates = np.geomspace(1e-4, 1e-2, options["num_steps"] // options["steps_per_value"])
    return optax_clr.range_test(
        step_with(accumulated), (new_params(), accumulated.init(new_params())), BATCHES, rates,
        steps_per_value=options["steps_per_value"],
    )  # fmt: skip


@pytest.mark.parametrize(("every", "steps_per_value"), [(4, 1), (4, 6), (3, 4)])
@pytest.mark.parametrize("form", ["short", "chained", "state"])
def test_a_row_has_whole_updates_of_accumulated_gradients(every, steps_per_value, form):
    options = {"steps_per_value": steps_per_value, "num_steps": 12 * steps_per_value}
    message = f"steps_per_value={steps_per_value} must be a multiple of the {every} "
    with pytest.raises(ValueError, match=message):
        accumulating_test(form, every, **options)


def test_a_model_outside_of_the_step_is_told_apart():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    def step_fn(state, batch, rate):
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean(model(batch) ** 2))(model)
        update_nnx(optimizer, model, jax.tree.map(lambda leaf: rate * leaf, gradients))
        return state, loss

    with pytest.raises(Exception, match=r"trace level|of the same name outside") as caught:
        optax_clr.range_test(step_fn, jnp.zeros(()), jnp.ones((8, 4, 3)), np.geomspace(0.1, 1, 8))
    if "trace level" in str(caught.value):  # in older Flax it is the value that is not read
        assert any("and none outside" in note for note in caught.value.__notes__)


def test_a_state_of_nnx_split_has_whole_updates_too():
    model = nnx.Linear(64, 10, rngs=nnx.Rngs(0))
    accumulated = optax.MultiSteps(optax.adam(1e-3), 4).gradient_transformation()
    graph, state = nnx.split((model, nnx.Optimizer(model, accumulated, wrt=nnx.Param)))

    def step_fn(state, batch, rate):
        model, optimizer = nnx.merge(graph, state)
        loss_fn = lambda model: rate * jnp.mean(model(batch[0]) ** 2)
        loss, gradients = nnx.value_and_grad(loss_fn)(model)
        update_nnx(optimizer, model, gradients)
        return nnx.split((model, optimizer))[1], loss

    with pytest.raises(ValueError, match="steps_per_value=1 must be a multiple of the 4 "):
        optax_clr.range_test(step_fn, state, BATCHES, np.geomspace(1e-4, 1e-2, NUM_STEPS))


def test_lanes_may_accumulate_over_any_number_of_steps():
    def losses(every):
        optimizer = lambda rate: optax.MultiSteps(optax.adam(rate), lambda step: every)
        return optax_clr.lr_range_test(
            mlp_loss, new_params(), optimizer, BATCHES, num_steps=12, steps_per_value=2, max_lr=0.1
        ).losses

    lanes = jax.vmap(losses)(jnp.array([1, 2]))
    for lane, every in zip(lanes, (1, 2), strict=True):
        np.testing.assert_allclose(lane, losses(every), rtol=1e-4)


def test_members_of_an_ensemble_may_accumulate():
    optimizer = optax.MultiSteps(
        optax_clr.inject_schedules(optax.adam)(learning_rate=jnp.float32(0)), 4
    )

    def step_fn(states, batch, rate):
        train_members = jax.vmap(step_with(optimizer), (0, None, None))
        states, losses = train_members(states, batch, rate)
        return states, losses.mean()

    params = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), new_params())
    states = params, jax.vmap(optimizer.init)(params)
    rates = jnp.geomspace(1e-3, 0.1, 6)
    expected, state = [], states
    train = jax.jit(step_fn)
    for step in range(24):
        batch = jax.tree.map(lambda leaf, step=step: leaf[step], BATCHES)
        state, loss = train(state, batch, rates[step // 4])
        expected.append(loss)
    result = optax_clr.range_test(step_fn, states, BATCHES, rates, steps_per_value=4)
    np.testing.assert_allclose(result.losses, np.reshape(expected, (6, 4)).mean(axis=1), rtol=1e-4)


class Tied(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(4, 4, rngs=nnx.Rngs(1))
        self.second.kernel = self.first.kernel


def test_a_variable_in_two_places_is_refused_and_its_split_state_is_not():
    model = Tied()
    if len(jax.tree.leaves(model)) == 1:
        pytest.skip("in this version of Flax a model is no pytree")
    batches = jax.random.normal(jax.random.key(0), (20, 8, 4))

    def loss_of(model, batch):
        return jnp.mean((model.second(jnp.tanh(model.first(batch))) - batch[:, ::-1]) ** 2)

    message = r"params.*kernel.* and .*kernel.* are one variable.*nnx\.split"
    with pytest.raises(ValueError, match=message):
        optax_clr.lr_range_test(loss_of, model, optax.sgd, batches)
    graph, params = nnx.split(model)
    loss_fn = lambda params, batch: loss_of(nnx.merge(graph, params), batch)
    result = optax_clr.lr_range_test(loss_fn, params, optax.sgd, batches, min_lr=0.01, max_lr=0.5)
    optimizer = nnx.Optimizer(model, optax.sgd(1.0), wrt=nnx.Param)
    expected = []
    for batch, rate in zip(batches, result.learning_rates, strict=True):
        loss, gradients = nnx.value_and_grad(loss_of)(model, batch)
        gradients = jax.tree.map(lambda leaf, rate=rate: rate * leaf, gradients)
        update_nnx(optimizer, model, gradients)
        expected.append(loss)
    np.testing.assert_allclose(result.losses, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "accumulating",
    [
        lambda rate: optax.MultiSteps(optax.adam(rate), 4),
        # Which sums the gradients, and Adam has only zeros between two updates.
        lambda rate: optax.chain(optax.apply_every(4), optax.sgd(rate / 4)),
    ],
)
def test_accumulated_batches_are_read_like_one_large_batch(accumulating):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 4, 8, 5)).astype(np.float32)
    small = inputs, inputs.sum(-1)
    parts = jax.tree.map(lambda leaf: leaf.reshape(800, 8, *leaf.shape[3:]), small)
    large = jax.tree.map(lambda leaf: leaf.reshape(200, 32, *leaf.shape[3:]), small)
    loss_fn = lambda params, batch: jnp.mean((batch[0] @ params - batch[1]) ** 2)
    summing = not isinstance(accumulating(0.1), optax.MultiSteps)
    optimizer = optax.sgd if summing else optax.adam
    test = functools.partial(optax_clr.lr_range_test, loss_fn, jnp.zeros(5), max_lr=1e3)
    whole, summed = test(optimizer, large), test(accumulating, parts, steps_per_value=4)
    np.testing.assert_allclose(summed.losses, whole.losses, rtol=1e-3)
    np.testing.assert_allclose(summed.equivalent_steps, whole.equivalent_steps, rtol=1e-5)
    assert summed.suggest() == pytest.approx(whole.suggest(), rel=0.01)
    grid = functools.partial(
        optax_clr.lr_grid_test, loss_fn, jnp.zeros(5), min_lr=1e-3, num_values=4
    )
    whole = grid(optimizer, large, num_steps=10).equivalent_steps
    summed = grid(accumulating, parts, num_steps=40).equivalent_steps
    np.testing.assert_array_equal(summed, whole)
    np.testing.assert_array_equal(whole, np.where(np.isfinite(whole), 10, np.nan))


def test_a_grid_test_without_an_update_is_refused():
    batches = jnp.ones((8, 4, 3))
    loss_fn = lambda params, batch: jnp.mean((batch @ params - 1) ** 2)
    with pytest.raises(
        ValueError, match="num_steps=8 must be at least the 16 steps that the optimizer takes"
    ):
        optax_clr.lr_grid_test(
            loss_fn, jnp.zeros(3), lambda rate: optax.MultiSteps(optax.sgd(rate), 16), batches
        )


def test_a_loop_does_as_many_operations_as_it_has_turns():
    square = lambda matrix, _: (matrix @ matrix, None)
    loop = lambda matrix: jax.lax.scan(square, matrix, None, length=50)[0]
    found = [
        num_operations(jax.make_jaxpr(each)(jnp.ones((8, 8))).jaxpr)
        for each in (loop, jax.jit(loop), lambda matrix: matrix @ matrix)
    ]
    assert found == [50 * 2 * 8**3, 50 * 2 * 8**3, 2 * 8**3]


# ------------------------------------------------------------------ a data set for its batches


def test_a_data_set_passed_whole_leaves_a_doubt():
    inputs = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    rows, batches = (inputs, inputs.sum(-1)), (inputs.reshape(16, 4, 3), inputs.reshape(16, 4, 3))
    of_one = lambda params, row: (row[0] @ params - row[1]) ** 2
    of_many = lambda params, batch: jnp.mean((batch[0] @ params - batch[1].sum(-1)) ** 2)
    test = functools.partial(optax_clr.lr_range_test, of_one, jnp.zeros(3), optax.sgd, max_lr=1e-3)
    grid = functools.partial(optax_clr.lr_grid_test, of_one, jnp.zeros(3), optax.sgd, max_lr=1e-3)
    stream = list(zip(*rows, strict=True))
    made = lambda step: jax.tree.map(lambda column: jnp.asarray(column)[step % 64], rows)
    for run, given in ((test, rows), (test, stream), (test, made), (grid, rows), (grid, made)):
        with pytest.warns(optax_clr.RangeTestWarning, match="single example.*cut it into batches"):
            result = run(given)
        assert result.batch_size == 0
    # Asked for, it is nobody's mistake; and a batch is none.
    test(rows, num_steps=32)
    grid(rows, num_steps=32)
    result = optax_clr.lr_range_test(of_many, jnp.zeros(3), optax.sgd, batches)
    assert result.batch_size == 4


@pytest.mark.parametrize("others", [(4, 1), (4, 3)], ids=["targets", "a mask"])
def test_a_number_beside_inputs_and_labels_makes_no_single_example(recwarn, others):
    inputs = np.random.default_rng(0).normal(size=(16, 4, 3)).astype(np.float32)
    targets = np.ones((16, *others), np.float32).squeeze()
    batches = inputs, targets, np.linspace(0, 1, 16)  # the last a weight of the loss

    def loss_fn(params, batch):
        rows, targets, weight = batch
        targets = targets.reshape(4, -1).mean(-1)
        return jnp.mean((rows @ params - targets) ** 2) + weight * params @ params

    result = optax_clr.lr_range_test(loss_fn, jnp.zeros(3), optax.sgd, batches, max_lr=1e-3)
    assert result.batch_size == 4
    assert not recwarn


TOKENS = np.random.default_rng(0).integers(0, 50, (16, 8, 12))
OF_MANY = {
    "a seed beside tokens": {"tokens": TOKENS, "mask": TOKENS > 0, "seed": np.arange(16)},
    "pairs of words, and words for all of them": {
        "centre": TOKENS[:, :, 0], "context": TOKENS[:, :, 1], "negatives": TOKENS[:, 0, :5],
    },
    "a step beside inputs and labels": {
        "x": np.ones((16, 9, 3)), "y": np.ones((16, 9, 1)), "step": np.arange(16),
    },
    "a seed beside images": {"image": np.ones((16, 4, 6, 6, 3)), "seed": np.arange(16)},
    "keys that are not typed": {
        "rows": TOKENS[:, :, 0], "key": np.ones((16, 2), np.uint32),
    },
    "a seed for data that the loss closes over": {"seed": np.arange(16)},
    "sequences in a row, and where they begin": {
        "tokens": TOKENS[:, :, 0], "starts": TOKENS[:, 0, :3],
    },
    "points of an equation": {
        "inside": np.ones((16, 9)), "at the start": np.ones((16, 4)), "outside": np.ones((16, 2)),
    },
}  # fmt: skip


@pytest.mark.parametrize("batches", OF_MANY.values(), ids=OF_MANY)
def test_batches_in_parts_of_their_own_lengths_are_no_single_examples(batches):
    loss_fn = lambda params, batch: params * sum(part.mean() for part in jax.tree.leaves(batch))
    result = optax_clr.lr_range_test(loss_fn, 1.0, optax.sgd, batches)  # warnings are errors here
    assert result.batch_size != 0


def test_a_doubt_about_single_examples_stands_in_the_summary():
    result = optax_clr.RangeTestResult(*3 * [jnp.geomspace(1e-3, 10.0, 20)], jnp.int32(20))
    doubt = "In doubt: each step trained on a single example"
    losses = (jnp.log10(result.learning_rates) + 1) ** 2
    single = result._replace(losses=losses, batch_size=jnp.int32(0))
    assert "batches of a single example." in single.summary()
    assert doubt in single.summary()
    several = single._replace(batch_size=jnp.int32(4)).summary()
    assert "batches of 4." in several
    assert "single example" not in several


ROWS = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
DRAWN = jax.ShapeDtypeStruct((8, 3), jnp.float32)
RANGE_TESTS = {
    "lr_range_test": lambda batches: optax_clr.lr_range_test(
        lambda position, rows: jnp.mean((rows.mean(0) - position) ** 2),
        jnp.zeros(3), optax.sgd, batches, max_lr=0.1, num_steps=8,
    ),
    "lr_grid_test": lambda batches: optax_clr.lr_grid_test(
        lambda position, rows: jnp.mean((rows.mean(0) - position) ** 2),
        jnp.zeros(3), optax.sgd, batches, max_lr=0.1, num_steps=8, num_values=6,
    ),
    "range_test": lambda batches: optax_clr.range_test(
        lambda position, rows, rate: (position - rate * rows.mean(0), position @ rows.mean(0)),
        jnp.zeros(3), batches, np.geomspace(1e-3, 0.1, 8),
    ),
}  # fmt: skip


def draw_by_numpy(step):
    return ROWS[np.random.default_rng().integers(0, 400, 8)]


@pytest.mark.parametrize("test", RANGE_TESTS)
@pytest.mark.parametrize("batches", [draw_by_numpy, jax.jit(draw_by_numpy)])
def test_a_function_that_makes_one_batch_leaves_a_doubt(test, batches):
    """It is called while it is traced, and its draw is a constant of the program."""
    with pytest.warns(optax_clr.RangeTestWarning, match="trained on the same batch") as caught:
        RANGE_TESTS[test](batches)
    assert caught[0].filename == __file__


OF_THE_STEP = {
    "rows": lambda step: jnp.asarray(ROWS)[step % 50 * 8 + jnp.arange(8)],
    "drawn": jax.jit(
        lambda step: jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (8, 3))
    ),
    "by the host": lambda step: jax.experimental.io_callback(lambda: draw_by_numpy(0), DRAWN),
    "in form": lambda step: (jnp.asarray(ROWS)[:8], step)[0] + 0 * step,
    "each twice": lambda step: jnp.asarray(ROWS[:32]).reshape(4, 8, 3)[step // 2],
    "all with a coefficient": lambda step: jnp.minimum(1.0, (step + 1) / 4) * jnp.asarray(ROWS[:8]),
}


# What is known of batches is found in the same way in each form of test.
@pytest.mark.parametrize("test", mostly_slow(RANGE_TESTS, usual=["range_test"]))
@pytest.mark.parametrize("batches", OF_THE_STEP)
def test_a_function_of_the_step_leaves_none(test, batches):
    RANGE_TESTS[test](OF_THE_STEP[batches])  # warnings are errors here


@pytest.mark.parametrize("test", RANGE_TESTS)
@pytest.mark.parametrize("num_batches", mostly_slow([5, 7], usual=[7]))
def test_an_index_beyond_the_end_leaves_a_doubt(test, num_batches):
    """JAX takes the last entry there: 8 steps train on 5 batches, or on 7."""
    rows = jnp.asarray(ROWS[: 8 * num_batches]).reshape(num_batches, 8, 3)
    with pytest.warns(optax_clr.RangeTestWarning, match="indexes beyond the end") as caught:
        RANGE_TESTS[test](lambda step: rows[step])
    assert caught[0].filename == __file__
    RANGE_TESTS[test](lambda step: rows[step % len(rows)])  # warnings are errors here
    RANGE_TESTS[test](lambda step: jnp.resize(rows, (8, 8, 3))[step])
    jax.jit(lambda: RANGE_TESTS[test](lambda step: rows[step]))()  # where nothing is known


def test_the_host_is_not_asked_for_batches_that_are_not_trained_on():
    """What is looked at beforehand, the first batches and the last, would be read from a disk."""
    asked = []

    def read(step):
        asked.append(int(step))
        return draw_by_numpy(step)

    rows = jnp.asarray(ROWS[:40]).reshape(5, 8, 3)
    batches = lambda step: 0 * rows[step] + jax.pure_callback(read, DRAWN, step)
    jax.block_until_ready(RANGE_TESTS["range_test"](batches))
    assert sorted(asked) == list(range(8))


@jax.tree_util.register_pytree_node_class
class Checked:
    """Rows that look at what they are made of, as JAX advises against."""

    def __init__(self, rows):
        self.num_axes, self.rows = len(rows.shape), rows

    def tree_flatten(self):
        return (self.rows,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_an_error_is_the_callers_own_where_batches_check_themselves():
    def loss_fn(params, batch):
        raise RuntimeError("the caller's")

    with pytest.raises(RuntimeError, match="the caller's") as caught:
        optax_clr.lr_range_test(
            loss_fn, jnp.zeros(3), optax.sgd, Checked(jnp.asarray(ROWS).reshape(-1, 8, 3))
        )
    assert "was given the batch" in caught.value.__notes__[0]


def test_a_step_may_stand_for_all_the_data():
    """As a warning advises where one batch is meant."""
    rows = jnp.asarray(ROWS[:40])
    loss_fn = lambda params, step: jnp.mean((rows @ params - 1) ** 2)
    tests = {
        optax_clr.lr_range_test: {"num_steps": 20, "min_lr": 1e-3},
        optax_clr.lr_grid_test: {"num_values": 3},
    }
    for test, settings in tests.items():
        result = test(loss_fn, jnp.zeros(3), optax.sgd, lambda step: step, **settings)
        assert result.batch_size == ()
        assert "a single example" not in result.summary()


def test_a_point_beside_a_row_of_points_is_no_label():
    """As those at the end of an interval, in a network for a differential equation."""
    points = {"inside": jnp.linspace(0.0, 1.0, 1280).reshape(20, 64), "end": jnp.zeros((20, 1))}
    loss_fn = lambda w, at: jnp.mean((w * at["inside"] - 1) ** 2) + jnp.mean((w * at["end"]) ** 2)
    result = optax_clr.lr_range_test(loss_fn, jnp.ones(()), optax.sgd, points, max_lr=1e-3)
    assert result.batch_size == ()  # warnings are errors here


def test_a_single_example_with_a_one_hot_label_leaves_a_doubt():
    examples = jnp.asarray(ROWS[:60]), jax.nn.one_hot(np.arange(60) % 2, 2)
    loss_fn = lambda params, example: jnp.sum((example[0] @ params - example[1]) ** 2)
    with pytest.warns(optax_clr.RangeTestWarning, match="a single example") as caught:
        optax_clr.lr_range_test(loss_fn, jnp.zeros((3, 2)), optax.sgd, examples)
    assert len(caught) == 1


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_a_key_beside_each_batch_is_no_example(kind):
    with jax.default_prng_impl(kind):
        keys = jax.vmap(jax.random.PRNGKey)(np.arange(20))
    batches = jnp.asarray(ROWS[:160]).reshape(20, 8, 3), keys
    loss_fn = lambda params, batch: jnp.mean((batch[0] @ params - 1) ** 2)
    result = optax_clr.lr_range_test(loss_fn, jnp.zeros(3), optax.sgd, batches, max_lr=1e-3)
    assert result.batch_size == 8  # warnings are errors here


SCHEDULED = {
    "adam": lambda rate: optax.adam(optax_clr.one_cycle_schedule(rate, 2000)),
    "sgd": lambda rate: optax.sgd(optax.linear_schedule(0.0, rate, 1000)),
    "by a chain": lambda rate: optax.chain(
        optax.scale_by_adam(), optax.scale_by_schedule(lambda step: -rate / (1 + step))
    ),
    "beside what keeps updates": lambda rate: optax.chain(
        optax.adam(optax.linear_schedule(0.0, rate, 1000)), KEEPS
    ),
    "injected": lambda rate: optax_clr.inject_schedules(optax.adam)(
        learning_rate=optax_clr.triangular_schedule(rate / 4, rate, 20)
    ),
    "by MultiSteps": lambda rate: optax.MultiSteps(
        optax.sgd(optax.linear_schedule(0.0, rate, 1000)), 1
    ),
    "a warm-up beside the rate": lambda rate: optax.chain(
        optax.adam(rate), optax.scale_by_schedule(optax.linear_schedule(0.0, 1.0, 1000))
    ),
    "a warm-up before the rate": lambda rate: optax.chain(
        optax.scale_by_schedule(optax.linear_schedule(0.0, 1.0, 1000)), optax.scale(-rate)
    ),
    "a plateau": lambda rate: optax.chain(
        optax.adam(rate), optax.contrib.reduce_on_plateau(patience=50)
    ),
    "a line search": lambda rate: optax.chain(
        optax.sgd(rate), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
    ),
    "a line search that begins anew": optax.lbfgs,
}
CONSTANT = {
    "another's schedule": lambda rate: optax.partition(
        {"a": optax.adam(rate), "b": optax.sgd(optax.linear_schedule(0.0, 0.1, 9))},
        {"a": "a", "b": "b"},
    ),
    "of another hyperparameter": lambda rate: optax.chain(
        optax_clr.inject_schedules(optax.scale_by_adam)(b1=optax.linear_schedule(0.95, 0.85, 9)),
        optax.scale(-rate),
    ),
    "a correction by the count": optax.adamw,
    "noise by the count": lambda rate: optax.chain(
        optax.add_noise(0.01, 0.55, key=jax.random.key(0)), optax.sgd(rate)
    ),
}  # fmt: skip


def run_on_two_params(optimizer):
    batches = jnp.asarray(ROWS).reshape(50, 8, 3)
    loss_fn = lambda params, rows: jnp.mean((rows @ params["a"] + params["b"] - 1) ** 2)
    return optax_clr.lr_range_test(
        loss_fn, {"a": jnp.zeros(3), "b": jnp.zeros(())}, optimizer, batches
    )


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
    "name",
    mostly_slow(
        SCHEDULED,
        usual=[
            "adam", "by a chain", "beside what keeps updates", "injected", "by MultiSteps",
            "a warm-up before the rate", "a line search", "a line search that begins anew",
        ],
    ),
)  # fmt: skip
def test_an_optimizer_with_a_schedule_of_its_own_leaves_a_doubt(name):
    with pytest.warns(optax_clr.RangeTestWarning, match="a schedule of its own, or") as caught:
        run_on_two_params(SCHEDULED[name])
    assert caught[0].filename == __file__


@pytest.mark.usefixtures("optax_promotion")
def test_so_does_one_in_a_grid_test():
    batches = jnp.asarray(ROWS).reshape(50, 8, 3)
    loss_fn = lambda params, rows: jnp.mean((rows @ params - 1) ** 2)
    optimizer = lambda rate: optax.chain(optax.sgd(rate), WARM_UP)
    with pytest.warns(optax_clr.RangeTestWarning, match="a schedule of its own, or") as caught:
        optax_clr.lr_grid_test(loss_fn, jnp.zeros(3), optimizer, batches, num_values=2)
    assert caught[0].filename == __file__


def run_step_of_the_callers(optimizer, name="learning_rate"):
    def step_fn(state, batch, value):
        params, inner = state
        inner = optax_clr.set_hyperparams(inner, **{name: value})
        loss, gradients = jax.value_and_grad(lambda w: jnp.mean((batch @ w - 1) ** 2))(params)
        updates, inner = optimizer.update(gradients, inner, params)
        return (optax.apply_updates(params, updates), inner), loss

    state = jnp.zeros(3), optimizer.init(jnp.zeros(3))
    batches = jnp.asarray(ROWS).reshape(50, 8, 3)
    return optax_clr.range_test(step_fn, state, batches, jnp.geomspace(1e-3, 0.9, 50))


WARM_UP = optax.scale_by_schedule(optax.linear_schedule(0.0, 1.0, 1000))


OWN = optax.GradientTransformation(
    lambda params: {"largest": jnp.abs(params)},
    lambda updates, state, params=None: (updates, state),
)
KEEPS = optax.GradientTransformation(
    lambda params: {"norm": jnp.zeros(())},
    lambda updates, state, params=None: (updates, {"norm": optax.tree.norm(updates)}),
)
INJECTED = optax_clr.inject_schedules(optax.sgd)(learning_rate=jnp.float32(0), momentum=0.9)
WARMED_UP = {
    "in order": optax.chain(INJECTED, WARM_UP),
    "beside one's own": optax.chain(OWN, INJECTED, WARM_UP),
    "and one's own that keeps updates": optax.chain(
        optax.scale_by_adam(), KEEPS, INJECTED, WARM_UP
    ),
    "by name": optax.named_chain(("sgd", INJECTED), ("warm-up", WARM_UP)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.chain(INJECTED, WARM_UP)),
    "in the same factory": optax_clr.inject_schedules(
        lambda learning_rate: optax.chain(optax.sgd(learning_rate), WARM_UP)
    )(learning_rate=jnp.float32(0)),
}


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
    "name",
    mostly_slow(
        WARMED_UP,
        usual=["beside one's own", "and one's own that keeps updates", "by name",
               "in the same factory"],
    ),
)  # fmt: skip
def test_so_does_one_in_a_step_of_the_callers(name):
    with pytest.warns(optax_clr.RangeTestWarning, match="a schedule of its own, or"):
        run_step_of_the_callers(WARMED_UP[name])


@pytest.mark.usefixtures("optax_promotion")
def test_so_does_a_scale_beside_the_optimizer():
    """As Optax's example of a plateau has it: its scale multiplies what the optimizer returns."""
    plateau = optax.contrib.reduce_on_plateau(patience=2)

    def step_fn(state, batch, rate):
        params, inner, scaling = state
        inner = optax_clr.set_hyperparams(inner, learning_rate=rate)
        loss, gradients = jax.value_and_grad(lambda w: jnp.mean((batch @ w - 1) ** 2))(params)
        updates, inner = INJECTED.update(gradients, inner, params)
        params = optax.apply_updates(params, scaling.scale * updates)
        return (params, inner, plateau.update(updates, scaling, value=loss)[1]), loss

    params = jnp.zeros(3)
    state = params, INJECTED.init(params), plateau.init(params)
    with pytest.warns(optax_clr.RangeTestWarning, match="a schedule of its own, or"):
        optax_clr.range_test(
            step_fn, state, jnp.asarray(ROWS).reshape(50, 8, 3), jnp.geomspace(1e-3, 0.9, 50)
        )


@pytest.mark.usefixtures("optax_promotion")
def test_another_value_is_tested_with_the_schedule_as_it_is():
    injected = optax_clr.inject_schedules(optax.sgd)(learning_rate=0.01, momentum=jnp.float32(0))
    run_step_of_the_callers(optax.chain(injected, WARM_UP), "momentum")  # warnings are errors here


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("optimizer", CONSTANT.values(), ids=CONSTANT)
def test_what_counts_steps_beside_the_rate_leaves_none(optimizer):
    run_on_two_params(optimizer)  # warnings are errors here


def test_sam_has_whole_updates_too():
    by_sam = lambda rate: optax.contrib.sam(
        optax.adam(rate), optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    )
    batches = jnp.asarray(ROWS).reshape(50, 8, 3)
    loss_fn = lambda params, rows: jnp.mean((rows @ params - 1) ** 2)
    run = functools.partial(optax_clr.lr_range_test, loss_fn, jnp.zeros(3), by_sam, batches)
    with pytest.raises(ValueError, match="a multiple of the 2 steps that the optimizer takes for"):
        run()
    result = run(steps_per_value=2)
    rates = np.asarray(result.learning_rates)
    np.testing.assert_allclose(result.equivalent_steps, np.cumsum(rates) / rates, rtol=1e-5)


class WithStatistics(nnx.Module):
    def __init__(self):
        self.deviation = nnx.Variable(jnp.full(3, 1e-3))  # of the inputs
        self.out = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    def __call__(self, rows):
        return self.out(rows / self.deviation[...][None])


@pytest.mark.parametrize("test", [optax_clr.lr_range_test, optax_clr.lr_grid_test])
def test_a_variable_that_is_no_param_is_refused(test):
    model = WithStatistics()
    if jax.tree_util.all_leaves([model]):
        pytest.skip("an nnx.Module is no pytree before Flax 0.12")
    batches = jnp.asarray(ROWS).reshape(50, 8, 3)
    loss_fn = lambda model, rows: jnp.mean(model(rows) ** 2)
    with pytest.raises(ValueError, match=r"params.*deviation.* must be an nnx.Param, got the var"):
        test(loss_fn, model, optax.sgd, batches)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    test(
        lambda params, rows: loss_fn(nnx.merge(graphdef, params, rest), rows),
        params, optax.sgd, batches, max_lr=1e-6,
    )  # fmt: skip
    test(lambda rest, rows: jnp.mean(rows @ jax.tree.leaves(rest)[0]), rest, optax.sgd, batches)


@pytest.mark.skipif(not hasattr(nnx, "with_vars"), reason="needs a newer Flax")
@pytest.mark.parametrize("kind", [{"hijax": True}, {"ref": True}])
def test_a_variable_that_is_written_to_in_place_is_refused_with_its_remedy(kind):
    model = nnx.with_vars(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), **kind)
    loss_fn = lambda model, rows: jnp.mean(model(rows) ** 2)
    run = lambda model: optax_clr.lr_range_test(
        loss_fn, model, optax.sgd, jnp.asarray(ROWS).reshape(50, 8, 3), max_lr=1e-3
    )
    with pytest.raises(TypeError, match=r"params\..* written to in place. .*nnx\.with_vars\(model"):
        run(model)
    run(nnx.with_vars(model, hijax=False, ref=False))


@pytest.mark.skipif(not hasattr(jax, "new_ref"), reason="needs a newer JAX")
def test_a_ref_is_refused_with_its_remedy():
    ref = jax.new_ref(jnp.ones(3))
    step_fn = lambda state, batch, value: (state, state["w"].sum() * value)
    run = lambda state: optax_clr.range_test(step_fn, state, jnp.ones(9), np.ones(9))
    with pytest.raises(TypeError, match=r"state\['w'\] must be an array, got Ref .* ref\[\.\.\.\]"):
        run({"w": ref})
    run({"w": ref[...]})


def test_complex_params_are_refused():
    loss_fn = lambda params, rows: jnp.mean(jnp.abs(rows @ params - 1) ** 2)
    with pytest.raises(TypeError, match=r"params\['w'\] must be real, got dtype complex64"):
        optax_clr.lr_range_test(
            lambda params, rows: loss_fn(params["w"], rows),
            {"w": jnp.zeros(3, jnp.complex64)}, optax.sgd, jnp.asarray(ROWS).reshape(50, 8, 3),
        )  # fmt: skip


@pytest.mark.usefixtures("optax_promotion")
def test_a_rate_in_the_dtype_of_the_params_is_the_remedy_that_is_named():
    batches = jnp.asarray(ROWS, jnp.bfloat16).reshape(50, 8, 3)
    loss_fn = lambda params, rows: jnp.mean((rows @ params - 1) ** 2)
    run = lambda factory: optax_clr.lr_range_test(
        loss_fn, jnp.zeros(3, jnp.bfloat16), factory, batches
    )
    averaged = lambda rate: optax.chain(optax.adam(rate), optax.ema(0.9))
    with pytest.raises(ValueError, match=r"a rate of that dtype: lambda rate: optimizer\("):
        run(averaged)
    run(lambda rate: averaged(rate.astype(jnp.bfloat16)))


@pytest.mark.parametrize(
    "optimizer", [lambda rate: optax.adam(max(rate, 1e-6)), lambda *, rate: optax.adam(rate)]
)
def test_a_factory_that_cannot_be_traced_is_named(optimizer):
    batches = jnp.asarray(ROWS).reshape(50, 8, 3)
    loss_fn = lambda params, rows: jnp.mean((rows @ params - 1) ** 2)
    with pytest.raises(TypeError) as caught:
        optax_clr.lr_range_test(loss_fn, jnp.zeros(3), optimizer, batches)
    assert "a function of one argument that jax.jit can trace" in caught.value.__notes__[0]


def test_a_class_of_batches_that_jax_does_not_know_is_looked_into():
    batch_at = lambda step: types.SimpleNamespace(rows=jnp.asarray(ROWS)[step + jnp.arange(8)])
    result = optax_clr.range_test(
        lambda position, batch, rate: (position - rate, position @ batch.rows.mean(0)),
        jnp.zeros(3), batch_at, np.geomspace(1e-3, 0.1, 8),
    )  # fmt: skip
    assert result.batch_size == 8


def test_a_step_that_writes_its_value_into_a_reference_is_one_that_uses_it():
    if not hasattr(jax, "new_ref"):
        pytest.skip("this JAX has no references")

    def step_fn(position, batch, rate):
        reference = jax.new_ref(position)
        reference[...] = position - rate * (position - batch)
        return reference[...], (position - batch) ** 2

    result = optax_clr.range_test(
        step_fn, jnp.float32(1), np.zeros(60), np.geomspace(1e-3, 0.3, 60)
    )
    assert result.losses[-1] < 1e-2 * result.losses[0]


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4"])
def test_batches_of_the_other_byte_order_are_taken(dtype):
    step_fn = lambda state, batch, value: (state, batch.astype(jnp.float32).sum() + 0 * value)
    batches = np.arange(20).reshape(10, 2).astype(dtype)
    for form in (batches, list(zip(batches, strict=True))):
        take = step_fn if form is batches else lambda s, b, v: step_fn(s, b[0], v)
        result = optax_clr.range_test(take, 0.0, form, np.ones(10), stop_factor=float("inf"))
        np.testing.assert_array_equal(result.losses, 4 * np.arange(10) + 1)


class Params(NamedTuple):
    weights: jax.Array


OTHERS = {
    "a schedule": optax.adam(optax.cosine_decay_schedule(1e-3, 1000)),
    "an injected schedule": optax_clr.inject_schedules(optax.adam)(
        learning_rate=optax_clr.triangular_schedule(1e-4, 1e-3, 10)
    ),
    "a plateau": optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()),
    "updates of one size": optax.lion(1e-4),
    "accumulated gradients": optax.MultiSteps(optax.adam(1e-3), 4),
}


ORDERS = ["judge first", "maker first", "together"]


def play(maker, judge, batch, update_maker, update_judge, order):
    """One step of both, the judge before, after or at the same time as the maker."""
    judged = lambda maker: (
        lambda judge: jnp.mean(
            (batch @ maker.weights @ judge.weights - batch @ judge.weights + 1) ** 2
        )
    )
    made = lambda judge: lambda maker: jnp.mean((batch @ maker.weights @ judge.weights) ** 2)
    if order == "judge first":
        new_judge, _ = update_judge(judge, judged(maker[0]))
        new_maker, loss = update_maker(maker, made(new_judge[0]))
    elif order == "maker first":
        new_maker, loss = update_maker(maker, made(judge[0]))
        new_judge, _ = update_judge(judge, judged(new_maker[0]))
    else:
        new_maker, loss = update_maker(maker, made(judge[0]))
        new_judge, _ = update_judge(judge, judged(maker[0]))
    return new_maker, new_judge, loss


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
    "case",
    mostly_slow(
        itertools.product(OTHERS, ORDERS),
        usual=[
            *(("a plateau", order) for order in ORDERS),
            *((other, "judge first") for other in OTHERS),
        ],
    ),
    ids=", ".join,
)
def test_a_second_optimizer_counts_for_nothing(case):
    """The discriminator trains by its own, and the generator, which is read, at the rates."""
    other, order = OTHERS[case[0]], case[1]
    optimizer = optax_clr.inject_schedules(optax.sgd)(learning_rate=jnp.float32(0))

    def updates_by(optimizer):
        def update(player, loss_fn):
            params, inner = player
            loss, gradients = jax.value_and_grad(loss_fn)(params)
            updates, inner = optax.with_extra_args_support(optimizer).update(
                gradients, inner, params, value=loss
            )
            return (optax.apply_updates(params, updates), inner), loss

        return update

    def step_fn(state, batch, rate):
        (maker, judge), inner = state
        made = optax_clr.set_hyperparams(inner["maker"], learning_rate=rate)
        players = (maker, made), (judge, inner["judge"])
        by = updates_by(optimizer), updates_by(other)
        (maker, made), (judge, judging), loss = play(*players, batch, *by, order)
        rates = jnp.stack([rate, optax.tree.norm(judging)])  # both in a record
        return ((maker, judge), {"maker": made, "judge": judging}), (loss, rates)

    players = Params(jnp.eye(3)), Params(jnp.ones(3))
    inner = {"maker": optimizer.init(players[0]), "judge": other.init(players[1])}
    result = optax_clr.range_test(  # warnings are errors here
        step_fn, (players, inner), jnp.asarray(ROWS).reshape(50, 8, 3),
        jnp.geomspace(1e-4, 0.01, 50), has_aux=True,
    )  # fmt: skip
    assert result.optimizer_factor == 2
    np.testing.assert_allclose(
        result.equivalent_steps, np.cumsum(result.learning_rates) / result.learning_rates, rtol=1e-5
    )


@pytest.mark.parametrize("direction", ["before", "after"])
def test_what_is_kept_of_an_update_hides_no_optimizer(direction):
    """Its norm before the rate is applied, which the rate does not reach, or after it."""
    optimizer = optax.scale_by_lion()

    def step_fn(state, batch, rate):
        params, inner, _ = state
        loss, gradients = jax.value_and_grad(lambda w: jnp.mean((batch @ w - 1) ** 2))(params)
        updates, inner = optimizer.update(gradients, inner, params)
        kept = jnp.linalg.norm(updates) * (1 if direction == "before" else rate * batch.mean())
        return (params - rate * updates, inner, kept), loss

    state = jnp.zeros(3), optimizer.init(jnp.zeros(3)), jnp.zeros(())
    result = optax_clr.range_test(
        step_fn, state, jnp.asarray(ROWS).reshape(50, 8, 3), jnp.geomspace(1e-4, 0.01, 50)
    )
    assert result.optimizer_factor == 0.25


@pytest.mark.usefixtures("optax_promotion")
def test_nor_does_that_of_another_group_in_a_loop_over_minibatches():
    groups = {
        "a": optax_clr.inject_schedules(optax.adam)(learning_rate=jnp.float32(0)),
        "b": optax.sgd(optax.cosine_decay_schedule(0.01, 50)),
    }
    optimizer = optax.partition(groups, {"a": "a", "b": "b"})

    def step_fn(state, batch, rate):
        def train(state, rows):
            params, inner = state
            loss, gradients = jax.value_and_grad(
                lambda params: jnp.mean((rows @ params["a"] + params["b"] - 1) ** 2)
            )(params)
            updates, inner = optimizer.update(gradients, inner, params)
            return (optax.apply_updates(params, updates), inner), loss

        state = state[0], optax_clr.set_hyperparams(state[1], learning_rate=rate)
        state, losses = jax.lax.scan(train, state, batch.reshape(4, 2, 3))
        return state, losses.mean()

    params = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    batches = jnp.asarray(ROWS).reshape(50, 8, 3)
    optax_clr.range_test(
        step_fn, (params, optimizer.init(params)), batches, jnp.geomspace(1e-4, 0.01, 50)
    )


@pytest.mark.usefixtures("optax_promotion")
def test_optimizers_of_a_part_of_the_params_each_are_of_one_kind():
    build = lambda rate: optax.partition(
        {"a": optax.lion(rate), "b": optax.lion(rate)}, {"a": "a", "b": "b"}
    )
    loss_fn = lambda params, batch: jnp.mean((batch @ params["a"] + params["b"] - 1) ** 2)
    params = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    batches = jnp.asarray(ROWS).reshape(50, 8, 3)
    assert optax_clr.lr_range_test(loss_fn, params, build, batches).optimizer_factor == 0.25


@pytest.mark.usefixtures("optax_promotion")
def test_a_rate_that_the_formula_of_an_optimizer_counts_with_leaves_none():
    if not hasattr(optax.contrib, "madgrad"):
        pytest.skip("this Optax has no MADGRAD")
    run_step_of_the_callers(
        optax_clr.inject_schedules(optax.contrib.madgrad)(learning_rate=jnp.float32(0))
    )
