"""Compiled programs that are kept: while what they were made from is the same, and no longer."""

import array
import builtins
import collections
import contextlib
import contextvars
import ctypes
import dataclasses
import fractions
import functools
import gc
import importlib
import json
import math
import operator
import os
import sys
import threading
import types
import weakref
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import optax_clr
from forms import mostly_slow
from optax_clr import _installed, _kept_programs
from optax_clr._references import look, sees_the_same

pytestmark = pytest.mark.usefixtures("optax_promotion")

BATCHES = jnp.asarray(np.random.default_rng(0).normal(size=(12, 4, 3)), jnp.float32)
PARAMS = jnp.ones(3)
SCALE = 1.0


def helper(batch):
    return SCALE * batch


def loss_of_globals(params, batch):
    return jnp.mean(helper(batch) @ params)


class Settings:
    def __init__(self, scale):
        self.scale = scale


class Task:
    def __init__(self):
        self.scale = 1.0
        self.settings = {"more": Settings(1.0)}
        self.num_traces = 0

    def loss(self, params, batch):
        self.num_traces += 1
        return self.scale * self.settings["more"].scale * jnp.mean(batch @ params)

    __call__ = loss


def first_loss(loss_fn, optimizer=optax.sgd):
    result = optax_clr.lr_range_test(loss_fn, PARAMS, optimizer, BATCHES, max_lr=0.1)
    return float(result.losses[0] / jnp.mean(BATCHES[0] @ PARAMS))


def assert_is_looked_at(loss_fn, change):
    """A change that makes a loss of 1 one of 7 is seen by what decides if a program is kept."""
    value = lambda: float(loss_fn(PARAMS, BATCHES[0]) / jnp.mean(BATCHES[0] @ PARAMS))
    assert value() == pytest.approx(1.0, rel=1e-5)
    sight = look((loss_fn,))
    assert value() == pytest.approx(1.0, rel=1e-5)
    assert sees_the_same((loss_fn,), sight)
    change()
    assert value() == pytest.approx(7.0, rel=1e-5)
    assert not sees_the_same((loss_fn,), sight)


def assert_is_compiled_anew(loss_fn, change):
    """The same of whole range tests, which takes a hundred times as long."""
    assert first_loss(loss_fn) == pytest.approx(1.0, rel=1e-5)
    change()
    assert first_loss(loss_fn) == pytest.approx(7.0, rel=1e-5)


every_way = pytest.mark.parametrize(
    "assert_is_seen",
    mostly_slow([assert_is_looked_at, assert_is_compiled_anew], usual=[assert_is_looked_at]),
)


def change_attribute(task):
    task.scale = 100.0


def change_entry(task):
    task.settings["more"] = Settings(100.0)


def change_deep(task):
    task.settings["more"].scale = 100.0


@pytest.mark.parametrize(
    "change", mostly_slow([change_attribute, change_entry, change_deep], usual=[change_deep])
)
@pytest.mark.parametrize("form", ["method", "kept method", "object", "partial", "closure"])
def test_an_object_that_has_changed_is_seen(form, change):
    task = Task()
    kept, bound = task.loss, functools.partial(Task.loss, task)
    closure = lambda params, batch: task.loss(params, batch)
    functions = {
        "method": lambda: task.loss,
        "kept method": lambda: kept,
        "object": lambda: task,
        "partial": lambda: bound,
        "closure": lambda: closure,
    }
    function = functions[form]
    assert first_loss(function()) == pytest.approx(1.0, rel=1e-5)
    num_traces = task.num_traces
    assert first_loss(function()) == pytest.approx(1.0, rel=1e-5)
    assert task.num_traces == num_traces  # the program of before
    change(task)
    assert first_loss(function()) == pytest.approx(100.0, rel=1e-5)


def test_a_variable_that_is_bound_anew_is_seen():
    scale = 1.0

    def loss_fn(params, batch):
        return scale * jnp.mean(batch @ params)

    assert first_loss(loss_fn) == pytest.approx(1.0, rel=1e-5)
    scale = 7.0
    assert first_loss(loss_fn) == pytest.approx(7.0, rel=1e-5)
    array = jnp.float32(3.0)
    scale = array
    assert first_loss(loss_fn) == pytest.approx(3.0, rel=1e-5)


@jax.tree_util.register_pytree_node_class
class Weighted:
    """A batch with settings in its static part."""

    def __init__(self, rows, settings):
        self.rows, self.settings = rows, settings

    def tree_flatten(self):
        return (self.rows,), self.settings

    @classmethod
    def tree_unflatten(cls, settings, leaves):
        return cls(*leaves, settings)


@pytest.mark.parametrize("test", [optax_clr.lr_range_test, optax_clr.lr_grid_test])
def test_what_a_held_out_batch_carries_is_seen(test):
    loss_fn = lambda params, batch: batch.settings.scale * jnp.mean((batch.rows @ params) ** 2)
    batches = Weighted(BATCHES, Settings(1.0))
    held_out = Weighted(BATCHES[0], Settings(1.0))
    run = lambda: test(loss_fn, PARAMS, optax.sgd, batches, held_out=held_out, max_lr=0.1)
    first = run().held_out_losses
    held_out.settings.scale = 10.0
    np.testing.assert_allclose(run().held_out_losses, 10 * first, rtol=1e-5)


