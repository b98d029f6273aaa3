"""States of optimizers as trees: each node with its path, each leaf with a buffer of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._documentation import see

Path = tuple[Any, ...]

RESTORE = "Restore it with its types: checkpointer.restore(path, optimizer.init(params)). " + see(
    "optimizers/#resume"
)


def own_buffers(tree: Any) -> Any:
    """Return the tree with every array copied, so that it can be donated and nothing else is.

    Inside ``jax.jit`` a copy costs nothing by itself, and keeps JAX from returning one of the
    inputs as an output. Shardings, weak types and typed keys stay as they are.
    """
    return jax.tree.map(_copy, tree)


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jnp.copy(leaf)
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if is_array(leaf) and hasattr(leaf, "replace"):  # an nnx.Variable, a leaf in older Flax
        return leaf.replace(jnp.array(leaf))
    return leaf


def is_array(node: Any) -> bool:
    """Whether a node is an array, or an nnx.Variable that holds one."""
    return hasattr(node, "dtype") and hasattr(node, "shape")


def children(node: Any) -> tuple[list[tuple[Any, Any]], Callable[[list[Any]], Any]]:
    """Return (key, child) of each child, and the function that builds the node of others.

    A leaf has no children, and neither has an ``nnx.Variable``.
    """
    if is_array(node):
        return [], lambda _: node
    found, treedef = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda child: child is not node
    )
    if any(not path for path, _ in found):
        return [], lambda _: node
    build = functools.partial(jax.tree.unflatten, treedef)
    return [(path[0], child) for path, child in found], build


def walk(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the node of everything in a tree, the outermost first."""
    yield path, node
    for key, child in children(node)[0]:
        yield from walk(child, (*path, key))


def rebuild(visit: Callable[[Path, Any], Any], node: Any, path: Path = ()) -> Any:
    """Return the tree with ``visit(path, node)`` in the place of each node, innermost first."""
    found, build = children(node)
    if not found:
        return visit(path, node)
    return visit(path, build([rebuild(visit, child, (*path, key)) for key, child in found]))


def key_name(key: Any) -> str:
    """Return an entry of a path as a word: a field's name, a dictionary's key, an index."""
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def is_trainer(node: Any) -> bool:
    """Whether a node is the state of a trainer, such as a Flax ``TrainState``, not of Optax."""
    return hasattr(node, "opt_state") and not isinstance(node, tuple)


def with_optimizer_state(trainer: Any, change: Callable[[Any], Any]) -> Any:
    """Return a trainer's state with that of its optimizer changed, if it is a pytree."""
    found, build = children(trainer)
    names = [key_name(key) for key, _ in found]
    if "opt_state" not in names:
        raise TypeError(
            f"A {type(trainer).__name__} cannot be rebuilt with another state, as it is no pytree "
            "here. Pass its opt_state and assign what you get: optimizer.opt_state = "
            f"optax_clr.set_hyperparams(optimizer.opt_state, ...). {see('optimizers/#flax')}"
        )
    return build(
        [
            change(child) if name == "opt_state" else child
            for name, (_, child) in zip(names, found, strict=True)
        ]
    )


def was_restored(node: Any, *fields: str) -> bool:
    """Whether a node is what a checkpoint gives for a named tuple with these fields: a dict."""
    return hasattr(node, "keys") and set(fields) <= set(node.keys())
