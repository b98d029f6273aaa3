"""The training step inside a range test: any function, or the ordinary step of an optimizer.

Both have the same interface: ``start`` makes the state, ``train`` takes one training step, and
``functions`` are the caller's functions behind it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from optax_clr._documentation import see
from optax_clr._optimizer_factor import has_one_size
from optax_clr._step_output import (
    check_state,
    is_swapped,
    recorded_loss,
    recorded_metrics,
    split_output,
)
from optax_clr._words import describe, shapes_in_words, shown

PyTree = Any
# step_fn(state, batch, value) -> (state, loss), or (state, (loss, metrics)) with has_aux.
StepFn = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, Any]]


_A_NAME_OUTSIDE = "Does it use an array of the same name outside of it?"


class Step(Protocol):
    """What a range test trains with."""

    @property
    def has_aux(self) -> bool:
        """Whether metrics come with the loss."""

    @property
    def takes_rate(self) -> bool:
        """Whether the value is known to be a learning rate."""

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The caller's functions."""

    @property
    def unread_value(self) -> str:
        """The error message if the step never uses the value."""

    @property
    def unread_state(self) -> str:
        """The error message if the loss does not depend on the state."""

    def with_functions(self, functions: Sequence[Callable[..., Any]]) -> Step:
        """Return the same step with other functions."""

    def is_one_size(self, value: jax.Array) -> bool:
        """Whether the optimizer is known to normalize its updates to one size."""

    def start(self, initial: PyTree, value: jax.Array) -> PyTree:
        """Return the state before the first step."""

    def train(
        self, state: PyTree, batch: PyTree, value: jax.Array
    ) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
        """Return the state after a step, and (loss, metrics) of its batch, as floats."""

    def evaluate(self, state: PyTree, batch: PyTree) -> jax.Array:
        """Return the loss of a batch that is not trained on."""


@dataclasses.dataclass(frozen=True)
class FunctionStep:
    """Any training step, written by the caller."""

    step_fn: StepFn
    has_aux: bool
    takes_rate = False

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.step_fn,)

    @property
    def unread_value(self) -> str:
        return (
            "step_fn must train with the value that it is given; the loss of "
            f"{shown(self.step_fn)} does not depend on it, in this step or a later one. Where the "
            "rate is a hyperparameter of an optimizer, keep what set_hyperparams returns: "
            f"optimizer = set_hyperparams(optimizer, learning_rate=value). {see('training-steps/')}"
        )

    @property
    def unread_state(self) -> str:
        return (
            "step_fn must return the loss of the state that it is given; that of "
            f"{shown(self.step_fn)} depends on nothing in it. {_A_NAME_OUTSIDE} "
            f"{see('training-steps/')}"
        )

    def with_functions(self, functions: Sequence[Callable[..., Any]]) -> FunctionStep:
        (step_fn,) = functions
        return FunctionStep(step_fn, self.has_aux)

    def is_one_size(self, value: jax.Array) -> bool:
        del value
        return False  # unknown: the caller's function may do anything

    def start(self, initial: PyTree, value: jax.Array) -> PyTree:
        del value  # the caller has made the state
        return initial

    def train(
        self, state: PyTree, batch: PyTree, value: jax.Array
    ) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
        result: Any = self.step_fn(state, batch, value)
        expected = "(state, (loss, metrics))" if self.has_aux else "(state, loss)"
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"step_fn must return {expected}, got {describe(result)}.")
        if is_swapped(state, result):
            raise TypeError(
                f"step_fn must return {expected}, in this order; it has returned the loss first."
            )
        new_state, output = result
        loss, metrics = split_output(output, self.has_aux, "step_fn")
        remedy = "Cast it back at the end of the step."
        new_state = check_state(state, new_state, "step_fn", remedy)
        return new_state, (recorded_loss(loss), recorded_metrics(metrics))

    def evaluate(self, state: PyTree, batch: PyTree) -> jax.Array:
        raise NotImplementedError("range_test takes no held-out batch")