def test_another_generator_of_random_numbers_is_seen():
    loss_fn = lambda params, batch: jnp.mean((batch @ params) ** 2)
    draw = lambda step: jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (4, 3))
    run = lambda batch_at: (
        optax_clr.lr_range_test(
            loss_fn, PARAMS, optax.sgd, batch_at, num_steps=12, max_lr=0.1
        ).losses
    )
    before = run(draw)
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        again, anew = run(draw), run(lambda step: draw(step))
    finally:
        jax.config.update("jax_default_prng_impl", "threefry2x32")
    np.testing.assert_array_equal(again, anew)
    assert (again != before).all()


def test_a_global_of_a_function_that_is_called_is_seen(monkeypatch):
    assert first_loss(loss_of_globals) == pytest.approx(1.0, rel=1e-5)
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    assert first_loss(loss_of_globals) == pytest.approx(5.0, rel=1e-5)
    # As in a notebook, whose cell is run again.
    monkeypatch.setitem(globals(), "helper", lambda batch: 2 * batch)
    assert first_loss(loss_of_globals) == pytest.approx(2.0, rel=1e-5)


def test_an_optimizer_and_a_batch_function_that_have_changed_are_seen():
    momentum, shift = 0.0, 0.0
    loss_fn = lambda params, batch: jnp.mean((batch @ params) ** 2)
    optimizer = lambda rate: optax.sgd(rate, momentum=momentum)
    batch_at = lambda step: BATCHES[step] + shift
    run = lambda: (
        optax_clr.lr_range_test(
            loss_fn, PARAMS, optimizer, batch_at, num_steps=12, max_lr=0.1
        ).losses
    )
    first = run()
    momentum = 0.9
    second = run()
    shift = 1.0
    third = run()
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)


def test_the_same_call_compiles_nothing(caplog):
    loss_fn = lambda params, batch: jnp.mean((batch @ params) ** 2)
    first_loss(loss_fn)
    with jax.log_compiles(True):
        first_loss(loss_fn)
    assert "Compiling" not in caplog.text


class Chained:
    """Methods that name one another, and a module: each is found by the names of those before."""

    scale = 1.0

    def last(self, values):
        return jnp.mean(values)

    def first(self, values):
        return self.scale * self.last(values)

    def loss(self, params, batch):
        return self.first(batch @ params)


def test_tests_of_other_lengths_in_turn_compile_nothing(caplog):
    task = Chained()
    run = lambda num_steps: optax_clr.lr_range_test(
        task.loss, PARAMS, optax.sgd, BATCHES, num_steps=num_steps, max_lr=0.1
    )
    run(11), run(12)
    with jax.log_compiles(True):
        run(11), run(12)
    assert "Compiling" not in caplog.text


def closure_over(data):
    return lambda params, batch: jnp.mean(batch @ params) + data.sum() * 0


@pytest.mark.skipif(
    jax.__version_info__ < (0, 5), reason="this JAX keeps what a jit within a program closes over"
)
@pytest.mark.parametrize("form", ["stacked", "streamed", "grid"])
def test_programs_go_with_their_functions_and_the_data_in_them(form):
    """Without the cyclic collector, which may not come for a long time."""
    data = jnp.ones(1000)
    reference = weakref.ref(data)
    loss_fn = closure_over(data)
    del data
    num_kept = len(_kept_programs._kept)
    gc.collect()
    gc.disable()
    try:
        if form == "grid":
            optax_clr.lr_grid_test(loss_fn, PARAMS, optax.sgd, BATCHES, max_lr=0.1)
        else:
            batches = BATCHES if form == "stacked" else iter(np.asarray(BATCHES))
            run = functools.partial(optax_clr.lr_range_test, loss_fn, PARAMS, optax.sgd)
            jax.block_until_ready(run(batches, num_steps=12, max_lr=0.1))
        assert reference() is not None
        del loss_fn
        if form != "grid":
            del run
        assert reference() is None
        assert len(_kept_programs._kept) <= num_kept
    finally:
        gc.enable()


def by_scale_of(holder, data):
    return lambda params, batch: holder.scale * jnp.mean(batch @ params) + 0 * data.sum()


class Holder:
    __slots__ = ("function", "scale")


def holder_with_iterator():
    holder = types.SimpleNamespace()
    call = lambda batch: holder.function(batch)
    holder.losses = map(call, ())
    return holder


def holder_with_property():
    class WithProperty:
        @property
        def scale(self):
            return 1.0 if owner is not None else 0.0

    owner = WithProperty()
    return owner


@pytest.mark.skipif(
    jax.__version_info__ < (0, 5), reason="this JAX keeps what a jit within a program closes over"
)
@pytest.mark.parametrize(
    "make", [Holder, types.SimpleNamespace, holder_with_property, holder_with_iterator]
)
def test_programs_go_where_an_object_without_weak_references_has_the_function(make):
    holder, data = make(), jnp.ones(1000)
    reference = weakref.ref(data)
    with contextlib.suppress(AttributeError):  # of a property
        holder.scale = 1.0
    holder.function = by_scale_of(holder, data)
    assert first_loss(holder.function) == pytest.approx(1.0, rel=1e-5)
    del holder, data
    gc.collect()
    assert reference() is None


