"""States of optimizers: who owns their arrays, which dtypes they keep, where schedules go on."""

import functools
import inspect
import warnings
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax.training.train_state import TrainState

import optax_clr
from optax_clr import _set_step, _states

pytestmark = pytest.mark.usefixtures("optax_promotion")

# ------------------------------------------------------- set_step, in every optimizer of Optax
#
# The optimizers of the installed version are found by looking, and each argument that takes a
# schedule is given one. After set_step the next update is that of the optimizer built with the
# same schedule, begun later; or, where a transformation counts for a schedule and for its moments
# by one counter, that of a run whose gradients so far were zero.

# Of one shape, as each shape is compiled.
MATRIX = {"kernel": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)}
VECTOR = {"bias": jnp.linspace(-1.0, 1.0, 2)}
STEP = 5


def schedule(step):
    return 0.05 + 0.4 * jnp.asarray(step, jnp.float32)


def later(step):
    return schedule(step + STEP)


def factories():
    """Every function of Optax that may return a transformation, by name."""
    for module in (optax, optax.contrib):
        for name, value in vars(module).items():
            if name.startswith(("_", "inject")) or not inspect.isfunction(value):
                continue
            signature = inspect.signature(value)
            returns = "GradientTransformation" in str(signature.return_annotation)
            if returns or "learning_rate" in signature.parameters:
                yield f"{module.__name__}.{name}", value


# Noise of no size, and what would take long to compile.
QUICK = {"eta": 0.0, "ns_steps": 1, "linesearch": None}


def arguments(factory):
    """Values for the arguments that have no default, and for a few that have one."""
    known = {"k": 2, "sync_period": 2, "seed": 0, "noise_multiplier": 0.0, **QUICK}
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            continue
        if parameter.default is parameter.empty or name in QUICK:
            is_optimizer = "optimizer" in name or name in ("inner", "tx")
            yield name, optax.sgd(0.1) if is_optimizer else known.get(name, 0.1)


def inputs_for(optimizer):
    """Gradients, params and extra arguments that an update takes: all forms that there are."""
    is_extra = isinstance(optimizer, optax.GradientTransformationExtraArgs)
    extra = {"value": jnp.float32(1.0)} if is_extra else {}
    gradients = jax.tree.map(lambda leaf: leaf + 0.5, MATRIX)
    of_examples = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), gradients)
    yield gradients, MATRIX, extra
    yield of_examples, MATRIX, extra
    yield gradients, MATRIX, {**extra, "obj_fn": quadratic}


def first_that_works(optimizer, candidates):
    for inputs in candidates:
        once = lambda inputs=inputs: trail(optimizer, optimizer.init(MATRIX), *inputs, 1)
        try:
            jax.eval_shape(once)
        except Exception:  # of any kind
            continue
        return inputs
    return None


def trail(optimizer, state, gradients, params, extra, num_updates=2):
    """The updates, one after another, of the same gradients, and the last state."""
    updates = []
    for _ in range(num_updates):
        update, state = optimizer.update(gradients, state, params, **extra)
        updates.append(update)
    return updates, state


