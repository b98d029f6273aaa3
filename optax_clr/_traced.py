"""What the traced program of a training step shows of itself, before anything is compiled."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from numbers import Number
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_clr._arguments import is_traced
from optax_clr._arrays import is_opaque, varying_axes
from optax_clr._documentation import see
from optax_clr._jaxprs import equations, inputs_of, num_operations
from optax_clr._other_rates import trains_at_other_rates
from optax_clr._states import key_name


class StepFacts(NamedTuple):
    """What the engine has to know of a training step."""

    has_convolution: bool
    reads_state: bool  # whether the loss depends on what is trained
    reads_value: bool  # whether the loss, of this step or a later one, depends on the value
    keeps_first_value: bool  # whether it depends on the value that the state was made with
    closes_over_tracers: bool
    waits_along: frozenset[str]  # axes of shard_map: devices need each other, and losses differ
    num_operations: int  # on single numbers, roughly
    steps_per_update: int  # that gradients are accumulated over; 1 without
    batch_size: int | None  # examples in a batch, where that can be told
    trains_at_other_rates: bool  # than the values, by a schedule or a scale of the optimizer
    is_one_batch: bool  # whether a function makes the batches, the same one in every step
    repeats_last_batch: bool  # or the same one in the last steps
    optimizer_factor: float  # of the rates that are read


def facts_of(
    closed: Any,
    start: Any,
    state: Any,
    batches: BatchFacts,
    optimizer_factor: float,
    *,
    takes_rate: bool,
) -> StepFacts:
    """Return the facts of ``(state, batch, value) -> (state, (loss, metrics))``, a closed jaxpr.

    ``start`` is that of ``(initial, value) -> state``.
    """
    jaxpr = closed.jaxpr
    num_leaves = len(jax.tree.leaves(state))
    matters, reads_value = _what_matters(jaxpr, num_leaves)
    return StepFacts(
        has_convolution=any(
            equation.primitive.name == "conv_general_dilated" for equation in equations(jaxpr)
        ),
        reads_state=any(inputs_of(jaxpr, _only_loss(jaxpr, num_leaves))[:num_leaves]),
        reads_value=reads_value,
        keeps_first_value=inputs_of(start.jaxpr, matters)[-1],
        closes_over_tracers=any(map(is_traced, closed.consts)),
        waits_along=_waits_along(jaxpr, num_leaves),
        num_operations=num_operations(jaxpr),
        steps_per_update=_steps_per_update(closed, state),
        **batches._asdict(),
        trains_at_other_rates=trains_at_other_rates(jaxpr, state, takes_rate),
        optimizer_factor=optimizer_factor,
    )


_COLLECTIVES = {
    *("psum", "psum2", "psum_invariant", "pmax", "pmin", "ppermute", "pgather", "reduce_scatter"),
    *("all_gather", "all_gather_invariant", "all_to_all"),
}


def _waits_along(jaxpr: Any, place_of_loss: int) -> frozenset[str]:
    """Return along which axes of shard_map losses differ, as far as JAX tells, and devices wait.

    Each would end the test by its own loss, and the others wait for it.
    """
    calls = [each.params for each in equations(jaxpr) if each.primitive.name in _COLLECTIVES]
    names = [call.get("axes", call.get("axis_name")) for call in calls]
    return varying_axes(jaxpr.outvars[place_of_loss]).intersection(jax.tree.leaves(names))


class BatchFacts(NamedTuple):
    """Those of them that are of its batches."""

    batch_size: int | None
    is_one_batch: bool = False
    repeats_last_batch: bool = False


def batch_facts_of(
    batch_fn: Callable[[Any], Any] | None, batch: Any, num_steps: int, is_inside: bool
) -> BatchFacts:
    """Return the facts of a batch, or of what a function makes of it, the number of a step.

    ``is_inside`` is whether that is inside another program, where no batch can be looked at.
    """
    if batch_fn is None:
        return BatchFacts(num_examples(batch))
    made = trace_batches(batch_fn, batch)
    # The number of the step may stand for data that the loss closes over.
    has_examples = any(part.ndim for part in made.out_avals)
    return BatchFacts(
        batch_size=num_examples(made.out_avals) if has_examples else None,
        is_one_batch=makes_one_batch(made),
        repeats_last_batch=not is_inside and repeats_last_batch(made, num_steps),
    )


def batch_of(batch_fn: Callable[[Any], Any], step: Any) -> Any:
    """Return what a function makes of the step, while it is traced."""
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
    """Return the closed jaxpr of the arrays in what a function makes of the step."""

    def arrays(step: Any) -> list[Any]:
        leaves = jax.tree.leaves(batch_of(batch_fn, step))
        # JAX does not look into a plain dataclass, which serves as a batch nonetheless.
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
    """Whether what a function from the step returns, a closed jaxpr, does not depend on the step.

    One with an effect, such as a call of the host, may return something else each time, and so may
    one of whose batch nothing can be seen.
    """
    jaxpr = closed.jaxpr
    return bool(jaxpr.outvars) and not (
        jaxpr.effects or any(inputs_of(jaxpr, [True] * len(jaxpr.outvars)))
    )


LAST_BATCH_AGAIN = (
    "the last steps trained on the same batch: batches is a function, and indexes beyond the end "
    "of an array, where JAX takes its last entry. Begin again there, rows[step % len(rows)], or "
    f"pass as many num_steps as there are batches. {see('range-test/#batches')}"
)


def repeats_last_batch(closed: Any, num_steps: int) -> bool:
    """Whether what a function makes of the last two steps is the same, but not of the first two.

    Where it gives every batch more than once that is meant. False where it is not known: the host
    is not called for it.
    """
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

    calls_host = any("callback" in each.primitive.name for each in equations(closed.jaxpr))
    if closed.jaxpr.effects or calls_host or any(map(is_traced, closed.consts)):
        return False

    def are_same(data: list[Any], steps: jax.Array) -> jax.Array:
        make = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, data))  # a data set is no constant
        first, second, before, last = map(make, (steps[0], steps[1], steps[2], steps[3]))

        def is_same(parts: list[jax.Array], others: list[jax.Array]) -> jax.Array:
            return jnp.stack(list(map(jnp.array_equal, parts, others))).all()

        return is_same(before, last) & ~is_same(first, second)

    steps = np.array([0, 1, num_steps - 2, num_steps - 1], np.int32)
    return bool(jax.device_get(jax.jit(are_same)(closed.consts, steps)))


ONE_EXAMPLE = (
    "each step trained on a single example: an entry of the batches has no axis of examples. Where "
    "the batches are a whole data set, cut it into batches first, [steps, examples, ...]. "
    + see("range-test/#batches")
)


def num_examples(batch: Any) -> int | None:
    """Return the length of the leading axis that all arrays of a batch share; 0 for one example.

    That has a scalar, its label, or is two rows of different lengths, as of features and a one-hot
    label.
    """
    arrays = [leaf for leaf in jax.tree.leaves(batch) if isinstance(leaf.dtype, np.dtype)]
    scalars = [leaf for leaf in arrays if leaf.shape == ()]  # without keys of random numbers
    others = [leaf for leaf in arrays if leaf.shape]
    lengths = {leaf.shape[0] for leaf in others}
    are_two_rows = [len(leaf.shape) for leaf in arrays] == [1, 1] and len(lengths) == 2
    if are_two_rows or any(_may_be_label(scalar, others) for scalar in scalars):
        return 0
    return lengths.pop() if len(lengths) == 1 else None


def _may_be_label(scalar: Any, others: list[Any]) -> bool:
    """Whether a scalar of a batch is the label of one example, and not a weight or a seed."""
    num_axes = {len(leaf.shape) for leaf in others}
    if len(num_axes) > 1 and len({leaf.shape[0] for leaf in others}) == 1:
        return False  # beside inputs and their labels, which share an axis
    if num_axes <= {1}:
        return True
    # A float is no label of an image, nor is an integer of sequences of tokens, and their masks.
    are_tokens = not any(
        jnp.issubdtype(leaf.dtype, jnp.inexact) or leaf.dtype == np.uint8 for leaf in others
    )
    return not (jnp.issubdtype(scalar.dtype, jnp.floating) or are_tokens)


def _only_loss(jaxpr: Any, num_state_leaves: int) -> list[bool]:
    """Return which output is the loss, which comes after the state."""
    return [place == num_state_leaves for place in range(len(jaxpr.outvars))]


def _what_matters(jaxpr: Any, num_state_leaves: int) -> tuple[list[bool], bool]:
    """Return which leaves of the state reach a loss, now or later, and whether the value does."""
    wanted = _only_loss(jaxpr, num_state_leaves)
    matters = wanted[:num_state_leaves]
    while True:
        needed = inputs_of(jaxpr, [*matters, *wanted[num_state_leaves:]])
        if needed[:num_state_leaves] == matters:
            return matters, needed[-1]
        matters = [old or new for old, new in zip(matters, needed[:num_state_leaves], strict=True)]


def _is_place_in_period(path: tuple[str, ...], paths: list[tuple[str, ...]]) -> bool:
    """Whether a leaf counts the steps since an update: of MultiSteps, apply_every or SAM."""
    for name, neighbour in (("count", "grad_acc"), ("steps_since_sync", "cache")):
        if name in path:
            place = path.index(name)
            beside = (*path[:place], neighbour)
            return any(other[: place + 1] == beside for other in paths)
    return "mini_step" in path


_MOST_STEPS_PER_UPDATE = 1000


def _steps_per_update(closed: Any, state: Any) -> int:
    """Return after how many steps accumulated gradients make an update, by counting with them."""
    # Also of nnx.split, whose entries have the names of the fields.
    leaves = jax.tree_util.tree_leaves_with_path(state)
    paths = [tuple(map(key_name, path)) for path, _ in leaves]
    is_place = [_is_place_in_period(path, paths) for path in paths]
    is_counter = [
        place or "gradient_step" in path for place, path in zip(is_place, paths, strict=True)
    ]
    if not any(is_place):
        return 1
    # The part of the step that only counts, which is a few operations on integers.
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
    from jax.interpreters.partial_eval import dce_jaxpr

    num_others = len(closed.jaxpr.outvars) - len(paths)
    counting, is_needed = dce_jaxpr(closed.jaxpr, [*is_counter, *[False] * num_others])
    if any(needed and not counts for needed, counts in zip(is_needed, is_counter, strict=False)):
        return 1  # it also looks at gradients, as to whether to skip a step
    count = jaxpr_as_fun(ClosedJaxpr(counting, closed.consts))
    is_read = [needed for needed, counts in zip(is_needed, is_counter, strict=False) if counts]
    is_mini = list(itertools.compress(is_place, is_counter))
    with jax.ensure_compile_time_eval():
        # An ensemble has one for each member.
        counters: list[Any] = [
            np.zeros(leaf.shape, leaf.dtype)
            for (_, leaf), counts in zip(leaves, is_counter, strict=True)
            if counts
        ]
        for steps in range(1, _MOST_STEPS_PER_UPDATE + 1):
            counters = count(*itertools.compress(counters, is_read))
            if any(map(is_traced, counters)):  # a lane may have any number
                return 1
            if not any(np.any(counter) for counter in itertools.compress(counters, is_mini)):
                return steps
    return 1