def test_functions_of_a_moment_leave_nothing_behind():
    num_kept = len(_kept_programs._kept)
    for _ in range(3):
        first_loss(lambda params, batch: jnp.mean(batch @ params), lambda rate: optax.sgd(rate))
    assert len(_kept_programs._kept) == num_kept


def test_a_function_that_refers_to_itself_and_to_anything_is_kept():
    things = [set(), object, ..., range(3), {1: [b"", np.float32(2), jnp.ones(2)]}, len, first_loss]

    def loss_fn(params, batch, again=True):
        return loss_fn(params, batch, False) if again and things else jnp.mean(batch @ params)

    first_loss(loss_fn)
    first_loss(loss_fn)
    things[4][1].append(0)
    assert first_loss(loss_fn) == pytest.approx(1.0, rel=1e-5)


class Configuration:
    scale = 1.0


class Slots:
    __slots__ = ("__weakref__", "scale")

    def __init__(self):
        self.scale = 1.0

    def __call__(self, params, batch):
        return self.scale * jnp.mean(batch @ params)


class Derived(Configuration):
    """A task whose scale is an attribute of its base, or a global that another method reads."""

    def by_class(self, params, batch):
        return self.scale * jnp.mean(batch @ params)

    @classmethod
    def by_classmethod(cls, params, batch):
        return cls.scale * jnp.mean(batch @ params)

    def by_helper(self, params, batch):
        return self.helper() * jnp.mean(batch @ params)

    def helper(self):
        return SCALE

    @property
    def shown(self):
        return SCALE

    def by_property(self, params, batch):
        return self.shown * jnp.mean(batch @ params)

    def __call__(self, params, batch):
        return SCALE * jnp.mean(batch @ params)


def by_attribute_of_a_class(params, batch):
    return Configuration.scale * jnp.mean(batch @ params)


def by_all_attributes_of_a_class(params, batch):
    return dict(vars(Configuration))["scale"] * jnp.mean(batch @ params)


def by_a_pattern(params, batch):
    match Configuration():
        case Configuration(scale=found):
            return found * jnp.mean(batch @ params)


settings = None  # a module, in the tests


def by_attribute_of_a_module(params, batch):
    return settings.scale * jnp.mean(batch @ params)


def by_function_of_a_module(params, batch):
    return settings.scaled(jnp.mean(batch @ params))


def by_its_own_attribute(params, batch):
    return by_its_own_attribute.scale * jnp.mean(batch @ params)


by_its_own_attribute.scale = 1.0
ENTRIES = collections.deque([1.0])


def by_an_entry(params, batch):
    return ENTRIES[0] * jnp.mean(batch @ params)


@pytest.fixture
def settings_module(tmp_path, monkeypatch):
    """A module of the user's, with a global."""
    (tmp_path / "settings_of_a_user.py").write_text(
        "scale = 1.0\ndef scaled(loss):\n    return scale * loss\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("settings_of_a_user")
    monkeypatch.setitem(globals(), "settings", module)
    yield module
    del sys.modules["settings_of_a_user"]


derived, slots = Derived(), Slots()


@pytest.mark.parametrize(
    ("function", "owner", "name"),
    [
        (by_attribute_of_a_class, Configuration, "scale"),
        (by_all_attributes_of_a_class, Configuration, "scale"),
        (by_a_pattern, Configuration, "scale"),
        (derived.by_class, Configuration, "scale"),
        (Derived.by_classmethod, Derived, "scale"),
        (derived.by_helper, None, "SCALE"),
        (derived.by_property, None, "SCALE"),
        (derived, None, "SCALE"),
        (slots, slots, "scale"),
        (by_its_own_attribute, by_its_own_attribute, "scale"),
        (by_attribute_of_a_module, "settings", "scale"),
        (by_function_of_a_module, "settings", "scale"),
        (by_an_entry, ENTRIES, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:20]),
)
@every_way
def test_whatever_a_function_reads_is_seen(
    assert_is_seen, function, owner, name, settings_module, monkeypatch
):
    def change():
        if owner is None:
            monkeypatch.setitem(globals(), name, 7.0)
        elif owner is ENTRIES:
            monkeypatch.setattr(sys.modules[__name__], "ENTRIES", collections.deque([7.0]))
        else:
            its_owner = settings_module if owner == "settings" else owner
            monkeypatch.setattr(its_owner, name, 7.0, raising=False)

    assert_is_seen(function, change)


def test_the_environment_is_seen_by_functions_that_ask_for_it_alone(monkeypatch):
    asking = lambda params, batch: float(os.getenv("SCALE", "1")) * jnp.mean(batch @ params)
    other = lambda params, batch: jnp.mean(batch @ params)
    before, before_other = look((asking,)), look((other,))
    monkeypatch.setenv("SCALE", "7")
    assert not sees_the_same((asking,), before)
    assert sees_the_same((other,), before_other)


def by_an_installed_function(params, batch):
    return jax.nn.relu(jnp.mean(batch @ params))


@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit])
def test_what_stands_in_the_place_of_an_installed_function_is_seen(wrap, monkeypatch):
    assert first_loss(by_an_installed_function) == pytest.approx(1.0, rel=1e-5)
    scale = [3.0]

    @wrap
    @functools.wraps(jax.nn.relu)
    def scaled(values, original=jax.nn.relu):
        return scale[0] * original(values)

    monkeypatch.setattr(jax.nn, "relu", scaled)
    assert first_loss(by_an_installed_function) == pytest.approx(3.0, rel=1e-5)
    scale[0] = 7.0
    if wrap is jax.jit:
        scaled.clear_cache()  # of the inner jit, which does not see it
    assert first_loss(by_an_installed_function) == pytest.approx(7.0, rel=1e-5)


