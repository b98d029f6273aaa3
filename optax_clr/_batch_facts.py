"""What shapes and traced functions reveal about the batches of a test."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arrays import is_key, is_opaque
from optax_clr._documentation import see
from optax_clr._jaxprs import equations, inputs_of
from optax_clr._tracing import is_traced


class BatchFacts(NamedTuple):
    """What the engine needs to know about the batches: the fields of ``StepFacts`` so named."""

    batch_size: int | None
    is_one_batch: bool = False
    repeats_last_batch: bool = False


def batch_facts_of(
    batch_fn: Callable[[Any], Any] | None, batch: Any, num_steps: int, is_inside: bool
) -> BatchFacts:
    """Return the facts of a batch, or of what ``batch_fn`` makes of ``batch``, a step number.

    ``is_inside`` is whether this is inside another program, where batches have no values.
    """
    if batch_fn is None:
        return BatchFacts(num_examples(batch))
    made = trace_batches(batch_fn, batch)
    # Scalars alone, such as the step number, may stand for data that the loss closes over.
    has_examples = any(part.ndim for part in made.out_avals)
    return BatchFacts(
        batch_size=num_examples(made.out_avals) if has_examples else None,
        is_one_batch=makes_one_batch(made),
        repeats_last_batch=not is_inside and repeats_last_batch(made, num_steps),
    )


def batch_of(batch_fn: Callable[[Any], Any], step: Any) -> Any:
    """Return the batch that a function makes of a traced step number."""
    try:
        return batch_fn(step)
    except Exception as error:
        error.add_note(
            "batches is a function, and is traced with the step, i32[]: index JAX arrays in it, "
            "jnp.asarray(data), not NumPy's, and cut them by jax.lax.dynamic_slice_in_dim(data, "
            "start, size), not data[start:stop]. What cannot be traced comes from a generator. "
            + see("range-test/#batches")
        )
        raise


def trace_batches(batch_fn: Callable[[Any], Any], step: Any) -> Any:
    """Return the closed jaxpr of the arrays in the batch that a function makes of a step."""

    def arrays(step: Any) -> list[Any]:
        leaves = jax.tree.leaves(batch_of(batch_fn, step))
        # JAX does not look into a plain dataclass, but it works as a batch all the same.
        leaves = jax.tree.leaves(
            [getattr(leaf, "__dict__", leaf) if is_opaque(leaf) else leaf for leaf in leaves]
        )
        return [leaf for leaf in leaves if hasattr(leaf, "dtype") or isinstance(leaf, Number)]

    return jax.make_jaxpr(arrays)(step)


ONE_BATCH = (
    "every step trained on the same batch: batches is a function that is traced once, and what it "
    "returns does not depend on the step. Take rows by the step, rows[step % len(rows)], or draw "
    "them, jax.random.fold_in(key, step); what NumPy draws comes from a generator of batches. If "
    "one batch is meant, let the loss close over it, and pass lambda step: step. "
    + see("range-test/#batches")
)


def makes_one_batch(closed: Any) -> bool:
    """Whether a function from steps to batches, as a closed jaxpr, ignores the step.

    A function with an effect, as of ``io_callback``, may return another batch each time, and so
    may one whose batch has no arrays to look at.
    """
    jaxpr = closed.jaxpr
    return bool(jaxpr.outvars) and not (
        jaxpr.effects or any(inputs_of(jaxpr, [True] * len(jaxpr.outvars)))
    )


LAST_BATCH_AGAIN = (
    "the last steps trained on the same batch: batches is a function, and indexes beyond the end "
    "of an array, where JAX takes its last entry. Wrap around, rows[step % len(rows)], or set "
    f"num_steps to the number of batches. {see('range-test/#batches')}"
)


def repeats_last_batch(closed: Any, num_steps: int) -> bool:
    """Whether a function makes the same batch in the last two steps, but not in the first two.

    A function that returns every batch more than once does so on purpose. False if unknown: host
    callbacks are not run to find out.
    """
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

    names = {each.primitive.name for each in equations(closed.jaxpr)}
    calls_host = any("callback" in name for name in names)
    if closed.jaxpr.effects or calls_host or any(map(is_traced, closed.consts)):
        return False
    if not names & {"gather", "dynamic_slice"}:  # no array is indexed by the step
        return False

    def are_same(data: list[Any], steps: jax.Array) -> jax.Array:
        make = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, data))  # data as arguments, not as constants
        first, second, before, last = map(make, (steps[0], steps[1], steps[2], steps[3]))

        def is_same(parts: list[jax.Array], others: list[jax.Array]) -> jax.Array:
            return jnp.stack(list(map(jnp.array_equal, parts, others))).all()

        return is_same(before, last) & ~is_same(first, second)

    steps = np.array([0, 1, num_steps - 2, num_steps - 1], np.int32)
    return bool(jax.device_get(jax.jit(are_same)(closed.consts, steps)))


ONE_EXAMPLE = (
    "each step trained on a single example: an entry of the batches has no axis of examples. Where "
    "the batches are a whole data set, cut it into batches first, [steps, examples, ...]; where an "
    "entry is many numbers that are examples, give each an axis, [steps, examples, 1]. "
    + see("range-test/#batches")
)


def num_examples(batch: Any) -> int | None:
    """Return the length of the leading axis that all arrays of a batch share; 0 for one example.

    A single example has a scalar, its label, or is two vectors of different lengths, such as
    features and a one-hot label.
    """
    arrays = [leaf for leaf in jax.tree.leaves(batch) if not is_key(leaf)]
    others = [leaf for leaf in arrays if leaf.shape]
    lengths = {leaf.shape[0] for leaf in others}
    has_label = any(_may_be_label(leaf, others) for leaf in arrays if not leaf.shape)
    if has_label or _is_row_and_one_hot(arrays):
        return 0
    return lengths.pop() if len(lengths) == 1 else None


def _is_row_and_one_hot(arrays: list[Any]) -> bool:
    if [len(leaf.shape) for leaf in arrays] != [1, 1]:
        return False
    is_words = all(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in arrays)
    is_longer = min(leaf.shape[0] for leaf in arrays) > 1  # one boundary point is not a label
    return arrays[0].shape != arrays[1].shape and is_longer and not is_words


def _may_be_label(scalar: Any, others: list[Any]) -> bool:
    """Whether a scalar of a batch may be the label of one example, not a weight or a seed."""
    num_axes = [len(leaf.shape) for leaf in others]
    if not others:  # an integer may stand for data that the loss closes over
        return jnp.issubdtype(scalar.dtype, jnp.floating)
    if max(num_axes) == 1:
        return True
    if len(others) > 1 or num_axes[0] > 3:  # beside inputs and labels, or beside many images
        return False
    # A float is not the label of an image, nor an integer the label of sequences of tokens.
    is_image = jnp.issubdtype(others[0].dtype, jnp.inexact) or others[0].dtype == np.uint8
    return is_image and not jnp.issubdtype(scalar.dtype, jnp.floating)
