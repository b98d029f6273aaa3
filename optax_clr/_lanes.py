"""A loop whose lanes, under ``jax.vmap``, end one by one.

Without these two functions ``jax.vmap`` of a ``while_loop`` gives each lane a counter of its own,
and with it a gathered copy of every batch and a select over every row recorded so far.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from optax_clr._training_step import PyTree


@custom_vmap
def any_lane(alive: jax.Array) -> jax.Array:
    """Return ``alive``; under ``jax.vmap`` one answer for all the lanes, whether any is."""
    return alive


@any_lane.def_vmap
def _any_of_many(
    axis_size: int, in_batched: list[bool], alive: jax.Array
) -> tuple[jax.Array, bool]:
    del axis_size, in_batched
    return any_lane(alive.any(0)), False  # by any_lane again, for a vmap around this one


@custom_vmap
def advance(alive: jax.Array, old: PyTree, new: PyTree) -> PyTree:
    """Return ``new``; under ``jax.vmap`` lanes that are not alive keep ``old``."""
    del alive, old  # the loop has ended where a single lane has
    return new


@advance.def_vmap
def _advance_many(
    axis_size: int, in_batched: list[PyTree], alive: jax.Array, old: PyTree, new: PyTree
) -> tuple[PyTree, PyTree]:
    def with_lanes(batched: bool, leaf: jax.Array) -> jax.Array:
        return leaf if batched else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))

    alive, old, new = jax.tree.map(with_lanes, tuple(in_batched), (alive, old, new))
    kept = jax.vmap(lambda alive, *states: jax.tree.map(_choose(alive), *states))(alive, new, old)
    return kept, jax.tree.map(lambda _: True, kept)


def _choose(alive: jax.Array) -> Any:
    return lambda new, old: jnp.where(alive, new, old)