class OwnDescent:
    """An optimizer that has what is called of one, and is no class of Optax."""

    def __init__(self, rate):
        self.rate = rate

    def init(self, params):
        return ()

    def update(self, gradients, state, params=None):
        return jax.tree.map(lambda gradient: -SCALE * self.rate * gradient, gradients), state


@jax.tree_util.register_pytree_node_class
class OwnModel:
    """A model that is a pytree, with a method that the loss names."""

    def __init__(self, weights):
        self.weights = weights

    def predict(self, batch):
        return SCALE * (batch @ self.weights)

    def tree_flatten(self):
        return (self.weights,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_what_is_called_of_an_optimizer_and_of_a_model_is_seen(monkeypatch):
    loss_of_model = lambda model, batch: jnp.mean(model.predict(batch))
    plain = lambda params, batch: jnp.mean(batch @ params)

    def losses():
        of_optimizer = optax_clr.lr_range_test(plain, PARAMS, OwnDescent, BATCHES, max_lr=0.1)
        of_model = optax_clr.lr_range_test(
            loss_of_model, OwnModel(PARAMS), optax.sgd, BATCHES, max_lr=0.1
        )
        return float(of_optimizer.losses[-1]), float(of_model.losses[0])

    before = losses()
    monkeypatch.setitem(globals(), "SCALE", 10.0)
    after = losses()
    assert after[0] != before[0]
    assert after[1] == pytest.approx(10 * before[1], rel=1e-5)


class ByPartialMethod:
    def loss(self, power, params, batch):
        return SCALE**power * jnp.mean(batch @ params)

    __call__ = functools.partialmethod(loss, 1)


class ByGenericMethod:
    @functools.singledispatchmethod
    def __call__(self, params, batch):
        return SCALE * jnp.mean(batch @ params)


@pytest.mark.parametrize("task", [ByPartialMethod(), ByGenericMethod()], ids=["partial", "generic"])
def test_a_call_that_is_no_plain_method_is_seen(task, monkeypatch):
    assert first_loss(task) == pytest.approx(1.0, rel=1e-5)
    monkeypatch.setitem(globals(), "SCALE", 10.0)
    assert first_loss(task) == pytest.approx(10.0, rel=1e-5)


def by_a_module_inside(params, batch):
    import optax

    return optax.l2_loss(jnp.mean(batch @ params))


def by_a_module_as_default(params, batch, library=optax):
    return library.l2_loss(jnp.mean(batch @ params))


by_a_module_of_an_object = functools.partial(
    lambda holder, params, batch: holder.losses.l2_loss(jnp.mean(batch @ params)),
    types.SimpleNamespace(losses=optax),
)


@pytest.mark.parametrize(
    "function", [by_a_module_inside, by_a_module_as_default, by_a_module_of_an_object]
)
def test_a_function_of_a_package_that_is_replaced_is_seen_wherever_the_package_is(
    function, monkeypatch
):
    before = first_loss(function)
    original = optax.l2_loss
    monkeypatch.setattr(optax, "l2_loss", lambda values: 10 * original(values))
    assert first_loss(function) == pytest.approx(10 * before, rel=1e-5)


def test_a_call_of_an_object_in_the_place_of_an_installed_function_is_seen(monkeypatch):
    scale = [1.0]
    original = jax.nn.relu
    monkeypatch.setattr(
        jax.nn,
        "relu",
        functools.update_wrapper(
            functools.partial(lambda scale, values: scale[0] * original(values), scale), original
        ),
    )
    assert first_loss(by_an_installed_function) == pytest.approx(1.0, rel=1e-5)
    scale[0] = 7.0
    assert first_loss(by_an_installed_function) == pytest.approx(7.0, rel=1e-5)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's, whose inner module has a global and a function."""
    folder = tmp_path / "package_of_a_user" / "inner"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "config.py").write_text("scale = 1.0\ndef scaled(x):\n    return scale * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("package_of_a_user.inner.config")
    for name in [name for name in sys.modules if name.startswith("package_of_a_user")]:
        del sys.modules[name]


def losses_of_a_package(config):
    import package_of_a_user

    class Holder:
        def __init__(self):
            self.module = config

        def loss(self, params, batch):
            return self.module.scale * jnp.mean(batch @ params)

    class Number:
        def __mul__(self, other):
            return config.scale * other

    number = Number()

    def imported(params, batch):
        from package_of_a_user.inner import config

        return config.scale * jnp.mean(batch @ params)

    def imported_beside(params, batch):
        from .config import scale

        return scale * jnp.mean(batch @ params)

    def imported_from_above(params, batch):
        from ..inner import config

        return config.scale * jnp.mean(batch @ params)

    def imported_whole(params, batch):
        import package_of_a_user.inner.config as renamed

        return renamed.scaled(jnp.mean(batch @ params))

    return {
        "attribute of an attribute": lambda params, batch: (
            package_of_a_user.inner.config.scale * jnp.mean(batch @ params)
        ),
        "closure": lambda params, batch: config.scaled(jnp.mean(batch @ params)),
        "attribute of an object": Holder().loss,
        "operator": lambda params, batch: number * jnp.mean(batch @ params),
        "imported": imported,
        "imported whole": imported_whole,
        "imported beside": of_module(imported_beside, config),
        "imported from above": of_module(imported_from_above, config),
    }


def of_module(function, module):
    """As if the function stood in the module."""
    return types.FunctionType(function.__code__, vars(module) | {"jnp": jnp})


@pytest.mark.parametrize(
    "form",
    ["attribute of an attribute", "closure", "attribute of an object", "operator", "imported",
     "imported whole", "imported beside", "imported from above"],
)  # fmt: skip
@every_way
def test_what_a_module_has_is_seen_wherever_the_module_is(
    assert_is_seen, form, package, monkeypatch
):
    loss = losses_of_a_package(package)[form]
    assert_is_seen(loss, lambda: monkeypatch.setattr(package, "scale", 7.0))


class Inner(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return SCALE * nn.Dense(1)(inputs)


class SetUp(nn.Module):
    """Flax calls ``setup`` itself."""

    def setup(self):
        self.inner = Inner()

    def __call__(self, inputs):
        return self.inner(inputs)


Rematerialized = nn.remat(Inner)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["settings"]
)
@dataclasses.dataclass
class Model:
    """Params with a method and with settings, as modules of Equinox and nnx are."""

    weights: jax.Array
    settings: Settings

    def __call__(self, inputs):
        return SCALE * self.settings.scale * inputs @ self.weights


def loss_of_a_model(model, batch):
    return jnp.mean(model(batch))


def step_of_a_state(state, batch, rate):
    loss_fn = lambda params: jnp.mean(state.apply_fn(params, batch))
    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    params = jax.tree.map(lambda old, slope: old - rate * slope, state.params, gradients)
    return state.replace(params=params), loss


def losses_of_models():
    def linen(module):
        params = module.init(jax.random.key(0), BATCHES[0])
        loss_fn = lambda params, batch: jnp.mean(module.apply(params, batch))
        return lambda: optax_clr.lr_range_test(loss_fn, params, optax.sgd, BATCHES, max_lr=0.1)

    net = Inner()
    state = TrainState.create(
        apply_fn=net.apply, params=net.init(jax.random.key(0), BATCHES[0]), tx=optax.identity()
    )
    model = Model(PARAMS, Settings(1.0))
    return {
        "setup": linen(SetUp()),
        "a class that is made": linen(Rematerialized()),
        "a TrainState": lambda: optax_clr.range_test(
            step_of_a_state, state, BATCHES, jnp.geomspace(1e-7, 0.1, 12)
        ),
        "a model as params": lambda: optax_clr.lr_range_test(
            loss_of_a_model, model, optax.sgd, BATCHES, max_lr=0.1
        ),
    }


@pytest.mark.parametrize(
    "form", ["setup", "a class that is made", "a TrainState", "a model as params"]
)
def test_what_models_and_states_carry_is_seen(form, monkeypatch, caplog):
    run = losses_of_models()[form]
    first = float(run().losses[0])
    with jax.log_compiles(True):
        assert float(run().losses[0]) == first
    assert "Compiling" not in caplog.text
    monkeypatch.setitem(globals(), "SCALE", 7.0)
    assert run().losses[0] == pytest.approx(7 * first, rel=1e-5)


def test_settings_in_a_static_field_are_seen():
    model = Model(PARAMS, Settings(1.0))
    run = lambda: optax_clr.lr_range_test(loss_of_a_model, model, optax.sgd, BATCHES, max_lr=0.1)
    first = float(run().losses[0])
    model.settings.scale = 7.0
    assert run().losses[0] == pytest.approx(7 * first, rel=1e-5)


class Entries(dict):
    """A dictionary whose entries are attributes too, as many configurations are."""

    __getattr__ = dict.__getitem__


class Raising:
    def __getattr__(self, name):
        raise RuntimeError(f"{name} is not there yet")


def test_attributes_that_are_not_there_are_not_asked_for():
    settings, lazy = Entries(scale=1.0), Raising()
    defaults = Entries(collections.defaultdict(float, scale=1.0))

    def loss(params, batch):
        scale = settings.scale * defaults.scale
        return scale * jnp.mean(batch @ params) if lazy is not None else 0.0

    assert first_loss(loss) == pytest.approx(1.0, rel=1e-5)
    settings["scale"] = 7.0
    assert first_loss(loss) == pytest.approx(7.0, rel=1e-5)
    assert (set(settings), set(defaults)) == ({"scale"}, {"scale"})


@pytest.mark.parametrize(
    ("path", "is_own"),
    [
        ("/home/me/.local/lib/python3.12/site-packages/jax/__init__.py", False),
        ("/usr/lib/python3/dist-packages/jax/__init__.py", False),
        ("/home/me/site-packages-of-mine/train.py", True),
    ],
)
def test_packages_of_users_and_of_the_system_are_installed_ones(path, is_own, monkeypatch):
    module = types.ModuleType("module_somewhere")
    module.__file__ = path
    monkeypatch.setitem(sys.modules, module.__name__, module)
    _installed.is_own.cache_clear()
    assert _installed.is_own(module.__name__) == is_own
    _installed.is_own.cache_clear()


def test_what_is_run_is_own_whatever_runs_it(monkeypatch):
    """Profilers, debuggers and Python's prompt have a file of their own in its place."""
    main = types.ModuleType("__main__")
    main.__file__ = functools.__file__
    monkeypatch.setitem(sys.modules, "__main__", main)
    _installed.is_own.cache_clear()
    assert _installed.is_own("__main__")


def test_weights_of_a_module_that_are_changed_in_place_are_seen():
    nnx = pytest.importorskip("flax.nnx")
    module = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0))
    nnx.update(module, jax.tree.map(lambda _: jnp.eye(3), nnx.state(module)))
    loss_fn = lambda params, batch: jnp.mean(module(batch) @ params)
    assert first_loss(loss_fn) == pytest.approx(1.0, rel=1e-5)
    nnx.update(module, jax.tree.map(lambda kernel: 10 * kernel, nnx.state(module)))
    assert first_loss(loss_fn) == pytest.approx(10.0, rel=1e-5)


