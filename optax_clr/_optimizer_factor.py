"""What kind of optimizer a state is of, as far as it moves the rates that a curve suggests."""

from __future__ import annotations

from typing import Any

import jax
import optax

from optax_clr._states import is_of_optax, key_name, walk

# Momentum and Adam average gradients over ten steps. What turns round at every step they damp 19
# times more than what stays, so they are stable at rates that would be too high without. Plain SGD
# and Adagrad average nothing: the upper end of their valley is nearer to the best rate.
WITHOUT_MEMORY = 2.0
# Lion and Muon bring the average to one size. So their steps are as large late in training, where
# gradients are mostly noise, as in the test, where they agree; those of Adam shrink to a quarter.
NORMALIZED = 1 / 4
# Both have the least regret on the development tasks of docs/study/optimizer_factors.py, of the
# factors from 1/8 to 8; other optimizers are best left alone there.
USUAL = 1.0

_NORMALIZED_STATES = {"MuonState", "ScaleByLionState"}
# Where all types are lost, as in the state of nnx.split, their fields are left in its opt_state.
_NORMALIZED_FIELDS = ({"count", "mu"}, {"count", "mu", "ns_coeffs"})
_MEMORYLESS_STATES = {
    "AddNoiseState",
    "ApplyEvery",
    "ApplyIfFiniteState",
    "AveragingState",
    "ConditionallyMaskState",
    "ConditionallyTransformState",
    "EmptyState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "MaskedState",
    "MultiStepsState",
    "MultiTransformState",
    "PartitionState",
    "ReduceLROnPlateauState",
    "ScaleByRssState",
    "ScaleByScheduleState",
    "WeightDecaySchedule",
    "WithoutState",
    "WrappedScheduleState",
    "ZeroNansState",
}


def optimizer_factor(state: Any) -> float:
    """Return how many times the suggested rate is that of Adam or momentum with the same curve.

    It is 1 where the state is not of Optax, or of an optimizer of another kind.
    """
    kinds, has_normalized_fields = set(), False
    for path, node in walk(state):
        if _is_state_of_optax(node):
            kinds.add(type(node).__name__)
        elif type(node) is tuple and _has_a_strange_member(node):
            return USUAL
        elif hasattr(node, "keys") and "opt_state" in map(key_name, path):
            has_normalized_fields |= set(node.keys()) in _NORMALIZED_FIELDS
    if kinds & _NORMALIZED_STATES or (has_normalized_fields and not kinds):
        return NORMALIZED
    return WITHOUT_MEMORY if kinds and kinds <= _MEMORYLESS_STATES else USUAL


def _is_state_of_optax(node: Any) -> bool:
    is_state = isinstance(node, tuple) and not isinstance(node, optax.MaskedNode)
    return is_state and is_of_optax(type(node))


def _has_a_strange_member(chain: tuple[Any, ...]) -> bool:
    """Whether a chain has a transformation whose state is not Optax's, and may remember."""
    if not any(isinstance(member, optax.EmptyState) for member in chain):
        return False
    return any(
        not _is_state_of_optax(member)
        and type(member) is not tuple
        and bool(jax.tree.leaves(member))
        for member in chain
    )
