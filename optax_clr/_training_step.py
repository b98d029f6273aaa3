"""The training step inside a range test: what it must return, and the ordinary one of Optax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_clr._documentation import see

PyTree = Any
# step_fn(state, batch, value) -> (state, loss), or (state, (loss, metrics)) with has_aux.
StepFn = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, Any]]


@dataclasses.dataclass(frozen=True)
class OptimizerStep:
    """One step of ordinary training; equal ones share a program."""

    loss_fn: Callable[[PyTree, PyTree], Any]
    optimizer: Callable[[Any], optax.GradientTransformation]
    has_aux: bool

    def start(self, params: PyTree, learning_rate: jax.Array) -> tuple[PyTree, PyTree]:
        transformation = self.optimizer(learning_rate)
        # Not by type: optax.MultiSteps is none, and serves as one.
        if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
            raise TypeError(
                f"optimizer must return a GradientTransformation, got {transformation!r} from "
                f"{self.optimizer!r}."
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.inexact):
                raise TypeError(
                    f"params{jax.tree_util.keystr(path)} must be a float to be trained, got dtype "
                    f"{dtype}. Convert it, or leave it out of the params and close over it."
                )
        return params, transformation.init(params)

    def __call__(
        self, state: tuple[PyTree, PyTree], batch: PyTree, learning_rate: jax.Array
    ) -> tuple[PyTree, Any]:
        params, optimizer_state = state

        def checked_loss(params: PyTree) -> Any:
            loss, metrics = self.evaluate(params, batch)
            return (loss, metrics) if self.has_aux else loss

        output, gradients = jax.value_and_grad(checked_loss, has_aux=self.has_aux)(params)
        updates, optimizer_state = self.optimizer(learning_rate).update(
            gradients, optimizer_state, params
        )
        return (optax.apply_updates(params, updates), optimizer_state), output

    def evaluate(self, params: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree]:
        """Return the loss of a batch, and metrics."""
        return _split_output(self.loss_fn(params, batch), self.has_aux, "loss_fn")


def checked_step(
    step_fn: StepFn, has_aux: bool, state: PyTree, batch: PyTree, value: jax.Array
) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
    """Return the state and (loss, metrics), as floats, of one step; errors come as it is traced."""
    try:
        result: Any = step_fn(state, batch, value)
    except Exception as error:
        error.add_note(
            f"A step of the range test was given the batch {jax.tree.map(_shape_in_words, batch)}. "
            "The leading axis of batches that are arrays counts the steps. "
            + see("range-test/#batches")
        )
        raise
    if not isinstance(result, tuple) or len(result) != 2:
        expected = "(state, (loss, metrics))" if has_aux else "(state, loss)"
        raise TypeError(f"step_fn must return {expected}, got {describe(result)}.")
    new_state, output = result
    loss, metrics = _split_output(output, has_aux, "step_fn")
    # Floats, so that rows after divergence can be NaN.
    metrics = jax.tree.map(_as_float, metrics)
    return _check_state(state, new_state), (as_float32(loss), metrics)


def as_float32(loss: jax.Array) -> jax.Array:
    """Return a loss in float32, or in float64 if it is."""
    return loss if loss.dtype == jnp.float64 else loss.astype(jnp.float32)


def _split_output(output: Any, has_aux: bool, name: str) -> tuple[jax.Array, PyTree]:
    """Return loss and metrics, checked while the step is traced."""
    metrics: PyTree = ()
    if has_aux:
        if not isinstance(output, tuple) or len(output) != 2:
            raise TypeError(
                f"{name} must return the pair (loss, metrics) where has_aux=True, got "
                f"{describe(output)}."
            )
        output, metrics = output
    if not isinstance(output, (jax.Array, np.ndarray, np.generic, float)):
        hint = "; for metrics beside the loss pass has_aux=True" if not has_aux else ""
        raise TypeError(f"{name} must return a scalar loss, got {describe(output)}{hint}.")
    loss = jnp.asarray(output)
    if loss.shape != ():
        raise ValueError(
            f"{name} must return a scalar loss, got one of shape {loss.shape}. Take its mean."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"{name} must return a loss that is a float, got dtype {loss.dtype}.")
    return loss, metrics


def _check_state(old: PyTree, new: PyTree) -> PyTree:
    """Return ``new`` if it can take the place of ``old``."""
    structures: list[Any] = [jax.tree.structure(old), jax.tree.structure(new)]
    if structures[0] != structures[1]:
        raise ValueError(
            "step_fn must return a state of the structure it was given; "
            f"{_structural_difference(old, new)}. {see('training-steps/')}"
        )

    def check(path: Any, before: jax.Array, result: Any) -> jax.Array:
        after = jnp.asarray(result)
        if before.shape != after.shape or before.dtype != after.dtype:
            remedy = " Cast it back at the end of the step." if before.shape == after.shape else ""
            raise ValueError(
                f"step_fn must keep shape and dtype of state{jax.tree_util.keystr(path)}, "
                f"{_shape_in_words(before)}; got {_shape_in_words(after)}.{remedy}"
                f" {see('training-steps/')}"
            )
        return after

    return jax.tree_util.tree_map_with_path(check, old, new)


def _structural_difference(old: PyTree, new: PyTree) -> str:
    """Return, in words, the first leaf that only one of two states has."""
    before, after = (
        [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        for state in (old, new)
    )
    for verb, paths, others in (("lost", before, after), ("gained", after, before)):
        for path in paths:
            if path not in others:
                return f"it has {verb} state{path}"
    return (
        "its leaves have the same names, but a container is of another type or has another static "
        f"part: {jax.tree.structure(old)} became {jax.tree.structure(new)}"
    )


def _shape_in_words(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else describe(leaf)


def _as_float(metric: Any) -> jax.Array:
    array = jnp.asarray(metric)
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(jnp.float32)


def describe(value: Any) -> str:
    """Return the type of ``value`` for a message, with the shape if it is an array."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    shape = f" of shape {value.shape}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"
