"""What a training step returns, checked while it is traced: a loss, metrics, and the next state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import numpy_array
from optax_clr._arrays import is_numeric
from optax_clr._documentation import see
from optax_clr._words import describe, shape_in_words, shown

PyTree = Any
_EXTENDED: Any = jax.dtypes.extended  # the dtypes of typed PRNG keys


def recorded_loss(loss: jax.Array) -> jax.Array:
    """Return a loss in float32, or unchanged if it is float64."""
    return loss if loss.dtype == jnp.float64 else loss.astype(jnp.float32)


def is_swapped(state: PyTree, result: tuple[Any, Any]) -> bool:
    """Whether a step has returned (loss, state) instead of (state, loss)."""
    first, second = result
    forms = [
        (jax.tree.structure(tree), [np.shape(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (state, first, second)
    ]
    is_scalar = jax.tree_util.all_leaves([first]) and np.shape(first) == ()
    return is_scalar and forms[2] == forms[0] != forms[1]


def split_output(output: Any, has_aux: bool, name: str) -> tuple[jax.Array, PyTree]:
    """Return the loss and the metrics, checked while the step is traced."""
    metrics: PyTree = ()
    if has_aux:
        if not isinstance(output, tuple) or len(output) != 2:
            raise TypeError(
                f"{name} must return the pair (loss, metrics) where has_aux=True, got "
                f"{describe(output)}."
            )
        output, metrics = output
    if not isinstance(output, (jax.Array, np.ndarray, np.generic, float)):
        is_pair = isinstance(output, tuple) and not has_aux
        hint = "; for metrics beside the loss pass has_aux=True" if is_pair else ""
        raise TypeError(f"{name} must return a scalar loss, got {describe(output)}{hint}.")
    loss = jnp.asarray(output)
    if loss.shape != ():
        raise ValueError(
            f"{name} must return a scalar loss, got one of shape {loss.shape}. Take its mean."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"{name} must return a loss that is a float, got dtype {loss.dtype}.")
    return loss, metrics


def recorded_metrics(metrics: PyTree) -> PyTree:
    """Return metrics as floats, so that rows after divergence can be NaN."""

    def as_float(path: Any, metric: Any) -> jax.Array:
        name = f"metrics{jax.tree_util.keystr(path)}"
        # By NumPy, since JAX would cut integers of 64 bits.
        is_jax = isinstance(metric, jax.Array) or hasattr(metric, "__jax_array__")
        array: Any = jnp.asarray(metric) if is_jax else numpy_array(name, metric)
        if jnp.issubdtype(array.dtype, _EXTENDED) or not is_numeric(array.dtype):
            raise TypeError(
                f"{name} must be numbers, which are recorded as floats, got {describe(metric)}. "
                "Leave it out, or return jax.random.key_data of a key."
            )
        # Narrower floats are converted too: numpy.savez does not preserve bfloat16.
        is_wide = jnp.issubdtype(array.dtype, jnp.inexact) and array.dtype.itemsize >= 4
        return jnp.asarray(array if is_wide else array.astype(np.float32))

    return jax.tree_util.tree_map_with_path(as_float, metrics)


def check_state(old: PyTree, new: PyTree, giver: str, remedy: str) -> PyTree:
    """Return ``new``, which ``giver`` has returned, if it can replace ``old``.

    ``remedy`` is the advice for a leaf whose dtype differs.
    """
    structures: list[Any] = [jax.tree.structure(old), jax.tree.structure(new)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"{giver} must return a state of the structure it was given; "
            f"{_structural_difference(old, new)}. {see('training-steps/')}"
        )

    def check(path: Any, before: jax.Array, result: Any) -> jax.Array:
        after = jnp.asarray(result)
        if before.shape != after.shape or before.dtype != after.dtype:
            cast = f" {remedy}" if before.shape == after.shape else ""
            raise ValueError(
                f"{giver} must keep shape and dtype of state{jax.tree_util.keystr(path)}, "
                f"{shape_in_words(before)}; got {shape_in_words(after)}.{cast}"
                f" {see('training-steps/')}"
            )
        return after

    return jax.tree_util.tree_map_with_path(check, old, new)


def _structural_difference(old: PyTree, new: PyTree) -> str:
    """Describe the first leaf that only one of two states has."""
    before, after = (
        [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        for state in (old, new)
    )
    for verb, paths, others in (("lost", before, after), ("gained", after, before)):
        for path in paths:
            if path not in others:
                return f"it has {verb} state{path}"
    return f"its leaves have the same names, but {_other_node(old, new)}"


def _other_node(old: PyTree, new: PyTree) -> str:
    """Describe the first container whose type or static part differs."""
    waiting: list[Any] = [(jax.tree.structure(old), jax.tree.structure(new))]
    while waiting:
        before, after = waiting.pop(0)
        one, other = before.node_data(), after.node_data()
        if one == other:
            waiting += zip(before.children(), after.children(), strict=False)
        elif one is None or other is None or one[0] is not other[0]:
            kinds = [data[0].__name__ if data else "a leaf" for data in (one, other)]
            return f"{kinds[0]} became {kinds[1]}"
        else:
            kind = one[0].__name__
            return (
                f"a {kind} has another static part, such as the tx of a TrainState: make it once, "
                "outside of the step; a rate is set by set_hyperparams(state, learning_rate=value) "
                f"({shown(one[1])} became {shown(other[1])})"
            )
    return "a container is another"
