"""A training step as anyone would write it with Optax: loops of the library are held against it."""

import functools

import jax
import optax


@functools.partial(jax.jit, static_argnames=("loss_fn", "optimizer"))
def train_step(loss_fn, optimizer, params, state, batch, rate):
    """Return the new params and state, and the loss before them."""
    loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
    updates, state = optimizer(rate).update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss
