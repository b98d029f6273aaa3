"""Compiled programs that are kept: while what they were made from is the same, and no longer."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_clr
from optax_clr import _programs

pytestmark = pytest.mark.usefixtures("optax_promotion")

BATCHES = jax.random.normal(jax.random.key(0), (12, 4, 3))
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


def change_attribute(task):
    task.scale = 100.0


def change_entry(task):
    task.settings["more"] = Settings(100.0)


def change_deep(task):
    task.settings["more"].scale = 100.0


@pytest.mark.parametrize("change", [change_attribute, change_entry, change_deep])
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
    num_kept = len(_programs._kept)
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
        assert len(_programs._kept) <= num_kept
    finally:
        gc.enable()


def test_functions_of_a_moment_leave_nothing_behind():
    num_kept = len(_programs._kept)
    for _ in range(3):
        first_loss(lambda params, batch: jnp.mean(batch @ params), lambda rate: optax.sgd(rate))
    assert len(_programs._kept) == num_kept


def test_a_function_that_refers_to_itself_and_to_anything_is_kept():
    things = [set(), object, ..., range(3), {1: [b"", np.float32(2), jnp.ones(2)]}, len, first_loss]

    def loss_fn(params, batch, again=True):
        return loss_fn(params, batch, False) if again and things else jnp.mean(batch @ params)

    first_loss(loss_fn)
    first_loss(loss_fn)
    things[4][1].append(0)
    assert first_loss(loss_fn) == pytest.approx(1.0, rel=1e-5)