class Mangled:
    __slots__ = ("__scale",)

    def __init__(self):
        self.__scale = 1.0

    def change(self):
        self.__scale = 7.0

    def read(self):
        return self.__scale


class Row(NamedTuple):
    other: float

    def read(self):
        return SCALE


class Number(float):
    def read(self):
        return self.scale


class Named:
    pass


def installed_slots():
    """An object with slots of a class that is not the caller's."""
    number = fractions.Fraction(1)
    return lambda: float(number), lambda _: setattr(number, "_numerator", 7)


def mangled_slot():
    mangled = Mangled()
    return mangled.read, lambda _: mangled.change()


def method_of_a_row():
    row = Row(1.0)
    return (lambda: row.read()), lambda monkeypatch: monkeypatch.setitem(globals(), "SCALE", 7.0)


def attribute_of_a_number():
    number = Number(3)
    number.scale = 1.0
    return (lambda: number.read()), lambda _: setattr(number, "scale", 7.0)


def exchanged(table, keys):
    """The same values in the same order, with other keys."""
    values = list(table.values())
    table.clear()
    table.update(zip(keys, values, strict=True))


def exchanged_names():
    table = {"a": 1.0, "b": 7.0}
    return lambda: table["a"], lambda _: exchanged(table, ["b", "a"])


