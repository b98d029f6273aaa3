"""Whether an optimizer trains at the rates that it is given, or has a schedule of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_clr._documentation import see
from optax_clr._jaxprs import sources
from optax_clr._states import Injected, Path, children, is_of_optax, key_name, walk

OTHER_RATE = (
    "the optimizer has a schedule of its own, or a scale such as that of a plateau or a line "
    "search: the result has the rates that it was given, and not those that it trained with. Leave "
    "that out of the test, lambda rate: optax.adam(rate), and give a schedule the peak that is "
    f"read, result.peak_for(schedule, num_steps). {see('range-test/#the-optimizer')}"
)
_SCALING = (
    optax.ScaleByScheduleState,
    optax.ScaleByBacktrackingLinesearchState,
    optax.ScaleByZoomLinesearchState,
    optax.contrib.ReduceLROnPlateauState,
)
# What something is computed from.
_VALUE, _COUNT, _SCALE, _OTHER = (
    frozenset([kind]) for kind in ("value", "count", "scale", "other")
)


def trains_at_other_rates(jaxpr: Any, state: Any, takes_rate: bool) -> bool:
    """Whether a schedule, or a scale that the optimizer finds, makes other rates of the value.

    Injected hyperparameters may be scheduled beside the value, such as a momentum, which meets it
    in the update: there something must be computed from the value and a count alone. What scales
    updates must not reach a leaf that the value reaches, as it would not in another group, unless
    it is of another optimizer, as that of a discriminator. The value of a step of the caller's is a
    rate if the state has it as one.

    Args:
      jaxpr: of ``(state, batch, value) -> (state, (loss, metrics))``.
      state: that it is given.
      takes_rate: whether the value is known to be a rate, and the state to be of one optimizer.
    """
    nodes = dict(walk(state))
    injected = [path for path, node in nodes.items() if isinstance(node, Injected)]
    scales = [path for path, node in nodes.items() if isinstance(node, _SCALING)]
    if not (injected or scales):
        return False
    leaves = jax.tree_util.tree_leaves_with_path(state)
    counts = [path for path, leaf in leaves if _counts(path, leaf, injected)]
    if not takes_rate:
        rates = [path for path in _reached_by_value(jaxpr, leaves) if _is_rate(path)]
        if not rates:
            return False
        scales = [
            path for path in scales if any(_share_optimizer(path, rate, nodes) for rate in rates)
        ]
    of_new_state, on_the_way = _sources(jaxpr, leaves, counts, scales)
    # A line search that begins anew at each step has no scale of before, but is given the value.
    are_scaled = any(
        kinds >= _VALUE and (_is_in(path, scales) or kinds >= _SCALE)
        for (path, _), kinds in zip(leaves, of_new_state, strict=True)
    )
    return are_scaled or _VALUE | _COUNT in on_the_way


def _sources(
    jaxpr: Any, leaves: list[Any], counts: list[Path], scales: list[Path]
) -> tuple[list[frozenset[str]], set[frozenset[str]]]:
    """Return from what the leaves of the new state are computed, and whatever is on the way."""
    of_state = [
        _SCALE if _is_in(path, scales) else _COUNT if path in counts else _OTHER
        for path, _ in leaves
    ]
    of_batch = [_OTHER] * (len(jaxpr.invars) - len(leaves) - 1)
    of_outputs, on_the_way = sources(jaxpr, [*of_state, *of_batch, _VALUE])
    return of_outputs[: len(leaves)], on_the_way


def _reached_by_value(jaxpr: Any, leaves: list[Any]) -> list[Path]:
    of_new_state, _ = _sources(jaxpr, leaves, [], [])
    found = zip(leaves, of_new_state, strict=True)
    return [path for (path, _), kinds in found if kinds >= _VALUE]


def _is_rate(path: Path) -> bool:
    return bool(path) and key_name(path[-1]) == "learning_rate"


def _is_in(path: Path, nodes: Iterable[Path]) -> bool:
    return any(path[: len(node)] == node for node in nodes)


def _counts(path: Path, leaf: Any, injected: list[Path]) -> bool:
    """Whether a leaf is the count of a schedule, and not of what it is injected into."""
    if leaf.shape != () or not jnp.issubdtype(leaf.dtype, jnp.integer):
        return False
    around = [node for node in injected if path[: len(node)] == node]
    return bool(around) and key_name(path[len(max(around, key=len))]) != "inner_state"


def _share_optimizer(path: Path, other: Path, nodes: dict[Path, Any]) -> bool:
    """Whether the smallest node that two paths are in is the state of an optimizer."""
    shared = itertools.takewhile(lambda keys: keys[0] == keys[1], zip(path, other, strict=False))
    return _is_of_optimizer(nodes[tuple(key for key, _ in shared)])


def _is_of_optimizer(node: Any) -> bool:
    """Whether a node is a state of Optax, or a chain of states, by name or in order."""
    if is_of_optax(type(node)):
        return True
    is_chain = type(node) is tuple or isinstance(node, dict)
    return is_chain and all(_may_be_of_a_chain(member) for _, member in children(node)[0])


def _may_be_of_a_chain(member: Any) -> bool:
    """Whether it may be the state of a transformation, Optax's or the caller's, and not params."""
    is_named = isinstance(member, tuple) and type(member) is not tuple
    return is_named or not jax.tree.leaves(member) or _is_of_optimizer(member)
