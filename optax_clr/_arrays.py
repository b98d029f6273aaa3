"""Arrays of JAX, NumPy, and other libraries such as PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import numpy_array
from optax_clr._tracing import explicit_sharding, is_traced

Array = Any  # a JAX or NumPy array
ShapeDtype: Any = jax.ShapeDtypeStruct
OPEN_IT = (
    "JAX does not look into it: make it a dict or a tuple, as by dict(batch), or register its "
    "class, as with jax.tree_util.register_dataclass."
)


def is_array(value: Any) -> bool:
    """Whether ``value`` is an array of NumPy, JAX or another library such as PyTorch."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return True
    is_class = isinstance(value, type)  # the class np.float32 has both
    return hasattr(value, "__array__") and hasattr(value, "shape") and not is_class


def is_opaque(leaf: Any) -> bool:
    """Whether a leaf of a pytree is a container unknown to JAX, or not data at all."""
    return not (is_array(leaf) or isinstance(leaf, (Number, np.generic, str, bytes)))


def as_array(name: str, value: Any) -> jax.Array | np.ndarray:
    """Return a JAX array as it is, and that of another library as a NumPy array."""
    return value if isinstance(value, jax.Array) else numpy_array(name, value)


def check_not_donated(name: str, tree: Any) -> None:
    """Raise if an array was donated to a compiled program, or deleted."""
    if not any(map(_is_deleted, jax.tree.leaves(tree))):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if _is_deleted(leaf):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must still be there, but was donated to a "
                "compiled program (donate_argnums), or deleted. Pass what that program returned, "
                "or test before it runs."
            )


def _is_deleted(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not is_traced(leaf) and leaf.is_deleted()


def numpy_of(tree: Any) -> Any:
    """Return jax.numpy if there is a JAX array; otherwise NumPy, which compiles nothing."""
    return jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)) else np


def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``jax.vmap`` of a function, which maps NumPy arrays one entry after the other."""

    def mapped(*columns: Any) -> Any:
        if numpy_of(columns) is jnp:
            return jax.vmap(function)(*columns)
        leaves, structure = jax.tree.flatten(columns)
        found = [
            function(*jax.tree.unflatten(structure, lane)) for lane in zip(*leaves, strict=True)
        ]
        return jax.tree.map(lambda *entries: np.stack(entries), *found)

    return mapped


def is_numeric(dtype: Any) -> bool:
    """Whether a device can hold arrays of this dtype."""
    # By kind, since to NumPy bfloat16 and the dtypes of JAX's keys are not numeric. A dtype of
    # another library passes: it is checked once its array has been converted.
    return not isinstance(dtype, np.dtype) or (dtype.kind not in "OSUMm" and not dtype.names)


def is_key(leaf: Any) -> bool:
    """Whether an array is a PRNG key or several, typed or not."""
    is_typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    # Untyped keys of threefry have two numbers, those of rbg four.
    return is_typed or (leaf.dtype == np.uint32 and leaf.shape[-1:] in ((2,), (4,)))


def has_axes_in_its_type(leaf: Any) -> bool:
    """Whether mesh axes may be part of an array's type, such as those of shard_map."""
    return is_traced(leaf) or (isinstance(leaf, jax.Array) and explicit_sharding(leaf) is not None)


def varying_axes(leaf: Any) -> frozenset[str]:
    """Return the shard_map axes along which an array varies; none if JAX does not tell."""
    kind = getattr(leaf, "aval", leaf)
    in_newer_jax = getattr(kind, "manual_axis_type", None)
    return frozenset(getattr(in_newer_jax, "varying", getattr(kind, "vma", None) or ()))


def on_device(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return shape and dtype as JAX has them: without x64, 64-bit types become 32-bit ones."""
    is_key = jnp.issubdtype(dtype, jax.dtypes.extended)
    return ShapeDtype(shape, dtype if is_key else jax.dtypes.canonicalize_dtype(dtype))
