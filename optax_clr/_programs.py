"""The compiled programs of a training step: its loop, the loss of a held-out batch, its facts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.typing import ArrayLike

from optax_clr._arrays import varying_axes
from optax_clr._batch_facts import batch_facts_of, batch_of
from optax_clr._documentation import see
from optax_clr._loop import Loop, with_step_types
from optax_clr._optimizer_factor import optimizer_factor
from optax_clr._step import PyTree, Step
from optax_clr._step_facts import StepFacts, facts_of
from optax_clr._swept_optimizer import SweptOptimizer
from optax_clr._tracing import is_inside_program
from optax_clr._words import shapes_in_words

_NEEDS_VALUES = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


class CompiledLoop:
    """The programs of a loop, compiled for the shapes they are called with."""

    def __init__(self, loop: Loop) -> None:
        self.whole = jax.jit(loop.whole)
        self.begin = jax.jit(loop.begin)
        self.train_rows = jax.jit(loop.train_rows, donate_argnums=0)
        self.finish = jax.jit(loop.finish)


class Programs:
    """The compiled programs of a step and of the function that makes its batches, if any.

    They share one trace of the training step.
    """

    def __init__(self, step: Step, batch_fn: Callable[[Any], Any] | None) -> None:
        self.num_traces = 0
        self.evaluate = jax.jit(step.evaluate)
        self._step = step
        self._batch_fn = batch_fn
        self._train = jax.jit(functools.partial(_train, step, batch_fn))
        self._facts: dict[Any, StepFacts] = {}
        self._loops: dict[Any, CompiledLoop] = {}

    def facts(self, initial: PyTree, batch: PyTree, values: ArrayLike, num_steps: int) -> StepFacts:
        """Trace the step, and return its facts."""
        arguments = initial, batch, values
        is_inside = is_inside_program()  # then batches have no values
        of_arguments = jax.tree.structure(arguments), *map(_type_of, jax.tree.leaves(arguments))
        key = num_steps, is_inside, *of_arguments
        if key not in self._facts:
            self.num_traces += 1
            value = jax.eval_shape(lambda values: values[0], values)
            start = lambda initial, value: with_step_types(self._step.start(initial, value))
            started, state = jax.make_jaxpr(start, return_shape=True)(initial, value)
            traced = jax.make_jaxpr(self._train)(state, batch, value)
            batches = batch_facts_of(self._batch_fn, batch, num_steps, is_inside)
            optimizer = SweptOptimizer(traced.jaxpr, state, takes_rate=self._step.takes_rate)
            factor = optimizer_factor(
                state,
                is_one_size=self._step.is_one_size(value),
                is_of_optimizer=optimizer.may_have,
                has_params=optimizer.has_params,
            )
            self._facts[key] = facts_of(traced, started, state, optimizer, batches, factor)
        return self._facts[key]

    def loop(self, **shape: Any) -> CompiledLoop:
        """Return the loop with these fields of ``Loop``."""
        key = tuple(sorted(shape.items()))
        if key not in self._loops:
            loop = Loop(
                start=self._step.start,
                train=self._train,
                evaluate=self._step.evaluate,
                makes_batches=self._batch_fn is not None,
                **shape,
            )
            self._loops[key] = CompiledLoop(loop)
        return self._loops[key]


def _train(
    step: Step,
    batch_fn: Callable[[Any], Any] | None,
    state: PyTree,
    batch: PyTree,
    value: jax.Array,
) -> Any:
    if batch_fn is not None:
        batch = batch_of(batch_fn, batch)
    try:
        return step.train(state, batch, value)
    except Exception as error:
        for note in _notes_on(error, batch):
            error.add_note(note)
        raise


def _notes_on(error: Exception, batch: PyTree) -> Iterator[str]:
    yield (
        f"A step of the range test was given the batch {shapes_in_words(batch)}. "
        "The leading axis of batches that are arrays counts the steps. "
        + see("range-test/#batches")
    )
    if isinstance(error, _NEEDS_VALUES):
        yield (
            "The loss, and a step, are traced, so that nothing in them has a value: write them "
            "with jax.numpy, without float(), .item(), numpy, or an if that asks for a value."
        )
    if "trace level" in str(error):  # Flax's wording
        yield (
            "The loss, and a step, may change the model and the optimizer that they are given, "
            f"and none outside. {see('training-steps/#nnx')}"
        )


def _type_of(leaf: Any) -> Any:
    return getattr(leaf, "shape", ()), getattr(leaf, "dtype", type(leaf)), varying_axes(leaf)