def quadratic(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


FACTORIES = dict(factories())
# Functions of the step that are no schedules of Optax: a condition, the clipping of the moments.
OTHERS = {"should_transform_fn", "clip_value_fn"}


@functools.cache
def with_schedules(name):
    """Each argument of a factory whose function it calls with the step: {argument: (...)}."""
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
        warnings.simplefilter("ignore")  # what is deprecated is tested too
        return dict(_with_schedules(FACTORIES[name]))


def _with_schedules(factory):
    build = functools.partial(factory, **dict(arguments(factory)))
    constant = attempt(build)
    works = constant and first_that_works(constant, inputs_for(constant))
    for argument, parameter in inspect.signature(factory).parameters.items():
        if isinstance(parameter.default, (bool, str)) or argument in OTHERS:
            continue
        calls = []

        def recorded(step, calls=calls):
            calls.append(jnp.shape(step))
            return schedule(step)

        optimizer = attempt(build, **{argument: recorded})
        if optimizer is None:
            continue
        inputs = first_that_works(optimizer, [works] if works else inputs_for(optimizer))
        if inputs and argument.startswith("adam_"):  # Muon's, for what is not a matrix
            inputs = (VECTOR, VECTOR, inputs[-1])
        if inputs and set(calls) == {()}:
            given = lambda value, build=build, argument=argument: build(**{argument: value})
            yield argument, (given, inputs)


def attempt(build, **arguments):
    try:
        optimizer = build(**arguments)
    except Exception:  # an argument of another kind, or one that cannot be guessed
        return None
    return optimizer if isinstance(optimizer, optax.GradientTransformation) else None


def states_in(tree):
    return [node for _, node in optax_clr._states.walk(tree)]


def difference(first, second):
    """The largest, in units of what is largest."""
    first, second = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
                     for tree in (first, second))  # fmt: skip
    return np.max(np.abs(first - second)) / np.max(np.abs([first, second]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FACTORIES)
def test_a_moved_schedule_goes_on_where_it_should(name):
    for argument, (build, inputs) in with_schedules(name).items():
        assert_goes_on_where_it_should(build, inputs, argument)


def assert_goes_on_where_it_should(build, inputs, argument):
    optimizer = build(schedule)
    fresh = optimizer.init(inputs[1])

    moved = optax_clr.set_step(fresh, STEP)

    if any(type(node).__name__ in _set_step._SHARED for node in states_in(fresh)):
        expected, _ = trail(optimizer, after_zeros(optimizer, fresh, *inputs), *inputs)
    else:
        begun_later = build(later)
        expected, _ = trail(begun_later, begun_later.init(inputs[1]), *inputs)
    got, _ = trail(optimizer, moved, *inputs)
    assert difference(got, expected) < 1e-5, argument
    # Or this could not fail:
    assert difference(got, trail(optimizer, fresh, *inputs)[0]) > 1e-4, argument


def after_zeros(optimizer, state, *inputs):
    """The state after gradients, losses and params that were zero, so that nothing decayed."""
    _, after = trail(optimizer, state, *jax.tree.map(jnp.zeros_like, inputs), STEP)
    # Prodigy and D-Adaptation divide 0 by 0: what they estimate is then what it was.
    return jax.tree.map(lambda new, old: jnp.where(jnp.isnan(new), old, new), after, state)


def test_as_many_optimizers_are_covered_as_there_are():
    """They are found by trying; if Optax changes so that none is, this is how it shows."""
    covered = {name: with_schedules(name) for name in FACTORIES}
    assert sum(map(len, covered.values())) >= (74 if hasattr(optax.contrib, "galore") else 46)
    assert {name.split(".")[-1] for name, arguments in covered.items() if arguments} >= {
        "adamw", "lbfgs", "schedule_free", "prodigy", "muon", "momo", "dpsgd", "sophia",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_every_counter_of_optax_is_known():
    unknown = set()
    for _, factory in factories():
        try:
            state = factory(**dict(arguments(factory))).init(MATRIX)
        except Exception:  # whose arguments cannot be guessed
            continue
        for node in states_in(state):
            names = getattr(node, "_fields", ())
            counters = {name for name in names if _states.is_counter(getattr(node, name))}
            kind = type(node).__name__
            known = {_set_step._MOVED.get(kind), *_set_step._KEPT.get(kind, ())}
            if len(jax.tree.leaves(node)) > 1:
                unknown |= {(kind, name) for name in counters - known}
    assert not unknown


# ------------------------------------------------------------------- set_step, in other states

RATE = optax_clr.triangular_schedule(0.1, 0.5, rise_steps=7)
MOMENTUM = optax_clr.triangular_schedule(0.95, 0.85, rise_steps=7)
PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
LABELS = {"kernel": "slow", "bias": "fast"}
inject = optax_clr.inject_schedules


def begun(schedule, at):
    return lambda step: schedule(step + at)


def sgd(at):
    return inject(optax.sgd)(begun(RATE, at), begun(MOMENTUM, at))


# Optax before 0.2.6 takes no schedule for it.
DECAYS = bool(jax.tree.leaves(optax.add_decayed_weights(RATE).init(PARAMS)))


def adamw(at):
    return optax.adamw(begun(RATE, at), weight_decay=begun(RATE, at) if DECAYS else 0.1)


def condition(at):
    return lambda step: step + at > STEP


# Built with schedules that begin at a step.
NESTED = {
    "chain": lambda at: optax.chain(optax.clip(1.0), sgd(at), optax.trace(0.5)),
    "named_chain": lambda at: optax.named_chain(("first", sgd(at)), ("second", optax.trace(0.5))),
    "masked": lambda at: optax.masked(adamw(at), {"kernel": True, "bias": False}),
    "partition": lambda at: optax.partition({"slow": sgd(at), "fast": adamw(at)}, LABELS),
    "MultiSteps": lambda at: optax.MultiSteps(
        NESTED["partition"](at), lambda step: 1 + (step + at > STEP)
    ),
    "conditionally_transform": lambda at: optax.conditionally_transform(sgd(at), condition(at)),
    "conditionally_mask": lambda at: optax.conditionally_mask(adamw(at), condition(at)),
    "apply_if_finite": lambda at: optax.apply_if_finite(adamw(at), 3),
    "injected twice": lambda at: inject(
        lambda gain: optax.chain(sgd(at), optax.scale(gain))
    )(begun(RATE, at)),
    "schedule_free": lambda at: optax.contrib.schedule_free(adamw(at), begun(RATE, at)),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_a_nested_state_goes_on_where_it_was_moved(name):
    gradients = jax.tree.map(lambda leaf: leaf + 0.5, PARAMS)
    here, begun_later = NESTED[name](0), NESTED[name](STEP)
    moved = optax_clr.set_step(here.init(PARAMS), STEP)

    run = jax.jit(lambda state: trail(here, state, gradients, PARAMS, {}, 3)[0])
    expected, _ = jax.jit(lambda state: trail(begun_later, state, gradients, PARAMS, {}, 3))(
        begun_later.init(PARAMS)
    )

    assert difference(run(moved), expected) < 1e-5
    assert difference(run(moved), run(here.init(PARAMS))) > 1e-4  # or this could not fail


def test_vmapped_states_are_moved_in_all_lanes():
    optimizer = NESTED["partition"](0)
    states = jax.vmap(lambda scale: optimizer.init(jax.tree.map(lambda p: scale * p, PARAMS)))(
        jnp.arange(3.0)
    )
    moved = optax_clr.set_step(states, STEP)
    one = optax_clr.set_step(optimizer.init(PARAMS), STEP)
    counters = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.int32]
    for lanes, counter in zip(counters(moved), counters(one), strict=True):
        np.testing.assert_array_equal(lanes, [counter] * 3)


def test_averages_are_taken_at_the_ends_of_the_cycles_from_there_on():
    cycles = optax_clr.Cycles(STEP + 2)
    optimizer = optax.chain(sgd(0), optax_clr.average_at_cycle_ends(cycles))
    state = optax_clr.set_step(optimizer.init(PARAMS), STEP)
    ends = []
    for _ in range(3):
        _, state = optimizer.update(PARAMS, state, PARAMS)
        ends.append(int(state[1].num_averaged))
    assert ends == [0, 1, 1]


def test_an_accumulation_that_has_begun_goes_on():
    optimizer = optax.MultiSteps(sgd(0), 3)
    update = jax.jit(lambda state: optimizer.update(PARAMS, state, PARAMS)[1])
    state = update(optimizer.init(PARAMS))
    moved = optax_clr.set_step(state, 100)
    assert moved.mini_step == 1
    assert moved.gradient_step == 100
    state = update(update(moved))
    assert state.gradient_step == 101
    np.testing.assert_allclose(optax_clr.get_hyperparams(state)["learning_rate"], RATE(100))


def test_only_the_counter_of_moments_is_left():
    state = optax_clr.set_step(adamw(0).init(PARAMS), STEP)
    counts = {type(node).__name__: int(node.count) for node in states_in(state)
              if hasattr(node, "_fields") and "count" in node._fields}  # fmt: skip
    decays = {"WeightDecaySchedule": STEP} if DECAYS else {}
    assert counts == {"ScaleByAdamState": 0, **decays, "ScaleByScheduleState": STEP}


class Own(NamedTuple):
    """The state of someone's own transformation."""

    seen: jax.Array
    average: dict
    inner_state: tuple = ()


class OnlyCounter(NamedTuple):
    seen: jax.Array


def test_a_counter_that_is_not_known_is_named():
    state = (sgd(0).init(PARAMS), Own(jnp.int32(0), PARAMS, optax.adam(RATE).init(PARAMS)))
    with pytest.raises(
        ValueError, match=r"counter state\[1\]\.seen, of test_optax_states\.Own: the state"
    ) as error:
        optax_clr.set_step(state, STEP)
    assert "state[1]._replace(seen=step)" in str(error.value)

    # The remedy: by hand, and the parts that are known by set_step.
    first = optax_clr.set_step(state[0], STEP)
    inner = optax_clr.set_step(state[1].inner_state, STEP)
    assert (first.count, inner[1].count) == (STEP, STEP)


def test_a_state_that_is_nothing_but_a_counter_counts_for_a_schedule():
    state = optax_clr.set_step((OnlyCounter(jnp.int32(0)), optax.trace(0.9).init(PARAMS)), STEP)
    assert state[0].seen == STEP


@flax.struct.dataclass
class ActorCritic:
    params: dict
    opt_state: tuple
    critic_opt_state: tuple


@flax.struct.dataclass
class Agent:
    actor: object
    critic: object


class Around(NamedTuple):
    inner: tuple


def trainers_of(optimizer):
    """Trainers with two states of an optimizer, in the forms in which people write them."""
    state = optimizer.init(PARAMS)
    trainer = TrainState.create(apply_fn=None, params=PARAMS, tx=optimizer)
    yield ActorCritic(PARAMS, state, state)
    yield {"params": PARAMS, "opt_state": state, "critic_opt_state": state}
    yield Agent(trainer, trainer)
    yield Agent(state, state)
    yield (state, Around(state))


@pytest.mark.parametrize("factory", [optax.adam, inject(optax.adam)], ids=["Optax", "injected"])
@pytest.mark.parametrize("form", range(5))
def test_every_schedule_of_a_trainer_moves(factory, form):
    state = list(trainers_of(factory(schedule)))[form]
    moved = optax_clr.set_step(state, STEP)
    is_schedule = lambda node: type(node).__name__ in (
        "InjectStatefulHyperparamsState", "ScaleByScheduleState"
    )  # fmt: skip
    counts = [node.count for node in jax.tree.leaves(moved, is_schedule) if is_schedule(node)]
    assert counts == [STEP, STEP]
    by_hand = [leaf for leaf in jax.tree.leaves(moved) if np.shape(leaf) == () and leaf == STEP]
    assert len(by_hand) == (2 if factory is optax.adam else 4)  # nothing else


@pytest.mark.parametrize("form", range(5))
def test_every_hyperparameter_of_a_trainer_is_read_and_set(form):
    state = list(trainers_of(inject(optax.adam)(HELD)))[form]
    values = optax_clr.get_hyperparams(state)
    assert len(values) == 2
    np.testing.assert_array_equal(list(values.values()), HELD)
    changed = optax_clr.set_hyperparams(state, learning_rate=0.5)
    assert type(changed) is type(state)
    np.testing.assert_array_equal(list(optax_clr.get_hyperparams(changed).values()), 0.5)
    first, second = values
    changed = optax_clr.set_hyperparams(state, **{second: 0.25})
    assert optax_clr.get_hyperparams(changed) == {first: HELD, second: 0.25}


def test_what_may_be_params_has_no_counters():
    params = {"kernel": jnp.ones(2), "updates": jnp.int32(7)}
    state = optax_clr.set_step(optax.chain(optax.ema(0.9), sgd(0)).init(params), STEP)
    assert state[0].ema["updates"] == 0
    trainer = TrainState.create(apply_fn=None, params=params, tx=sgd(0))
    moved = optax_clr.set_step(trainer, STEP)
    assert (moved.params["updates"], moved.step, moved.opt_state.count) == (7, 0, STEP)
    with pytest.raises(
        ValueError, match=r"integer state\[0\]\['updates'\].* of the optimizer alone"
    ):
        optax_clr.set_step((params, sgd(0).init(params)), STEP)


class Halved(optax.schedules.StatefulSchedule):
    """A schedule whose state is the value, or nothing but a counter."""

    def __init__(self, first):
        self.first = first

    def init(self):
        return self.first

    def update(self, state, **extra_args):
        return state / 2 if state.dtype == jnp.float32 else state + 1

    def __call__(self, state, **extra_args):
        return state.astype(jnp.float32)


def test_a_stateful_schedule_is_moved_if_it_is_a_counter_and_named_otherwise():
    by_value = inject(optax.sgd)(RATE, momentum=Halved(jnp.float32(1))).init(PARAMS)
    with pytest.raises(ValueError, match=r"schedule 'momentum'.* in state\.hyperparams_states"):
        optax_clr.set_step(by_value, STEP)
    counted = inject(optax.sgd)(RATE, momentum=Halved(jnp.int32(0))).init(PARAMS)
    assert optax_clr.set_step(counted, STEP).hyperparams_states["momentum"] == STEP


@pytest.mark.parametrize(
    ("step", "expected"), [(2**31 - 1, 2**31 - 1), (2**31, 2**31 - 1), (2**40, 2**31 - 1)]
)
def test_counters_stop_at_the_last_step_as_those_of_optax_do(step, expected):
    assert optax_clr.set_step(sgd(0).init(PARAMS), step).count == expected
    free = optax.contrib.schedule_free(optax.sgd(0.1), RATE)
    assert optax_clr.set_step(free.init(PARAMS), step).step_count == expected
    small = optax_clr.set_step(OnlyCounter(jnp.uint8(0)), step)
    assert small.seen == 255


def test_counters_of_64_bits_stay_so(x64):
    with x64():
        moved = optax_clr.set_step(OnlyCounter(jnp.int64(0)), STEP)
        assert (moved.seen.dtype, int(moved.seen)) == (jnp.int64, STEP)


# ------------------------------------------------------------------------------------- buffers


def pointers(tree):
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return [array.unsafe_buffer_pointer() for array in arrays if not is_key(array)]


def is_key(array):
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def assert_own(state, *others):
    """Each array of the state is a buffer of its own, and of the others none is kept."""
    own = pointers(state)
    assert len(set(own)) == len(own)
    assert not set(own) & set(pointers(others))


HELD = jnp.float32(0.3)  # what a schedule closes over, and what is given as a hyperparameter
inject_held = lambda: inject(optax.sgd)(HELD, momentum=lambda step: HELD)

SHARING = {
    "injected": inject_held,
    "MultiSteps": lambda: optax.MultiSteps(inject_held(), 2),
    "partition": lambda: optax.partition({"slow": inject_held(), "fast": inject_held()}, LABELS),
    "averages": lambda: optax.chain(
        inject_held(), optax_clr.average_at_cycle_ends(optax_clr.Cycles(3))
    ),
    "of the params": lambda: inject(optax.contrib.prodigy)(HELD),
    "of the updates": lambda: inject(optax.trace)(HELD),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", SHARING)
def test_every_array_of_a_state_is_a_buffer_of_its_own(name, compiled):
    run = jax.jit if compiled else lambda function: function
    optimizer, params = SHARING[name](), jax.tree.map(jnp.copy, PARAMS)
    field = "decay" if name == "of the updates" else "learning_rate"
    setting = lambda state, value: optax_clr.set_hyperparams(state, **{field: value})
    gradients, step, value = jax.tree.map(jnp.ones_like, params), jnp.int32(5), jnp.float32(0.4)
    theirs = [params, gradients, step, value, HELD]

    state = run(optimizer.init)(params)
    assert_own(state, *theirs)
    _, updated = run(optimizer.update)(gradients, state, params)
    assert_own(updated, *theirs, state)
    changed = run(setting)(updated, value)
    assert_own(changed, *theirs, state, updated)
    if name == "of the updates":
        return  # whose only counter is the one of the injected state
    moved = run(optax_clr.set_step)(changed, step)
    assert_own(moved, *theirs, state, updated, changed)

    donating = jax.jit(optimizer.update, donate_argnums=1, keep_unused=True)
    _, last = donating(gradients, moved, params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(moved))
    jax.block_until_ready((theirs, state, updated, changed, last))  # which are all there


def test_averages_are_copies_and_the_updates_pass_unchanged():
    optimizer = optax_clr.average_at_cycle_ends(optax_clr.Cycles(1))
    params = {"weights": jnp.ones(2), "rows": jnp.arange(2)}
    gradients = {"weights": jnp.ones(2), "rows": jnp.zeros(2, jnp.int32)}
    for run in (lambda function: function, jax.jit):
        state = run(optimizer.init)(params)
        assert_own(state, params)
        updates, updated = run(optimizer.update)(gradients, state, params)
        assert_own(updated, params, gradients, state)
        assert updates.keys() == gradients.keys()
        assert_own(run(optax_clr.averaged_params)(updated), updated)


def test_copies_keep_shardings_weak_types_and_keys():
    mesh = jax.sharding.Mesh(jax.devices("cpu")[:2], ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    state = (
        sgd(0).init(PARAMS),
        jax.device_put(jnp.ones(8), sharding),
        jnp.asarray(1.0),
        jax.random.key(0),
        np.ones(2),
        "text",
        None,
    )
    _, sharded, weak, key, array, text, nothing = optax_clr.set_step(state, STEP)
    assert sharded.sharding == sharding
    assert weak.weak_type
    assert key == jax.random.key(0)
    assert isinstance(array, np.ndarray)
    assert array is not state[4]
    assert (text, nothing) == ("text", None)


def test_new_values_are_where_the_old_ones_were_and_compile_nothing():
    mesh = jax.sharding.Mesh(jax.devices("cpu")[:4], ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    optimizer = inject(optax.sgd)(HELD, momentum=MOMENTUM)
    params = jax.device_put(PARAMS, everywhere)
    state = jax.device_put(optimizer.init(params), everywhere)
    num_traces = 0

    @jax.jit
    def step(state):
        nonlocal num_traces
        num_traces += 1
        return optimizer.update(params, state, params)[1]

    for change in (
        lambda state: state,
        lambda state: optax_clr.set_hyperparams(state, learning_rate=0.2),
        lambda state: optax_clr.set_step(state, STEP),
    ):
        changed = change(state)
        assert {leaf.sharding for leaf in jax.tree.leaves(changed)} == {everywhere}
        step(changed)
    assert (num_traces, step._cache_size()) == (1, 1)


def test_a_sharded_state_keeps_its_shardings():
    mesh = jax.sharding.Mesh(jax.devices("cpu")[:2], ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = jax.device_put(jnp.ones((4, 2)), sharding)
    optimizer = inject(optax.sgd)(HELD, momentum=MOMENTUM)
    state = jax.jit(optimizer.init, out_shardings=None)(params)
    state = state._replace(inner_state=jax.device_put(state.inner_state, sharding))
    state = optax_clr.set_step(optax_clr.set_hyperparams(state, learning_rate=0.2), STEP)
    _, state = jax.jit(optimizer.update)(params, state, params)
    (trace,) = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert trace.sharding.is_equivalent_to(sharding, 2)


# -------------------------------------------------------------------------------------- dtypes


def widening():
    """Optax's moving average keeps what it is given, which is float32."""
    return lambda gain: optax.chain(
        optax.stateless(lambda g, _: jax.tree.map(lambda x: x.astype(jnp.float32), g)),
        optax.trace(0.9),
        optax.scale(gain),
    )


CYCLED = {
    "sgd": (optax.sgd, {"learning_rate": RATE, "momentum": MOMENTUM}),
    "adam": (optax.adam, {"learning_rate": RATE, "b1": MOMENTUM, "b2": MOMENTUM, "eps": RATE}),
    "rmsprop": (optax.rmsprop, {"learning_rate": RATE, "decay": MOMENTUM, "momentum": MOMENTUM}),
    "lion": (optax.lion, {"learning_rate": RATE, "b1": MOMENTUM, "weight_decay": RATE}),
    "whole numbers": (optax.sgd, {"learning_rate": lambda step: 1, "momentum": lambda step: 0.5}),
    "of half precision": (optax.sgd, {"learning_rate": lambda step: jnp.float16(0.5)}),
    "widening": (widening(), {"gain": RATE}),
}


def types(tree):
    return [
        (jax.tree_util.keystr(path), leaf.shape, leaf.dtype, leaf.weak_type)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, jnp.bfloat16) for name in CYCLED] + [("adam", jnp.float16), ("adam", jnp.float32)],
)
def test_a_state_keeps_its_dtypes(name, dtype):
    factory, hyperparams = CYCLED[name]
    optimizer = inject(factory)(**hyperparams)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    state = optimizer.init(params)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(None)
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    (_, last), _ = jax.lax.scan(lambda carry, _: (step(*carry), None), (params, state), length=2)
    assert types(last) == types(state)
    assert jax.tree.structure(last) == jax.tree.structure(state)
    traces.clear()
    new, after = step(*step(params, state))
    assert len(traces) <= 1
    assert types((new, after)) == types((params, state))
    updates, eager = optimizer.update(params, state, params)
    assert types(eager) == types(state)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    values = optax_clr.get_hyperparams(state).values()
    assert {value.dtype for value in values} <= {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.parametrize("second", [jnp.float32(0.5), (jnp.float32(0.5),)])
def test_a_state_that_becomes_another_is_passed_on_as_it_is(second):
    """A whole number that becomes a fraction, or a tuple: of someone's own transformation."""

    def factory(gain):
        other = optax.GradientTransformation(
            lambda params: 0, lambda updates, state, params=None: (updates, second)
        )
        return optax.chain(optax.scale(gain), other)

    optimizer = inject(factory)(RATE)
    _, state = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert state.inner_state[1] == second


def test_decay_of_float32_params_is_not_narrowed_by_their_gradients():
    optimizer = inject(optax.adamw)(RATE)
    gradients = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_range_tests_take_a_cycled_momentum_in_a_model_of_half_precision(dtype):
    params = {"kernel": jnp.ones(3, dtype)}
    batches = jnp.ones((30, 3), dtype)
    loss_fn = lambda params, batch: jnp.sum((params["kernel"] - batch) ** 2).astype(jnp.float32)
    # The rate of the row is no hyperparameter, which would keep the first.
    build = lambda rate: inject(functools.partial(optax.sgd, rate))(momentum=MOMENTUM)
    assert optax_clr.lr_range_test(loss_fn, params, build, batches).num_valid > 0

    optimizer = inject(optax.sgd)(learning_rate=jnp.float32(0.1), momentum=MOMENTUM)

    def step(state, batch, rate):
        params, state = state
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        state = optax_clr.set_hyperparams(state, learning_rate=rate)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    rates = jnp.geomspace(1e-4, 1.0, 30)
    assert optax_clr.range_test(step, (params, optimizer.init(params)), batches, rates).num_valid


@pytest.mark.usefixtures("optax_promotion")
def test_the_state_of_updates_that_may_be_skipped_is_kept():
    inner = optax_clr.inject_schedules(optax.sgd)(
        learning_rate=optax_clr.one_cycle_schedule(1.0, 9)
    )
    steps = optax.MultiSteps(inner, 2, should_skip_update_fn=optax.skip_not_finite)
    _, state = steps.update(jnp.ones(3), steps.init(jnp.zeros(3)), jnp.zeros(3))
    assert optax_clr.set_step(state, 3).gradient_step == 3
