"""The batches of a range test: how many there are, and whether they are enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from optax_clr._arguments import whole_number
from optax_clr._training_step import PyTree, describe

_DEFAULT_NUM_STEPS = 300


def _batch_length(batches: PyTree) -> int:
    """Return the length of the leading axis that all the leaves share."""
    form = "a pytree of arrays with a leading axis, one entry a step, or a function step -> batch"
    if isinstance(batches, (list, Iterator)):
        raise TypeError(
            f"batches must be {form}; got {describe(batches)}. Stack a list of batches with "
            "jax.tree.map(lambda *parts: jnp.stack(parts), *batches); put the parts of one batch "
            "in a tuple."
        )
    lengths: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batches):
        name = f"batches{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            raise TypeError(f"batches must be {form}; {name} is {describe(leaf)}.")
        if leaf.ndim == 0:
            raise ValueError(f"batches must be {form}; {name} is a scalar.")
        lengths[name] = leaf.shape[0]
    if not lengths:
        raise ValueError(f"batches must be {form}; got the empty pytree {batches!r}.")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"batches must have leading axes of one length, got {lengths}.")
    return next(iter(lengths.values()))


def check_batches(batches: PyTree, num_needed: int) -> None:
    length = _batch_length(batches)
    if length < num_needed:
        raise ValueError(
            f"batches must have a leading axis of at least {num_needed}, one entry for each "
            f"training step; got {length}."
        )


def check_num_steps(num_steps: int | None, batches: Any, steps_per_value: int) -> int:
    if num_steps is None:
        available = _DEFAULT_NUM_STEPS if callable(batches) else _batch_length(batches)
        num_steps = available - available % steps_per_value
    num_steps = whole_number("num_steps", num_steps, minimum=0)
    if num_steps < 2 * steps_per_value or num_steps % steps_per_value:
        raise ValueError(
            f"num_steps={num_steps} must be a multiple of steps_per_value={steps_per_value}, at "
            "least twice that: two rates or more."
        )
    return num_steps
