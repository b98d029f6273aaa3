"""Stochastic weight averaging: the mean of the weights at the ends of cycles."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_clr._arguments import INT32_MAX
from optax_clr._cycles import Cycles
from optax_clr._states import RESTORE, check_state, own_buffers, walk, was_restored
from optax_clr._words import shown

PyTree = Any


class AveragingState(NamedTuple):
    """The state of ``average_at_cycle_ends``."""

    step: jax.Array  # i32[], steps so far
    num_averaged: jax.Array  # i32[], cycles that have ended so far
    average: PyTree  # the current params until the first cycle ends


def average_at_cycle_ends(cycles: Cycles) -> optax.GradientTransformation:
    r"""Average the params at the ends of cycles, as the last transformation of a chain.

    $$\bar w_n = \bar w_{n - 1} + (w_{t_n} - \bar w_{n - 1}) / n$$

    where $w_{t_n}$ are the params after the last step of cycle $n$. Updates pass through
    unchanged, so training is not affected. Averages are kept in float32 (float64 for float64
    params), even if the params have a lower precision. Read them with [`averaged_params`][].

    Chain it after [`inject_schedules`][], not in its factory: there, updates of bfloat16 params are
    still float32, so some averaged params differ by a rounding from those that are trained.

    BatchNorm statistics are not averaged. Recompute them with one pass over the training data.

    Args:
      cycles: the [`Cycles`][] of the schedule, so that both agree on where a cycle ends.

    Returns:
      An ``optax.GradientTransformation`` whose update needs the params. Its state takes as much
      memory as the params in float32, and is saved and restored with the optimizer's. Each array
      has its own buffer, so that a training step may donate it.

    Raises:
      TypeError: if ``cycles`` is not a [`Cycles`][].
      ValueError: from ``update``, if the params are not passed to it.

    Examples:
      >>> cycles = Cycles(2)
      >>> optimizer = optax.chain(optax.sgd(1.0), average_at_cycle_ends(cycles))
      >>> params = jnp.float32(0.0)
      >>> state = optimizer.init(params)
      >>> for gradient in (-1.0, -1.0, -2.0, -2.0, -5.0):  # params 1, 2, 4, 6, 11
      ...     updates, state = optimizer.update(jnp.float32(gradient), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> float(averaged_params(state))  # of 2 and 6
      4.0

    References:
      Izmailov et al., [Averaging Weights Leads to Wider Optima and Better
      Generalization](https://arxiv.org/abs/1803.05407), 2018.
    """
    if not isinstance(cycles, Cycles):
        raise TypeError(
            f"cycles must be an optax_clr.Cycles, got {shown(cycles)}. For cycles of n steps pass "
            "Cycles(n)."
        )

    def init(params: PyTree) -> AveragingState:
        # Copies, because the caller may donate both the params and the state to a training step.
        average = jax.tree.map(lambda leaf: jnp.asarray(leaf, _wide(leaf)), params)
        state: AveragingState = own_buffers(AveragingState(jnp.int32(0), jnp.int32(0), average))
        return state

    def update(
        updates: PyTree, state: AveragingState, params: PyTree | None = None
    ) -> tuple[PyTree, AveragingState]:
        if params is None:
            raise ValueError(
                "average_at_cycle_ends needs the params: call optimizer.update(gradients, state, "
                "params)."
            )
        # Optax's counter stays at the largest int32, which must not be taken for a cycle's end.
        is_end = cycles.is_end(state.step) & (state.step < INT32_MAX)
        num_averaged = state.num_averaged + is_end.astype(jnp.int32)
        # Until the second cycle ends there is nothing to average with: take the params themselves.
        first, moves = num_averaged <= 1, is_end | (state.num_averaged == 0)

        def follow(average: jax.Array, leaf: jax.Array) -> jax.Array:
            if not jnp.issubdtype(average.dtype, jnp.inexact):
                return leaf
            wide = leaf.astype(average.dtype)
            if wide.dtype != leaf.dtype:  # otherwise XLA skips the rounding of the params
                bits: Any = jnp.finfo(leaf.dtype)  # type: ignore[no-untyped-call]
                wide = jax.lax.reduce_precision(wide, bits.nexp, bits.nmant)
            mean = average + (wide - average) / jnp.maximum(num_averaged, 1).astype(average.dtype)
            return jnp.where(moves, jnp.where(first, wide, mean), average)

        average = jax.tree.map(follow, state.average, optax.apply_updates(params, updates))
        step = optax.safe_increment(state.step)
        return updates, own_buffers(AveragingState(step, num_averaged, average))

    return optax.GradientTransformation(init, update)


def averaged_params(opt_state: PyTree) -> PyTree:
    """Return the mean of the params at the ends of the cycles so far.

    Args:
      opt_state: the state of an optimizer with [`average_at_cycle_ends`][] anywhere in it, such
        as that of ``optax.chain``, ``optax.MultiSteps`` or a Flax ``TrainState``; also one that
        a checkpoint restored as dicts and lists.

    Returns:
      Copies of the averaged params, in float32 if the params have a lower precision; the current
      params until the first cycle ends. From an ``nnx.Optimizer`` they come as variables of the
      optimizer: ``nnx.update(model, averaged)`` copies their values into the model's variables.

    Raises:
      TypeError: if ``opt_state`` holds shapes, as from ``jax.eval_shape``, or is an optimizer.
      ValueError: if it holds no such state, or more than one, or was restored as plain tuples.

    Examples:
      >>> optimizer = optax.chain(optax.sgd(0.1), average_at_cycle_ends(Cycles(100)))
      >>> print(averaged_params(optimizer.init({"weight": jnp.ones(2)})))
      {'weight': Array([1., 1.], dtype=float32)}
    """
    check_state(opt_state)
    states = [node for _, node in walk(opt_state) if isinstance(node, AveragingState)]
    dicts = [node for _, node in walk(opt_state) if was_restored(node, *AveragingState._fields)]
    averages = [node.average for node in states] + [node["average"] for node in dicts]
    if len(averages) != 1:
        raise ValueError(
            "opt_state must contain the state of one average_at_cycle_ends, got "
            f"{len(averages)}. Put it last in optax.chain; if there are several, pass the part "
            f"that has one; if it was restored from a checkpoint without its types: {RESTORE}"
        )
    return own_buffers(averages[0])


def _wide(leaf: Any) -> Any:
    """Return the dtype in which a leaf is averaged: at least float32, or its own if not a float."""
    dtype = jnp.result_type(leaf)
    is_narrow = jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize < 4
    return jnp.dtype(jnp.float32) if is_narrow else dtype
