"""How messages show values."""

from __future__ import annotations

from typing import Any

import jax

from optax_clr._tracing import any_traced

_MOST_CHARACTERS = 200


def shown(value: Any) -> str:
    """Return ``value`` as a message shows it: on one line, and only the beginning if it is long.

    A traced value is only called that, since JAX's own text for a tracer tells the reader nothing.
    """
    if any_traced(value):
        return "a traced value"
    try:
        whole = " ".join(repr(value).split())
    except Exception:  # the error that this text is a part of says more
        return f"an object of {type(value).__name__}"
    return whole if len(whole) <= _MOST_CHARACTERS else f"{whole[:_MOST_CHARACTERS]}..."


def describe(value: Any) -> str:
    """Describe ``value`` for a message: its type, and its shape if it has one."""
    if isinstance(value, type):  # which may have a shape, as that of NumPy's numbers
        return f"the class {value.__name__}"
    if isinstance(value, jax.Array):  # or a tracer, whose type tells a caller nothing
        return f"an array {shape_in_words(value)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"


def shape_in_words(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else describe(leaf)


_MOST_NAMED = 20  # arrays in a message


def shapes_in_words(tree: Any) -> str:
    """List the arrays of a pytree with their paths, for a message."""
    # Not with jax.tree.map: the tree's classes may reject strings in place of arrays.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = leaves[:_MOST_NAMED]
    words = [f"{jax.tree_util.keystr(path)} {shape_in_words(leaf)}" for path, leaf in named]
    if len(leaves) > len(named):
        words.append(f"and {len(leaves) - len(named)} more")
    return ", ".join(words).strip() or "of no arrays"