@dataclasses.dataclass(frozen=True)
class OptimizerStep:
    """One step of ordinary training: a loss, its gradient, and an Optax optimizer."""

    loss_fn: Callable[[PyTree, PyTree], Any]
    optimizer: Callable[[Any], optax.GradientTransformation]
    has_aux: bool
    takes_rate = True

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        return self.loss_fn, self.optimizer

    @property
    def unread_value(self) -> str:
        return (
            "optimizer must train with the learning rate that it is given; "
            f"{shown(self.optimizer)} does not read it, or keeps the first one in its state, as "
            "optax.inject_hyperparams does. Pass optax.adamw itself, or lambda rate: "
            "optax.adamw(rate, weight_decay=0.1); one that reads its rate once, as optax.rprop, is "
            f"tested by lr_grid_test. {see('first-test/')}"
        )

    @property
    def unread_state(self) -> str:
        return (
            "loss_fn must return the loss of the params that it is given; that of "
            f"{shown(self.loss_fn)} does not depend on them. {_A_NAME_OUTSIDE} "
            f"{see('first-test/')}"
        )

    def with_functions(self, functions: Sequence[Callable[..., Any]]) -> OptimizerStep:
        loss_fn, optimizer = functions
        return OptimizerStep(loss_fn, optimizer, self.has_aux)

    def is_one_size(self, value: jax.Array) -> bool:
        found: list[bool | None] = []
        # Traced, as in training: a factory may not accept a concrete number.
        jax.eval_shape(lambda rate: found.append(has_one_size(self.optimizer(rate))), value)
        return found[0] is True

    def start(self, initial: PyTree, value: jax.Array) -> tuple[PyTree, PyTree]:
        try:
            transformation = self.optimizer(value)
        except Exception as error:
            error.add_note(
                f"optimizer {shown(self.optimizer)} was called with a rate, f32[], that is traced: "
                "it must be a function of one argument that jax.jit can trace, which returns a "
                "GradientTransformation. Schedules are left out of it, and use the rate that the "
                f"test reads. {see('range-test/')}"
            )
            raise
        # Not checked by type: optax.MultiSteps is not a GradientTransformation, but works as one.
        if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
            raise TypeError(
                f"optimizer must return a GradientTransformation, got {describe(transformation)} "
                f"from {shown(self.optimizer)}."
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(initial):
            if jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.complexfloating):
                raise TypeError(
                    f"params{jax.tree_util.keystr(path)} must be real, got dtype {dtype}, of which "
                    "jax.grad gives the conjugate of the direction that Optax takes. Write the "
                    "step, with jax.tree.map(jnp.conj, gradients), and pass it to range_test. "
                    + see("training-steps/")
                )
            if not jnp.issubdtype(dtype, jnp.inexact):
                raise TypeError(
                    f"params{jax.tree_util.keystr(path)} must be a float to be trained, got dtype "
                    f"{dtype}. Convert it, or leave it out of the params and close over it; a "
                    "model with keys or counters in it, as those of nnx, is trained by range_test. "
                    + see("training-steps/#nnx")
                )
        return initial, transformation.init(initial)

    def train(
        self, state: tuple[PyTree, PyTree], batch: PyTree, value: jax.Array
    ) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
        params, optimizer_state = state
        loss_of = functools.partial(self._loss, batch=batch)
        (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        extras = {"value": loss, "grad": gradients, "value_fn": lambda params: loss_of(params)[0]}
        updates, optimizer_state = self._update(value, gradients, optimizer_state, params, extras)
        new_state = optax.apply_updates(params, updates), optimizer_state
        giver = f"the update of optimizer {shown(self.optimizer)}"
        remedy = "Give it a rate of that dtype: lambda rate: optimizer(rate.astype(dtype))."
        new_state = check_state(state, new_state, giver, remedy)
        return new_state, (recorded_loss(loss), recorded_metrics(metrics))

    def evaluate(self, state: tuple[PyTree, PyTree], batch: PyTree) -> jax.Array:
        try:
            return recorded_loss(self._loss(state[0], batch)[0])
        except Exception as error:
            error.add_note(
                f"The held-out batch is {shapes_in_words(batch)}. It is one batch, as "
                f"loss_fn takes it, without an axis of steps. {see('reading/#by-a-held-out-batch')}"
            )
            raise

    def _loss(self, params: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree]:
        return split_output(self.loss_fn(params, batch), self.has_aux, "loss_fn")

    def _update(
        self,
        rate: jax.Array,
        gradients: PyTree,
        state: PyTree,
        params: PyTree,
        extras: dict[str, Any],
    ) -> tuple[PyTree, PyTree]:
        """Return the updates and state of the optimizer, given those extras that it accepts."""
        update = self.optimizer(rate).update
        kinds = {name: entry.kind for name, entry in inspect.signature(update).parameters.items()}
        if inspect.Parameter.VAR_KEYWORD not in kinds.values():
            extras = {name: extra for name, extra in extras.items() if name in kinds}
        try:
            return update(gradients, state, params, **extras)  # type: ignore[no-any-return]
        except Exception as error:
            remedy = (
                f"The update of optimizer {shown(self.optimizer)} was given gradients, state, "
                "params and, where it takes them, value (the loss), grad and value_fn. If it needs "
                "more, write the training step, and pass it to range_test. With params of few "
                "digits it may need a rate of their dtype: lambda rate: optimizer(rate.astype("
                "dtype)). "
                f"{see('training-steps/')}"
            )
            if isinstance(error, TypeError) and "argument" in str(error):
                raise TypeError(f"{error}. {remedy}") from error
            error.add_note(remedy)
            raise
