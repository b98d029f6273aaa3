"""Stacking batches one by one: by NumPy on the host, or by JAX where they are."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

_ALIGNMENT = 64  # in bytes, of XLA's CPU buffers


def is_stacked_by_jax(leaf: Any) -> bool:
    """Whether a leaf should stay on its devices, sharded as it is; on the host NumPy is faster."""
    if not isinstance(leaf, jax.Array):
        return False
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    first = jax.local_devices()[0]
    return is_key or first.platform != "cpu" or leaf.devices() != {first}


class Stack:
    """Room for batches, which are copied into it one by one."""

    def __init__(self, like: list[Any], by_jax: list[bool], num_slots: int) -> None:
        """Make room for as many batches with leaves ``like`` these, some of them stacked by JAX."""
        self._by_jax = by_jax
        self._on_host = [_HostColumn(leaf, num_slots) for leaf in self._split(like)[0]]
        self._on_device = _DeviceColumns(num_slots)

    def put(self, leaves: list[Any], slot: int) -> None:
        host_leaves, device_leaves = self._split(leaves)
        for column, leaf in zip(self._on_host, host_leaves, strict=True):
            column.put(leaf, slot)
        if device_leaves:
            self._on_device.put(device_leaves, slot)

    def filled(self, length: int) -> list[Any]:
        """Return the leaves, with the last of so many batches in all slots after it."""
        on_host = jax.device_put([column.filled(length) for column in self._on_host])
        parts = iter(on_host), iter(self._on_device.columns)
        return [next(parts[by_jax]) for by_jax in self._by_jax]

    def _split(self, leaves: list[Any]) -> tuple[list[Any], list[Any]]:
        """Return the leaves that NumPy stacks, and those that JAX stacks."""
        if not any(self._by_jax):
            return leaves, []
        parts: tuple[list[Any], list[Any]] = ([], [])
        for leaf, by_jax in zip(leaves, self._by_jax, strict=True):
            parts[by_jax].append(leaf)
        return parts


class _HostColumn:
    """A NumPy array that batches are copied into: a loader may reuse its own memory."""

    def __init__(self, like: Any, num_slots: int) -> None:
        self._array = aligned((num_slots, *like.shape), like.dtype)

    def put(self, leaf: Any, slot: int) -> None:
        self._array[slot] = leaf

    def filled(self, length: int) -> np.ndarray:
        """Return the array, its free slots filled with the last batch, which is not recorded."""
        self._array[length:] = self._array[length - 1]
        return self._array


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an uninitialized array, in JAX's dtype, that the CPU backend takes without a copy."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    room = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    offset = -room.ctypes.data % _ALIGNMENT
    array: np.ndarray = room[offset : offset + num_bytes].view(dtype).reshape(shape)
    return array


class _DeviceColumns:
    """JAX arrays that batches are copied into, on their devices."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self.columns: list[jax.Array] = []

    def put(self, leaves: list[jax.Array], slot: int) -> None:
        if slot:
            self.columns = _put(self.columns, leaves, np.int32(slot))
        else:
            self.columns = _filled(leaves, num_slots=self._num_slots)


@functools.partial(jax.jit, static_argnames="num_slots")
def _filled(leaves: list[jax.Array], *, num_slots: int) -> list[jax.Array]:
    """Return columns with the first batch in each slot."""
    return [jnp.broadcast_to(leaf[None], (num_slots, *leaf.shape)) for leaf in leaves]


@functools.partial(jax.jit, donate_argnums=0)
def _put(columns: list[jax.Array], leaves: list[jax.Array], slot: ArrayLike) -> list[jax.Array]:
    return [
        lax.dynamic_update_index_in_dim(column, leaf, slot, 0)
        for column, leaf in zip(columns, leaves, strict=True)
    ]
