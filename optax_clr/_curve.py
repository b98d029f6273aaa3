"""The columns of a curve, checked, and at hand to be read."""

from __future__ import annotations

import enum
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optax_clr._arguments import (
    any_traced,
    explicit_sharding,
    is_real_dtype,
    is_traced,
    shown,
)
from optax_clr._arrays import Array, as_array, numpy_of

_SHARDING: Any = jax.sharding


class EndedBy(enum.IntEnum):
    """What ended a range test: the values of ``RangeTestResult.ended_by``."""

    LAST_VALUE = 0
    DIVERGENCE = 1
    END_OF_DATA = 2
    INTERRUPT = 3  # Ctrl-C, or an exception in the data loader


class Curve(NamedTuple):
    """The columns to read, ``f32[..., n]`` each, how they ended, and their optimizer's factor."""

    learning_rates: Array
    losses: Array
    equivalent_steps: Array
    diverged: Array | bool  # bool[...]
    ran_out: Array | bool  # bool[...] out of batches, or interrupted
    factor: Array | float  # f32[...] for the kind of optimizer


def checked_curve(curve: Curve) -> Curve:
    """Check shapes, steps and factor; return the curve, in NumPy unless a column is a JAX array."""
    _check_shapes(curve.learning_rates, curve.losses)
    if not np.size(curve.losses):
        raise ValueError(
            "learning_rates and losses must have at least one row, got the shape "
            f"{np.shape(curve.losses)}."
        )
    if np.shape(curve.equivalent_steps) != np.shape(curve.losses):
        raise ValueError(
            f"equivalent_steps must have the shape of losses, {np.shape(curve.losses)}, got "
            f"{np.shape(curve.equivalent_steps)}."
        )
    _check_steps(curve)
    numpy = numpy_of(curve)
    diverged, ran_out = (numpy.asarray(end, bool) for end in (curve.diverged, curve.ran_out))
    factor = numpy.asarray(curve.factor, np.float32)
    known = np.ones(1) if is_traced(factor) else np.asarray(jax.device_get(factor))
    if not ((known > 0) & (known < np.inf)).all():
        raise ValueError(
            f"optimizer_factor must be positive and finite, got {shown(curve.factor)}."
        )
    return curve._replace(diverged=diverged, ran_out=ran_out, factor=factor)


def _check_steps(curve: Curve) -> None:
    """Raise for impossible steps, as far as they and the other columns are concrete."""
    steps = curve.equivalent_steps
    if not isinstance(steps, np.ndarray):
        return
    if (wrong := steps[steps <= 0]).size:
        raise ValueError(
            f"equivalent_steps must be positive, or NaN after the last row, got {wrong[0]}."
        )
    if numpy_of(curve) is jnp:
        return
    is_row = np.isfinite(curve.losses) & (curve.learning_rates > 0)
    if (missing := steps[is_row & ~np.isfinite(steps)]).size:
        raise ValueError(
            f"equivalent_steps must be finite where there are a rate and a loss, got {missing[0]}."
        )


def float_column(name: str, column: Any) -> Array:
    """Return a column as floats of 32 bits or more: NumPy's float64 stays, whatever JAX's mode."""
    column = as_array(name, column)
    if not is_real_dtype(column.dtype):
        raise TypeError(f"{name} must be real numbers, got dtype {column.dtype}.")
    is_wide = jnp.issubdtype(column.dtype, jnp.floating) and column.dtype.itemsize >= 4
    return column if is_wide else column.astype(np.float32)


def checked_columns(learning_rates: ArrayLike, losses: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Check that both have the same shape ``[..., n]``, and return them as JAX float arrays."""
    columns = float_column("learning_rates", learning_rates), float_column("losses", losses)
    _check_shapes(*columns)
    if not math.prod(columns[1].shape[:-1]):
        raise ValueError(f"losses must have at least one curve, got shape {columns[1].shape}.")
    rates, curves = (gathered(jnp.asarray(column)) for column in columns)
    return rates, curves


def _check_shapes(learning_rates: Any, losses: Any) -> None:
    shapes = np.shape(learning_rates), np.shape(losses)
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            f"learning_rates and losses must have the same shape [..., n], got {shapes[0]} and "
            f"{shapes[1]}."
        )


def at_hand(tree: Any) -> Any:
    """Return a pytree of NumPy arrays, if all are concrete and addressable by this process.

    Otherwise, as inside ``jax.jit``, return it with arrays over Explicit axes replicated.
    """
    if not any_traced(tree) and all(map(_is_here, jax.tree.leaves(tree))):
        return jax.device_get(tree)
    return jax.tree.map(gathered, tree)


def _is_here(leaf: Any) -> bool:
    """Whether this process has all of a leaf: of several processes, each may have a copy."""
    return getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated


def gathered(column: Any) -> Any:
    """Return a column replicated on every device, if it is sharded over Explicit mesh axes.

    Otherwise JAX would have to be told the sharding of everything computed from it.
    """
    sharding = explicit_sharding(column)
    if sharding is None:
        return column
    everywhere = _SHARDING.NamedSharding(sharding.mesh, _SHARDING.PartitionSpec())
    return _SHARDING.reshard(column, everywhere)
