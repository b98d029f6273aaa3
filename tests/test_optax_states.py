"""Every optimizer of the installed Optax, found by looking: a moved schedule goes on there.

Each argument that takes a schedule is given one. After ``set_step`` the next update is that of the
optimizer built with the same schedule, begun later; or, where a transformation counts for a
schedule and for its moments by one counter, that of a run whose gradients so far were zero.
"""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optax_clr
from optax_clr import _set_step

pytestmark = pytest.mark.usefixtures("optax_promotion")

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


@functools.cache
def with_schedules():
    """Each factory and each argument whose function it calls with the step: {id: (...)}."""
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
        warnings.simplefilter("ignore")  # what is deprecated is tested too
        return dict(_with_schedules())


def _with_schedules():
    for name, factory in factories():
        build = functools.partial(factory, **dict(arguments(factory)))
        constant = attempt(build)
        works = constant and first_that_works(constant, inputs_for(constant))
        for argument, parameter in inspect.signature(factory).parameters.items():
            if isinstance(parameter.default, (bool, str)):
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
                yield f"{name}({argument})", (given, inputs)


def attempt(build, **arguments):
    try:
        optimizer = build(**arguments)
    except Exception:  # an argument of another kind, or one that cannot be guessed
        return None
    return optimizer if isinstance(optimizer, optax.GradientTransformation) else None


# Functions of the step that are no schedules of Optax: a condition, the clipping of the moments.
OTHERS = {"should_transform_fn", "clip_value_fn"}
CASES = [case for case in with_schedules() if case.split("(")[1][:-1] not in OTHERS]


def states_in(tree):
    return [node for _, node in optax_clr._states.walk(tree)]


def difference(first, second):
    """The largest, in units of what is largest."""
    first, second = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
                     for tree in (first, second))  # fmt: skip
    return np.max(np.abs(first - second)) / np.max(np.abs(second))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_a_moved_schedule_goes_on_where_it_should(case):
    build, inputs = with_schedules()[case]
    optimizer = build(schedule)
    fresh = optimizer.init(inputs[1])

    moved = optax_clr.set_step(fresh, STEP)

    if any(type(node).__name__ in _set_step._SHARED for node in states_in(fresh)):
        expected, _ = trail(optimizer, after_zeros(optimizer, fresh, *inputs), *inputs)
    else:
        begun_later = build(later)
        expected, _ = trail(begun_later, begun_later.init(inputs[1]), *inputs)
    got, _ = trail(optimizer, moved, *inputs)
    assert difference(got, expected) < 1e-5
    # Or this could not fail:
    assert difference(got, trail(optimizer, fresh, *inputs)[0]) > 1e-4


def after_zeros(optimizer, state, *inputs):
    """The state after gradients, losses and params that were zero, so that nothing decayed."""
    _, after = trail(optimizer, state, *jax.tree.map(jnp.zeros_like, inputs), STEP)
    # Prodigy and D-Adaptation divide 0 by 0: what they estimate is then what it was.
    return jax.tree.map(lambda new, old: jnp.where(jnp.isnan(new), old, new), after, state)


def test_as_many_optimizers_are_covered_as_there_are():
    """They are found by trying; if Optax changes so that none is, this is how it shows."""
    assert len(CASES) >= (74 if hasattr(optax.contrib, "galore") else 46)
    assert {case.split("(")[0].split(".")[-1] for case in CASES} >= {
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
            counters = {name for name in names if _set_step._is_counter(getattr(node, name))}
            kind = type(node).__name__
            known = {_set_step._MOVED.get(kind), *_set_step._KEPT.get(kind, ())}
            if len(jax.tree.leaves(node)) > 1:
                unknown |= {(kind, name) for name in counters - known}
    assert not unknown
