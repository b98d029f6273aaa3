"""What kind an optimizer is of, as far as it moves the rates that a curve suggests."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_clr._states import Path, is_of_optax, key_name, walk

# Momentum and Adam average gradients over ten steps. What turns round at every step they damp 19
# times more than what stays, so they are stable at rates that would be too high without. Plain SGD
# and Adagrad average nothing: the upper end of their valley is nearer to the best rate.
WITHOUT_MEMORY = 2.0
# Lion and Muon bring the average to one size. So their steps are as large late in training, where
# gradients are mostly noise, as in the test, where they agree; those of Adam shrink to a quarter.
NORMALIZED = 1 / 4
# Both have the least regret on the development tasks of docs/study/optimizer_factors.py, of the
# factors from 1/8 to 8. Sign SGD, without memory and of one size, is best at their product there,
# and LAMB and signum are well at the second. Other optimizers are best left alone.
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
    "ScaleByOptimisticGradientState",
    "ScaleByRssState",
    "ScaleByScheduleState",
    "WeightDecaySchedule",
    "WithoutState",
    "WrappedScheduleState",
    "ZeroNansState",
}


# Transformations whose states are empty: their functions alone tell them from plain SGD.
_TO_ONE_SIZE = {"normalize", "normalize_by_update_norm", "scale_by_sign", "scale_by_trust_ratio"}
# Of what averages, or has sizes of its own, the size before does not matter.
_KEEPS_SIZE = {"scale_by_learning_rate", "scale_by_schedule"}
_AVERAGES = {"ema", "sam", "schedule_free", "trace"}


def optimizer_factor(
    state: Any,
    *,
    is_one_size: bool = False,
    is_of_optimizer: Callable[[Path], bool] = lambda path: True,
) -> float:
    """Return how many times the suggested rate is that of Adam or momentum with the same curve.

    It is 1 where the state is not of Optax, or of an optimizer of another kind. The state may have
    other optimizers too.
    """
    kinds, has_normalized_fields = set(), False
    for path, node in walk(state):
        if not is_of_optimizer(path):
            continue
        is_one_size |= has_one_size(getattr(node, "tx", None)) is True  # that of a TrainState
        if _is_state_of_optax(node):
            kinds.add(type(node).__name__)
        elif type(node) is tuple and _has_a_strange_member(node):
            return USUAL
        elif hasattr(node, "keys") and "opt_state" in map(key_name, path):
            has_normalized_fields |= set(node.keys()) in _NORMALIZED_FIELDS
    if kinds & _NORMALIZED_STATES or (has_normalized_fields and not kinds):
        return NORMALIZED
    memory = WITHOUT_MEMORY if kinds and kinds <= _MEMORYLESS_STATES else USUAL
    return memory * NORMALIZED if is_one_size else memory


def has_one_size(part: Any, seen: dict[int, Any] | None = None) -> bool | None:
    """Whether an update is brought to one size, and averaged no more; None if it is neither.

    Told by the names of Optax's functions in ``part``, a transformation or what it is made of.
    """
    seen = {} if seen is None else seen  # the part itself too, so that no other has its id
    if id(part) not in seen:
        seen[id(part)] = part, None  # as long as it is looked into
        seen[id(part)] = part, _size_by_name(part, seen)
    return seen[id(part)][1]  # type: ignore[no-any-return]


def _size_by_name(part: Any, seen: dict[int, Any]) -> bool | None:
    if isinstance(part, types.FunctionType) and is_of_optax(part):
        name = part.__qualname__.partition(".")[0]
        if name in _TO_ONE_SIZE:
            return True
        if name in _AVERAGES or (name.startswith("scale_by_") and name not in _KEEPS_SIZE):
            return False
    sizes = [has_one_size(each, seen) for each in _parts(part)]
    known = [size for size in sizes if size is not None]
    if isinstance(part, dict):  # groups of params
        return all(known) if known else None
    return known[-1] if known else None


def _parts(part: Any) -> list[Any]:
    """Return what a transformation is made of, in the order in which it acts."""
    if isinstance(part, types.FunctionType):
        cells = [cell for cell in part.__closure__ or () if cell != types.CellType()]
        inner = [cell.cell_contents for cell in cells]
        named = dict(zip(part.__code__.co_freevars, inner, strict=False))
        if is_of_optax(part) and {"inner_factory", "other_hps"} <= named.keys():
            return [_injected(named["inner_factory"], named["other_hps"])]
        if is_of_optax(part):  # a function of the caller's in it is a schedule or a mask
            return [each for each in inner if not _is_of_caller(each)]
        return [each for each in inner if _may_update(each)]
    if isinstance(part, types.MethodType) and is_of_optax(type(part.__self__)):
        return [vars(part.__self__)]  # as of optax.MultiSteps
    if _is_transformation(part):
        return [part.update]
    if isinstance(part, dict):
        return list(part.values())
    return list(part) if isinstance(part, (list, tuple)) else []


def _injected(factory: Any, given: dict[str, Any]) -> Any:
    """Return what optax.inject_hyperparams makes in each update, with some hyperparameters."""
    with contextlib.suppress(Exception):  # of a factory that does not take 1; then it is not known
        names = inspect.signature(factory).parameters.keys() - given.keys()
        return factory(**given, **dict.fromkeys(names, 1.0))
    return None


def _is_of_caller(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and not is_of_optax(value)


def _may_update(value: Any) -> bool:
    """Whether what a function of the caller's refers to may be an optimizer, and not its data."""
    return isinstance(value, types.FunctionType) or _is_transformation(value)


def _is_transformation(value: Any) -> bool:
    return hasattr(value, "init") and hasattr(value, "update")


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
