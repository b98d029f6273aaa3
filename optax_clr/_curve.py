"""The curve to read from a ``RangeTestResult``: its columns, checked and at hand."""

from __future__ import annotations

import enum
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import is_real_dtype, native
from optax_clr._arrays import Array, as_array, numpy_of
from optax_clr._tracing import any_traced, explicit_sharding, is_traced
from optax_clr._words import shown

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


def curve_of(result: Any) -> Curve:
    """Return the checked curve to read from a result: its held-out losses, if there are any."""
    columns = result._replace(metrics=())._asdict()
    columns = {name: native(name, column) for name, column in columns.items()}
    result = at_hand(type(result)(**columns))
    _check_entries(result)
    rates = float_column("learning_rates", result.learning_rates)
    held_out, steps = result.held_out_losses, result.equivalent_steps
    (num_rows,) = np.shape(rates)[-1:] or (0,)
    has_end = result.num_valid <= num_rows  # False if the caller kept only the first rows
    ended_by = result.ended_by if np.size(result.ended_by) else int(EndedBy.LAST_VALUE)
    if not np.size(steps):
        with np.errstate(all="ignore"):
            sizes = abs(rates)
            steps = numpy_of(rates).nancumsum(sizes, axis=-1) / sizes
    steps = float_column("equivalent_steps", steps)
    losses = float_column("losses", held_out if np.size(held_out) else result.losses)
    curve = Curve(
        rates,
        _recorded(losses, result.num_valid),
        steps,
        has_end & (ended_by == int(EndedBy.DIVERGENCE)),
        has_end & (ended_by >= int(EndedBy.END_OF_DATA)),
        result.optimizer_factor if np.size(result.optimizer_factor) else 1.0,
    )
    return checked_curve(curve)


def _recorded(losses: Array, num_valid: Array) -> Array:
    """Return the losses with NaN in the padding, the rows from ``num_valid`` on."""
    numpy, shape = numpy_of((losses, num_valid)), np.shape(losses)
    if np.shape(num_valid) not in ((), shape[:-1]) or not shape:
        return losses
    row = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)
    num_valid = numpy.broadcast_to(numpy.asarray(num_valid)[..., None], shape)
    return numpy.where(row < num_valid, losses, np.nan)


def _check_entries(result: Any) -> None:
    """Raise unless each per-test field has a single entry, or one for each curve."""
    count: Any = result.num_valid
    if not (hasattr(count, "dtype") or isinstance(count, int)):
        raise TypeError(f"num_valid must be an integer, or one for each curve, got {shown(count)}.")
    leading = np.shape(result.losses)[:-1]
    for name in ("num_valid", "ended_by", "optimizer_factor"):
        shape = np.shape(getattr(result, name))
        is_left_out = name in result._field_defaults and not math.prod(shape)
        if shape not in ((), leading) and not is_left_out:
            raise ValueError(
                f"{name} must have one entry for each curve, {leading}, got the shape {shape}. "
                "Stack results along a new axis: jax.tree.map(lambda *leaves: jnp.stack(leaves), "
                "*results)."
            )


def checked_curve(curve: Curve) -> Curve:
    """Check shapes, steps and factor; return the curve, in NumPy unless a column is a JAX array."""
    check_shapes(curve.learning_rates, curve.losses)
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


def check_shapes(learning_rates: Any, losses: Any) -> None:
    """Raise unless both columns have the same shape ``[..., n]``."""
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
