"""The kind of an optimizer, as far as it changes the rates that a curve suggests."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_clr._states import Path, is_of_optax, key_name, walk

# Momentum and Adam average gradients over ten steps. They damp a gradient that flips its sign every
# step 19 times more than a constant one, so they are stable at rates that would be too high without
# averaging. Plain SGD and Adagrad average nothing: the upper end of their valley is nearer to the
# best rate.
WITHOUT_MEMORY = 2.0
# Lion and Muon normalize the averaged gradient to one size. So their steps are as large late in
# training, when gradients are mostly noise, as in the test, when gradients agree; the steps of Adam
# shrink to a quarter.
NORMALIZED = 1 / 4
# Of the factors from 1/8 to 8 these two have the least regret on the development tasks of
# docs/study/optimizer_factors.py. Sign SGD, without memory and with steps of one size, is best at
# their product there, and LAMB and signum do well at the second. Other optimizers are best left
# alone.
USUAL = 1.0

_NORMALIZED_STATES = {"MuonState", "ScaleByLionState"}
# If all types are lost, as in the state that nnx.split returns, field names remain in opt_state.
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


# Transformations with empty states: only their functions distinguish them from plain SGD.
_TO_ONE_SIZE = {"normalize", "normalize_by_update_norm", "scale_by_sign", "scale_by_trust_ratio"}
# After an average, or any other scale_by_ function than these two, the size before does not matter.
_KEEPS_SIZE = {"scale_by_learning_rate", "scale_by_schedule"}
_AVERAGES = {"ema", "sam", "schedule_free", "trace"}


def optimizer_factor(
    state: Any,
    *,
    is_one_size: bool = False,
    is_of_optimizer: Callable[[Path], bool] = lambda path: True,
    has_params: Callable[[Path], bool] = lambda path: False,
) -> float:
    """Return the ratio of the suggested rate to that of Adam or momentum with the same curve.

    It is 1 if the state is not Optax's, or is that of any other kind of optimizer. The state may
    contain other optimizers, which ``is_of_optimizer`` leaves out, and the params, around which a
    tuple is not the state of a chain.
    """
    kinds, has_normalized_fields = set(), False
    for path, node in walk(state):
        if not is_of_optimizer(path):
            continue
        is_one_size |= has_one_size(getattr(node, "tx", None)) is True  # that of a TrainState
        if _is_state_of_optax(node):
            kinds.add(type(node).__name__)
        elif type(node) is tuple and not has_params(path) and _has_a_strange_member(node):
            return USUAL
        elif hasattr(node, "keys") and "opt_state" in map(key_name, path):
            has_normalized_fields |= set(node.keys()) in _NORMALIZED_FIELDS
    if kinds & _NORMALIZED_STATES or (has_normalized_fields and not kinds):
        return NORMALIZED
    memory = WITHOUT_MEMORY if kinds and kinds <= _MEMORYLESS_STATES else USUAL
    return memory * NORMALIZED if is_one_size else memory


def has_one_size(part: Any, seen: dict[int, Any] | None = None) -> bool | None:
    """Whether updates are brought to one size, and not averaged after that; None if neither.

    Judged by the names of Optax's functions in ``part``, a transformation or a part of one.
    """
    seen = {} if seen is None else seen  # keeps the parts alive, so that no id is used twice
    if id(part) not in seen:
        seen[id(part)] = part, None  # in case it refers to itself
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
    """Return the parts of a transformation, in the order in which they act."""
    if isinstance(part, types.FunctionType):
        cells = [cell for cell in part.__closure__ or () if cell != types.CellType()]
        inner = [cell.cell_contents for cell in cells]
        named = dict(zip(part.__code__.co_freevars, inner, strict=False))
        if is_of_optax(part) and {"inner_factory", "other_hps"} <= named.keys():
            return [_injected(named["inner_factory"], named["other_hps"])]
        if is_of_optax(part):  # a caller's function in it is a schedule or a mask
            return [each for each in inner if not _is_of_caller(each)]
        return [each for each in inner if _may_update(each)]
    if isinstance(part, types.MethodType) and is_of_optax(type(part.__self__)):
        return [vars(part.__self__)]  # such as optax.MultiSteps
    if _is_transformation(part):
        return [part.update]
    if isinstance(part, dict):
        return list(part.values())
    return list(part) if isinstance(part, (list, tuple)) else []


def _injected(factory: Any, given: dict[str, Any]) -> Any:
    """Return what optax.inject_hyperparams builds in an update, with 1 for what is not given."""
    with contextlib.suppress(Exception):  # the factory may refuse 1; then the size is not known
        names = inspect.signature(factory).parameters.keys() - given.keys()
        return factory(**given, **dict.fromkeys(names, 1.0))
    return None


def _is_of_caller(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and not is_of_optax(value)


def _may_update(value: Any) -> bool:
    """Whether a value that a caller's function closes over may be an optimizer, and not data."""
    return isinstance(value, types.FunctionType) or _is_transformation(value)


def _is_transformation(value: Any) -> bool:
    return hasattr(value, "init") and hasattr(value, "update")


def _is_state_of_optax(node: Any) -> bool:
    return is_of_optax(type(node)) and not isinstance(node, optax.MaskedNode)


def _has_a_strange_member(chain: tuple[Any, ...]) -> bool:
    """Whether a chain has a transformation whose state is not Optax's and may hold memory."""
    if not any(isinstance(member, optax.EmptyState) for member in chain):
        return False
    return any(
        not _is_state_of_optax(member)
        and type(member) is not tuple
        and bool(jax.tree.leaves(member))
        for member in chain
    )
