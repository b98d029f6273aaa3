"""The training step inside a range test: any function, or the ordinary step of an optimizer.

Both are one thing to the test: ``start`` makes the state, ``train`` is one step of training, and
``functions`` are the caller's functions that it is made of.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_clr._arguments import shown
from optax_clr._documentation import see
from optax_clr._optimizer_factor import has_one_size

PyTree = Any
_EXTENDED: Any = jax.dtypes.extended  # of keys of random numbers
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
        """What is wrong where the step never uses the value."""

    @property
    def unread_state(self) -> str:
        """What is wrong where the loss is that of nothing that is trained."""

    def with_functions(self, functions: Sequence[Callable[..., Any]]) -> Step:
        """Return the same step of other functions."""

    def is_one_size(self, value: jax.Array) -> bool:
        """Whether an optimizer is known to bring its updates to one size."""

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
        return False  # what the caller's function does cannot be known

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
        if _is_swapped(state, result):
            raise TypeError(
                f"step_fn must return {expected}, in this order; it has returned the loss first."
            )
        new_state, output = result
        loss, metrics = _split_output(output, self.has_aux, "step_fn")
        remedy = "Cast it back at the end of the step."
        new_state = _check_state(state, new_state, "step_fn", remedy)
        return new_state, (as_float32(loss), _as_floats(metrics))

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
        # Traced, as in training: a factory may not take a number that is known.
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
        # Not by type: optax.MultiSteps is none, and serves as one.
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
        new_state = _check_state(state, new_state, giver, remedy)
        return new_state, (as_float32(loss), _as_floats(metrics))

    def evaluate(self, state: tuple[PyTree, PyTree], batch: PyTree) -> jax.Array:
        try:
            return as_float32(self._loss(state[0], batch)[0])
        except Exception as error:
            error.add_note(
                f"The held-out batch is {shapes_in_words(batch)}. It is one batch, as "
                f"loss_fn takes it, without an axis of steps. {see('reading/#by-a-held-out-batch')}"
            )
            raise

    def _loss(self, params: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree]:
        return _split_output(self.loss_fn(params, batch), self.has_aux, "loss_fn")

    def _update(
        self,
        rate: jax.Array,
        gradients: PyTree,
        state: PyTree,
        params: PyTree,
        extras: dict[str, Any],
    ) -> tuple[PyTree, PyTree]:
        """Return updates and state of an optimizer, given what it takes of the extras."""
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


def as_float32(loss: jax.Array) -> jax.Array:
    """Return a loss in float32, or in float64 if it is."""
    return loss if loss.dtype == jnp.float64 else loss.astype(jnp.float32)


def describe(value: Any) -> str:
    """Return what ``value`` is for a message: an array with its shape, or the name of its type."""
    if isinstance(value, jax.Array):  # also a traced one, whose type says nothing to a caller
        return f"an array {shape_in_words(value)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"


def shape_in_words(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else describe(leaf)


_MOST_NAMED = 20  # arrays in a message


def shapes_in_words(tree: PyTree) -> str:
    """Return the arrays of a pytree by their paths; a tree of words its classes may refuse."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = leaves[:_MOST_NAMED]
    words = [f"{jax.tree_util.keystr(path)} {shape_in_words(leaf)}" for path, leaf in named]
    if len(leaves) > len(named):
        words.append(f"and {len(leaves) - len(named)} more")
    return ", ".join(words).strip() or "of no arrays"


def _is_swapped(state: PyTree, result: tuple[Any, Any]) -> bool:
    """Whether a step has returned (loss, state)."""
    first, second = result
    forms = [
        (jax.tree.structure(tree), [np.shape(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (state, first, second)
    ]
    is_scalar = jax.tree_util.all_leaves([first]) and np.shape(first) == ()
    return is_scalar and forms[2] == forms[0] != forms[1]


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


def _as_floats(metrics: PyTree) -> PyTree:
    """Return metrics as floats, so that rows after divergence can be NaN."""

    def as_float(path: Any, metric: Any) -> jax.Array:
        dtype = getattr(metric, "dtype", None)
        if isinstance(metric, str) or (dtype is not None and jnp.issubdtype(dtype, _EXTENDED)):
            raise TypeError(
                f"metrics{jax.tree_util.keystr(path)} must be numbers, which are recorded as "
                f"floats, got {describe(metric)}. Leave it out, or return jax.random.key_data of a "
                "key."
            )
        array = jnp.asarray(metric)
        # Not bfloat16 either, which numpy.savez does not keep.
        is_wide = jnp.issubdtype(array.dtype, jnp.inexact) and array.dtype.itemsize >= 4
        return array if is_wide else array.astype(jnp.float32)

    return jax.tree_util.tree_map_with_path(as_float, metrics)


def _check_state(old: PyTree, new: PyTree, giver: str, remedy: str) -> PyTree:
    """Return ``new``, which ``giver`` has returned, if it can take the place of ``old``.

    ``remedy`` is for another dtype.
    """
    structures: list[Any] = [jax.tree.structure(old), jax.tree.structure(new)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"{giver} must return a state of the structure it was given; "
            f"{_structural_difference(old, new)}. {see('training-steps/')}"
        )

    def check(path: Any, before: jax.Array, result: Any) -> jax.Array:
        after = jnp.asarray(result)
        if before.shape != after.shape or before.dtype != after.dtype:
            cast = f" {remedy}" if before.shape == after.shape else ""
            raise ValueError(
                f"{giver} must keep shape and dtype of state{jax.tree_util.keystr(path)}, "
                f"{shape_in_words(before)}; got {shape_in_words(after)}.{cast}"
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
    return f"its leaves have the same names, but {_other_node(old, new)}"


def _other_node(old: PyTree, new: PyTree) -> str:
    """Return, in words, the first container that is of another type, or has another static part."""
    waiting: list[Any] = [(jax.tree.structure(old), jax.tree.structure(new))]
    while waiting:
        before, after = waiting.pop(0)
        one, other = before.node_data(), after.node_data()
        if one == other:
            waiting += zip(before.children(), after.children(), strict=False)
        elif one is None or other is None or one[0] is not other[0]:
            kinds = [data[0].__name__ if data else "a leaf" for data in (one, other)]
            return f"{kinds[0]} became {kinds[1]}"
        else:
            kind = one[0].__name__
            return (
                f"a {kind} has another static part, such as the tx of a TrainState: make it once, "
                "outside of the step; a rate is set by set_hyperparams(state, learning_rate=value) "
                f"({shown(one[1])} became {shown(other[1])})"
            )
    return "a container is another"
