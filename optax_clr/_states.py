"""States of optimizers as trees: walking, rebuilding and copying them."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_clr._arrays import is_key
from optax_clr._documentation import see
from optax_clr._tracing import is_traced

Path = tuple[Any, ...]
Injected = optax.InjectStatefulHyperparamsState

RESTORE = "Restore it with its types: checkpointer.restore(path, optimizer.init(params)). " + see(
    "optimizers/#resume"
)


def check_state(state: Any) -> None:
    """Raise if a state is an optimizer, holds shapes instead of arrays, or has lost its types."""
    if isinstance(state, optax.GradientTransformation):
        raise TypeError(
            "state must be what the optimizer's init(params) returned, or its update after that, "
            "got the optimizer."
        )
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        raise TypeError(
            "state must hold arrays, got shapes, as jax.eval_shape returns them. To have the "
            "shapes of what comes of it, call this function inside jax.eval_shape."
        )
    if _is_of_plain_tuples(state):
        raise ValueError(
            "state must have its types, got tuples and lists in the place of Optax's named tuples, "
            f"as a checkpoint may give them back. {RESTORE}"
        )


def _is_of_plain_tuples(state: Any) -> bool:
    """Whether a state consists of nested plain tuples and lists, with a counter in an inner one."""
    if type(state) not in (tuple, list):
        return False
    if any(kind is not type(None) for kind, _ in nodes_of_others(jax.tree.structure(state))):
        return False
    inner = [part for part in state if type(part) in (tuple, list)]
    return any(_is_count(leaf) for part in inner for leaf in part) or _is_injected(state)


def nodes_of_others(structure: Any) -> Iterator[tuple[type, Any]]:
    """Yield type and static data of the pytree nodes that are not Python's own containers."""
    node = structure.node_data()
    if node is not None and node[0] not in (dict, list, tuple):
        yield node
    for child in structure.children():
        yield from nodes_of_others(child)


def _is_injected(entries: Any) -> bool:
    """Whether entries are the fields of a state with injected hyperparameters."""
    if len(entries) != len(Injected._fields):
        return False
    count, values, driven, _ = entries
    # Scalars, and not averages of gradients, which another optimizer's state may have there.
    are_scalars = isinstance(values, dict) and not any(map(np.ndim, jax.tree.leaves(values)))
    return _is_count(count) and are_scalars and isinstance(driven, dict)


def _is_count(leaf: Any) -> bool:
    return is_counter(leaf) and np.shape(leaf) == ()


def is_counter(leaf: Any) -> bool:
    """Whether a leaf is an integer, or a batch of them from vmap, and not an old-style key."""
    if not holds_array(leaf):
        return isinstance(leaf, int) and not isinstance(leaf, bool)
    return jnp.issubdtype(leaf.dtype, jnp.integer) and not is_key(leaf)


def own_buffers(tree: Any) -> Any:
    """Return the tree with every array copied, so that donating it donates nothing else.

    Inside ``jax.jit`` a copy is free, and keeps JAX from returning an input as an output.
    Shardings, weak types and typed keys are kept.
    """
    return jax.tree.map(_copy, tree)


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jnp.copy(leaf)
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if is_variable(leaf):  # a leaf in older Flax
        return leaf.replace(jnp.array(leaf))
    return leaf


def is_variable(node: Any) -> bool:
    """Whether a node is an nnx.Variable that holds an array."""
    return hasattr(node, "replace") and holds_array(node)


def holds_array(node: Any) -> bool:
    """Whether a node is an array, or an nnx.Variable that holds one."""
    return hasattr(node, "dtype") and hasattr(node, "shape")


def children(node: Any) -> tuple[list[tuple[Any, Any]], Callable[[list[Any]], Any]]:
    """Return the (key, child) pairs of a node, and a function that rebuilds it from new children.

    Leaves and ``nnx.Variable`` have no children.
    """
    if holds_array(node):
        return [], lambda _: node
    found, treedef = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda child: child is not node
    )
    if any(not path for path, _ in found):
        return [], lambda _: node
    build = functools.partial(jax.tree.unflatten, treedef)
    return [(path[0], child) for path, child in found], build


def walk(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every node in a tree with its path, outermost first."""
    yield path, node
    for key, child in children(node)[0]:
        yield from walk(child, (*path, key))


def injected_in(state: Any, *, restored: bool = False) -> Iterator[tuple[Path, Any]]:
    """Yield every injected state with its path; with ``restored``, also one restored as a dict."""
    for path, node in walk(state):
        is_dict = restored and was_restored(node, "count", "hyperparams", "inner_state")
        if is_dict or isinstance(node, Injected):
            yield path, node


def rebuild(visit: Callable[[Path, Any], Any], node: Any, path: Path = ()) -> Any:
    """Return the tree with each node replaced by ``visit(path, node)``, innermost first."""
    found, build = children(node)
    if not found:
        return visit(path, node)
    return visit(path, build([rebuild(visit, child, (*path, key)) for key, child in found]))


def is_of_optax(kind: type | types.FunctionType) -> bool:
    """Whether a type or a function is one of Optax's, or of ours."""
    module = str(kind.__module__)  # None if exec made the function without a module name
    return module.partition(".")[0] in ("optax", "optax_clr")


def key_name(key: Any) -> str:
    """Return an entry of a path as text: a field's name, a dictionary's key, or an index."""
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def is_trainer(node: Any) -> bool:
    """Whether a node is a trainer's state, such as a Flax ``TrainState``, rather than Optax's."""
    return hasattr(node, "opt_state") and not isinstance(node, tuple)


def check_rebuildable(trainer: Any) -> None:
    """Raise unless a trainer's state is a pytree, which can be rebuilt with another state."""
    if "opt_state" not in [key_name(key) for key, _ in children(trainer)[0]]:
        raise TypeError(
            f"A {type(trainer).__name__} cannot be rebuilt with another state, because it is not a "
            "pytree in this version of Flax. Pass its opt_state, and assign the result: "
            "optimizer.opt_state = "
            f"optax_clr.set_hyperparams(optimizer.opt_state, ...). {see('optimizers/#flax')}"
        )


def with_optimizer_state(trainer: Any, change: Callable[[Any], Any]) -> Any:
    """Return a trainer's state with its optimizer state changed."""
    check_rebuildable(trainer)
    found, build = children(trainer)
    return build([change(child) if key_name(key) == "opt_state" else child for key, child in found])


def in_place_of(old: Any, new: jax.Array) -> Any:
    """Return a new array in place of an old one: on its devices, and in its nnx.Variable if any."""
    array = jnp.asarray(old)
    if not is_traced(array) and not is_traced(new) and array.committed:
        new = jax.device_put(new, array.sharding)
    return old.replace(new) if is_variable(old) else new


def was_restored(node: Any, *fields: str) -> bool:
    """Whether a node is a dict that a checkpoint restored for a named tuple with these fields."""
    return hasattr(node, "keys") and set(fields) <= set(node.keys())