def exchanged_keys():
    table = {1: 1.0, (2, 3): 7.0}
    return lambda: table[1], lambda _: exchanged(table, [(2, 3), 1])


def exchanged_attributes():
    named = Named()
    named.a, named.b = 1.0, 7.0
    return lambda: named.a, lambda _: exchanged(vars(named), ["b", "a"])


def read_only_view():
    table = {"a": 1.0}
    view = types.MappingProxyType(table)
    return lambda: view["a"], lambda _: table.update(a=7.0)


def method_of_a_dictionary():
    table = {"a": 1.0}
    get = table.get
    return lambda: get("a"), lambda _: table.update(a=7.0)


def weak_reference():
    settings = Settings(1.0)
    reference = weakref.ref(settings)
    return lambda: reference().scale, lambda _: setattr(settings, "scale", 7.0)


def context_variable():
    variable = contextvars.ContextVar("scale", default=1.0)
    return variable.get, lambda _: variable.set(7.0)


def variable_of_a_thread():
    local = threading.local()
    local.scale = 1.0
    return (lambda: local.scale), lambda _: setattr(local, "scale", 7.0)


def written_into(numbers):
    """Numbers of Python or NumPy, of which the first is 1 and shall be 7."""
    return (lambda: float(numbers[0])), lambda _: numbers.__setitem__(0, 7)


def numpy_array():
    return written_into(np.ones((3, 2))[:, 0])


def large_array_bound_anew():
    """Too large for its numbers to be compared."""
    settings = Settings(np.ones(2**18))
    return (lambda: settings.scale[0]), lambda _: setattr(settings, "scale", np.full(2**18, 7.0))


def numpy_array_of_objects():
    return written_into(np.array([1.0, None], object))


def numpy_array_of_bfloat16():
    return written_into(np.ones(2, jnp.bfloat16))


def numpy_scalar_array():
    scale = np.array(1.0)
    return (lambda: float(scale)), lambda _: scale.__setitem__((), 7.0)


