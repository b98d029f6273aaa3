"""JAX's debugging modes: a range test sets none of them off by itself."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_clr
from optax_clr import _stop_rule

pytestmark = pytest.mark.usefixtures("optax_promotion")

NUM_STEPS = 40
INPUTS = np.random.default_rng(0).normal(size=(NUM_STEPS, 16, 4)).astype(np.float32)
TARGETS = INPUTS.sum(-1)
SCALES = jnp.ones(2)


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params - targets) ** 2)


def batch_at(step):
    inputs = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (16, 4))
    return inputs, inputs.sum(-1)


def stacked(**options):
    return optax_clr.lr_range_test(
        loss_fn, np.zeros(4, np.float32), optax.adam, (INPUTS, TARGETS), **options
    )


def traced(**options):
    return optax_clr.lr_range_test(
        loss_fn, np.zeros(4, np.float32), optax.adam, batch_at, num_steps=NUM_STEPS, **options
    )


def streamed(**options):
    return optax_clr.lr_range_test(
        loss_fn, np.zeros(4, np.float32), optax.adam, list(zip(INPUTS, TARGETS, strict=True)),
        num_steps=NUM_STEPS, **options,
    )  # fmt: skip


def with_bar(**options):
    return stacked(progress=True, **options)


def lanes(**options):
    run = lambda scale: optax_clr.lr_range_test(
        loss_fn, jnp.full(4, scale), optax.adam, (INPUTS, TARGETS), **options
    )
    return jax.vmap(run)(SCALES)


def grid(**options):
    return optax_clr.lr_grid_test(
        loss_fn, np.zeros(4, np.float32), optax.sgd, (INPUTS, TARGETS), **options
    )


def convolution(**options):
    loss_fn = lambda params, batch: jnp.mean(jnp.convolve(batch[0][:, 0], params, mode="same") ** 2)
    return optax_clr.lr_range_test(
        loss_fn, np.ones(4, np.float32), optax.sgd, (INPUTS, TARGETS), **options
    )


FORMS = [stacked, traced, streamed, with_bar, lanes, grid, convolution]


@contextlib.contextmanager
def debugging():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


def transfers():
    return jax.transfer_guard("disallow")


@functools.cache
def expected(form, max_lr):
    return form(max_lr=max_lr)


@pytest.mark.parametrize("mode", [debugging, transfers])
@pytest.mark.parametrize("max_lr", [0.1, 1e30], ids=["whole", "diverging"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_runs_in_the_mode_and_can_be_read(form, mode, max_lr):
    outside = expected(form, max_lr)
    with mode():
        result = form(max_lr=max_lr)
        jax.block_until_ready(result)
    np.testing.assert_allclose(result.losses, outside.losses, rtol=1e-5)
    with mode():
        assert result.summary() == outside.summary()
        with contextlib.suppress(optax_clr.RangeTestError, optax_clr.RangeTestWarning):
            result.suggest()
            result.bounds()
            result.one_cycle_peak()


@pytest.mark.parametrize("rule", optax_clr.peer_rules.__all__)
def test_the_rules_of_other_systems_read_what_diverged_in_the_mode(rule):
    result = expected(stacked, 1e30)
    assert result.num_valid < NUM_STEPS
    read = lambda: getattr(optax_clr.peer_rules, rule)(result.learning_rates, result.losses)
    outside = read()
    with debugging():
        assert read() == outside


def test_numpy_may_raise_for_what_is_too_small():
    outside = stacked(max_lr=0.1, smoothing=0.07)
    _stop_rule._known_decay.cache_clear()
    with np.errstate(all="raise"):
        result = stacked(max_lr=0.1, smoothing=0.07)
    np.testing.assert_array_equal(result.smoothed_losses, outside.smoothed_losses)
