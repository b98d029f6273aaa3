"""Checks of the arguments of range tests, before anything is traced."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_clr._arguments import (
    fits_float32,
    float_dtype,
    function,
    is_real_dtype,
    native,
    real_scalar,
)
from optax_clr._arrays import as_array, check_not_donated, is_array, is_numeric
from optax_clr._batches import is_stream
from optax_clr._documentation import see
from optax_clr._states import is_variable
from optax_clr._step import OptimizerStep, PyTree
from optax_clr._stop_rule import StopRule
from optax_clr._tracing import is_traced, known_float
from optax_clr._words import describe, shown

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
# Types of leaves that hold an array: those of jax.new_ref, by version, and of nnx.Variable.
_WRITTEN_TO = ("Ref", "ArrayRef", "MutableArray", "HijaxVariable")


def optimizer_step(loss_fn: Any, optimizer: Any, has_aux: Any) -> OptimizerStep:
    """Return the training step of a loss and an optimizer; raise if they are not functions."""
    loss_fn = function("loss_fn", loss_fn, form="(params, batch) -> loss")
    if isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "optimizer must be a function from a learning rate to a GradientTransformation, got "
            "one that is already built. Pass optax.adamw itself, or lambda rate: optax.adamw(rate, "
            f"weight_decay=0.1). {see('first-test/')}"
        )
    optimizer = function("optimizer", optimizer, form="learning_rate -> GradientTransformation")
    if isinstance(optimizer, functools.partial):
        names = [*_argument_names(optimizer.func)[: len(optimizer.args)], *optimizer.keywords]
        if "learning_rate" in names:  # then the test's rates would go to another argument
            raise TypeError(
                f"optimizer must leave the learning rate open, got {shown(optimizer)}. Bind other "
                f"arguments by name, functools.partial(optax.adamw, weight_decay=0.1). "
                + see("range-test/")
            )
    return OptimizerStep(loss_fn, optimizer, bool(has_aux))


def _argument_names(factory: Any) -> list[str]:
    try:
        return [*inspect.signature(factory).parameters]
    except ValueError:  # a function written in C
        return []


def check_params(params: PyTree) -> None:
    """Raise unless params are arrays, all of which are meant to be trained."""
    check_arrays("params", params)
    if isinstance(params, Mapping) and {"params", "batch_stats"} <= params.keys():
        raise ValueError(
            "params must be what is trained, got all variables of a Flax module, with their "
            "batch_stats. Pass variables['params'], and put the rest beside it in loss_fn. "
            + see("training-steps/#a-flax-trainstate-with-batch-statistics-and-dropout")
        )
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_variable)
    variables = [(path, node) for path, node in nodes if is_variable(node)]
    if not any(_is_param(variable) for _, variable in variables):
        return  # part of a model that was split off by another kind of variable
    for path, variable in variables:
        if not _is_param(variable) and jnp.issubdtype(variable.dtype, jnp.inexact):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} must be an nnx.Param, got the variable "
                f"{type(variable).__name__}, which would be trained too. Pass what nnx.split("
                "model, nnx.Param, ...) gives as params, and merge a copy of the rest in loss_fn. "
                + see("training-steps/#nnx")
            )


def _is_param(variable: Any) -> bool:
    """Whether a variable is an nnx.Param, rather than statistics or constants of a model."""
    kind = getattr(variable, "type", None)  # set in split states of older Flax
    kind = kind if isinstance(kind, type) else type(variable)
    return any(base.__name__ == "Param" for base in kind.__mro__)


def check_arrays(name: str, tree: PyTree) -> None:
    leaves = jax.tree.leaves(tree)
    if not leaves:
        raise ValueError(
            f"{name} must have at least one array, got the empty pytree {shown(tree)}."
        )
    _check_is_tree(name, tree)
    check_not_donated(name, tree)
    if all(isinstance(leaf, jax.Array) for leaf in leaves):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        part = f"{name}{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, _ARRAYS):
            if type(leaf).__name__ in _WRITTEN_TO:
                raise TypeError(
                    f"{part} must be an array, got {describe(leaf)}, which is written to in place. "
                    "Pass its value, ref[...], or of an nnx model or its split state "
                    "nnx.with_vars(model, hijax=False, ref=False). " + see("training-steps/#nnx")
                )
            if _is_of_nnx(leaf):  # not a pytree in older Flax
                raise TypeError(
                    f"{part} must be an array, got the nnx module {describe(leaf)}. Pass what "
                    "nnx.split(model, nnx.Param, ...) gives, and merge it in the loss or the step: "
                    "whole modules need Flax 0.12. " + see("training-steps/#nnx")
                )
            raise TypeError(
                f"{part} must be an array, got {describe(leaf)}. "
                "Leave what is not one out, or close over it; if there are arrays in it, register "
                f"its class with JAX (jax.tree_util.register_dataclass). {see('training-steps/')}"
            )
        # JAX does not accept an array in another byte order.
        if isinstance(leaf, np.ndarray) and not (
            is_numeric(leaf.dtype) and native(part, leaf) is leaf
        ):
            raise TypeError(
                f"{part} must be an array of numbers as the device has them, got dtype "
                f"{leaf.dtype}. Convert it: array.astype(numpy.float32)."
            )


def _is_of_nnx(value: Any) -> bool:
    return any(base.__module__.startswith("flax.nnx") for base in type(value).__mro__)


def _check_is_tree(name: str, tree: PyTree) -> None:
    """Raise if a Flax variable is in two places: in a pytree it would become two variables."""
    places: dict[int, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_variable):
        place = f"{name}{jax.tree_util.keystr(path)}"
        if is_variable(leaf) and places.setdefault(id(leaf), place) != place:
            raise ValueError(
                f"{name} must be a tree, but {places[id(leaf)]} and {place} are one variable, and "
                "would be trained apart. Pass what nnx.split gives, which has it once; or, if they "
                "are to part, as an average does, a copy of one, jax.tree.map(jnp.copy, ...). "
                + see("training-steps/#nnx")
            )


def held_out_batch(held_out: PyTree) -> PyTree:
    """Return the held-out batch as arrays, or None if there is none; raise unless it is one."""
    if held_out is None:
        return None
    if is_stream(held_out) and not isinstance(held_out, (list, str)):
        raise TypeError(
            f"held_out must be one batch, got the iterable {shown(held_out)}. Pass a batch of it, "
            "next(iter(loader)), or read it beside the training batches. "
            + see("recipes/#a-validation-loader-in-a-range-test")
        )
    batch = jax.tree.map(
        lambda leaf: as_array("held_out", leaf) if is_array(leaf) else leaf, held_out
    )
    check_arrays("held_out", batch)
    return batch


def checked_values(values: ArrayLike) -> jax.Array | np.ndarray:
    array = as_array("values", values)
    if not is_real_dtype(array.dtype):
        remedy = " Of a schedule pass schedule(jnp.arange(n))." if callable(values) else ""
        raise TypeError(f"values must be real numbers, got {shown(values)}.{remedy}")
    if array.ndim != 1 or not array.shape[0]:
        raise ValueError(
            f"values must be one-dimensional and not empty, got an array of shape {array.shape}."
        )
    dtype = float_dtype(array)
    if not is_traced(array):
        # An explicit transfer, which jax.transfer_guard("disallow") allows.
        _check_held(jax.device_get(array).astype(np.float64), dtype, values)
    return array.astype(dtype)


def _check_held(numbers: np.ndarray, dtype: Any, values: ArrayLike) -> None:
    """Raise if a value, given as float64, is not finite in ``dtype``, or becomes 0 in it."""
    with np.errstate(over="ignore", under="ignore"):
        held = numbers.astype(dtype)
    if not (np.isfinite(held) & ((held != 0) | (numbers == 0))).all():
        raise ValueError(
            f"values must be finite, and neither overflow nor become 0 in {dtype}; got "
            f"{shown(values)}."
        )


def spaced(min_lr: Any, max_lr: Any, num_values: int, spacing: str) -> jax.Array | np.ndarray:
    min_lr = real_scalar("min_lr", min_lr, positive=True)
    max_lr = real_scalar("max_lr", max_lr, positive=True)
    low, high = known_float(min_lr), known_float(max_lr)
    if low is not None and high is not None and low >= high:
        raise ValueError(f"max_lr={max_lr} must be larger than min_lr={min_lr}.")
    if not isinstance(spacing, str) or spacing not in ("log", "linear"):
        raise ValueError(f"spacing must be 'log' or 'linear', got {shown(spacing)}.")
    if low is not None and high is not None:
        for name, rate in (("min_lr", low), ("max_lr", high)):
            if not fits_float32(rate):  # as an array in float64 may not
                raise ValueError(f"{name} must be a rate that float32 holds, got {shown(rate)}.")
        return _known_rates(low, high, num_values, spacing)
    start, stop = jnp.asarray(min_lr, jnp.float32), jnp.asarray(max_lr, jnp.float32)
    if spacing == "log":
        return jnp.geomspace(start, stop, num_values)
    return jnp.linspace(start, stop, num_values)


@functools.lru_cache(maxsize=32)  # computing them takes as long as a step of a small network
def _known_rates(low: float, high: float, num_values: int, spacing: str) -> np.ndarray:
    space = np.geomspace if spacing == "log" else np.linspace
    rates: np.ndarray = space(low, high, num_values).astype(np.float32)
    rates.flags.writeable = False
    return rates


def stop_rule(smoothing: ArrayLike, stop_factor: ArrayLike) -> StopRule:
    number = known_float(real_scalar("smoothing", smoothing))
    if number is not None and not 0 <= number < 1:
        raise ValueError(
            f"smoothing must be from 0 up to but not including 1, got {shown(smoothing)}: it is "
            "the weight of the past in the moving average."
        )
    is_float = isinstance(stop_factor, (float, np.floating))
    if not (is_float and stop_factor == math.inf):
        stop_factor = real_scalar("stop_factor", stop_factor, positive=True)
    return StopRule(_as_float32(smoothing), _as_float32(stop_factor))


def _as_float32(number: Any) -> ArrayLike:
    # A compiled program takes NumPy numbers as they are; making JAX's would run a program for each.
    return number.astype(jnp.float32) if isinstance(number, jax.Array) else np.float32(number)
