"""A training step as anyone would write it with Optax: loops of the library are held against it."""

import functools
import inspect

import jax
import optax
from flax import nnx


@functools.partial(jax.jit, static_argnames=("loss_fn", "optimizer"))
def train_step(loss_fn, optimizer, params, state, batch, rate):
    """Return the new params and state, and the loss before them."""
    loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
    updates, state = optimizer(rate).update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def update_nnx(optimizer, model, gradients):
    """Update a model in place; before Flax 0.11 the optimizer held it."""
    takes_model = "model" in inspect.signature(nnx.Optimizer.update).parameters
    optimizer.update(*((model, gradients) if takes_model else (gradients,)))