def array_of_python():
    return written_into(array.array("d", [1.0, 2.0]))


def bytes_that_change():
    return written_into(bytearray(b"\1"))


def lengthened_bytes():
    numbers = bytearray()
    return (lambda: 1.0 + len(numbers)), lambda _: numbers.extend(b"123456")


def view_of_bytes():
    return written_into(memoryview(bytearray(np.ones(2).tobytes())).cast("d"))


def number_of_c():
    number = ctypes.c_double(1.0)
    return (lambda: number.value), lambda _: setattr(number, "value", 7.0)


def record_of_numpy():
    record = np.ones(2, [("scale", float)])[0]
    return (lambda: float(record["scale"])), lambda _: record.__setitem__("scale", 7.0)


def array_of_another_library():
    """Its numbers are in none of its attributes."""
    numbers = [1.0]
    parts = {
        "__module__": "numpy",
        "shape": (1,),
        "dtype": np.dtype(float),
        "__array__": lambda self, dtype=None, copy=None: np.array(numbers),
    }
    tensor = type("Tensor", (), parts)()
    return (lambda: float(np.asarray(tensor)[0])), lambda _: numbers.__setitem__(0, 7.0)


def cached(cache):
    """Settings that a function remembers, and nothing else refers to."""
    settings = cache(lambda: {"scale": 1.0})
    return (lambda: settings()["scale"]), lambda _: settings().update(scale=7.0)


def result_of_a_cache():
    return cached(functools.cache)


def result_of_a_cache_of_some():
    return cached(functools.lru_cache(maxsize=3))


def scaled_class():
    class Scaled:
        scale = 1.0

    return Scaled


def attribute_getter():
    owner, get = scaled_class(), operator.attrgetter("scale")
    return (lambda: get(owner)), lambda _: setattr(owner, "scale", 7.0)


def getter_of_any_attribute():
    owner = scaled_class()
    get = functools.partial(getattr, owner)
    return (lambda: get("scale")), lambda _: setattr(owner, "scale", 7.0)


def weak_proxy():
    settings = Settings(1.0)
    proxy = weakref.proxy(settings)
    return (lambda: proxy.scale), lambda _: setattr(settings, "scale", 7.0)


def name_of_python():
    def read():
        return scale_of_all  # noqa: F821

    builtins.scale_of_all = 1.0
    return read, lambda monkeypatch: monkeypatch.setattr(builtins, "scale_of_all", 7.0)


def globals_by_their_names():
    names = {"scale": 1.0, "__name__": "page"}
    exec("def read(): return globals()['scale']", names)
    return names["read"], lambda _: names.update(scale=7.0)


def module_by_its_name(name="module_of_the_tests"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].scale = 1.0
    read = lambda: importlib.import_module("module_of_the_tests").scale
    return read, lambda monkeypatch: monkeypatch.setattr(sys.modules[name], "scale", 7.0)


def variable_of_the_environment():
    read = lambda: float(os.getenv("SCALE", "1"))
    return read, lambda monkeypatch: monkeypatch.setenv("SCALE", "7")


def property_of_a_class():
    class Meta(type):
        @property
        def scale(cls):
            return SCALE

    class Scaled(metaclass=Meta):
        pass

    return (lambda: Scaled.scale), lambda monkeypatch: monkeypatch.setitem(globals(), "SCALE", 7.0)


def method_that_a_package_calls():
    """By a name that is in none of the caller's functions."""

    class Encoder(json.JSONEncoder):
        def default(self, value):
            return SCALE

    read = lambda: float(json.dumps(object(), cls=Encoder))
    return read, lambda monkeypatch: monkeypatch.setitem(globals(), "SCALE", 7.0)


def edited_function():
    """As IPython's autoreload leaves a function whose file has been edited."""

    def read():
        return 1.0

    def edited():
        return 7.0

    return (lambda: read()), lambda _: setattr(read, "__code__", edited.__code__)


def edited_default():
    def read(scale=1.0):
        return scale

    return (lambda: read()), lambda _: setattr(read, "__defaults__", (7.0,))


def edited_default_of_a_keyword():
    def read(*, scale=1.0):
        return scale

    return (lambda: read()), lambda _: read.__kwdefaults__.update(scale=7.0)


def static_method():
    class WithStaticMethod:
        @staticmethod
        def read():
            return SCALE

    owner = WithStaticMethod()
    return (lambda: owner.read()), lambda monkeypatch: monkeypatch.setitem(globals(), "SCALE", 7.0)


def sign_of_zero():
    settings = Settings(0.0)
    read = lambda: 4 - 3 * math.copysign(1.0, settings.scale)
    return read, lambda _: setattr(settings, "scale", -0.0)


def nan_or_not():
    settings = Settings(float("nan"))

    def read():
        settings.scale = settings.scale + 0  # another object at each look
        return 1.0 if math.isnan(settings.scale) else settings.scale

    return read, lambda _: setattr(settings, "scale", 7.0)


def function_without_a_module():
    names = {"scale": 1.0}
    exec("def read(): return scale", names)
    assert names["read"].__module__ is None
    return names["read"], lambda _: names.update(scale=7.0)


def function_named_after_an_installed_one():
    read = functools.wraps(optax.sgd)(lambda: SCALE)
    return read, lambda monkeypatch: monkeypatch.setitem(globals(), "SCALE", 7.0)


def transformed_partial():
    settings = Settings(1.0)
    read = jax.vmap(functools.partial(lambda settings, x: x + settings.scale, settings))
    return (lambda: read(jnp.zeros(1))[0]), lambda _: setattr(settings, "scale", 7.0)


def schedule_of_a_schedule():
    settings = Settings(1.0)
    schedule = optax_clr.per_epoch_schedule(lambda epoch: settings.scale + 0 * epoch, 5)
    return (lambda: schedule(0)), lambda _: setattr(settings, "scale", 7.0)


CONSTITUENTS = [
    installed_slots,
    context_variable,
    variable_of_a_thread,
    numpy_array,
    large_array_bound_anew,
    numpy_array_of_objects,
    numpy_array_of_bfloat16,
    numpy_scalar_array,
    array_of_python,
    bytes_that_change,
    lengthened_bytes,
    view_of_bytes,
    number_of_c,
    record_of_numpy,
    array_of_another_library,
    result_of_a_cache,
    result_of_a_cache_of_some,
    attribute_getter,
    getter_of_any_attribute,
    weak_proxy,
    name_of_python,
    globals_by_their_names,
    module_by_its_name,
    variable_of_the_environment,
    property_of_a_class,
    method_that_a_package_calls,
    edited_function,
    edited_default,
    edited_default_of_a_keyword,
    static_method,
    sign_of_zero,
    nan_or_not,
    function_without_a_module,
    function_named_after_an_installed_one,
    transformed_partial,
    schedule_of_a_schedule,
    mangled_slot,
    method_of_a_row,
    attribute_of_a_number,
    exchanged_names,
    exchanged_keys,
    exchanged_attributes,
    read_only_view,
    method_of_a_dictionary,
    weak_reference,
]


@pytest.mark.parametrize("case", CONSTITUENTS)
def test_whatever_an_object_consists_of_is_seen(case, monkeypatch):
    read, change = case()
    loss_fn = lambda params, batch: read() * jnp.mean(batch @ params)
    assert_is_looked_at(loss_fn, lambda: change(monkeypatch))


@pytest.mark.parametrize(
    "case",
    mostly_slow(
        CONSTITUENTS,
        usual=[numpy_array, result_of_a_cache, nan_or_not, transformed_partial, weak_reference],
    ),
)
def test_and_programs_are_kept_or_made_anew_by_it(case, monkeypatch, caplog):
    read, change = case()
    loss_fn = lambda params, batch: read() * jnp.mean(batch @ params)
    assert first_loss(loss_fn) == pytest.approx(1.0, rel=1e-5)
    with jax.log_compiles(True):
        assert first_loss(loss_fn) == pytest.approx(1.0, rel=1e-5)
    assert "Compiling" not in caplog.text
    change(monkeypatch)
    assert first_loss(loss_fn) == pytest.approx(7.0, rel=1e-5)


@pytest.mark.parametrize(("then", "now"), [((1.0,), (1.0, 1.0)), ((1.0, 1.0), (1.0,))])
def test_more_or_fewer_of_the_same_parts_are_others(then, now):
    assert sees_the_same(then, look(then))
    assert not sees_the_same(now, look(then))


def test_the_program_of_a_large_module_is_kept(caplog):
    """With about as many objects as the graph of a Flax module of some ten layers."""
    layers = [{"name": str(number), "size": number} for number in range(5000)]
    loss_fn = lambda params, batch: layers[1]["size"] * jnp.mean(batch @ params)
    first_loss(loss_fn)
    with jax.log_compiles(True):
        first_loss(loss_fn)
    assert "Compiling" not in caplog.text


def test_more_than_can_be_looked_at_is_not_kept():
    many = [float(number) for number in range(150_000)]
    loss_fn = lambda params, batch: (many[0] + 1) * jnp.mean(batch @ params)
    num_kept = len(_kept_programs._kept)
    assert first_loss(loss_fn) == pytest.approx(1.0, rel=1e-5)
    assert len(_kept_programs._kept) <= num_kept
    many[0] = 6.0
    assert first_loss(loss_fn) == pytest.approx(7.0, rel=1e-5)


def test_a_class_that_is_forgotten_with_its_object_is_no_error():
    """weakref.WeakMethod would call back to itself when it is gone; pytest makes that an error."""
    names = {"jnp": jnp, "optax": optax, "optax_clr": optax_clr, "__name__": "page"}
    exec(
        "class Model:\n"
        "    def loss(self, params, batch):\n"
        "        return jnp.mean((batch @ params - batch.sum(-1)) ** 2)\n"
        "model = Model()\n"
        "batches = jnp.ones((8, 4, 3))\n"
        "optax_clr.lr_range_test(model.loss, jnp.zeros(3), optax.sgd, batches, max_lr=1e-3)\n",
        names,
    )
    reference = weakref.ref(names["Model"])
    del names
    gc.collect()
    assert reference() is None
